"""The rankings of an interrupted step collect, batch by batch, so that nobody is asked twice."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from rlhf_lightning.data.records import Comparison
from rlhf_lightning.runs.files import append_line, read_json_lines
from rlhf_lightning.runs.folders import PipelineError


class KeptRankings:
    """A file whose first line says what it belongs to; each further one has the rankings of a batch.

    Args:
        path: The file; it is made with the first batch.
        belongs_to: What the rankings depend on: those of something else are not gone on with.

    Raises:
        PipelineError: When a line is damaged, or the file belongs to something else.
    """

    def __init__(self, path: Path, belongs_to: Mapping[str, Any]) -> None:
        self.path, self.belongs_to = path, dict(belongs_to)
        self.rankings: list[Comparison | None] = []
        """Those of the finished batches, None for a prompt that was dropped."""
        if path.exists():
            self._read()

    def add(self, rankings: Sequence[Comparison | None]) -> None:
        """Add those of a batch; they last through a power cut from here on."""
        if not self.path.exists():
            append_line(self.path, json.dumps(self.belongs_to))
        append_line(self.path, json.dumps([each and asdict(each) for each in rankings], ensure_ascii=False))
        self.rankings += rankings

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
                f"{self.path}, line 1: the rankings in it belong to {json.dumps(lines[0])[:200]}, and this step is "
                f"{json.dumps(self.belongs_to)}. {self._remedy}"
            )
        for number, batch in enumerate(lines[1:], 2):
            try:
                self.rankings += [each and Comparison(**each) for each in batch]
            except (TypeError, ValueError) as error:
                place = f"{self.path}, line {number}"
                raise PipelineError(f"{place}: no batch of rankings ({error}). {self._remedy}") from error

    @property
    def _remedy(self) -> str:
        return (
            f"Put {self.path.name} back as it was; or delete the damaged line and those after it, or the whole file, "
            "and what was in them will be ranked again."
        )

    def _cut_torn_line(self) -> None:
        """The last line may be torn, as after a power cut."""
        content = self.path.read_bytes()
        whole = content.rpartition(b"\n")
        if whole[2]:
            self.path.write_bytes(whole[0] + whole[1])
