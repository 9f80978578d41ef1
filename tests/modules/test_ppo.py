"""PPO: exact ratio, honest rewards, gradients that add up, EMA, adaptive KL, refusals."""

import copy
from functools import partial
from typing import Any

import lightning
import pytest
import torch
from lightning.fabric.loggers.logger import Logger
from torch import Tensor, nn
from torch.optim.lr_scheduler import LinearLR

from rlhf_lightning.algorithms.batch import Experience, LMBatch, PromptBatch
from rlhf_lightning.data.examples import LMExample, PromptExample
from rlhf_lightning.data.loader import collate_lm, collate_prompts
from rlhf_lightning.generation.experience import adapted_kl_coef
from rlhf_lightning.generation.rewards import response_scores
from rlhf_lightning.generation.sample import response_log_probs
from rlhf_lightning.models.scalar_head import ScalarHeadModel
from rlhf_lightning.modules import ppo as ppo_stage
from rlhf_lightning.modules.ppo import PPOModule

EOS, PAD = 1, 0
SGD = partial(torch.optim.SGD, lr=0.1)


def prompts(rows: int = 8) -> PromptBatch:
    examples = [PromptExample([3 + (row + n) % 30 for n in range(1 + row % 4)], row, f"p{row}") for row in range(rows)]
    return collate_prompts(examples, PAD)


def texts(rows: int = 4) -> LMBatch:
    return collate_lm([LMExample([5 + (row * 7 + n) % 30 for n in range(6 + row)], 1) for row in range(rows)], PAD)


def make_module(policy: Any, tokenizer: Any, **changes: Any) -> PPOModule:
    reward = ScalarHeadModel.from_causal_lm(policy)
    reward_given = changes.pop("reward") if "reward" in changes else copy.deepcopy(reward)
    options: dict[str, Any] = {
        "optimizer": SGD,
        "value_optimizer": SGD,
        "max_new_tokens": 6,
        "num_minibatches": 2,
        "kl_coef": 0.1,
        "seed": 3,
    }
    reference = copy.deepcopy(policy)
    return PPOModule(policy, reference, reward_given, reward, tokenizer, **{**options, **changes})


def attached(module: PPOModule) -> PPOModule:
    """Under Fabric, with optimizers."""
    lightning.Fabric(accelerator="cpu", devices=1).setup(module, *module.build_optimizers())
    return module


class Recorder(Logger):
    """Keeps what was logged last under each name."""

    name = version = None

    def __init__(self) -> None:
        self.figures: dict[str, Any] = {}

    def log_metrics(self, metrics: dict[str, Any], step: int | None = None) -> None:
        self.figures |= metrics

    def log_hyperparams(self, params: Any) -> None:
        """There are none under Fabric."""


def mean_score(module: PPOModule) -> float:
    return float(response_scores(module.reward, module.rollout(prompts(64)), module.tokenizer).mean())


def gradients(module: nn.Module) -> dict[str, Tensor]:
    return {name: p.grad.clone() for name, p in module.named_parameters() if p.grad is not None}


@pytest.fixture
def experience(tiny_lm: Any, tiny_tokenizer: Any) -> tuple[PPOModule, Experience]:
    module = attached(make_module(tiny_lm, tiny_tokenizer))
    return module, module.score(module.rollout(prompts()))


def test_ratio_is_exactly_one_before_the_first_update(experience: tuple[PPOModule, Experience]) -> None:
    module, own = experience
    statistics = module.backward_policy(own, own.minibatches[0])
    assert statistics.ratio_deviation == 0
    assert statistics.approx_kl == 0
    assert statistics.clip_fraction == 0


def test_ratio_check_sees_dropout(tiny_gpt2: Any, tiny_tokenizer: Any) -> None:
    module = attached(make_module(tiny_gpt2, tiny_tokenizer))
    own = module.score(module.rollout(prompts()))
    for layer in module.policy.modules():
        if isinstance(layer, nn.Dropout):
            layer.p = 0.3
    module.policy.train()
    with pytest.raises(RuntimeError, match="dropout is on"):
        module.update(own)


def test_reference_starts_at_kl_zero_and_padding_is_zero(experience: tuple[PPOModule, Experience]) -> None:
    module, _ = experience
    module.hparams.max_new_tokens = 24
    own = module.score(module.rollout(prompts(64)))
    # Both are the same model; only the grouping of the rows differs.
    torch.testing.assert_close(own.old_log_probs, own.reference_log_probs, atol=1e-5, rtol=0)
    padding = ~own.rollout.response_mask
    assert padding.any(), "the case must have responses of different lengths"
    for field in (own.old_log_probs, own.old_values, own.advantages, own.returns):
        assert (field[padding] == 0).all()


def test_score_is_that_of_the_last_response_token(experience: tuple[PPOModule, Experience]) -> None:
    """Against one forward pass per episode, without padding."""
    module, own = experience
    reward = module.reward
    assert isinstance(reward, ScalarHeadModel)
    for row in range(len(own.scores)):
        batch, mask = own.rollout.prompts, own.rollout.response_mask[row]
        ids = torch.cat([batch.prompt_ids[row][batch.prompt_mask[row]], own.rollout.response_ids[row][mask]])[None]
        scores = reward(ids, torch.ones_like(ids, dtype=torch.bool), torch.arange(ids.shape[1])[None])
        torch.testing.assert_close(own.scores[row], scores[0, -1], atol=1e-5, rtol=1e-5)


def test_returns_are_the_rewards_still_to_come(tiny_gpt2: Any, tiny_tokenizer: Any) -> None:
    """With lambda 1 and the policy at its reference, every return is the score, wherever the response ends."""
    module = attached(make_module(tiny_gpt2, tiny_tokenizer, gae_lambda=1.0))
    own = module.score(module.rollout(prompts()))
    expected = own.scores[:, None].expand_as(own.returns)
    mask = own.rollout.response_mask
    torch.testing.assert_close(own.returns[mask], expected[mask], atol=1e-5, rtol=1e-5)


def test_missing_eos_penalty_hits_cut_responses_only(tiny_gpt2: Any, tiny_tokenizer: Any) -> None:
    plain = attached(make_module(tiny_gpt2, tiny_tokenizer))
    own = plain.score(plain.rollout(prompts(64)))
    ended = own.rollout.ended
    assert ended.any()
    assert not ended.all()
    plain.hparams.missing_eos_penalty = 2.5
    other = plain.score(own.rollout)
    torch.testing.assert_close(own.scores - other.scores, torch.where(ended, 0.0, 2.5))


@pytest.mark.parametrize("micro_batch_size", [1, 3])
def test_micro_batches_add_up(tiny_lm: Any, tiny_tokenizer: Any, micro_batch_size: int) -> None:
    module = attached(make_module(tiny_lm, tiny_tokenizer, ptx_coef=0.7, max_grad_norm=None))
    own = module.score(module.rollout(prompts()))
    seen = []
    for size in (None, micro_batch_size):
        module.hparams.micro_batch_size = size
        module.zero_grad()
        module.backward_policy(own, own.minibatches[0])
        module.backward_text(texts(), measure=False)
        module.backward_value(own, own.minibatches[0])
        seen.append(gradients(module))
    assert seen[0].keys() == seen[1].keys()
    for name, value in seen[0].items():
        torch.testing.assert_close(value, seen[1][name], atol=1e-5, rtol=1e-4)


def test_ptx_gradient_is_the_sum_of_the_two(tiny_gpt2: Any, tiny_tokenizer: Any) -> None:
    """Against autograd of the pretraining loss written out token by token."""
    module = attached(make_module(tiny_gpt2, tiny_tokenizer, ptx_coef=0.7))
    own, batch = module.score(module.rollout(prompts())), texts()
    module.backward_policy(own, own.minibatches[0])
    policy_only = gradients(module.policy)
    module.backward_text(batch, measure=True)
    both = gradients(module.policy)

    total, count = torch.zeros(()), 0
    for ids, mask in zip(batch.input_ids, batch.mask, strict=True):
        row = ids[mask]
        log_probs = module.policy(input_ids=row[None]).logits[0].log_softmax(-1)
        for position in range(1, len(row)):
            total = total - log_probs[position - 1, row[position]]
            count += 1
    expected = torch.autograd.grad(0.7 * total / count, list(module.policy.parameters()))
    for (name, _), own_part in zip(module.policy.named_parameters(), expected, strict=True):
        torch.testing.assert_close(both[name], policy_only[name] + own_part, atol=1e-5, rtol=1e-4)


def test_ptx_coef_zero_is_plain_ppo_bit_for_bit(make_tiny_lm: Any, tiny_tokenizer: Any) -> None:
    weights = []
    for pretrain in (None, texts()):
        torch.manual_seed(0)
        module = attached(make_module(make_tiny_lm("gpt2"), tiny_tokenizer, ptx_coef=0.0))
        module.update(module.score(module.rollout(prompts())), pretrain)
        weights.append(list(module.policy.parameters()))
    assert all(torch.equal(a, b) for a, b in zip(*weights, strict=True))


def test_ptx_needs_text(experience: tuple[PPOModule, Experience]) -> None:
    module, own = experience
    module.hparams.ptx_coef = 1.0
    with pytest.raises(ValueError, match="text_batch_size"):
        module.update(own, None)


def test_update_moves_towards_the_advantage(tiny_gpt2: Any, tiny_tokenizer: Any) -> None:
    module = attached(make_module(tiny_gpt2, tiny_tokenizer, num_minibatches=1))
    own = module.score(module.rollout(prompts(32)))
    module.update(own)
    with torch.no_grad():
        moved = response_log_probs(module.policy, own.rollout) - own.old_log_probs
    gain = (moved * own.advantages)[own.rollout.response_mask].mean()
    assert gain > 1e-4


def test_every_step_of_an_iteration_under_autocast_uses_the_new_weights(make_tiny_lm: Any, tiny_tokenizer: Any) -> None:
    """Autocast keeps 16-bit copies of the weights as long as it is on, and Lightning keeps it on for an iteration."""
    weights = []
    for keeps_copies in (True, False):
        torch.manual_seed(0)
        module = attached(make_module(make_tiny_lm("gpt2"), tiny_tokenizer, num_ppo_epochs=2))
        with torch.autocast("cpu", torch.bfloat16, cache_enabled=keeps_copies):
            module.update(module.score(module.rollout(prompts())))
        weights.append([*module.policy.parameters(), *module.value.parameters()])
    assert all(torch.equal(a, b) for a, b in zip(*weights, strict=True))


def test_frozen_models_stay_and_get_no_gradient(experience: tuple[PPOModule, Experience]) -> None:
    module, own = experience
    assert isinstance(module.reward, nn.Module)
    before = [p.clone() for m in (module.reference, module.reward) for p in m.parameters()]
    policy_before = [p.clone() for p in module.policy.parameters()]
    module.update(own)
    after = [p for m in (module.reference, module.reward) for p in m.parameters()]
    assert all(torch.equal(a, b) for a, b in zip(before, after, strict=True))
    assert all(p.grad is None and not p.requires_grad for p in after)
    assert not all(torch.equal(a, b) for a, b in zip(policy_before, module.policy.parameters(), strict=True))


def test_logged_value_clip_fraction_is_the_share_of_tokens(tiny_gpt2: Any, tiny_tokenizer: Any) -> None:
    """Against a count over the tokens; in every third the value is above its range and below its target."""
    module, logged = make_module(tiny_gpt2, tiny_tokenizer, micro_batch_size=3, value_clip_range=0.05), Recorder()
    lightning.Fabric(accelerator="cpu", devices=1, loggers=logged).setup(module)
    own = module.score(module.rollout(prompts()))
    rows, mask = own.minibatches[1], own.rollout.response_mask
    number = torch.arange(mask.numel()).view(mask.shape) % 3
    module.backward_value(
        own._replace(old_values=own.old_values - 0.1 * (number - 1), returns=own.old_values + 1), rows
    )
    module.log_noted()
    cut = [(int(number[row, time]) == 2) for row in rows.tolist() for time in range(int(mask[row].sum()))]
    assert 0.2 < sum(cut) / len(cut) < 0.5
    assert float(logged.figures["update/value_clip_fraction"]) == pytest.approx(sum(cut) / len(cut), abs=1e-6)


def test_frozen_models_come_to_score_and_go(
    tiny_gpt2: Any, tiny_tokenizer: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    module = attached(make_module(tiny_gpt2, tiny_tokenizer, offload_frozen=True))
    moves: list[tuple[str, str]] = []
    for name in ("reference", "reward"):
        monkeypatch.setattr(getattr(module, name), "to", lambda device, name=name: moves.append((name, str(device))))
    monkeypatch.setattr(PPOModule, "device", torch.device("cuda:7"))
    monkeypatch.setattr(module, "score", lambda rollout: moves.append(("score", "")) or 1 / 0)
    monkeypatch.setattr(module, "rollout", lambda prompts: None)
    with pytest.raises(ZeroDivisionError):
        module.training_step({"prompts": "any"}, 0)
    there, back = ([(name, device) for name in ("reference", "reward")] for device in ("cuda:7", "cpu"))
    assert moves == [*there, ("score", ""), *back]


def test_ema_follows_its_recursion(experience: tuple[PPOModule, Experience], monkeypatch: pytest.MonkeyPatch) -> None:
    module, own = experience
    assert module.ema is not None
    module.ema.decay = 0.9
    expected = [p.detach().clone() for p in module.policy.parameters()]
    for rows in own.minibatches:
        single = own._replace(minibatches=[rows])
        monkeypatch.setattr(ppo_stage, "check_first_ratio", lambda *_: None)
        module.update(single)
        expected = [
            0.9 * old + 0.1 * new.detach() for old, new in zip(expected, module.policy.parameters(), strict=True)
        ]
    for average, value in zip(module.ema.buffers(), expected, strict=True):
        torch.testing.assert_close(average, value, atol=1e-6, rtol=1e-5)


def test_value_starts_as_the_reward_model(experience: tuple[PPOModule, Experience]) -> None:
    module, own = experience
    last = own.rollout.response_mask.sum(1) - 1
    assert isinstance(module.reward, ScalarHeadModel)
    # The value before the last token is the reward model's number one token earlier.
    ids = torch.cat([own.rollout.prompts.prompt_ids, own.rollout.response_ids], 1)
    mask = torch.cat([own.rollout.prompts.prompt_mask, own.rollout.response_mask], 1)
    positions = (mask.long().cumsum(1) - 1).clamp(min=0)
    scores = module.reward(ids, mask, positions)
    width = own.rollout.prompts.prompt_ids.shape[1]
    for row, index in enumerate(last.tolist()):
        torch.testing.assert_close(own.old_values[row, index], scores[row, width + index - 1], atol=1e-5, rtol=1e-5)


def test_minibatches_cover_the_rollout_once(experience: tuple[PPOModule, Experience]) -> None:
    module, own = experience
    assert sorted(torch.cat(own.minibatches).tolist()) == list(range(8))
    again = module._draw_minibatches(8, epoch=0)
    assert all(torch.equal(a, b) for a, b in zip(again, own.minibatches, strict=True))
    module.iteration += 1
    assert torch.cat(module._draw_minibatches(8, epoch=0)).tolist() != torch.cat(again).tolist()


def test_kl_coef_adapts_in_the_right_direction(experience: tuple[PPOModule, Experience]) -> None:
    _, own = experience
    far = own._replace(old_log_probs=own.old_log_probs + own.rollout.response_mask * 1.0)
    start = torch.tensor(0.1)
    up = adapted_kl_coef(start, far, target=1.0, horizon=100)  # more than 1 nat per response: the error is cut at +0.2
    assert float(up) == pytest.approx(0.1 * (1 + 0.2 * 8 / 100))
    down = adapted_kl_coef(up, own, target=1.0, horizon=100)  # 0 nats: cut at -0.2
    assert float(down) == pytest.approx(float(up) * (1 - 0.2 * 8 / 100))
    assert adapted_kl_coef(start, far, target=None, horizon=100) is start


def test_a_function_can_be_the_reward(tiny_gpt2: Any, tiny_tokenizer: Any) -> None:
    def count_words(prompts: Any, responses: Any) -> list[float]:
        assert prompts[0].startswith("p")
        return [float(len(response.split())) for response in responses]

    module = attached(make_module(tiny_gpt2, tiny_tokenizer, reward=count_words))
    own = module.score(module.rollout(prompts()))
    words = own.rollout.response_mask.sum(1) - own.rollout.ended.long()
    special = (own.rollout.response_ids == PAD) & own.rollout.response_mask | (own.rollout.response_ids == 2)
    assert torch.equal(own.scores, (words - special.sum(1)).float())


def test_checkpoints_leave_frozen_models_out(tiny_gpt2: Any, tiny_tokenizer: Any) -> None:
    module = make_module(tiny_gpt2, tiny_tokenizer)
    checkpoint: dict[str, Any] = {"state_dict": module.state_dict()}
    module.on_save_checkpoint(checkpoint)
    kept = {name.split(".")[0] for name in checkpoint["state_dict"]}
    assert kept == {"policy", "value", "ema", "kl_coef", "iteration"}


@pytest.mark.filterwarnings(
    "ignore:.*many workers.*", "ignore:.*in eval mode.*", "ignore:.*LeafSpec.*", "ignore:.*no `val_dataloader`.*"
)
def test_learning_by_the_true_reward(make_tiny_lm: Any, tiny_tokenizer: Any, tmp_path: Any) -> None:
    """Forty iterations teach a policy to say w7: the score is the share of w7 among the words."""

    def share_of_w7(responses: Any) -> list[float]:
        return [r.split().count("w7") / max(len(r.split()), 1) for r in responses]

    module = make_module(
        make_tiny_lm("gpt2"),
        tiny_tokenizer,
        optimizer=partial(torch.optim.Adam, lr=3e-3),
        value_optimizer=partial(torch.optim.Adam, lr=3e-3),
        scheduler=partial(LinearLR, start_factor=0.1, total_iters=2),
        kl_coef=0.01,
        reward=share_of_w7,
    )
    before = mean_score(module)
    loader = torch.utils.data.DataLoader([prompts(32)] * 40, batch_size=None)  # type: ignore[arg-type]
    trainer = lightning.Trainer(
        accelerator="cpu",
        max_epochs=1,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        default_root_dir=tmp_path,
    )
    trainer.fit(module, lightning.pytorch.utilities.CombinedLoader({"prompts": loader}, "min_size"))
    after = mean_score(module)
    assert before < 0.15
    assert after > before + 0.3
