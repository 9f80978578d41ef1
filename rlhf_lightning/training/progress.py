"""The progress bar of a step."""

from collections.abc import Mapping
from typing import Any

import lightning as L
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from rlhf_lightning.training.metrics_file import batches_done

_WIDE = 160
"""Columns of a terminal that has room for the time of every phase."""
_SPEEDS = {"step_tokens_per_second": "tokens/s", "rollout_tokens_per_second": "tokens/s"}


def progress_bar(console: Console | None = None) -> Progress:
    """The progress bar of every step: name, bar, count, time, latest figures."""
    return Progress(
        TextColumn("[bold]{task.description:<9}"),
        BarColumn(bar_width=16),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TextColumn("{task.fields[figures]}"),
        console=console,
    )


class StageProgress(L.Callback):
    """Shows how far a step is, with the figures that its module logs with `prog_bar=True`.

    Lightning's `RichProgressBar` counts each epoch anew and draws on a console of its own, and has no public way round.

    Args:
        name: The name of the step.
        console: The console to draw on; None is standard output.
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
        """Leave the bar as it stands and give the terminal back."""
        if self.progress is not None:
            self.progress.stop()

    def on_exception(self, trainer: L.Trainer, pl_module: L.LightningModule, exception: BaseException) -> None:
        """Give the terminal back."""
        self.on_train_end(trainer, pl_module)


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
