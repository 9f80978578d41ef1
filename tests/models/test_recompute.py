"""Computing activations again gives the same gradients and keeps less."""

import copy
from contextlib import nullcontext
from functools import partial

import pytest
import torch
from torch import nn
from torch.autograd.graph import saved_tensors_hooks
from transformers import AutoConfig, AutoModelForCausalLM

from rlhf_lightning.algorithms.batch import ComparisonBatch
from rlhf_lightning.algorithms.losses import ranking_loss
from rlhf_lightning.models.loading import use_fast_kernels
from rlhf_lightning.models.log_probs import causal_log_probs
from rlhf_lightning.models.recompute import checkpoint_activations
from rlhf_lightning.models.scalar_head import ScalarHeadModel
from rlhf_lightning.models.shared_prefix import cached_scores, tree_scores
from rlhf_lightning.modules.reward import RewardModule

from .families import BASE, FAMILIES

IDS = torch.arange(48).view(4, 12) % 30 + 3
ALL = torch.ones_like(IDS, dtype=torch.bool)


def gradients_and_kept(model, loss):
    """Gradients, and the bytes that autograd keeps for the backward pass."""
    kept = {}

    def pack(tensor):
        kept[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    with saved_tensors_hooks(pack, lambda tensor: tensor):
        value = loss()
    own = {p.untyped_storage().data_ptr() for p in model.parameters()}
    gradients = torch.autograd.grad(value, list(model.parameters()))
    return gradients, sum(size for place, size in kept.items() if place not in own)


@pytest.mark.parametrize("mixed", [False, True], ids=["32 bits", "bf16-mixed"])
@pytest.mark.parametrize("kind", ["gpt2", "llama"])
def test_gradients_stay_and_memory_shrinks(make_tiny_lm, kind, mixed):
    plain, checkpointed = make_tiny_lm(kind, attn_implementation="sdpa"), make_tiny_lm(kind)
    checkpoint_activations(checkpointed)
    seen = []
    for model in (plain, checkpointed):
        with torch.autocast("cpu", torch.bfloat16) if mixed else nullcontext():
            seen.append(gradients_and_kept(model, lambda model=model: causal_log_probs(model, IDS, ALL, ALL).sum()))
    for own, expected in zip(seen[1][0], seen[0][0], strict=True):
        torch.testing.assert_close(own, expected, atol=1e-5, rtol=1e-5)
    assert seen[1][1] < 0.5 * seen[0][1]
    assert checkpointed.config._attn_implementation == "sdpa"


def test_dropout_falls_alike_in_both_passes(make_tiny_lm):
    plain = make_tiny_lm("gpt2", resid_pdrop=0.5).train()
    checkpointed = copy.deepcopy(plain)
    checkpoint_activations(checkpointed)
    seen = []
    for model in (plain, checkpointed):
        torch.manual_seed(5)
        seen.append(gradients_and_kept(model, lambda model=model: causal_log_probs(model, IDS, ALL, ALL).sum())[0])
    for own, expected in zip(seen[1], seen[0], strict=True):
        torch.testing.assert_close(own, expected, atol=1e-5, rtol=1e-5)


def scalar_model(family):
    """With weights wide enough to look at other tokens, and a window of 24 tokens where it has one."""
    kind, options = FAMILIES[family]
    window = {"sliding_window": 24} if "sliding_window" in options else {}
    config = AutoConfig.for_model(kind, **{**BASE, **options, **window, "initializer_range": 0.2})
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(3)
        return ScalarHeadModel.from_causal_lm(use_fast_kernels(AutoModelForCausalLM.from_config(config)).eval())


MIXED = pytest.mark.parametrize("mixed", [False, True], ids=["32 bits", "bf16-mixed"])


@MIXED
@pytest.mark.parametrize("scores_of", [cached_scores, tree_scores])
@pytest.mark.parametrize("family", ["GPT-2", "Llama", "Qwen 3", "Gemma 3 text"])
def test_a_reward_model_shares_the_prompt_all_the_same(family, scores_of, mixed):
    """The keys and values of the prompt pass through the blocks that are computed again."""
    model = scalar_model(family)
    responses = torch.arange(160).view(2, 8, 10) % 30 + 3  # with the prompt within the window of 24
    mask = torch.ones_like(responses, dtype=torch.bool)
    mask[1, 3:, 4:] = False
    batch = ComparisonBatch(IDS[:2], ALL[:2], responses, mask, torch.arange(1, 9).repeat(2, 1), [""] * 2)
    if scores_of is tree_scores and family == "Gemma 3 text":
        pytest.skip("a shared row is longer than the window")
    seen = []
    for again in (False, True):
        own = copy.deepcopy(model)
        module = RewardModule(own, partial(torch.optim.SGD, lr=0.1), activation_checkpointing=again)

        def loss(own=own):
            return ranking_loss(scores_of(own, batch), batch.ranks, batch.mask)[0]

        with torch.autocast("cpu", torch.bfloat16) if mixed else nullcontext():
            seen.append(gradients_and_kept(module, loss))
    for own, expected in zip(seen[1][0], seen[0][0], strict=True):
        torch.testing.assert_close(own, expected, atol=3e-3 if mixed else 1e-6, rtol=1e-5)
    assert seen[1][1] < 0.5 * seen[0][1]


def test_a_module_without_blocks_is_refused():
    with pytest.raises(ValueError, match="Linear has no blocks"):
        checkpoint_activations(nn.Linear(2, 2))
