"""What an interrupted step has done, part by part, so that it goes on after the last whole one."""

import json
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, ClassVar

from rlhf_lightning.data.labeling import record_row
from rlhf_lightning.data.records import Comparison
from rlhf_lightning.evaluation.policies import PolicySamples
from rlhf_lightning.runs.files import append_line, read_json_lines
from rlhf_lightning.runs.folders import PipelineError

Measured = tuple[PolicySamples, Any]
"""Samples of a policy, and its loss on text as the step measures it, None where there is none."""


class KeptParts(ABC):
    """A file whose first line says what it belongs to; each further one has a part of what the step makes.

    Args:
        path: The file; it is made with the first part.
        belongs_to: What the parts depend on: those of something else are not gone on with.

    Raises:
        PipelineError: When a line is damaged, or the file belongs to something else.
    """

    parts: ClassVar[str]
    part: ClassVar[str]
    """What the lines hold, and what one does."""

    def __init__(self, path: Path, belongs_to: Mapping[str, Any]) -> None:
        self.path, self.belongs_to = path, dict(belongs_to)
        if path.exists():
            self._read()

    @abstractmethod
    def _restore(self, line: Any) -> None:
        """Take up a part; a TypeError or ValueError where a line is none."""

    def _keep(self, line: Any) -> None:
        """Add a part; it lasts through a power cut from here on."""
        if not self.path.exists():
            append_line(self.path, json.dumps(self.belongs_to))
        append_line(self.path, json.dumps(line, ensure_ascii=False))

    def _read(self) -> None:
        self._cut_torn_line()
        try:
            lines = read_json_lines(self.path)
        except ValueError as error:
            raise PipelineError(f"{error} {self._remedy}") from error
        if not lines:
            self.path.unlink()  # torn within the first line
            return
        if lines[0] != self.belongs_to:
            raise PipelineError(
                f"{self.path}, line 1: the {self.parts} in it belong to {json.dumps(lines[0])[:200]}, and this step is "
                f"{json.dumps(self.belongs_to)}. {self._remedy}"
            )
        for number, line in enumerate(lines[1:], 2):
            try:
                self._restore(line)
            except (TypeError, ValueError) as error:
                place = f"{self.path}, line {number}"
                raise PipelineError(f"{place}: no {self.part} ({error}). {self._remedy}") from error

    @property
    def _remedy(self) -> str:
        return (
            f"Put {self.path.name} back as it was; or delete the damaged line and those after it, or the whole file, "
            "and what was in them will be made again."
        )

    def _cut_torn_line(self) -> None:
        """The last line may be torn, as after a power cut."""
        content = self.path.read_bytes()
        whole = content.rpartition(b"\n")
        if whole[2]:
            self.path.write_bytes(whole[0] + whole[1])


class KeptRankings(KeptParts):
    """The rankings of step collect, batch by batch, so that nobody is asked twice; see `KeptParts`."""

    parts, part = "rankings", "batch of rankings"

    def __init__(self, path: Path, belongs_to: Mapping[str, Any]) -> None:
        self.rankings: list[Comparison | None] = []
        """Those of the finished batches, None for a prompt that was dropped."""
        super().__init__(path, belongs_to)

    def add(self, rankings: Sequence[Comparison | None]) -> None:
        """Add those of a batch."""
        self._keep([each and record_row(each) for each in rankings])
        self.rankings += rankings

    def _restore(self, line: Any) -> None:
        self.rankings += [each and Comparison(**each) for each in line]


class KeptPolicies(KeptParts):
    """The policies that step evaluate has measured, and what judges who compare said of them; see `KeptParts`."""

    parts, part = "policies", "measured policy"

    def __init__(self, path: Path, belongs_to: Mapping[str, Any]) -> None:
        self.measured: dict[str, Measured] = {}
        """By name."""
        self.said: dict[tuple[str, str], list[float | None]] = {}
        """By judge and policy."""
        super().__init__(path, belongs_to)

    def of(self, name: str, measure: Callable[[], Measured]) -> Measured:
        """What was found of a policy, measured now where it is not kept."""
        if name not in self.measured:
            samples, loss = measure()
            self._keep([name, asdict(samples), loss])
            self.measured[name] = samples, loss
        return self.measured[name]

    def add_preferences(self, judge: str, policy: str, batch: Sequence[float | None]) -> None:
        """Add what a judge said of the next responses of a policy."""
        self._keep([judge, policy, list(batch)])
        self.said.setdefault((judge, policy), []).extend(batch)

    def _restore(self, line: Any) -> None:
        name, found, rest = line
        if isinstance(found, str):
            self.said.setdefault((name, found), []).extend(rest)
        else:
            self.measured[name] = PolicySamples(**found), rest
