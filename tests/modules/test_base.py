"""What the modules share: schedules, hyperparameters, checkpoints, and running with or without a Trainer."""

import copy
import math
from functools import partial
from pathlib import Path
from typing import Any

import lightning as L
import pytest
import torch
import yaml
from lightning.pytorch.loggers import CSVLogger
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR, LRScheduler
from torch.utils.data import DataLoader

from rlhf_lightning.algorithms.batch import ComparisonBatch, LMBatch, PromptBatch
from rlhf_lightning.cli import composed
from rlhf_lightning.data.examples import ComparisonExample, LMExample, PromptExample
from rlhf_lightning.data.loader import collate_comparisons, collate_lm, collate_prompts
from rlhf_lightning.models.checkpoint_state import LAYOUT
from rlhf_lightning.models.optimizers import build_scheduler
from rlhf_lightning.models.scalar_head import ScalarHeadModel
from rlhf_lightning.modules.language_model import LanguageModelModule
from rlhf_lightning.modules.ppo import PPOModule
from rlhf_lightning.modules.reward import RewardModule
from rlhf_lightning.runs.targets import builder

pytestmark = pytest.mark.filterwarnings(
    "ignore:.*many workers.*",
    "ignore:.*in eval mode.*",
    "ignore:.*LeafSpec.*",
    "ignore:.*does not have many.*",
    "ignore:.*no `val_dataloader`.*",
    "ignore:.*smaller than the logging interval.*",
)
SGD = partial(torch.optim.SGD, lr=0.1)
PPO_SIZES: dict[str, Any] = {"max_new_tokens": 6, "num_minibatches": 2, "kl_coef": 0.1, "seed": 3}


def text_batch() -> LMBatch:
    return collate_lm([LMExample([3, 4, 5, 6, 1], 2), LMExample([7, 8, 1], 1)], 0)


def comparison_batch() -> ComparisonBatch:
    return collate_comparisons([ComparisonExample([3, 4], [[5, 1], [6, 7, 1], [8, 1]], [1, 3, 2], "")], 0)


def prompt_batch() -> PromptBatch:
    return collate_prompts([PromptExample([3 + row, 9], row, f"p{row}") for row in range(8)], 0)


def ppo_models(model: Any) -> dict[str, Any]:
    scalar = ScalarHeadModel.from_causal_lm(model)
    models = {"policy": model, "reference": model, "reward": scalar, "value": scalar}
    return {name: copy.deepcopy(part) for name, part in models.items()}


def ppo_of(model: Any, tokenizer: Any, **options: Any) -> PPOModule:
    torch.manual_seed(0)  # of the scalar heads
    models = ppo_models(model)
    return PPOModule(**models, tokenizer=tokenizer, optimizer=SGD, value_optimizer=SGD, **{**PPO_SIZES, **options})


def fitted(module: L.LightningModule, batch: Any, folder: Path) -> Path:
    """Train on one batch twice with a logger; the checkpoint."""
    trainer = L.Trainer(
        accelerator="cpu",
        max_epochs=1,
        logger=CSVLogger(folder, name="", version=""),
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    trainer.fit(module, DataLoader([batch] * 2, batch_size=None))  # type: ignore[arg-type]
    trainer.save_checkpoint(folder / "last.ckpt")
    return folder / "last.ckpt"


# --- schedules --------------------------------------------------------------------------------------------------------


def rates(factory: Any, steps: int, total: int, peak: float = 2.0) -> list[float]:
    """The learning rate of each optimizer step."""
    optimizer = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=peak)
    schedule = build_scheduler(factory, optimizer, total)
    seen = []
    for _ in range(steps):
        seen.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        schedule.step()
    return seen


def shipped(name: str) -> Any:
    node: dict[str, Any] = composed([f"scheduler@sft.module.scheduler={name}"])["sft"]["module"]["scheduler"]
    return builder([])(node)


def test_cosine_falls_to_a_tenth() -> None:
    seen = rates(shipped("cosine"), 9, total=8)
    # 2 * (0.1 + 0.45 * (1 + cos)): the cosine is 1 at the start, sqrt(1/2) after a quarter, 0 half-way, -1 at the end.
    assert seen[0] == 2.0
    assert seen[2] == pytest.approx(2 * (0.55 + 0.45 * math.sqrt(0.5)), abs=1e-12)
    assert seen[4] == pytest.approx(1.1, abs=1e-12)
    assert seen[6] == pytest.approx(2 * (0.55 - 0.45 * math.sqrt(0.5)), abs=1e-12)
    assert seen[8] == pytest.approx(0.2, abs=1e-12)


def test_warm_up_from_a_tenth_then_constant() -> None:
    seen = rates(shipped("warmup"), 30, total=1000)
    # 0.1, 0.19, 0.28, ... of the peak
    assert seen[:3] == pytest.approx([0.2, 0.38, 0.56], abs=1e-12)
    assert seen[5] == pytest.approx(1.1, abs=1e-12)
    assert seen[9] == pytest.approx(1.82, abs=1e-12)
    assert seen[10:] == pytest.approx([2.0] * 20, abs=1e-12)


def test_warm_up_and_cosine() -> None:
    seen = rates(partial(shipped("warmup_cosine"), num_warmup_steps=4), 8, total=8)
    # A quarter more with every step, then down within the four that are left, the last of which is at the end.
    half = math.sqrt(0.5)
    expected = [0.5, 1.0, 1.5, 2.0, 2 * (0.55 + 0.45 * half), 1.1, 2 * (0.55 - 0.45 * half), 0.2]
    assert seen == pytest.approx(expected, abs=1e-12)


@pytest.mark.parametrize("name", ["cosine", "warmup"])
@pytest.mark.parametrize("total", [1, 7, 250])
def test_schedules_are_the_formulas_that_the_recipe_began_with(name: str, total: int) -> None:
    def cosine(step: int) -> float:
        return 0.1 + (1 - 0.1) * 0.5 * (1 + math.cos(math.pi * min(step / total, 1.0)))

    def warmup(step: int) -> float:
        return min(1.0, 0.1 + (1 - 0.1) * step / 10)

    formula = {"cosine": cosine, "warmup": warmup}[name]
    expected = rates(lambda optimizer: LambdaLR(optimizer, formula), total, total, peak=9.65e-6)
    seen = rates(shipped(name), total, total, peak=9.65e-6)
    # Torch's warm-up multiplies the rate step by step, which rounds in the sixteenth digit.
    assert seen == (expected if name == "cosine" else pytest.approx(expected, rel=1e-14))
    assert torch.equal(torch.tensor(seen), torch.tensor(expected))  # to the 32 bits of the weights


def test_a_factory_may_be_given_the_number_of_steps() -> None:
    def half_way(optimizer: Optimizer, num_training_steps: int) -> LRScheduler:
        return LambdaLR(optimizer, lambda step: 1.0 if 2 * step < num_training_steps else 0.5)

    assert rates(half_way, 4, total=4) == [2.0, 2.0, 1.0, 1.0]


def test_a_factory_that_needs_more_is_refused() -> None:
    def positional(optimizer: Optimizer, total_steps: int) -> LRScheduler:
        raise AssertionError

    with pytest.raises(ValueError, match=r"'total_steps'.*parameter that is the number of steps num_training_steps"):
        rates(positional, 1, total=4)


# --- hyperparameters and checkpoints ----------------------------------------------------------------------------------


def same(found: nn.Module, expected: nn.Module) -> bool:
    pairs = zip(found.state_dict().values(), expected.state_dict().values(), strict=True)
    return all(torch.equal(one, other) for one, other in pairs)


def test_the_language_model_comes_back(make_tiny_lm: Any, tmp_path: Path) -> None:
    options = {"activation_checkpointing": True, "micro_batch_size": None, "packing": False}
    module = LanguageModelModule(make_tiny_lm("gpt2"), SGD, activation_checkpointing=True)
    path = fitted(module, text_batch(), tmp_path)
    assert yaml.safe_load((tmp_path / "hparams.yaml").read_text()) == options
    fresh = make_tiny_lm("gpt2", seed=1)
    found = LanguageModelModule.load_from_checkpoint(path, weights_only=True, model=fresh, optimizer=SGD)
    assert found.hparams == options
    assert same(found.model, module.model)
    assert not same(found.model, make_tiny_lm("gpt2"))


def test_the_reward_model_comes_back(make_tiny_lm: Any, tmp_path: Path) -> None:
    module = RewardModule(ScalarHeadModel.from_causal_lm(make_tiny_lm("gpt2")), SGD, shared_prefix=False)
    path = fitted(module, comparison_batch(), tmp_path)
    assert "shared_prefix: false" in (tmp_path / "hparams.yaml").read_text()
    fresh = ScalarHeadModel.from_causal_lm(make_tiny_lm("gpt2", seed=1))
    found = RewardModule.load_from_checkpoint(path, weights_only=True, model=fresh, optimizer=SGD)
    assert found.hparams["shared_prefix"] is False
    assert same(found.model, module.model)


def test_ppo_comes_back(make_tiny_lm: Any, tiny_tokenizer: Any, tmp_path: Path) -> None:
    module = ppo_of(make_tiny_lm("gpt2"), tiny_tokenizer, gae_lambda=0.9, kl_target=1.0, kl_horizon=100)
    path = fitted(module, {"prompts": prompt_batch()}, tmp_path)
    written = (tmp_path / "hparams.yaml").read_text().splitlines()
    assert {"gae_lambda: 0.9", "max_new_tokens: 6", "max_grad_norm: null", "kl_coef: 0.1"} <= set(written)
    assert not any(line.startswith(("policy", "value:", "optimizer", "sampler", "tokenizer")) for line in written)
    models = ppo_models(make_tiny_lm("gpt2", seed=1)) | {"reference": module.reference, "reward": module.reward}
    built: dict[str, Any] = {**models, "tokenizer": tiny_tokenizer, "optimizer": SGD, "value_optimizer": SGD}
    found = PPOModule.load_from_checkpoint(path, weights_only=True, **built)
    assert found.hparams == module.hparams
    assert same(found, module)  # the moving average, the iteration and the adapted KL coefficient too
    assert int(found.iteration) == 2
    assert float(found.kl_coef) != pytest.approx(0.1, abs=1e-6)
    first, again = (each.score(each.rollout(prompt_batch())) for each in (module, found))
    assert torch.equal(first.returns, again.returns)


@pytest.mark.parametrize("layout", [None, 1, LAYOUT + 1])
def test_a_checkpoint_of_another_layout_is_refused(make_tiny_lm: Any, tmp_path: Path, layout: int | None) -> None:
    path = fitted(LanguageModelModule(make_tiny_lm("gpt2"), SGD), text_batch(), tmp_path)
    checkpoint = torch.load(path, weights_only=True)
    assert checkpoint.pop("rlhf_lightning_layout") == LAYOUT
    if layout is not None:
        checkpoint["rlhf_lightning_layout"] = layout
    torch.save(checkpoint, path)
    sentence = r"layout of another version .*\. Remove the checkpoints folder to train anew, or finish it"
    with pytest.raises(RuntimeError, match=sentence):
        LanguageModelModule.load_from_checkpoint(path, weights_only=True, model=make_tiny_lm("gpt2"), optimizer=SGD)
    trainer = L.Trainer(accelerator="cpu", max_epochs=2, logger=False, enable_checkpointing=False)
    again = LanguageModelModule(make_tiny_lm("gpt2"), SGD)
    with pytest.raises(RuntimeError, match=sentence):
        trainer.fit(again, DataLoader([text_batch()], batch_size=None), ckpt_path=path, weights_only=True)  # type: ignore[arg-type]


# --- with and without a Trainer ---------------------------------------------------------------------------------------


def weights(module: PPOModule) -> list[Tensor]:
    return [parameter.detach().clone() for model in (module.policy, module.value) for parameter in model.parameters()]


def test_ppo_is_the_same_under_a_trainer_under_fabric_and_by_itself(
    make_tiny_lm: Any, tiny_tokenizer: Any, tmp_path: Path
) -> None:
    """Fabric logs; nothing is said without it, where a warning would be an error."""
    found = []
    for how in ("trainer", "fabric", "alone"):
        module = ppo_of(make_tiny_lm("gpt2"), tiny_tokenizer, max_grad_norm=1.0, ptx_coef=0.5)
        if how == "trainer":
            fitted(module, {"prompts": prompt_batch(), "pretrain": text_batch()}, tmp_path / how)
        else:
            optimizers = module.build_optimizers()
            if how == "fabric":
                logger = CSVLogger(tmp_path / how, name="", version="")
                L.Fabric(accelerator="cpu", devices=1, loggers=logger).setup(module, *optimizers)
            for _ in range(2):
                handed_in = optimizers if how == "alone" else None
                module.update(module.score(module.rollout(prompt_batch())), text_batch(), handed_in)
                module.iteration += 1
        found.append(weights(module))
        if how == "fabric":
            logger.save()
            head = (tmp_path / how / "metrics.csv").read_text().splitlines()[0].split(",")
            assert {"rollout/sampler_gap", "update/policy_loss", "update/ppo_grad_norm", "update/ptx_loss"} <= set(head)
    for other in found[1:]:
        assert all(torch.equal(one, two) for one, two in zip(found[0], other, strict=True))
    before = weights(ppo_of(make_tiny_lm("gpt2"), tiny_tokenizer))
    assert not any(torch.equal(one, two) for one, two in zip(found[0][:3], before[:3], strict=True))


def test_after_a_fit_the_steps_can_be_called_by_hand(make_tiny_lm: Any, tiny_tokenizer: Any, tmp_path: Path) -> None:
    module = ppo_of(make_tiny_lm("gpt2"), tiny_tokenizer)
    fitted(module, {"prompts": prompt_batch()}, tmp_path)
    before = weights(module)
    module.update(module.score(module.rollout(prompt_batch())), None, module.build_optimizers())
    assert not all(torch.equal(one, two) for one, two in zip(before, weights(module), strict=True))


@pytest.mark.parametrize("task", ["language model", "reward"])
def test_losses_and_steps_run_under_fabric(task: str, make_tiny_lm: Any, tmp_path: Path) -> None:
    module: Any
    batch: Any
    model = make_tiny_lm("gpt2")
    if task == "reward":
        module, batch = RewardModule(ScalarHeadModel.from_causal_lm(model), SGD), comparison_batch()
    else:
        module, batch = LanguageModelModule(model, SGD), text_batch()
    alone = float(module.loss(batch)[0].detach())
    fabric = L.Fabric(accelerator="cpu", devices=1, loggers=CSVLogger(tmp_path, name="", version=""))
    wrapped, optimizer = fabric.setup(module, SGD(module.parameters()))
    losses = []
    for _ in range(3):
        loss = wrapped.training_step(batch, 0)
        fabric.backward(loss)
        optimizer.step()
        optimizer.zero_grad()
        losses.append(float(loss.detach()))
    assert losses[0] == pytest.approx(alone, abs=1e-6)
    assert losses[2] < losses[0]
    fabric.logger.save()
    logged = (tmp_path / "metrics.csv").read_text().splitlines()[0]
    assert "train/loss" in logged
    assert ("train/margin" in logged) == (task == "reward")
