"""The self-check passes on sound models and names every planted fault."""

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn
from transformers import Qwen2Config, Qwen2ForCausalLM, Qwen3Config, Qwen3ForCausalLM

from rlhf_lightning import functional, logits, prefix
from rlhf_lightning.averaging import MovingAverage
from rlhf_lightning.checks import Subject, check, check_table
from rlhf_lightning.data import collate
from rlhf_lightning.data.records import Comparison, Demonstration, Prompt, Text
from rlhf_lightning.data.tokens import Tokenization
from rlhf_lightning.models import ScalarHeadModel, load_causal_lm, load_tokenizer
from rlhf_lightning.stages import experience, ppo, ptx
from rlhf_lightning.stages import reward as reward_stage
from rlhf_lightning.stages.ppo import PPOModule

PROMPTS = [Prompt(" ".join(f"w{3 + (n + k) % 30}" for k in range(1 + n % 4))) for n in range(8)]
DEMONSTRATIONS = [Demonstration(f"w{3 + n} w5", " ".join(f"w{6 + n + k}" for k in range(1 + n % 3))) for n in range(12)]
COMPARISONS = [Comparison(f"w{3 + n} w9", ["w4 w5", f"w{6 + n}", "w7 w8 w9", "w5"], [1, 3, 2, 2]) for n in range(4)]
TEXTS = [Text(" ".join(f"w{3 + (n + k) % 30}" for k in range(9))) for n in range(6)]


def subject_of(model: Any, tokenizer: Any, **changes: Any) -> Subject:
    options: dict[str, Any] = {
        "demonstrations": DEMONSTRATIONS,
        "comparisons": COMPARISONS,
        "texts": TEXTS,
        "max_new_tokens": 6,
        "block_size": 10,
        "tokenization": Tokenization(tokenizer, 20, 8),
    }
    return Subject(model, tokenizer, PROMPTS, **{**options, **changes})


def outcomes(subject: Subject) -> dict[str, str]:
    return {result.name: result.outcome for result in check(subject)}


def failures(subject: Subject) -> set[str]:
    return {name for name, outcome in outcomes(subject).items() if outcome == "fail"}


def qwen(kind: str) -> Any:
    sizes = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4}
    config, architecture = {"qwen2": (Qwen2Config, Qwen2ForCausalLM), "qwen3": (Qwen3Config, Qwen3ForCausalLM)}[kind]
    made = config(
        vocab_size=40,
        num_key_value_heads=2,
        max_position_embeddings=128,
        initializer_range=0.2,
        bos_token_id=None,
        eos_token_id=1,
        pad_token_id=0,
        **sizes,
        **({"head_dim": 8} if kind == "qwen3" else {}),
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return architecture(made).eval()


def reward_of(subject: Subject) -> ScalarHeadModel:
    """A reward model that gives the demonstrations 0 on average."""
    with torch.random.fork_rng(devices=[]), torch.no_grad():
        torch.manual_seed(0)
        reward = ScalarHeadModel.from_causal_lm(subject.policy)
        examples = subject.tokens.demonstrations(subject.demonstrations)
        scores = [float(reward(torch.tensor([example.input_ids]))[0, -1]) for example in examples]
        reward.bias -= sum(scores) / len(scores)
    return reward


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("kind", ["gpt2", "llama", "qwen2", "qwen3"])
def test_sound_models_pass(kind: str, dtype: torch.dtype, make_tiny_lm: Any, tiny_tokenizer: Any) -> None:
    model = (qwen(kind) if kind.startswith("qwen") else make_tiny_lm(kind)).to(dtype)
    before = copy.deepcopy(model.state_dict())
    subject = subject_of(model, tiny_tokenizer)
    subject.reward = reward_of(subject)
    results = check(subject)
    assert {result.outcome for result in results} == {"pass"}, [r for r in results if r.outcome != "pass"]
    assert len(results) >= 23
    assert all(result.meaning and result.remedy and result.measured for result in results)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert check_table(results).row_count == len(results)


def test_the_embedded_model_passes_with_little_data() -> None:
    subject = Subject(
        load_causal_lm("sandbox/small"), load_tokenizer("sandbox"), [Prompt("answer : what eats milk ?")] * 8
    )
    found = outcomes(subject)
    assert {name for name, outcome in found.items() if outcome == "skipped"} == {"endings", "centred reward"}
    assert "fail" not in found.values()


# --- planted faults ---------------------------------------------------------------------------------------------------

Plant = Callable[[pytest.MonkeyPatch, Subject], None]


def _positions_count_padding(patch: pytest.MonkeyPatch, subject: Subject) -> None:
    patch.setattr(functional, "position_ids", lambda mask: torch.arange(mask.shape[1]).expand(mask.shape))


def _log_probs_ignore_the_mask(patch: pytest.MonkeyPatch, subject: Subject) -> None:
    patch.setattr(logits, "position_ids", lambda mask: torch.arange(mask.shape[1]).expand(mask.shape))
    patch.setattr(logits, "_hidden_by_length", None)


def _dropout_stays_on(patch: pytest.MonkeyPatch, subject: Subject) -> None:
    class Noisy(PPOModule):
        def __init__(self, **options: Any) -> None:
            super().__init__(**options)
            for layer in self.policy.modules():
                if isinstance(layer, nn.Dropout):
                    layer.p = 0.3
            self.policy.train()

    subject.make_ppo = Noisy


def _temperature_is_forgotten(patch: pytest.MonkeyPatch, subject: Subject) -> None:
    sample = ppo.sample_responses
    subject.make_ppo = lambda **options: PPOModule(
        sampler=lambda *args, **kwargs: sample(*args, **{**kwargs, "temperature": 0.5}), **options
    )


def _eos_does_not_count(patch: pytest.MonkeyPatch, subject: Subject) -> None:
    collate_lm = collate.collate_lm

    def without(examples: Any, pad: int) -> Any:
        batch = collate_lm(examples, pad)
        return batch._replace(loss_mask=batch.loss_mask & (batch.input_ids != 1))

    patch.setattr(collate, "collate_lm", without)


def _prompt_counts(patch: pytest.MonkeyPatch, subject: Subject) -> None:
    collate_lm = collate.collate_lm
    patch.setattr(
        collate, "collate_lm", lambda examples, pad: (lambda b: b._replace(loss_mask=b.mask))(collate_lm(examples, pad))
    )


def _pad_is_eos(patch: pytest.MonkeyPatch, subject: Subject) -> None:
    subject.tokenizer = copy.deepcopy(subject.tokenizer)
    subject.tokens  # noqa: B018 - made while the tokenizer was sound
    subject.tokenizer.pad_token = subject.tokenizer.eos_token


def _responses_see_each_other(patch: pytest.MonkeyPatch, subject: Subject) -> None:
    def causal(segments: Any, mask: Any) -> Any:
        width = mask.shape[1]
        return torch.ones(width, width, dtype=torch.bool).tril().expand(len(mask), 1, width, width)

    patch.setattr(prefix, "tree_mask", causal)
    patch.setattr(reward_stage, "sound_passes", lambda *_: ((prefix.tree_scores,), ""))


def _ties_are_pairs(patch: pytest.MonkeyPatch, subject: Subject) -> None:
    ranking_loss = reward_stage.ranking_loss

    def broken(scores: Any, ranks: Any, mask: Any) -> Any:
        return ranking_loss(scores, torch.arange(ranks.shape[1]).expand_as(ranks) + 1, mask)

    patch.setattr(reward_stage, "ranking_loss", broken)


def _bias_is_of_another_model(patch: pytest.MonkeyPatch, subject: Subject) -> None:
    reward = ScalarHeadModel.from_causal_lm(subject.policy)
    reward.bias += 50.0
    subject.reward = reward


def _export_loses_the_head(patch: pytest.MonkeyPatch, subject: Subject) -> None:
    from rlhf_lightning import export

    original = export.export_scalar_model

    def broken(model: Any, *args: Any) -> None:
        model = copy.deepcopy(model)
        model.head.weight.data.neg_()
        original(model, *args)

    patch.setattr(export, "export_scalar_model", broken)


def _old_log_probs_are_stale(patch: pytest.MonkeyPatch, subject: Subject) -> None:
    class Stale(PPOModule):
        def score(self, rollout: Any) -> Any:
            own = super().score(rollout)
            return own._replace(old_log_probs=own.old_log_probs - 0.05 * rollout.response_mask)

    subject.make_ppo = Stale


def _reference_is_another_model(patch: pytest.MonkeyPatch, subject: Subject) -> None:
    def build(**options: Any) -> PPOModule:
        for parameter in options["reference"].parameters():
            parameter.data += 0.1
        return PPOModule(**options)

    subject.make_ppo = build


def _score_on_the_first_token(patch: pytest.MonkeyPatch, subject: Subject) -> None:
    def broken(scores: Any, kl: Any, mask: Any, coef: Any) -> Any:
        rewards = -coef * torch.where(mask, kl, 0.0)
        rewards[:, 0] += scores
        return rewards

    patch.setattr(ppo, "kl_penalized_rewards", broken)


def _advantages_run_over_padding(patch: pytest.MonkeyPatch, subject: Subject) -> None:
    gae = ppo.gae
    patch.setattr(
        ppo, "gae", lambda rewards, values, mask, *rest: gae(rewards, values + 0.5, torch.ones_like(mask), *rest)
    )


def _whitening_over_padding(patch: pytest.MonkeyPatch, subject: Subject) -> None:
    patch.setattr(ppo, "whiten", lambda values, mask, total: (values - values.mean()) / values.std())


def _micro_batches_average_themselves(patch: pytest.MonkeyPatch, subject: Subject) -> None:
    policy_loss = ppo.policy_loss
    patch.setattr(ppo, "policy_loss", lambda *args: policy_loss(*args[:-1]))


def _ptx_is_weighted_twice(patch: pytest.MonkeyPatch, subject: Subject) -> None:
    lm_loss = ptx.lm_loss

    def broken(*args: Any) -> Any:
        loss, statistics = lm_loss(*args)
        return 2 * loss, statistics

    patch.setattr(ptx, "lm_loss", broken)


def _average_forgets_its_decay(patch: pytest.MonkeyPatch, subject: Subject) -> None:
    def broken(self: MovingAverage, model: nn.Module) -> None:
        for average, parameter in zip(self.buffers(), model.parameters(), strict=True):
            average.data.lerp_(parameter.detach(), self.decay)

    patch.setattr(MovingAverage, "update", broken)


def _critic_starts_fresh(patch: pytest.MonkeyPatch, subject: Subject) -> None:
    def build(**options: Any) -> PPOModule:
        options["value"].head.reset_parameters()
        return PPOModule(**options)

    subject.make_ppo = build


def _values_one_token_late(patch: pytest.MonkeyPatch, subject: Subject) -> None:
    def broken(model: Any, rollout: Any) -> Any:
        input_ids, _, columns = experience.joined(rollout)
        return torch.where(rollout.response_mask, model(input_ids).gather(1, columns), 0.0)

    patch.setattr(ppo, "response_values", broken)


def _reference_learns_too(patch: pytest.MonkeyPatch, subject: Subject) -> None:
    class Leaky(PPOModule):
        def update(self, *args: Any) -> None:
            super().update(*args)
            for own, new in zip(self.reference.parameters(), self.policy.parameters(), strict=True):
                own.data.copy_(new)

    subject.make_ppo = Leaky


def _critic_has_no_gradient(patch: pytest.MonkeyPatch, subject: Subject) -> None:
    patch.setattr(PPOModule, "backward_value", lambda *_: None)


def _state_outside_of_the_checkpoint(patch: pytest.MonkeyPatch, subject: Subject) -> None:
    class Forgetful(PPOModule):
        steps = 0

        def rollout(self, prompts: Any) -> Any:
            self.steps += 1
            self.seed = self.steps
            return super().rollout(prompts)

    subject.make_ppo = Forgetful


FAULTS: dict[str, list[Plant]] = {
    "padding": [_log_probs_ignore_the_mask],
    "positions": [_positions_count_padding],
    "dropout": [_dropout_stays_on],
    "sampler": [_temperature_is_forgotten],
    "endings": [_eos_does_not_count, _prompt_counts, _pad_is_eos],
    "shared prefix": [_responses_see_each_other, _ties_are_pairs],
    "centred reward": [_bias_is_of_another_model],
    "exported reward": [_export_loses_the_head],
    "first ratio": [_old_log_probs_are_stale],
    "KL starts at 0": [_reference_is_another_model],
    "score on the last token": [_score_on_the_first_token],
    "advantages": [_advantages_run_over_padding],
    "whitening": [_whitening_over_padding],
    "micro-batches": [_micro_batches_average_themselves],
    "ptx gradient": [_ptx_is_weighted_twice],
    "moving average": [_average_forgets_its_decay],
    "value starts as reward": [_critic_starts_fresh, _values_one_token_late],
    "frozen models": [_reference_learns_too, _critic_has_no_gradient],
    "resume": [_state_outside_of_the_checkpoint],
}
PLANTED = [(name, plant) for name, plants in FAULTS.items() for plant in plants]


@pytest.mark.parametrize(("name", "plant"), PLANTED, ids=[plant.__name__[1:] for _, plant in PLANTED])
def test_a_planted_fault_fails_in_its_row(
    name: str, plant: Plant, tiny_gpt2: Any, tiny_tokenizer: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    subject = subject_of(tiny_gpt2, tiny_tokenizer)
    plant(monkeypatch, subject)
    assert name in failures(subject)


def test_every_check_has_a_planted_fault() -> None:
    from rlhf_lightning.checks.run import CHECKS

    assert [one.name for one in CHECKS] == list(FAULTS)
