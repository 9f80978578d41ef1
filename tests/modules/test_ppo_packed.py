"""PPO on packed rows: the ratio is exactly 1, and the gradients are those of every episode by itself."""

import copy
from functools import partial
from typing import Any

import lightning
import pytest
import torch
from torch import nn

from rlhf_lightning.algorithms.losses import policy_loss, value_loss
from rlhf_lightning.data.examples import PromptExample
from rlhf_lightning.data.loader import collate_prompts
from rlhf_lightning.models.lora import ppo_models, trainable_parameters
from rlhf_lightning.models.scalar_head import ScalarHeadModel
from rlhf_lightning.modules.ppo import PPOModule

from ..models.families import make_family

SGD = partial(torch.optim.SGD, lr=0.1)
PROMPTS = collate_prompts(
    [PromptExample([3 + (5 * r + n) % 30 for n in range(1 + 3 * r % 11)], r, "") for r in range(8)], 0
)


def make_module(model: Any, tokenizer: Any, rank: int = 0, **changes: Any) -> PPOModule:
    models = ppo_models(model, ScalarHeadModel.from_causal_lm(model), rank=rank)
    torch.manual_seed(0)
    for parameter in trainable_parameters(models["policy"]) * bool(rank):
        nn.init.normal_(parameter, std=0.05)
    options = {"max_new_tokens": 9, "num_minibatches": 2, "micro_batch_size": 3, "kl_coef": 0.1, "packing": True}
    module = PPOModule(**models, tokenizer=tokenizer, optimizer=SGD, value_optimizer=SGD, **{**options, **changes})
    lightning.Fabric(accelerator="cpu", devices=1).setup(module, *module.build_optimizers())
    return module


@pytest.mark.parametrize("rank", [0, 2], ids=["full", "lora"])
@pytest.mark.parametrize("name", ["GPT-2", "Llama", "Qwen 3", "Gemma 3 text"])
def test_the_ratio_is_one_and_the_gradients_are_those_of_single_episodes(
    name: str, rank: int, tiny_tokenizer: Any
) -> None:
    module = make_module(make_family(name), tiny_tokenizer, rank)
    experience = module.score(module.rollout(PROMPTS))
    assert module.packing.packs
    assert int(experience.rollout.lengths.max()) > 8, "beyond the windows of 8 tokens"
    rows = experience.minibatches[0]
    mask = experience.rollout.response_mask
    total = mask[rows].sum()
    policy, value = torch.zeros(()), torch.zeros(())
    for row in rows.tolist():
        prompt = PROMPTS.prompt_ids[row][PROMPTS.prompt_mask[row]]
        ids = torch.cat([prompt, experience.rollout.response_ids[row][mask[row]]])[None]
        behind = slice(len(prompt) - 1, ids.shape[1] - 1)
        logits = module.policy(input_ids=ids, attention_mask=torch.ones_like(ids), use_cache=False).logits
        log_probs = logits.log_softmax(-1)[0, behind].gather(1, ids[0, len(prompt) :, None]).T
        torch.testing.assert_close(log_probs[0], experience.old_log_probs[row][mask[row]], atol=1e-5, rtol=0)
        values = module.value(ids)[:, behind]
        torch.testing.assert_close(values[0], experience.old_values[row][mask[row]], atol=1e-5, rtol=0)
        parts = [each[row][mask[row]][None] for each in experience[2:7]]
        real = torch.ones_like(log_probs, dtype=torch.bool)
        policy = policy + policy_loss(log_probs, parts[0], parts[3], real, 0.2, total)[0]
        value = value + value_loss(values, parts[2], parts[4], real, 0.2, total)[0]
    for model, loss in ((module.policy, policy), (module.value, value)):
        expected = torch.autograd.grad(loss, trainable_parameters(model), allow_unused=True)
        statistics = module.backward_policy(experience, rows) if model is module.policy else None
        if statistics is None:
            module.backward_value(experience, rows)
        else:
            assert (float(statistics.ratio_deviation), float(statistics.approx_kl)) == (0.0, 0.0)
        for parameter, wanted in zip(trainable_parameters(model), expected, strict=True):
            scale = 1e-5 * max(1.0, 0.0 if wanted is None else float(wanted.abs().max()))
            torch.testing.assert_close(parameter.grad, wanted, atol=scale, rtol=1e-4)


def test_minibatches_of_any_lengths_are_one_pass(tiny_llama: Any, tiny_tokenizer: Any) -> None:
    """So that `micro_batch_size` alone says how many passes there are; padding is not read."""
    module = make_module(tiny_llama, tiny_tokenizer, micro_batch_size=None)
    module.throughput.start("update")
    experience = module.score(module.rollout(PROMPTS))
    module.update(experience, optimizers=module.build_optimizers())
    assert module.throughput.figures()["time/padding"] < 0.05  # the reward reads some


@pytest.mark.parametrize("rank", [0, 2])
def test_sixteen_bits_read_the_same_numbers_before_and_in_the_update(
    rank: int, tiny_llama: Any, tiny_tokenizer: Any
) -> None:
    """Weights that do not learn are cast once; nothing is left of it, and the ratio is 1."""
    module = make_module(tiny_llama, tiny_tokenizer, rank)
    before = copy.deepcopy(dict(module.policy.named_parameters()))
    with torch.autocast("cpu", torch.bfloat16):
        experience = module.score(module.rollout(PROMPTS))
        assert module.backward_policy(experience, experience.minibatches[0]).ratio_deviation == 0
    for name, weight in module.policy.named_parameters():
        assert weight.dtype == torch.float32
        assert weight.requires_grad == before[name].requires_grad
        assert torch.equal(weight, before[name])


def test_what_cannot_be_packed_is_read_as_before(tiny_gpt2: Any, tiny_tokenizer: Any) -> None:
    tiny_gpt2.config._attn_implementation = "eager"
    module = make_module(tiny_gpt2, tiny_tokenizer)
    with pytest.warns(UserWarning, match="does not support packed rows"):
        experience = module.score(module.rollout(PROMPTS))
    assert not module.packing.packs
    assert module.backward_policy(experience, experience.minibatches[0]).ratio_deviation == 0
