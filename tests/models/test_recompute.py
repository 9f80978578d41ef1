"""Computing activations again gives the same gradients and keeps less."""

import copy
from contextlib import nullcontext
from functools import partial

import pytest
import torch
from torch import nn
from torch.autograd.graph import saved_tensors_hooks

from rlhf_lightning.algorithms.batch import ComparisonBatch
from rlhf_lightning.models.log_probs import causal_log_probs
from rlhf_lightning.models.recompute import checkpoint_activations
from rlhf_lightning.models.scalar_head import ScalarHeadModel
from rlhf_lightning.modules.reward import RewardModule

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


@pytest.mark.parametrize("mixed", [False, True], ids=["32 bits", "bf16-mixed"])
def test_a_reward_model_shares_the_prompt_by_the_tree_mask(tiny_lm, mixed):
    model = ScalarHeadModel.from_causal_lm(tiny_lm)
    responses = torch.arange(40).view(2, 4, 5) % 30 + 3
    batch = ComparisonBatch(
        IDS[:2],
        ALL[:2],
        responses,
        torch.ones_like(responses, dtype=torch.bool),
        torch.tensor([[1, 2, 3, 4]] * 2),
        [""] * 2,
    )
    seen = []
    for again in (False, True):
        module = RewardModule(copy.deepcopy(model), partial(torch.optim.SGD, lr=0.1), activation_checkpointing=again)
        with torch.autocast("cpu", torch.bfloat16) if mixed else nullcontext():
            seen.append(gradients_and_kept(module, lambda module=module: module.loss(batch)[0]))
        assert len(module.passes.sound) == (1 if again else 2)
    for own, expected in zip(seen[1][0], seen[0][0], strict=True):
        torch.testing.assert_close(own, expected, atol=3e-3 if mixed else 1e-5, rtol=1e-4)
    assert seen[1][1] < 0.6 * seen[0][1]


def test_a_module_without_blocks_is_refused():
    with pytest.raises(ValueError, match="Linear has no blocks"):
        checkpoint_activations(nn.Linear(2, 2))
