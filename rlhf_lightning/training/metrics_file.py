"""metrics.csv: a row per step, exact after a resume."""

import csv
from argparse import Namespace
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import lightning as L
from lightning.pytorch.loggers.logger import Logger
from lightning.pytorch.utilities import rank_zero_only

from rlhf_lightning.runs.files import put_in_place, read_metrics


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
