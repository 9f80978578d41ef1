"""The self-check passes on sound models and names every planted fault."""

import contextlib
import copy
import itertools
import json
import statistics
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn
from transformers import MistralConfig, MistralForCausalLM, Qwen2Config, Qwen2ForCausalLM, Qwen3Config, Qwen3ForCausalLM

from rlhf_lightning.algorithms import functional
from rlhf_lightning.checks import Subject, check, check_table, models
from rlhf_lightning.checks import folder as check_folder
from rlhf_lightning.checks import reward as check_reward
from rlhf_lightning.checks import run as check_run
from rlhf_lightning.checks.run import CHECKS
from rlhf_lightning.data import loader
from rlhf_lightning.data.records import Comparison, Demonstration, Prompt, Text
from rlhf_lightning.data.tokenize import Tokenization
from rlhf_lightning.generation.sample import joined
from rlhf_lightning.models import shared_prefix as prefix
from rlhf_lightning.models.loading import fit_to_tokenizer, load_causal_lm
from rlhf_lightning.models.moving_average import MovingAverage
from rlhf_lightning.models.scalar_head import ScalarHeadModel
from rlhf_lightning.modules import ppo, ppo_ptx
from rlhf_lightning.modules import reward as reward_stage
from rlhf_lightning.modules.ppo import PPOModule
from rlhf_lightning.tokenization.loading import load_tokenizer
from rlhf_lightning.tokenization.trained import as_trained

PROMPTS = [Prompt(" ".join(f"w{3 + (n + k) % 30}" for k in range(1 + n % 4))) for n in range(8)]
DEMONSTRATIONS = [Demonstration(f"w{3 + n} w5", " ".join(f"w{6 + n + k}" for k in range(1 + n % 3))) for n in range(12)]
COMPARISONS = [Comparison(f"w{3 + n} w9", ["w4 w5", f"w{6 + n}", "w7 w8 w9", "w5"], [1, 3, 2, 2]) for n in range(4)]
TEXTS = [Text(" ".join(f"w{3 + (n + k) % 30}" for k in range(9))) for n in range(6)]


NOTHING_TO_CHECK = {"weights": "skipped", "one BOS": "skipped", "long rows": "skipped"}
"""Without a folder, a BOS token and a window."""


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


@pytest.mark.parametrize(
    ("kind", "dtype"),
    [
        pytest.param(
            *each, marks=[] if each in (("gpt2", torch.float32), ("qwen3", torch.bfloat16)) else pytest.mark.slow
        )
        for each in itertools.product(("gpt2", "qwen3", "llama", "qwen2"), (torch.float32, torch.bfloat16))
    ],
)
def test_sound_models_pass(kind: str, dtype: torch.dtype, make_tiny_lm: Any, tiny_tokenizer: Any) -> None:
    model = (qwen(kind) if kind.startswith("qwen") else make_tiny_lm(kind)).to(dtype)
    before = copy.deepcopy(model.state_dict())
    subject = subject_of(model, tiny_tokenizer)
    subject.reward = reward_of(subject)
    results = check(subject)
    assert {result.name: result.outcome for result in results if result.outcome != "pass"} == NOTHING_TO_CHECK
    assert len(results) >= 32
    assert all(result.meaning and result.remedy and result.measured for result in results)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert check_table(results).row_count == len(results)


def test_the_embedded_model_passes_with_little_data() -> None:
    subject = Subject(
        load_causal_lm("sandbox/small"), load_tokenizer("sandbox"), [Prompt("answer : what eats milk ?")] * 8
    )
    found = outcomes(subject)
    assert {name for name, outcome in found.items() if outcome == "skipped"} == {
        "endings",
        "centred reward",
        *NOTHING_TO_CHECK,
    }
    assert "fail" not in found.values()


# --- planted faults ---------------------------------------------------------------------------------------------------

Plant = Callable[[pytest.MonkeyPatch, Subject], None]


def _positions_count_padding(patch: pytest.MonkeyPatch, subject: Subject) -> None:
    patch.setattr(models, "position_ids", lambda mask: torch.arange(mask.shape[1]).expand(mask.shape))


def _log_probs_ignore_the_mask(patch: pytest.MonkeyPatch, subject: Subject) -> None:
    own = models.causal_log_probs

    def broken(model: Any, ids: Any, mask: Any, *rest: Any) -> Any:
        return own(model, ids, torch.ones_like(mask), *rest)

    patch.setattr(models, "causal_log_probs", broken)


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
        sampler=lambda model, prompts, drawn, key: sample(model, prompts, replace(drawn, temperature=0.5), key),
        **options,
    )


def _eos_does_not_count(patch: pytest.MonkeyPatch, subject: Subject) -> None:
    collate_lm = loader.collate_lm

    def without(examples: Any, pad: int) -> Any:
        batch = collate_lm(examples, pad)
        return batch._replace(loss_mask=batch.loss_mask & (batch.input_ids != 1))

    patch.setattr(loader, "collate_lm", without)


def _prompt_counts(patch: pytest.MonkeyPatch, subject: Subject) -> None:
    collate_lm = loader.collate_lm
    patch.setattr(
        loader, "collate_lm", lambda examples, pad: (lambda b: b._replace(loss_mask=b.mask))(collate_lm(examples, pad))
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
    patch.setattr(prefix, "pass_fault", lambda *_: "")
    patch.setattr(prefix, "fastest_pass", lambda *_: prefix.tree_scores)


def _ties_are_pairs(patch: pytest.MonkeyPatch, subject: Subject) -> None:
    ranking_loss = reward_stage.ranking_loss

    def broken(scores: Any, ranks: Any, mask: Any) -> Any:
        return ranking_loss(scores, torch.arange(ranks.shape[1]).expand_as(ranks) + 1, mask)

    patch.setattr(reward_stage, "ranking_loss", broken)


def _bias_is_a_little_off(patch: pytest.MonkeyPatch, subject: Subject) -> None:
    assert subject.reward is not None
    examples = subject.tokens.demonstrations(DEMONSTRATIONS)
    with torch.no_grad():
        scores = [float(subject.reward(torch.tensor([example.input_ids]))[0, -1]) for example in examples]
    subject.reward.bias += 0.2 * statistics.stdev(scores)


def _export_loses_the_head(patch: pytest.MonkeyPatch, subject: Subject) -> None:
    from rlhf_lightning.models import export

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
            return own._replace(old_log_probs=own.old_log_probs - 5e-4 * rollout.response_mask)

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


def _scores_at(column: Callable[[Any], Any]) -> Plant:
    def plant(patch: pytest.MonkeyPatch, subject: Subject) -> None:
        def broken(reward: Any, rollout: Any, tokenizer: Any, tokens: Any) -> Any:
            ids, mask, _ = joined(rollout)
            return reward(ids).gather(1, column(mask).clamp(min=0)).squeeze(1)

        patch.setattr(ppo, "response_scores", broken)

    return plant


_score_of_the_token_before = _scores_at(lambda mask: mask.sum(1, keepdim=True) - 2)
_score_on_padding = _scores_at(lambda mask: torch.full((len(mask), 1), mask.shape[1] - 1))


def _kl_is_absolute(patch: pytest.MonkeyPatch, subject: Subject) -> None:
    patch.setattr(ppo, "kl_k1", lambda own, reference: functional.kl_k1(own, reference).abs())


def _kl_is_clamped(patch: pytest.MonkeyPatch, subject: Subject) -> None:
    patch.setattr(ppo, "kl_k1", lambda own, reference: functional.kl_k1(own, reference).clamp(min=0))


def _kl_is_of_the_whole_response(patch: pytest.MonkeyPatch, subject: Subject) -> None:
    patch.setattr(
        ppo,
        "kl_k1",
        lambda own, reference: functional.kl_k1(own, reference).mean(1, keepdim=True).expand_as(own).contiguous(),
    )


def _gae(change: Callable[[Any, Any], Any]) -> Plant:
    def plant(patch: pytest.MonkeyPatch, subject: Subject) -> None:
        gae = ppo.gae
        patch.setattr(ppo, "gae", lambda *args: change(*gae(*args)))

    return plant


_advantages_are_negated = _gae(lambda advantages, returns: (-advantages, returns))
_advantages_are_returns = _gae(lambda advantages, returns: (returns, returns))
_returns_are_advantages = _gae(lambda advantages, returns: (advantages, advantages))


def _loss(name: str, change: Callable[..., Any]) -> Plant:
    def plant(patch: pytest.MonkeyPatch, subject: Subject) -> None:
        own = getattr(ppo, name)
        patch.setattr(ppo, name, lambda *args: change(own, *args))

    return plant


def _minus(own: Any, *args: Any) -> Any:
    loss, figures = own(*args)
    return -loss, figures


_policy_loss_is_negated = _loss("policy_loss", _minus)
_value_loss_is_negated = _loss("value_loss", _minus)
_clip_range_is_ignored = _loss("policy_loss", lambda own, *args: own(*args[:4], 1e6, *args[5:]))
_clip_cuts_both_sides = _loss(
    "policy_loss", lambda own, new, old, *args: own(old + (new - old).clamp(-0.18, 0.18), old, *args)
)
_value_clip_is_ignored = _loss("value_loss", lambda own, *args: own(*args[:4], None, *args[5:]))
_values_learn_advantages = _loss("value_loss", lambda own, new, old, *args: own(new, old, args[0] - old, *args[1:]))


def _average_moves_twice(patch: pytest.MonkeyPatch, subject: Subject) -> None:
    update = MovingAverage.update

    class Twice(PPOModule):
        def step_clipped(self, optimizer: Any, model: Any, name: str, max_norm: Any) -> None:
            super().step_clipped(optimizer, model, name, max_norm)
            if self.ema is not None and name == "policy":
                update(self.ema, self.policy)

    subject.make_ppo = Twice


def _average_moves_once_per_rollout(patch: pytest.MonkeyPatch, subject: Subject) -> None:
    class Once(PPOModule):
        def update(self, *args: Any) -> None:
            ema, self.ema = self.ema, None
            super().update(*args)
            self.ema = ema
            if ema is not None:
                ema.update(self.policy)

    subject.make_ppo = Once


def _every_rollout_is_the_first(patch: pytest.MonkeyPatch, subject: Subject) -> None:
    sample = ppo.sample_responses
    subject.make_ppo = lambda **options: PPOModule(
        sampler=lambda model, prompts, drawn, key: sample(model, prompts, drawn, (key[0], 0)), **options
    )


def _a_model_that_raises(patch: pytest.MonkeyPatch, subject: Subject) -> None:
    def broken(*_: Any) -> None:
        raise KeyError("planted")

    patch.setattr(ppo, "response_values", broken)


def _advantages_run_over_padding(patch: pytest.MonkeyPatch, subject: Subject) -> None:
    gae = ppo.gae
    patch.setattr(
        ppo, "gae", lambda rewards, values, mask, *rest: gae(rewards, values + 0.5, torch.ones_like(mask), *rest)
    )


def _score_on_every_token(patch: pytest.MonkeyPatch, subject: Subject) -> None:
    def broken(scores: Any, kl: Any, mask: Any, coef: Any) -> Any:
        return torch.where(mask, scores[:, None] - coef * kl, 0.0)

    patch.setattr(ppo, "kl_penalized_rewards", broken)


def _whitening_keeps_the_mean(patch: pytest.MonkeyPatch, subject: Subject) -> None:
    whiten = ppo.whiten
    patch.setattr(ppo, "whiten", lambda values, mask, total: whiten(values, mask, total) + values[mask].mean() * mask)


def _whitening_per_response(patch: pytest.MonkeyPatch, subject: Subject) -> None:
    def broken(values: Any, mask: Any, total: Any) -> Any:
        mean = values.sum(1, keepdim=True) / mask.sum(1, keepdim=True)
        spread = (torch.where(mask, values - mean, 0.0) ** 2).sum(1, keepdim=True).sqrt().clamp(min=1e-3)
        return torch.where(mask, (values - mean) / spread, 0.0)

    patch.setattr(ppo, "whiten", broken)


def _whitening_over_padding(patch: pytest.MonkeyPatch, subject: Subject) -> None:
    patch.setattr(ppo, "whiten", lambda values, mask, total: (values - values.mean()) / values.std())


def _micro_batches_average_themselves(patch: pytest.MonkeyPatch, subject: Subject) -> None:
    policy_loss = ppo.policy_loss
    patch.setattr(ppo, "policy_loss", lambda *args: policy_loss(*args[:-1]))


def _ptx_is_weighted_twice(patch: pytest.MonkeyPatch, subject: Subject) -> None:
    lm_loss = ppo_ptx.lm_loss

    def broken(*args: Any) -> Any:
        loss, statistics = lm_loss(*args)
        return 2 * loss, statistics

    patch.setattr(ppo_ptx, "lm_loss", broken)


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
    def broken(model: Any, rollout: Any, packing: Any = None) -> Any:
        input_ids, _, columns = joined(rollout)
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
            self.hparams.seed = self.steps
            return super().rollout(prompts)

    subject.make_ppo = Forgetful


def _a_weight_is_another(patch: pytest.MonkeyPatch, subject: Subject) -> None:
    subject.policy.transformer.h[1].mlp.c_fc.weight.data[0, 0] += 1e-3


def _a_weight_is_missing(patch: pytest.MonkeyPatch, subject: Subject) -> None:
    file = Path(str(subject.folder), "model.safetensors")
    stored = {f"_orig_mod.{name}": weight for name, weight in load_file(file).items()}
    save_file(stored, file, metadata={"format": "pt"})


def _words_are_another_models(patch: pytest.MonkeyPatch, subject: Subject) -> None:
    file = Path(str(subject.folder), "tokenizer.json")
    words = json.loads(file.read_text())
    vocabulary = words["model"]["vocab"]
    vocabulary["w9"], vocabulary["w10"] = vocabulary["w10"], vocabulary["w9"]
    file.write_text(json.dumps(words))


def _tokens_without_rows(patch: pytest.MonkeyPatch, subject: Subject) -> None:
    subject.tokens  # noqa: B018 - made while the tokenizer was sound
    subject.tokenizer = copy.deepcopy(subject.tokenizer)
    subject.tokenizer.add_tokens(["<new>"])


def _the_model_ends_elsewhere(patch: pytest.MonkeyPatch, subject: Subject) -> None:
    subject.policy.generation_config.eos_token_id = [1, 7]


def _the_export_asks_otherwise(patch: pytest.MonkeyPatch, subject: Subject) -> None:
    def another(dialogue: Any) -> Any:
        tokenizer = as_trained(dialogue)
        tokenizer.chat_template = "{{ 'w7 ' }}" + str(tokenizer.chat_template)
        return tokenizer

    patch.setattr(check_folder, "as_trained", another)


def _control_tokens_are_read(patch: pytest.MonkeyPatch, subject: Subject) -> None:
    class Reading(Tokenization):
        def prompt_ids(self, prompt: Any) -> Any:
            return list(self.tokenizer(prompt)["input_ids"])

    assert subject.tokenizer("say <eos>")["input_ids"][-1] == 1

    subject.tokens = Reading(subject.tokenizer, 20, 8)


def _bos_is_written_twice(patch: pytest.MonkeyPatch, subject: Subject) -> None:
    class Twice(Tokenization):
        def prompts(self, records: Any) -> Any:
            return [replace(own, prompt_ids=[39, 39, *own.prompt_ids]) for own in super().prompts(records)]

    subject.tokens = Twice(subject.tokenizer, 20, 8)


def _export_turns_the_head(patch: pytest.MonkeyPatch, subject: Subject) -> None:
    from rlhf_lightning.models import export

    original = export.export_causal_lm

    def broken(model: Any, *args: Any) -> None:
        model = copy.deepcopy(model)
        model.lm_head.weight.data.neg_()
        original(model, *args)

    patch.setattr(export, "export_causal_lm", broken)


def _all_responses_score_the_same(patch: pytest.MonkeyPatch, subject: Subject) -> None:
    patch.setattr(check_reward, "response_scores", lambda reward, rollout, tokenizer: torch.ones(len(rollout.ended)))


def _scores_depend_on_their_neighbours(patch: pytest.MonkeyPatch, subject: Subject) -> None:
    own = check_reward.response_scores
    patch.setattr(check_reward, "response_scores", lambda *args: own(*args) - own(*args).mean())


def _weights_learn_in_16_bits(patch: pytest.MonkeyPatch, subject: Subject) -> None:
    class Small(PPOModule):
        def build_optimizers(self) -> Any:
            optimizers = super().build_optimizers()
            if optimizers[0].defaults["lr"] < 1e-5:
                before = [weight.detach().clone() for weight in self.policy.parameters()]
                optimizers[0].register_step_post_hook(lambda *_: self.swallow(before))
            return optimizers

        def swallow(self, before: Any) -> None:
            for weight, old in zip(self.policy.parameters(), before, strict=True):
                too_small = (weight - old).abs() < old.abs() * 2**-9  # as the 8 bits of bfloat16 would have it
                weight.data.copy_(torch.where(too_small, old, weight))

    subject.make_ppo = Small


FAULTS: list[tuple[Plant, set[str], set[str]]] = [
    (_a_weight_is_another, {"weights"}, set()),
    (_a_weight_is_missing, {"weights"}, set()),
    (_words_are_another_models, {"tokenizer"}, set()),
    (_tokens_without_rows, {"tokenizer"}, {"rollout"}),
    (_the_model_ends_elsewhere, {"end tokens", "exported policy"}, set()),
    (_the_export_asks_otherwise, {"prompt format"}, set()),
    (_control_tokens_are_read, {"special tokens"}, set()),
    (_bos_is_written_twice, {"one BOS"}, set()),
    (_export_turns_the_head, {"exported policy"}, set()),
    (_all_responses_score_the_same, {"reward interface"}, set()),
    (_scores_depend_on_their_neighbours, {"reward interface"}, set()),
    (_weights_learn_in_16_bits, {"master weights"}, set()),
    (_log_probs_ignore_the_mask, {"padding"}, set()),
    (_positions_count_padding, {"positions"}, set()),
    (_a_model_that_raises, set(), {"rollout"}),
    (_dropout_stays_on, {"dropout", "sampler", "fresh samples"}, {"rollout"}),
    (_temperature_is_forgotten, {"sampler"}, {"rollout"}),
    (_every_rollout_is_the_first, {"fresh samples"}, set()),
    (_eos_does_not_count, {"endings"}, set()),
    (_prompt_counts, {"endings"}, set()),
    (_pad_is_eos, {"endings", "exported policy", "exported reward"}, {"rollout"}),
    (_responses_see_each_other, {"shared prefix"}, set()),
    (_ties_are_pairs, {"shared prefix"}, set()),
    (_bias_is_a_little_off, {"centred reward"}, set()),
    (_export_loses_the_head, {"exported reward"}, set()),
    (
        _old_log_probs_are_stale,
        {"first ratio", "advantages"},
        {"master weights", "moving average", "frozen models", "resume"},
    ),
    (_reference_is_another_model, {"KL starts at 0"}, set()),
    (_score_of_the_token_before, {"score on the last token"}, set()),
    (_score_on_padding, {"score on the last token"}, set()),
    (_score_on_the_first_token, {"score on the last token", "advantages"}, set()),
    (_score_on_every_token, {"score on the last token", "advantages"}, set()),
    (_kl_is_absolute, {"score on the last token", "advantages"}, set()),
    (_kl_is_clamped, {"score on the last token", "advantages"}, set()),
    (_kl_is_of_the_whole_response, {"score on the last token", "advantages"}, set()),
    (_advantages_run_over_padding, {"score on the last token", "advantages"}, set()),
    (_advantages_are_negated, {"advantages"}, set()),
    (_advantages_are_returns, {"advantages"}, set()),
    (_returns_are_advantages, {"score on the last token", "advantages"}, set()),
    (_whitening_over_padding, {"whitening", "advantages"}, set()),
    (_whitening_keeps_the_mean, {"whitening", "advantages"}, set()),
    (_whitening_per_response, {"whitening", "advantages"}, set()),
    (_policy_loss_is_negated, {"policy gradient"}, set()),
    (_clip_range_is_ignored, {"policy gradient"}, set()),
    (_clip_cuts_both_sides, {"policy gradient"}, set()),
    (_value_loss_is_negated, {"value gradient"}, set()),
    (_value_clip_is_ignored, {"value gradient"}, set()),
    (_values_learn_advantages, {"value gradient"}, set()),
    (_micro_batches_average_themselves, {"micro-batches"}, set()),
    (_ptx_is_weighted_twice, {"ptx gradient"}, set()),
    (_average_forgets_its_decay, {"moving average"}, set()),
    (_average_moves_twice, {"moving average"}, set()),
    (_average_moves_once_per_rollout, {"moving average"}, set()),
    (_critic_starts_fresh, {"value starts as reward"}, set()),
    (_values_one_token_late, {"value starts as reward", "value gradient"}, set()),
    (_reference_learns_too, {"frozen models", "resume"}, set()),
    (_critic_has_no_gradient, {"frozen models", "value gradient"}, set()),
    (_state_outside_of_the_checkpoint, {"fresh samples", "resume"}, set()),
]
"""Each with the rows that fail, and those that end in an error."""


def sound(model: Any, tokenizer: Any) -> Subject:
    subject = subject_of(model, tokenizer)
    subject.reward = reward_of(subject)
    return subject


@pytest.fixture
def whole(tiny_gpt2: Any, tiny_tokenizer: Any, tmp_path: Path) -> Subject:
    """A sound subject with everything that a row may ask for: a folder, a BOS token."""
    tiny_tokenizer.bos_token = "w39"
    fit_to_tokenizer(tiny_gpt2, tiny_tokenizer)
    subject = sound(tiny_gpt2, tiny_tokenizer)
    tiny_gpt2.save_pretrained(tmp_path / "policy")
    tiny_tokenizer.save_pretrained(tmp_path / "policy")
    subject.folder = str(tmp_path / "policy")
    return subject


NO_WINDOW = {"long rows": "skipped"}


def test_without_a_fault_every_row_passes(whole: Subject) -> None:
    assert {name: how for name, how in outcomes(whole).items() if how != "pass"} == NO_WINDOW


@pytest.mark.parametrize(("plant", "failed", "broken"), FAULTS)
def test_a_planted_fault_fails_in_its_rows_and_no_others(
    plant: Plant,
    failed: set[str],
    broken: set[str],
    whole: Subject,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    plant(monkeypatch, whole)
    if "resume" not in failed | broken:  # it trains three times, which no other fault changes
        monkeypatch.setattr(check_run, "CHECKS", tuple(row for row in CHECKS if row.name != "resume"))
    results = [result for result in check(whole) if result.name not in NO_WINDOW]
    assert {result.name for result in results if result.outcome == "fail"} == failed
    assert {result.name for result in results if result.outcome == "error"} == broken
    # One exception is told once; the rows that depend on it say where.
    skipped = [result.measured for result in results if result.outcome == "skipped"]
    assert all("see the row 'rollout'" in words for words in skipped)
    assert bool(skipped) == ("rollout" in broken)


@pytest.mark.slow
def test_a_window_that_is_lost_on_long_rows_is_found(tiny_tokenizer: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    sizes = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4}
    made = MistralConfig(vocab_size=40, sliding_window=8, num_key_value_heads=2, initializer_range=0.2, **sizes)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = MistralForCausalLM(made).eval()
    subject = sound(fit_to_tokenizer(model, tiny_tokenizer), tiny_tokenizer)
    subject.tokens = Tokenization(tiny_tokenizer, 64, 8)
    assert outcomes(subject)["long rows"] == "pass"
    subject.tokens = Tokenization(tiny_tokenizer, 4, 4)
    assert outcomes(subject)["long rows"] == "skipped"
    subject.tokens = Tokenization(tiny_tokenizer, 64, 8)
    # As it was: tried on the first batch, which is short, and taken from then on.
    monkeypatch.setattr(prefix, "unwindowed_tokens", lambda config: None)
    monkeypatch.setattr(prefix, "pass_fault", lambda *_: "")
    monkeypatch.setattr(prefix, "fastest_pass", lambda *_: prefix.tree_scores)
    assert failures(subject) == {"long rows"}


def test_every_check_has_a_planted_fault() -> None:
    named = {name for _, *rows in FAULTS for names in rows for name in names}
    assert {one.name for one in CHECKS} == named | {"long rows"}
    assert len({plant for plant, *_ in FAULTS}) == len(FAULTS)


# --- the user's own PPO -----------------------------------------------------------------------------------------------


def test_another_reference_is_used_and_its_kl_is_not_asked_for(
    tiny_gpt2: Any, tiny_tokenizer: Any, make_tiny_lm: Any
) -> None:
    subject = sound(tiny_gpt2, tiny_tokenizer)
    subject.reference = make_tiny_lm("gpt2", seed=1)
    results = {result.name: result for result in check(subject)}
    assert results["KL starts at 0"].outcome == "skipped"
    assert "another model than the policy's start" in results["KL starts at 0"].measured
    skipped = {"KL starts at 0", *NOTHING_TO_CHECK}
    assert {result.outcome for name, result in results.items() if name not in skipped} == {"pass"}


def test_adapters_are_used(tiny_gpt2: Any, tiny_tokenizer: Any) -> None:
    pytest.importorskip("peft")
    subject, built = sound(tiny_gpt2, tiny_tokenizer), []
    subject.lora = {"rank": 4}

    def build(**options: Any) -> PPOModule:
        built.append(options["policy"] is options["reference"])
        return PPOModule(**options)

    subject.make_ppo = build
    assert {name: how for name, how in outcomes(subject).items() if how != "pass"} == NOTHING_TO_CHECK
    assert built
    assert all(built)


def test_adapters_that_stay_on_in_the_reference_are_found(
    tiny_gpt2: Any, tiny_tokenizer: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("peft")
    subject = sound(tiny_gpt2, tiny_tokenizer)
    subject.lora = {"rank": 4}
    monkeypatch.setattr(ppo, "adapters_disabled", lambda *_: contextlib.nullcontext())
    assert failures(subject) == {"frozen models"}


def test_mixed_precision_is_used(tiny_gpt2: Any, tiny_tokenizer: Any) -> None:
    subject, seen = sound(tiny_gpt2, tiny_tokenizer), set()
    subject.autocast = torch.bfloat16

    class Watched(PPOModule):
        def score(self, rollout: Any) -> Any:
            seen.add(torch.is_autocast_enabled("cpu"))
            return super().score(rollout)

    subject.make_ppo = Watched
    assert {name: how for name, how in outcomes(subject).items() if how != "pass"} == NOTHING_TO_CHECK
    assert seen == {True}


TINY_PRETRAINED = Path(__file__).parents[3] / "shared" / "data" / "models" / "stories260K" / "hf"


@pytest.mark.skipif(
    not TINY_PRETRAINED.exists(), reason=f"the pretrained model is not beside this checkout: {TINY_PRETRAINED}"
)
def test_a_pretrained_model_passes() -> None:
    tokenizer = load_tokenizer(str(TINY_PRETRAINED))
    model = fit_to_tokenizer(load_causal_lm(str(TINY_PRETRAINED)), tokenizer).eval()
    prompts = [Prompt(text) for text in ("Once upon a time", "The dog", "A little girl named Lily", "One day") * 2]
    told = [Demonstration(prompt.prompt, " there was a cat. The end.") for prompt in prompts]
    subject = Subject(model, tokenizer, prompts, told, max_new_tokens=8, folder=str(TINY_PRETRAINED))
    found = outcomes(subject)
    assert {name for name, how in found.items() if how == "skipped"} == {"centred reward", "long rows"}
    assert set(found.values()) == {"pass", "skipped"}


def test_a_policy_with_more_rows_than_its_reward_model_gives_no_false_alarm(
    make_tiny_lm: Any, tiny_tokenizer: Any
) -> None:
    # Vocabularies are rounded up, not all to the same size: 151,936 and 152,064 rows in Qwen 2.5.
    subject = subject_of(make_tiny_lm("llama", vocab_size=96), tiny_tokenizer)
    small = subject_of(make_tiny_lm("llama"), tiny_tokenizer)
    subject.reward = reward_of(small)
    assert {name: how for name, how in outcomes(subject).items() if how != "pass"} == NOTHING_TO_CHECK
