"""metrics.csv: a row per step, exact after a resume."""

import csv
import math
from argparse import Namespace
from collections.abc import Iterator, Mapping, Sequence
from functools import partial, reduce
from pathlib import Path
from typing import Any

import lightning as L
from lightning.pytorch.loggers.logger import Logger
from lightning.pytorch.utilities import rank_zero_only

from rlhf_lightning.parallel.processes import on_rank_zero
from rlhf_lightning.runs.files import read_metrics, replacing
from rlhf_lightning.runs.folders import PipelineError
from rlhf_lightning.runs.identity import fingerprint

NO_ROWS: dict[str, Any] = {"rows": 0, "digest": ""}
_NO_RESULT = ("step", "epoch", "lr/", "lr-")
"""How columns begin that are no results."""


class MetricsFile(Logger):
    """`metrics.csv`: one row per step, a column per metric; a resumed run goes on in the same file.

    Lightning's `CSVLogger` deletes the rows that are there and writes every hundredth step.

    Args:
        path: The file that grows.
    """

    name = "metrics"
    version = 0

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.path = path
        self.rows: list[dict[str, Any]] = read_metrics(path) if path.exists() else []
        self.mark = NO_ROWS
        """What the rows are known by, once the training goes on."""
        self._columns: list[str] = []  # of none, so that the first row writes all: the last line may be torn

    @rank_zero_only
    def log_hyperparams(self, params: dict[str, Any] | Namespace, *_: Any) -> None:
        """The resolved configuration is in config.yaml."""

    @rank_zero_only
    def log_metrics(self, metrics: Mapping[str, float], step: int | None = None) -> None:
        """Write one row."""
        row: dict[str, Any] = {"step": step, **metrics}
        self.rows.append(row)
        self.mark = marked(self.mark, row)
        if row.keys() <= set(self._columns):
            with self.path.open("a", newline="", encoding="utf-8") as file:
                csv.DictWriter(file, self._columns).writerow(row)
        else:
            self._write_all()

    @rank_zero_only
    def cut(self, steps: int) -> None:
        """Keep the rows of the first so many steps: an interrupted run may have logged more than it saved."""
        self.rows = [row for row in self.rows if row["step"] < steps]
        self.mark = reduce(marked, self.rows, NO_ROWS)
        if self.path.exists():
            self._write_all()

    def _write_all(self) -> None:
        self._columns = list(dict.fromkeys(name for row in self.rows for name in row))
        with replacing(self.path, newline="") as file:
            writer = csv.DictWriter(file, self._columns)
            writer.writeheader()
            writer.writerows(self.rows)


def marked(mark: Mapping[str, Any], row: Mapping[str, Any]) -> dict[str, Any]:
    """What rows are known by with one more: their number and a digest of them in order."""
    plain = {
        name: float(value) if isinstance(value, int) else value for name, value in row.items() if value is not None
    }
    return {"rows": mark["rows"] + 1, "digest": fingerprint([mark["digest"], plain])}


def check_mark(path: Path, rows: Sequence[Mapping[str, Any]], mark: Mapping[str, Any]) -> None:
    """Make sure that a file that grows begins with the rows that a checkpoint was saved with; one that is gone may be.

    Raises:
        ValueError: In all processes, when that of the first one does not.
    """
    on_rank_zero(partial(_check_mark, path, rows, mark))


def _check_mark(path: Path, rows: Sequence[Mapping[str, Any]], mark: Mapping[str, Any]) -> None:
    if mark and path.exists() and reduce(marked, rows[: mark["rows"]], NO_ROWS) != mark:
        raise ValueError(
            f"{path} does not hold the {mark['rows']} rows that the checkpoint beside it was saved with: it is of "
            "another training, or damaged. Put it back from a copy, or move it away to go on without it."
        )


def last_figures(path: Path) -> dict[str, float]:
    """The last value of every metric but learning rates; empty when nothing was logged."""
    figures: dict[str, float] = {}
    for row in read_metrics(path) if path.exists() else []:
        figures |= {name: round(value, 6) for name, value in row.items() if not name.startswith(_NO_RESULT)}
    return figures


def batches_done(trainer: L.Trainer) -> int:
    """Batches of all epochs so far; Lightning's `global_step` counts every step of every optimizer instead."""
    return trainer.fit_loop.epoch_loop.total_batch_idx + 1


def refuse_non_finite(step: str, metrics: Any) -> None:
    """A step must not be complete with a measure that is no number.

    Args:
        step: The step's name.
        metrics: Its metrics, however nested; None where something was not measured.

    Raises:
        PipelineError: Names the measures.
    """
    found = list(_non_finite(metrics))
    if found:
        shown = ", ".join(f"{name} = {value}" for name, value in found[:5])
        more = f" and {len(found) - 5} more" if len(found) > 5 else ""
        raise PipelineError(
            f"{step} ended with {shown}{more}: what it made is not to be used, so it does not count as complete. Look "
            f"at its metrics and data, lower the learning rate or raise the precision where it trains, and make it "
            f"again: stages=[{step}] overwrite=true."
        )


def _non_finite(value: Any, path: str = "") -> Iterator[tuple[str, float]]:
    if isinstance(value, Mapping):
        for name, part in value.items():
            yield from _non_finite(part, f"{path}.{name}" if path else str(name))
    elif isinstance(value, (list, tuple)):
        for number, part in enumerate(value):
            yield from _non_finite(part, f"{path}.{number}")
    elif isinstance(value, float) and not math.isfinite(value):
        yield path, value
