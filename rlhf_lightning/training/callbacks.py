"""Callbacks of the recipe: learning rates, samples of PPO, the model of every epoch."""

import json
from collections.abc import Callable
from functools import reduce
from pathlib import Path
from typing import Any

import lightning as L
from torch.optim import Optimizer
from transformers import PreTrainedTokenizerBase

from rlhf_lightning.arguments import Count, checked
from rlhf_lightning.data.datamodule import RLHFDataModule
from rlhf_lightning.generation.sample import response_texts
from rlhf_lightning.parallel.processes import on_rank_zero
from rlhf_lightning.runs.files import append_line, read_json_lines, write_lines
from rlhf_lightning.training.metrics_file import NO_ROWS, batches_done, check_mark, marked

ROWS = 4
"""Rollouts that `SampleTable` writes each time."""


class LearningRates(L.Callback):
    """Logs the learning rate of every optimizer as `lr/<model>`, such as `lr/policy` and `lr/value`.

    Schedules get these names too, for Lightning's `LearningRateMonitor`.
    """

    def on_fit_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Name each optimizer after the model whose parameters it has."""
        models: dict[int, str] = {}
        for model_name, model in pl_module.named_children():
            for parameter in model.parameters():
                models.setdefault(id(parameter), model_name)  # a body that two models share is the first one's
        self._names: dict[str, Optimizer] = {}
        for number, optimizer in enumerate(trainer.optimizers):
            name = f"lr/{models.get(id(optimizer.param_groups[0]['params'][0]), 'optimizer')}"
            self._names[f"{name}{number}" if name in self._names else name] = optimizer
        for config in trainer.lr_scheduler_configs:
            config.name = next((name for name, one in self._names.items() if one is config.scheduler.optimizer), None)

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Let a step with fewer batches than `log_every` log its last one at least."""
        settings: Any = trainer
        settings.log_every_n_steps = int(max(1, min(settings.log_every_n_steps, trainer.num_training_batches)))

    def on_train_batch_start(self, trainer: L.Trainer, pl_module: L.LightningModule, *_: Any) -> None:
        """Log the rates that this batch learns with; those of the groups of one optimizer by their numbers."""
        for name, optimizer in self._names.items():
            for number, group in enumerate(optimizer.param_groups):
                pl_module.log(f"{name}/{number}" if number else name, group["lr"])


class TextShares(L.Callback):
    """Logs which share of the rows, and of the tokens in the loss, is pretraining text, where some is mixed in.

    Args:
        data: What the model learns from.
    """

    def __init__(self, data: RLHFDataModule) -> None:
        self.data = data

    def on_train_batch_start(self, trainer: L.Trainer, pl_module: L.LightningModule, *_: Any) -> None:
        """They are the same all the time."""
        pl_module.log_dict(self.data.text_shares)


class SampleTable(L.Callback):
    """Appends `ROWS` rollouts of PPO to `samples.jsonl` every so many iterations, the first and the last ones always.

    Args:
        path: The file that grows.
        tokenizer: The policy's tokenizer.
        every_n_iterations: Iterations between two times.
    """

    @checked
    def __init__(self, path: Path, tokenizer: PreTrainedTokenizerBase, every_n_iterations: Count = 10) -> None:
        self.tokenizer = tokenizer
        self.path, self.every_n_iterations = path, every_n_iterations
        self._written = -1
        self._samples: list[dict[str, Any]] = []
        self._mark = NO_ROWS

    def setup(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        """Read what an interrupted run wrote, also where all of its iterations are done."""
        self._samples = on_rank_zero(self._whole_lines)

    def _whole_lines(self) -> list[dict[str, Any]]:
        if not self.path.exists():
            return []
        lines = read_json_lines(self.path)
        write_lines(self.path, lines)  # without a torn last one
        return lines

    def state_dict(self) -> dict[str, Any]:
        """What the samples are known by."""
        return self._mark

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Make sure that the samples are those of the training that saved the checkpoint."""
        check_mark(self.path, self._samples, state_dict)

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Drop what an interrupted run wrote after its last checkpoint."""
        self._samples = [row for row in self._samples if row["iteration"] < batches_done(trainer)]
        self._mark = reduce(marked, self._samples, NO_ROWS)
        self._written = self._samples[-1]["iteration"] if self._samples else -1
        if self.path.exists() and trainer.is_global_zero:
            write_lines(self.path, self._samples)

    def on_train_batch_end(self, trainer: L.Trainer, pl_module: L.LightningModule, *_: Any) -> None:
        """Write where it is time to."""
        if (batches_done(trainer) - 1) % self.every_n_iterations == 0:
            self._write(trainer, pl_module)

    def on_train_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Write the last iteration, also where a callback ended the training."""
        self._write(trainer, pl_module)

    def _write(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        iteration, experience = batches_done(trainer) - 1, getattr(pl_module, "latest", None)
        if experience is None or iteration == self._written or not trainer.is_global_zero:
            return
        self._written = iteration
        texts = response_texts(self.tokenizer, experience.rollout)
        for row in range(min(ROWS, len(texts))):
            sample = {
                "iteration": iteration,
                "prompt": experience.rollout.prompts.texts[row],
                "response": texts[row],
                "score": round(float(experience.scores[row]), 4),
            }
            append_line(self.path, json.dumps(sample, ensure_ascii=False))
            self._mark = marked(self._mark, sample)


class KeepEpochs(L.Callback):
    """Writes the model after every epoch, and within them (InstructGPT, 3.5, C.1 and C.5, chooses among such models).

    Args:
        folder: The folder of their folders: `1`, `2`, ... after epochs, `batch-400`, ... after so many batches.
        export: Function that writes the model to a folder.
        epochs: Whether it is written after every epoch.
        every_n_batches: Batches of all epochs between two times besides; None is never.
    """

    def __init__(
        self, folder: Path, export: Callable[[Path], None], epochs: bool = True, every_n_batches: int | None = None
    ) -> None:
        self.folder, self.export, self.epochs, self.every_n_batches = folder, export, epochs, every_n_batches

    def on_train_batch_end(self, trainer: L.Trainer, pl_module: L.LightningModule, *_: Any) -> None:
        """Write where so many batches are done."""
        if self.every_n_batches is not None and batches_done(trainer) % self.every_n_batches == 0:
            self.export(self.folder / f"batch-{batches_done(trainer)}")

    def on_train_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Write the epoch that just ended."""
        if self.epochs:
            self.export(self.folder / str(trainer.current_epoch + 1))
