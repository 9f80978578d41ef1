"""Validation prompts of PPO: measured rightly, training as without them, the best weights kept over a kill."""

import copy
import json
import random
import shutil
from functools import partial
from pathlib import Path
from typing import Any

import lightning as L
import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from rlhf_lightning.algorithms.batch import PromptBatch
from rlhf_lightning.data.datamodule import RLHFDataModule
from rlhf_lightning.data.loader import collate_prompts
from rlhf_lightning.data.records import Prompt
from rlhf_lightning.data.tokenize import Tokenization
from rlhf_lightning.generation.sample import SamplingOptions, sample_responses
from rlhf_lightning.models.export import save_model
from rlhf_lightning.models.scalar_head import ScalarHeadModel
from rlhf_lightning.modules.ppo import PPOModule
from rlhf_lightning.recipe.ppo_validation import PromptValidation, answered
from rlhf_lightning.runs.files import read_metrics
from rlhf_lightning.training.checkpoint import BatchCheckpoint
from rlhf_lightning.training.metrics_file import MetricsFile
from rlhf_lightning.training.warnings_file import Warnings

pytestmark = pytest.mark.filterwarnings(
    "ignore:.*many workers.*", "ignore:.*in eval mode.*", "ignore:.*LeafSpec.*", "ignore:.*no `val_dataloader`.*",
    "ignore:.*`list` across ranks is zero.*",
)  # fmt: skip
PROMPTS = [Prompt(f"w{3 + n} w{5 + n}") for n in range(20)]
HELD_OUT = [Prompt(f"w{30 - n}" + f" w{9 + n}" * (n % 3)) for n in range(16)]
RISING = {1: 0.1, 2: 0.3, 3: 0.2, 4: 0.5, 5: 0.1, 6: 0.4, 7: 0.2, 8: 0.0}
"""What a planted judge says after each iteration: the fourth is the best."""


class KilledError(Exception):
    """Stands for whatever ends a process."""


class KillAt(L.Callback):
    def __init__(self, batch: int) -> None:
        self.batch = batch

    def on_train_batch_start(self, trainer: L.Trainer, *_: Any) -> None:
        if trainer.fit_loop.epoch_loop.total_batch_idx == self.batch:
            raise KilledError


def module_of(make_tiny_lm: Any, tokenizer: Any, reward: Any = None, **options: Any) -> PPOModule:
    torch.manual_seed(1)
    scorer, adam = ScalarHeadModel.from_causal_lm(make_tiny_lm("gpt2", seed=2)), partial(torch.optim.Adam, lr=1e-3)
    models = make_tiny_lm("gpt2"), make_tiny_lm("gpt2", seed=1), reward or scorer, copy.deepcopy(scorer)
    return PPOModule(*models, tokenizer, adam, adam, max_new_tokens=6, num_minibatches=2, seed=5, **options)


def batches(tokenizer: Any, size: int = 3) -> list[PromptBatch]:
    examples = Tokenization(tokenizer, 8, 6, "{prompt}").prompts(HELD_OUT)
    return [collate_prompts(examples[start : start + size], 0) for start in range(0, len(examples), size)]


def fit(module: PPOModule, folder: Path, *callbacks: L.Callback, checkpoint_every: int = 1) -> list[str]:
    """Eight iterations, from the last checkpoint; what was said."""
    said: list[str] = []
    checkpoint = BatchCheckpoint(folder / "checkpoints", checkpoint_every)
    trainer = L.Trainer(
        accelerator="cpu", max_epochs=1, logger=MetricsFile(folder / "metrics.csv"), log_every_n_steps=2,
        callbacks=[Warnings(folder / "warnings.json", said.append), *callbacks, checkpoint],
        enable_checkpointing=False, enable_progress_bar=False, enable_model_summary=False,
        default_root_dir=folder, limit_val_batches=0,
    )  # fmt: skip
    data = RLHFDataModule("ppo", module.tokenizer, PROMPTS, batch_size=6, num_batches=8, seed=5)
    resume = str(checkpoint.path) if checkpoint.path.exists() else None
    trainer.fit(module, datamodule=data, ckpt_path=resume, weights_only=True)
    return said


def planted(module: PPOModule, series: dict[int, float]) -> Any:
    """A judge that says what is planted for the iteration."""
    return lambda prompts, responses: [series[int(module.iteration)]] * len(responses)


def exporter(module: PPOModule) -> Any:
    return lambda folder: save_model(module.policy, folder, module.tokenizer)


def drawn(prompts: Any, responses: Any) -> list[float]:
    """A judge that moves every random state."""
    return [random.random() + np.random.rand() + float(torch.rand(())) for _ in responses]


def test_each_prompt_is_measured_as_if_it_were_alone(make_tiny_lm: Any, tiny_tokenizer: Any) -> None:
    """By plain forward passes over one row; the noise depends on the prompt alone."""
    module = module_of(make_tiny_lm, tiny_tokenizer, missing_eos_penalty=0.25)
    found = answered(module, batches(tiny_tokenizer), lambda prompts, responses: [float(len(r)) for r in responses])
    options, cut = SamplingOptions.from_tokenizer(tiny_tokenizer, 6, 1.0), 0
    for row, batch in enumerate(batches(tiny_tokenizer, size=1)):
        rollout = sample_responses(module.policy, batch, options, (5, -1))
        response = rollout.response_ids[0, : int(rollout.response_mask.sum())].tolist()
        prompt = batch.prompt_ids[0].tolist()
        ids = torch.tensor([[*prompt, *response]])
        places = range(len(prompt) - 1, ids.shape[1] - 1)
        with torch.no_grad():
            logs = [model(ids).logits[0].log_softmax(-1) for model in (module.policy, module.reference)]
            scorer: Any = module.reward
            score = float(scorer(ids)[0, -1])
        kl = sum(float(logs[0][p, t] - logs[1][p, t]) for p, t in zip(places, response, strict=True))
        penalty = 0.0 if response[-1] == 1 else 0.25
        cut += penalty > 0
        text = " ".join(tiny_tokenizer.convert_ids_to_tokens([token for token in response if token > 2]))
        expected = {"score": score - penalty, "kl": kl, "length": len(response), "judge": len(text)}
        for name, value in expected.items():
            assert found[name][row] == pytest.approx(value, abs=1e-4), (row, name)
    assert 0 < cut < len(HELD_OUT)
    assert answered(module, batches(tiny_tokenizer, size=2), None)["score"] == pytest.approx(found["score"], abs=1e-5)


def test_a_judge_waits_on_the_cpu(make_tiny_lm: Any, tiny_tokenizer: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """It is asked where the policy is; between validations its memory is the policy's."""
    module, judge = (
        module_of(make_tiny_lm, tiny_tokenizer),
        ScalarHeadModel.from_causal_lm(make_tiny_lm("gpt2", seed=4)),
    )
    moved: list[str] = []
    monkeypatch.setattr(judge, "to", lambda device: moved.append(str(device)))
    answered(module, batches(tiny_tokenizer)[:1], judge)
    assert moved == ["cpu", "cpu"]  # the policy's device, and then the CPU


def test_training_is_the_same_with_it_and_without(make_tiny_lm: Any, tiny_tokenizer: Any, tmp_path: Path) -> None:
    ends = []
    for name in ("with", "without"):
        module = module_of(make_tiny_lm, tiny_tokenizer, ema_decay=0.9)
        L.seed_everything(3, verbose=False)
        every = PromptValidation(batches(tiny_tokenizer), 3, drawn, None, tmp_path / name, "ppo")
        fit(module, tmp_path / name, *([every] if name == "with" else []))
        ends.append((module.state_dict(), random.random(), np.random.rand(), float(torch.rand(()))))
    assert all(torch.equal(value, ends[1][0][key]) for key, value in ends[0][0].items())
    assert ends[0][1:] == ends[1][1:]
    rows = read_metrics(tmp_path / "with" / "metrics.csv")
    own = [row for row in rows if "validation/score" in row]
    # Also those that log_every leaves out, and the last.
    assert [row["step"] for row in own] == [2, 5, 7]
    assert all(row.keys() == {"step", *(f"validation/{n}" for n in ("score", "judge", "kl", "length"))} for row in own)
    timeless = [
        [{k: v for k, v in row.items() if not k.startswith("time/")} for row in found if row not in own]
        for found in (rows, read_metrics(tmp_path / "without" / "metrics.csv"))
    ]
    assert timeless[0] == timeless[1]
    # What is measured is the moving average, which the step passes on.
    with module.ema.applied(module.policy):  # type: ignore[union-attr]
        last = answered(module, batches(tiny_tokenizer), None)
    for name in ("score", "kl", "length"):
        assert own[-1][f"validation/{name}"] == pytest.approx(sum(last[name]) / len(HELD_OUT), abs=1e-5)


@pytest.mark.parametrize("kill_at", [None, 3, 4, 7])
def test_the_best_weights_are_kept_over_a_kill(
    kill_at: int | None, make_tiny_lm: Any, tiny_tokenizer: Any, tmp_path: Path
) -> None:
    """Checkpoints come every third iteration: a kill may lose the best one, which is then made again."""

    def run(*more: L.Callback) -> tuple[PPOModule, PromptValidation]:
        module = module_of(make_tiny_lm, tiny_tokenizer, ema_decay=None)
        export = exporter(module)
        judge = planted(module, RISING)
        validation = PromptValidation(batches(tiny_tokenizer), 1, judge, export, tmp_path, "ppo")
        weights.update({"now": module})
        fit(module, tmp_path, validation, Remember(), *more, checkpoint_every=3)
        return module, validation

    weights: dict[Any, Any] = {}

    class Remember(L.Callback):
        def on_train_batch_end(self, trainer: L.Trainer, pl_module: Any, *_: Any) -> None:
            weights[int(pl_module.iteration)] = copy.deepcopy(pl_module.policy.state_dict())

    if kill_at is not None:
        with pytest.raises(KilledError):
            run(KillAt(kill_at - 1))
    _, validation = run()
    assert validation.finish() == validation.finish() == {"best_iteration": 4}
    saved = load_file(tmp_path / "model_best" / "model.safetensors")
    assert all(torch.equal(value, weights[4][name]) for name, value in saved.items())
    assert (tmp_path / "model_best" / "tokenizer.json").exists()
    assert not (tmp_path / "best").exists()
    rows = [row["validation/judge"] for row in read_metrics(tmp_path / "metrics.csv") if "validation/judge" in row]
    assert rows == pytest.approx(list(RISING.values()))


def test_few_models_are_on_the_disk_while_it_gets_better_and_better(
    make_tiny_lm: Any, tiny_tokenizer: Any, tmp_path: Path
) -> None:
    module, seen = module_of(make_tiny_lm, tiny_tokenizer, ema_decay=None), []

    def export(folder: Path) -> None:
        save_model(module.policy, folder, tiny_tokenizer)
        seen.append({path.name for path in (tmp_path / "best").iterdir()})

    judge = planted(module, {iteration: float(iteration) for iteration in range(9)})
    fit(module, tmp_path, PromptValidation(batches(tiny_tokenizer), 1, judge, export, tmp_path, "ppo"))
    # The new one before older ones go, and what three checkpoints know of: last, previous, and the one that is next.
    assert seen[-1] == {"8", "7", "6", "5", "4"}
    assert {path.name for path in (tmp_path / "best").iterdir()} == {"8", "7", "6", "5"}


def test_a_kept_model_that_is_gone_is_said(make_tiny_lm: Any, tiny_tokenizer: Any, tmp_path: Path) -> None:
    def made() -> tuple[PPOModule, PromptValidation]:
        module = module_of(make_tiny_lm, tiny_tokenizer, ema_decay=None)
        export = exporter(module)
        return module, PromptValidation(batches(tiny_tokenizer), 1, planted(module, RISING), export, tmp_path, "ppo")

    module, validation = made()
    with pytest.raises(KilledError):
        fit(module, tmp_path, validation, KillAt(5))
    shutil.rmtree(tmp_path / "best")
    module, validation = made()
    assert "best/4 is gone" in " ".join(fit(module, tmp_path, validation))
    assert validation.finish() == {"best_iteration": 6}


def test_a_judge_that_falls_is_said_once_also_over_a_kill(
    make_tiny_lm: Any, tiny_tokenizer: Any, tmp_path: Path
) -> None:
    falling = {n: 1.0 - 0.1 * n for n in range(9)}

    def made() -> tuple[PPOModule, PromptValidation]:
        models: list[PPOModule] = []
        models.append(
            module_of(make_tiny_lm, tiny_tokenizer, lambda responses: [float(models[0].iteration)] * len(responses))
        )
        (module,) = models
        return module, PromptValidation(batches(tiny_tokenizer), 2, planted(module, falling), None, tmp_path, "ppo")

    module, validation = made()
    with pytest.raises(KilledError):
        fit(module, tmp_path, validation, KillAt(5))
    assert not (tmp_path / "warnings.json").exists()
    module, validation = made()
    (said,) = fit(module, tmp_path, validation)
    assert "fell from 0.8 after iteration 2 to 0.4" in said
    assert len(json.loads((tmp_path / "warnings.json").read_text())) == 1
