"""What kills a run is said while it trains, once each, with what to do."""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import lightning as L
import torch
from lightning.fabric.utilities import move_data_to_device
from lightning.pytorch.utilities.seed import isolate_rng

from rlhf_lightning.data.datamodule import RLHFDataModule
from rlhf_lightning.training.callbacks import TextShares
from rlhf_lightning.training.data_watch import CutWatch, TrialWatch, UnknownWatch
from rlhf_lightning.training.heartbeat import Heartbeat
from rlhf_lightning.training.progress import StageProgress
from rlhf_lightning.training.warnings_file import Warnings

PROBE = 64
"""The most examples that measure whether a training helps."""
FEWEST = 8
SHARE = 16
"""Training examples for each of the probe: two forward passes over a sixteenth cost 4 % of an epoch, or less."""
WORSE = 1.01
"""How many times the start's loss is worse, and no noise of the arithmetic."""
WINDOW = 3
"""Iterations at the start and at the end that are compared."""
FEW_ENDED = 0.05
CHANGE = 0.1
"""Of the share of responses that end, what is no noise of a few dozen episodes."""
NATS_PER_TOKEN, FEW_NATS, MANY_NATS = 1.0, 10.0, 50.0
"""KL per response beyond which a policy is far out: a nat per token, but no less than 10 and no more than 50 nats. By
50 the score that people would give had fallen again where reward models were over-optimised (Stiennon et al. 2020,
figure 5; Gao et al. 2023, figure 1)."""
FIGURES = ("ended", "length", "kl", "score", "score_std")
"""What is watched of `rollout/*`."""


class LossWatch(L.Callback):
    """Warns where the loss after an epoch is worse than before training, on the same few examples, in eval mode.

    Nothing is logged, and the random states stay as they are.

    Args:
        warnings: Says it.
        step: The name of the step, whose settings the warning names.
        data: What the model learns from.
    """

    def __init__(self, warnings: Warnings, step: str, data: RLHFDataModule) -> None:
        self.warnings, self.step, self.data = warnings, step, data
        self.start: float | None = None
        self._batches: list[Any] = []

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Measure the start; a resumed run knows it."""
        examples = int(trainer.num_training_batches) * self.data.batch_size
        self._batches = self.data.probe(min(PROBE, max(FEWEST, examples // SHARE)))
        if trainer.fit_loop.epoch_loop.total_batch_idx < 0:
            self.start = probe_loss(trainer, pl_module, self._batches)

    def on_train_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Compare."""
        if self.start is None or "loss" in self.warnings.said:
            return
        loss, epoch = probe_loss(trainer, pl_module, self._batches), trainer.current_epoch + 1
        if loss > WORSE * self.start:
            count, which = sum(len(batch[0]) for batch in self._batches), "training"
            if self.data.examples["validation"]:
                which = "validation"
            self.warnings.warn(
                "loss",
                f"the loss on the same {count} {which} examples was {self.start:.4g} before training and is "
                f"{loss:.4g} after epoch {epoch}: the model got worse. Lower {self.step}.module.optimizer.lr, or "
                f"train for fewer epochs ({self.step}.fit.epochs).",
            )

    def state_dict(self) -> dict[str, Any]:
        """The start's loss."""
        return {"start": self.start}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on from there."""
        self.start = state_dict["start"]


@torch.no_grad()
def probe_loss(trainer: L.Trainer, module: Any, batches: Sequence[Any]) -> float:
    """The mean over rows of a module's loss in eval mode; modes and random states are as before afterwards."""
    modes = [(each, each.training) for each in module.modules()]
    module.eval()
    total, rows = 0.0, 0
    try:
        with isolate_rng(), trainer.precision_plugin.forward_context():
            for batch in batches:
                loss, _ = module.loss(move_data_to_device(batch, module.device))
                total, rows = total + float(loss) * len(batch[0]), rows + len(batch[0])
    finally:
        for each, training in modes:
            each.training = training
    return total / rows


class PolicyWatch(L.Callback):
    """Warns of what ends a run of PPO badly: see `policy_warnings`.

    Args:
        warnings: Says it.
        step: The name of the step, whose settings the warnings name.
    """

    def __init__(self, warnings: Warnings, step: str) -> None:
        self.warnings, self.step = warnings, step
        self.rows: list[dict[str, float]] = []

    def on_train_batch_end(self, trainer: L.Trainer, pl_module: L.LightningModule, *_: Any) -> None:
        """Look at the iteration."""
        self.rows.append({name: float(trainer.callback_metrics[f"rollout/{name}"]) for name in FIGURES})
        for about, sentence in policy_warnings(self.rows, self.step).items():
            self.warnings.warn(about, sentence)
        del self.rows[WINDOW:-WINDOW]

    def state_dict(self) -> dict[str, Any]:
        """The figures of the first and the last iterations."""
        return {"rows": [dict(row) for row in self.rows]}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on from there."""
        self.rows = list(state_dict["rows"])


def policy_warnings(rows: Sequence[Mapping[str, float]], step: str) -> dict[str, str]:
    """What is wrong with a run of PPO, by what it is about.

    Args:
        rows: `rollout/*` of the iterations so far; those between the first and the last three do not matter.
        step: The name of the step.
    """
    if len(rows) < WINDOW:
        return {}
    first, last = (
        {name: sum(row[name] for row in part) / WINDOW for name in FIGURES} for part in (rows[:WINDOW], rows[-WINDOW:])
    )
    ended, now, found = first["ended"], last["ended"], {}
    penalty = f"{step}.module.missing_eos_penalty, a larger data.lengths.max_response_tokens"
    if now < ended / 2 and now < ended - CHANGE:
        found["endings"] = (
            f"the share of responses that end by themselves fell from {ended:.0%} to {now:.0%}. A reward model of cut "
            f"responses teaches that (see cut.json of step reward). Try {penalty}, or a reward model of whole ones."
        )
    elif now < FEW_ENDED:
        found["endings"] = (
            f"{now:.0%} of the responses end by themselves, all others are cut at the limit: the start was not taught "
            f"to end, or has no room for it. Try an sft step before, model.eos, {penalty}."
        )
    if last["score"] > first["score"] + first["score_std"] / 4 and ended - now > CHANGE:
        found["length"] = (
            f"the score rose from {first['score']:.3g} to {last['score']:.3g} while the share of responses at the "
            f"length limit rose from {1 - ended:.0%} to {1 - now:.0%}: the reward may pay for length, not for quality. "
            f"Read samples.jsonl; try {penalty}, or a reward that charges for length."
        )
    usual = min(MANY_NATS, max(FEW_NATS, NATS_PER_TOKEN * last["length"]))
    if last["kl"] > usual:
        found["kl"] = (
            f"the KL to the reference is {last['kl']:.3g} nats per response of {last['length']:.3g} tokens, over the "
            f"usual {usual:.3g}: so far out the reward model knows little, and its score is no longer to be trusted. "
            f"Raise {step}.module.kl_coef, or lower {step}.module.optimizer.lr."
        )
    if all(row["score_std"] == 0 for row in rows[-WINDOW:]):
        found["spread"] = (
            f"all responses of the last {WINDOW} iterations had the same score, {last['score']:.3g}: there is nothing "
            "to learn from. Look at the reward and at samples.jsonl."
        )
    return found


def watches(
    step: str,
    module: L.LightningModule,
    data: RLHFDataModule,
    folder: Path,
    say: Callable[[str], None],
    heartbeat: Heartbeat,
) -> list[L.Callback]:
    """The callbacks that watch the training of a step, its progress bar first.

    Args:
        step: The name of the step.
        module: What learns: a module with `loss(batch)`, or one that has rollouts.
        data: What it learns from.
        folder: The folder that gets `warnings.json`.
        say: Function that tells the user.
        heartbeat: Where the bar is drawn.
    """
    heartbeat.note("reading and tokenising")
    bar, warnings = StageProgress(step, heartbeat), Warnings(folder / "warnings.json", say)
    before = [bar, warnings, TrialWatch(warnings), UnknownWatch(warnings, data)]
    if hasattr(module, "rollout"):
        return [*before, PolicyWatch(warnings, step)]
    losses = [LossWatch(warnings, step, data)] if hasattr(module, "loss") else []
    return [*before, CutWatch(warnings, data), TextShares(data), *losses]
