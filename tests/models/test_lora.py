"""Adapters: one model stands for two, and nothing else changes."""

import copy
import sys
from functools import partial
from typing import Any

import lightning as L
import pytest
import torch
from torch import nn

from rlhf_lightning.algorithms.batch import PromptBatch
from rlhf_lightning.data.examples import PromptExample
from rlhf_lightning.data.loader import collate_prompts
from rlhf_lightning.generation.rewards import response_scores
from rlhf_lightning.models.export import export_causal_lm
from rlhf_lightning.models.loading import load_causal_lm
from rlhf_lightning.models.lora import (
    adapters_disabled,
    add_adapters,
    critic_with_adapters,
    freeze_unshared,
    has_adapters,
    merge_adapters,
    without_adapters,
)
from rlhf_lightning.models.scalar_head import ScalarHeadModel
from rlhf_lightning.modules.ppo import PPOModule

IDS = torch.arange(24).view(2, 12) % 30 + 3
SGD = partial(torch.optim.SGD, lr=0.3)


def logits(model: Any) -> torch.Tensor:
    with torch.no_grad():
        found: torch.Tensor = model(input_ids=IDS).logits
    return found


def disturb(model: nn.Module) -> None:
    """As training would."""
    generator = torch.Generator().manual_seed(4)
    for parameter in model.parameters():
        if parameter.requires_grad:
            parameter.data += 0.3 * torch.randn(parameter.shape, generator=generator)


@pytest.fixture
def adapted(tiny_lm: Any) -> tuple[Any, Any]:
    """A model with adapters, and what it was."""
    before = copy.deepcopy(tiny_lm)
    add_adapters(tiny_lm, rank=4)
    return tiny_lm, before


def test_adapters_start_as_nothing_and_alone_learn(adapted: tuple[Any, Any]) -> None:
    model, before = adapted
    assert torch.equal(logits(model), logits(before))
    names = [name for name, parameter in model.named_parameters() if parameter.requires_grad]
    assert names
    assert all("lora" in name for name in names)
    blocks = [name for name, _ in before.named_modules() if name.endswith(("c_fc", "down_proj"))]
    assert len(blocks) == 2
    assert all(any(name.startswith(block) for name in names) for block in blocks)


def test_without_them_it_is_the_old_model_bit_for_bit(adapted: tuple[Any, Any]) -> None:
    model, before = adapted
    disturb(model)
    assert not torch.allclose(logits(model), logits(before), atol=1e-2)
    with adapters_disabled(model, "no model"):
        assert torch.equal(logits(model), logits(before))
    assert any(parameter.requires_grad for parameter in model.parameters())
    assert not torch.allclose(logits(model), logits(before), atol=1e-2)


def test_merging_gives_a_plain_model_that_says_the_same(
    adapted: tuple[Any, Any], tiny_tokenizer: Any, tmp_path: Any
) -> None:
    model, before = adapted
    disturb(model)
    plain = merge_adapters(model)
    assert not has_adapters(plain)
    assert has_adapters(model)
    assert plain.state_dict().keys() == before.state_dict().keys()
    torch.testing.assert_close(logits(plain), logits(model), atol=1e-4, rtol=1e-4)
    export_causal_lm(model, tiny_tokenizer, tmp_path / "model")
    torch.testing.assert_close(logits(load_causal_lm(str(tmp_path / "model"))), logits(model), atol=1e-4, rtol=1e-4)


def test_the_critic_shares_the_body_and_starts_as_the_reward_model(tiny_lm: Any) -> None:
    reward = ScalarHeadModel.from_causal_lm(tiny_lm)
    before = copy.deepcopy(reward)
    value = critic_with_adapters(reward, rank=4)
    assert torch.equal(value(IDS), before(IDS))
    assert value.backbone is reward.backbone
    disturb(value)
    with adapters_disabled(reward):
        assert torch.equal(reward(IDS), before(IDS))
    assert not torch.allclose(value(IDS), before(IDS), atol=1e-2)
    assert not any(parameter.requires_grad for parameter in reward.head.parameters())
    assert all(parameter.requires_grad for parameter in value.head.parameters())


def test_only_named_layers(tiny_gpt2: Any) -> None:
    add_adapters(tiny_gpt2, rank=2, alpha=8, targets=["c_attn"])
    names = {name.split(".lora")[0] for name, p in tiny_gpt2.named_parameters() if p.requires_grad}
    assert {name.rsplit(".", 1)[1] for name in names} == {"c_attn"}


@pytest.mark.parametrize("kind", ["gpt2", "llama"])
def test_a_merged_model_of_16_bits_has_32(kind: str, make_tiny_lm: Any) -> None:
    """A step of adapters is smaller than the distance between two numbers of 16 bits, and would be lost."""
    model = make_tiny_lm(kind, dtype=torch.bfloat16)
    add_adapters(model, rank=4)
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            parameter.data += 1e-4 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(1))
    plain = merge_adapters(model)
    assert plain.dtype == torch.float32
    exact = model.float()  # its adapters have 32 bits already
    with adapters_disabled(exact):
        before = logits(exact)
    moved = (logits(exact) - before).norm()
    assert 0 < moved < 0.2
    torch.testing.assert_close(logits(plain), logits(exact), atol=1e-5, rtol=1e-5)
    assert (logits(plain) - logits(exact)).norm() < 0.05 * moved
    assert not any("peft_config" in module.__dict__ for module in plain.modules())


def test_without_adapters_is_the_start(adapted: tuple[Any, Any]) -> None:
    model, before = adapted
    disturb(model)
    start = without_adapters(model)
    assert start.state_dict().keys() == before.state_dict().keys()
    assert torch.equal(logits(start), logits(before))


@pytest.mark.parametrize(
    ("targets", "sentence"),
    [
        (["c_attn", "q_proj"], "names q_proj, which is no layer of this GPT2LMHeadModel"),
        (["c_attn", "lm_head"], "names lm_head; the embedding and output layers"),
        (["wte"], r"names transformer\.wte; the embedding and output layers"),
    ],
)
@pytest.mark.filterwarnings("ignore:.*tie_word_embeddings.*", "ignore:.*fan_in_fan_out.*")
def test_targets_that_are_refused(tiny_gpt2: Any, targets: list[str], sentence: str) -> None:
    with pytest.raises(ValueError, match=sentence):
        add_adapters(tiny_gpt2, rank=2, targets=targets)


def prompts(rows: int = 8) -> PromptBatch:
    examples = [PromptExample([3 + (row + n) % 30 for n in range(1 + row % 4)], row, f"p{row}") for row in range(rows)]
    return collate_prompts(examples, 0)


def ppo(policy: Any, reference: Any, reward: Any, value: Any, tokenizer: Any) -> PPOModule:
    options: dict[str, Any] = {"max_new_tokens": 6, "num_minibatches": 2, "ema_decay": 0.9, "seed": 3}
    return PPOModule(policy, reference, reward, value, tokenizer, SGD, SGD, **options)


def test_ppo_on_shared_bodies_is_ppo_on_copies_bit_for_bit(tiny_lm: Any, tiny_tokenizer: Any) -> None:
    copies = {"reference": copy.deepcopy(tiny_lm), "reward": ScalarHeadModel.from_causal_lm(tiny_lm)}
    reward = copy.deepcopy(copies["reward"])
    add_adapters(tiny_lm, rank=4)
    value = critic_with_adapters(reward, rank=4)
    for model in (tiny_lm, value):
        disturb(model)
    policy, critic = copy.deepcopy(tiny_lm), copy.deepcopy(value)
    shared = ppo(tiny_lm, tiny_lm, reward, value, tiny_tokenizer)
    apart = ppo(policy, copies["reference"], copies["reward"], critic, tiny_tokenizer)
    optimizers = {id(module): module.build_optimizers() for module in (shared, apart)}
    weights = [(shared.policy, apart.policy), (shared.value, apart.value), (shared.ema, apart.ema)]
    before = copy.deepcopy(shared.policy.state_dict())
    for iteration in range(2):
        own, other = (module.score(module.rollout(prompts())) for module in (shared, apart))
        assert torch.equal(own.reference_log_probs, other.reference_log_probs)
        assert torch.equal(own.scores, other.scores)
        for module, experience in ((shared, own), (apart, other)):
            module.update(experience, None, optimizers[id(module)])
            module.iteration += 1
        for one, two in weights:
            assert one is not None and two is not None  # noqa: PT018
            pairs = zip(one.state_dict().values(), two.state_dict().values(), strict=True)
            assert all(torch.equal(a, b) for a, b in pairs), iteration
    moved = {name for name, value in shared.policy.state_dict().items() if not torch.equal(value, before[name])}
    assert moved
    assert all("lora" in name for name in moved)


@pytest.mark.filterwarnings("ignore:.*many workers.*", "ignore:.*LeafSpec.*")
def test_validation_scores_without_the_critics_adapters(tiny_gpt2: Any, tiny_tokenizer: Any) -> None:
    reward = ScalarHeadModel.from_causal_lm(tiny_gpt2)
    alone = copy.deepcopy(reward)
    add_adapters(tiny_gpt2, rank=2)
    value = critic_with_adapters(reward, rank=2)
    disturb(value)
    module = ppo(tiny_gpt2, tiny_gpt2, reward, value, tiny_tokenizer)
    loader = torch.utils.data.DataLoader([prompts()], batch_size=None)  # type: ignore[arg-type]
    quiet = {"logger": False, "enable_progress_bar": False, "enable_model_summary": False}
    (logged,) = L.Trainer(accelerator="cpu", **quiet).validate(module, loader, verbose=False)  # type: ignore[arg-type]
    expected = response_scores(alone, module.rollout(prompts()), tiny_tokenizer).mean()
    assert logged["validation/score"] == float(expected.detach())


def test_checkpoints_hold_what_learns(tiny_lm: Any, tiny_tokenizer: Any) -> None:
    reward = ScalarHeadModel.from_causal_lm(tiny_lm)
    add_adapters(tiny_lm, rank=2)
    module = ppo(tiny_lm, tiny_lm, reward, critic_with_adapters(reward, rank=2), tiny_tokenizer)
    checkpoint: dict[str, Any] = {"state_dict": module.state_dict()}
    module.on_save_checkpoint(checkpoint)
    kept = checkpoint["state_dict"]
    assert {name.split(".")[0] for name in kept} == {"policy", "value", "ema", "kl_coef", "iteration"}
    weights = [name for name in kept if name.startswith("policy.")]
    assert weights
    assert all("lora" in name for name in weights)
    other = copy.deepcopy(module)
    module.on_load_checkpoint(checkpoint)
    disturb(other)
    other.load_state_dict(kept, strict=False)
    assert all(
        torch.equal(a, b) for a, b in zip(other.state_dict().values(), module.state_dict().values(), strict=True)
    )
    lost = dict(kept)
    lost.pop(weights[0])
    with pytest.raises(RuntimeError, match=r"of another model: it lacks .*lora"):
        module.on_load_checkpoint({**checkpoint, "state_dict": lost})


def test_refusals(tiny_lm: Any, tiny_tokenizer: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    reward = ScalarHeadModel.from_causal_lm(tiny_lm)
    with pytest.raises(ValueError, match=r"shares weights with the .* that learns"):
        freeze_unshared(tiny_lm, tiny_lm)
    with pytest.raises(ValueError, match="shares weights with the ScalarHeadModel"):
        ppo(tiny_lm, copy.deepcopy(tiny_lm), reward, reward, tiny_tokenizer)
    with pytest.raises(ValueError, match="at least 1, got 0"):
        add_adapters(tiny_lm, rank=0)
    add_adapters(tiny_lm, rank=1)
    with pytest.raises(ValueError, match="has adapters already"):
        add_adapters(tiny_lm, rank=1)
    monkeypatch.setitem(sys.modules, "peft", None)
    with pytest.raises(ImportError, match=r"pip install 'rlhf-lightning\[lora\]'"):
        add_adapters(copy.deepcopy(reward.backbone), rank=1)  # type: ignore[arg-type]
