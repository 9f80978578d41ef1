"""The progress bar of a step."""

from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from typing import Any

import lightning as L
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeElapsedColumn

from rlhf_lightning.training.heartbeat import Heartbeat
from rlhf_lightning.training.metrics_file import batches_done

_WIDE = 160
"""Columns of a terminal that has room for the time of every phase."""
_SPEED = "tok/s"
_SHORT = {
    "kl": "KL",
    "length": "len",
    "ptx_loss": "ptx",
    **dict.fromkeys(("step_tokens_per_second", "rollout_tokens_per_second"), _SPEED),
}
"""Figures that are called otherwise beside the bar, so that those of PPO fit into 120 columns."""


@contextmanager
def progress_bar(
    heartbeat: Heartbeat, name: str, total: float | None, completed: int = 0, figures: str = ""
) -> Iterator[tuple[Progress, TaskID]]:
    """The progress bar of every step: name, bar, count, time, latest figures.

    Args:
        heartbeat: Says how far the bar is where bars are not drawn.
        name: The name of the step.
        total: How much there is to do; None where nobody knows.
        completed: How much is done already.
        figures: What stands beside the bar.
    """
    with Progress(
        TextColumn("[bold]{task.description:<9}"),
        BarColumn(bar_width=16),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TextColumn("{task.fields[figures]}"),
        console=heartbeat.console,
    ) as bar:
        task = bar.add_task(name, total=total, completed=completed, figures=figures)
        with heartbeat.following(bar, task):
            yield bar, task


class StageProgress(L.Callback):
    """Shows how far a step is, with the figures that its module logs with `prog_bar=True`.

    Lightning's `RichProgressBar` counts each epoch anew and draws on a console of its own, and has no public way round.

    Args:
        name: The name of the step.
        heartbeat: Where the bar is drawn, and what says how far it is where bars are not drawn.
    """

    def __init__(self, name: str, heartbeat: Heartbeat) -> None:
        self.name, self.heartbeat = name, heartbeat
        self._shown = ExitStack()

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Show the bar, at the place where a resumed run goes on."""
        total = int(trainer.num_training_batches) * (trainer.max_epochs or 1)
        bar = progress_bar(self.heartbeat, self.name, total, batches_done(trainer))
        self.bar, self.task = self._shown.enter_context(bar)

    def on_train_batch_end(self, trainer: L.Trainer, pl_module: L.LightningModule, *_: Any) -> None:
        """Move the bar."""
        figures = _figures(trainer.progress_bar_metrics, self.heartbeat.console.width)
        self.bar.update(self.task, completed=batches_done(trainer), figures=figures)

    def on_train_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Leave the bar as it stands and give the terminal back."""
        self._shown.close()
        self.heartbeat.note("exporting and measuring")

    def on_exception(self, trainer: L.Trainer, pl_module: L.LightningModule, exception: BaseException) -> None:
        """Give the terminal back."""
        self._shown.close()


def _figures(metrics: Mapping[str, float], width: int) -> str:
    """What stands beside the bar: speed and time of the main phase always, of all phases where there is room."""
    shown = {}
    for name, value in metrics.items():
        kind, _, figure = name.partition("/")
        figure = _SHORT.get(figure, figure)
        if kind == "time" and figure != _SPEED:
            if width < _WIDE:
                continue
            figure = figure.replace("_tokens_per_second", f" {_SPEED}").replace("_seconds", " s")
        shown[f"val. {figure}" if kind == "validation" else figure] = value
    return "  ".join(f"{name} {_number(value)}" for name, value in shown.items())


def _number(value: float) -> str:
    """Three digits, and no exponent before a million."""
    return f"{value:.0f}" if 1000 <= abs(value) < 1e6 else f"{value:.3g}"
