"""Callbacks and the logger of the pipeline: progress, metrics.csv, sample tables."""

import csv
import json
from argparse import Namespace
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import lightning as L
from lightning.pytorch.loggers.logger import Logger
from lightning.pytorch.utilities import rank_zero_only
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from transformers import PreTrainedTokenizerBase

from rlhf_lightning.artifacts import put_in_place, read_metrics
from rlhf_lightning.generation import response_texts

_WIDE = 160
"""Columns of a terminal that has room for the time of every phase."""
_SPEEDS = {"step_tokens_per_second": "tokens/s", "rollout_tokens_per_second": "tokens/s"}


def progress_bar(console: Console | None = None) -> Progress:
    """The progress bar of every stage: name, bar, count, time, latest figures."""
    return Progress(
        TextColumn("[bold]{task.description:<9}"),
        BarColumn(bar_width=16),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TextColumn("{task.fields[figures]}"),
        console=console,
    )


class StageProgress(L.Callback):
    """Shows how far a stage is, with the figures that its module logs with ``prog_bar=True``.

    Args:
        name: Of the stage.
        console: Where to; default standard output.
    """

    def __init__(self, name: str, console: Console | None = None) -> None:
        self.name, self.console = name, console
        self.progress: Progress | None = None

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Show the bar, at the place where a resumed run goes on."""
        self.progress = progress_bar(self.console)
        total = int(trainer.num_training_batches) * (trainer.max_epochs or 1)
        self.task = self.progress.add_task(self.name, total=total, completed=batches_done(trainer), figures="")
        self.progress.start()

    def on_train_batch_end(self, trainer: L.Trainer, pl_module: L.LightningModule, *_: Any) -> None:
        """Move the bar."""
        if self.progress is not None:
            figures = _figures(trainer.progress_bar_metrics, self.progress.console.width)
            self.progress.update(self.task, completed=batches_done(trainer), figures=figures)

    def on_train_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Leave the bar as it stands."""
        if self.progress is not None:
            self.progress.stop()

    def on_exception(self, trainer: L.Trainer, pl_module: L.LightningModule, exception: BaseException) -> None:
        """Give the terminal back."""
        if self.progress is not None:
            self.progress.stop()


class SampleTable(L.Callback):
    """Appends a few rollouts of PPO to ``samples.jsonl`` every so many iterations.

    Args:
        path: The file.
        tokenizer: Of the policy.
        every_n_iterations: How often.
        rows: How many episodes each time.
    """

    def __init__(
        self, path: Path, tokenizer: PreTrainedTokenizerBase, every_n_iterations: int = 10, rows: int = 4
    ) -> None:
        self.tokenizer = tokenizer
        self.path, self.every_n_iterations, self.rows = path, every_n_iterations, rows

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Drop what an interrupted run wrote after its last checkpoint."""
        if self.path.exists() and trainer.is_global_zero:
            lines = self.path.read_text(encoding="utf-8").splitlines(keepends=True)
            done = batches_done(trainer)
            kept = [line for line in lines if line.endswith("\n") and json.loads(line)["iteration"] < done]
            unfinished = self.path.with_suffix(".unfinished")
            unfinished.write_text("".join(kept), encoding="utf-8")
            put_in_place(unfinished, self.path)

    def on_train_batch_end(self, trainer: L.Trainer, pl_module: L.LightningModule, *_: Any) -> None:
        """Write where it is time to."""
        iteration = batches_done(trainer) - 1
        experience = getattr(pl_module, "latest", None)
        if experience is None or iteration % self.every_n_iterations or not trainer.is_global_zero:
            return
        texts = response_texts(self.tokenizer, experience.rollout)
        with self.path.open("a", encoding="utf-8") as file:
            for row in range(min(self.rows, len(texts))):
                sample = {
                    "iteration": iteration,
                    "prompt": experience.rollout.prompts.texts[row],
                    "response": texts[row],
                    "score": round(float(experience.scores[row]), 4),
                }
                file.write(json.dumps(sample, ensure_ascii=False) + "\n")


class KeepEpochs(L.Callback):
    """Writes the model after every epoch (InstructGPT, section 3.5 and appendix C.1, chooses among them).

    Args:
        folder: Gets one folder per epoch: ``1``, ``2``, ...
        export: Writes the model to a folder.
    """

    def __init__(self, folder: Path, export: Callable[[Path], None]) -> None:
        self.folder, self.export = folder, export

    def on_train_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Write the epoch that just ended."""
        self.export(self.folder / str(trainer.current_epoch + 1))


class MetricsFile(Logger):
    """``metrics.csv``: one row per step, a column per metric; a resumed run goes on in the same file.

    Args:
        path: The file.
    """

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.path = path
        self._rows: list[dict[str, Any]] = read_metrics(path) if path.exists() else []
        self._columns = list(dict.fromkeys(name for row in self._rows for name in row))
        self._rewrite = True  # also after a resume, in case the last line is torn

    @property
    def name(self) -> str:
        """Not used in any path."""
        return "metrics"

    @property
    def version(self) -> int:
        """Not used in any path."""
        return 0

    @property
    def experiment(self) -> None:
        """There is none."""

    @rank_zero_only
    def log_hyperparams(self, params: dict[str, Any] | Namespace, *_: Any) -> None:
        """The resolved configuration is in config.yaml."""

    @rank_zero_only
    def log_metrics(self, metrics: Mapping[str, float], step: int | None = None) -> None:
        """Write one row."""
        row: dict[str, Any] = {"step": step, **metrics}
        new_columns = [name for name in row if name not in self._columns]
        self._columns += new_columns
        self._rows.append(row)
        if new_columns or self._rewrite:
            self._write_all()
        else:
            self._write(self.path, "a", [row], header=False)

    @rank_zero_only
    def cut(self, steps: int) -> None:
        """Keep the rows of the first so many steps: an interrupted run may have logged more than it saved."""
        self._rows = [row for row in self._rows if row["step"] < steps]
        self._columns = list(dict.fromkeys(name for row in self._rows for name in row))
        if self.path.exists():
            self._write_all()

    def _write_all(self) -> None:
        self._rewrite = False
        unfinished = self.path.with_suffix(".unfinished")
        self._write(unfinished, "w", self._rows, header=True)
        put_in_place(unfinished, self.path)

    def _write(self, path: Path, mode: str, rows: list[dict[str, Any]], header: bool) -> None:
        with path.open(mode, newline="", encoding="utf-8") as file:
            writer = csv.DictWriter(file, self._columns)
            if header:
                writer.writeheader()
            writer.writerows(rows)


def last_figures(path: Path) -> dict[str, float]:
    """The last value of every metric; empty when nothing was logged."""
    figures: dict[str, float] = {}
    for row in read_metrics(path) if path.exists() else []:
        figures |= {name: round(value, 6) for name, value in row.items() if name not in ("step", "epoch")}
    return figures


def batches_done(trainer: L.Trainer) -> int:
    """Batches of all epochs so far; Lightning's ``global_step`` counts every step of every optimizer instead."""
    return trainer.fit_loop.epoch_loop.total_batch_idx + 1


def _figures(metrics: Mapping[str, float], width: int) -> str:
    """What stands beside the bar: speed and time of the main phase always, of all phases where there is room."""
    shown = {}
    for name, value in metrics.items():
        kind, _, figure = name.partition("/")
        if kind == "time":
            figure = _SPEEDS.get(figure, figure.replace("_tokens_per_second", " tokens/s").replace("_seconds", " s"))
            if width < _WIDE and figure not in _SPEEDS.values():
                continue
        shown[f"val. {figure}" if kind == "validation" else figure] = value
    return "  ".join(f"{name} {value:.3g}" for name, value in shown.items())
