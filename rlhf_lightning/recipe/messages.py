"""What people are told while a run goes on."""

import json
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

from rich.console import Console
from rich.markup import escape

from rlhf_lightning.data.sources import DataSource, FileData
from rlhf_lightning.data.tally import CUT, DROPPED, Tally, sentence
from rlhf_lightning.parallel.processes import rank
from rlhf_lightning.runs.files import naming_full_disk, write_json
from rlhf_lightning.runs.signals import Ended, ended_by_signals
from rlhf_lightning.runs.terminal import HarmlessOutput
from rlhf_lightning.training.heartbeat import Heartbeat


class Messages:
    """Tells people what happens to steps and records.

    Args:
        data: The records of the run.
        console: Where progress and tables go.
    """

    def __init__(self, data: DataSource, console: Console | None = None) -> None:
        self.data, self.console = data, console or Console()
        self.console.push_render_hook(HarmlessOutput())
        self.heartbeat = Heartbeat(self.console)
        self._reported: set[str] = set()

    def say(self, step: str, message: str) -> None:
        """One line about a step."""
        self.console.print(f"[bold]{step:<9}[/] {escape(message)}")

    @contextmanager
    def ending_in_order(self, step: str, folder: Path) -> Iterator[None]:
        """One sentence where a signal or a full disk ends a step within the block; what was done is kept.

        While a Trainer runs, its callback `BatchCheckpoint` has the signals. The first process listens: the others wait
        for it in calls that no handler interrupts, and end at once.

        Args:
            step: The step's name.
            folder: The step's output folder.
        """
        try:
            with naming_full_disk(step, folder), ExitStack() as signals:
                if rank() == 0:
                    signals.enter_context(ended_by_signals())
                yield
        except Ended as ended:
            self.say(step, f"stopped by {ended.name}; the same command goes on from here")
            raise

    def report_dropped(self, step: str, folder: Path, tally: Tally) -> None:
        """Say and write down how many records a step left out, and how many it cut, by set, reason and source."""
        for name, what in ((DROPPED, "left out"), (CUT, "cut")):
            if counts := tally.by_set(name):
                write_json(folder / f"{name}.json", counts)
                self.say(step, f"{what}: {sentence(counts)}")

    def report_malformed(self, step: str) -> None:
        """Say how many malformed rows went aside since the last time, and which rows hold no such record."""
        if isinstance(self.data, FileData):
            for name, reasons in self.data.left_out.items():
                if name not in self._reported:
                    self._reported.add(name)
                    self.say(step, f"no {name}: {json.dumps(reasons)}")
        for file, rows in self.data.malformed.items():
            if file not in self._reported:
                self._reported.add(file)
                self.say(step, f"malformed rows: {len(rows)}, now in {file}, the first: {rows.sentences[0]}")
