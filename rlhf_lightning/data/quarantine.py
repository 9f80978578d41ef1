"""Where malformed rows go, so that the others can be read."""

import json
from collections.abc import Iterator
from contextlib import AbstractContextManager
from pathlib import Path
from types import TracebackType
from typing import TextIO

from rlhf_lightning.data.readers import SourceRow
from rlhf_lightning.distributed import rank


class Quarantine(AbstractContextManager["Quarantine"]):
    """A JSONL file of malformed rows with their places and problems, written row by row.

    It appears when all is read; without a malformed row one of an earlier run goes. Where there are several processes,
    the first one writes. As a sequence it is the problems as sentences, read from the file each time.

    Args:
        path: The file.
    """

    def __init__(self, path: Path) -> None:
        self.path, self.count, self.first = path, 0, ""
        self._unfinished = path.with_name(path.name + ".unfinished")
        self._file: TextIO | None = None

    def add(self, row: SourceRow) -> None:
        """Write one."""
        self.count += 1
        self.first = self.first or f"{row.place}: {row.problem}"
        if rank() != 0:
            return
        if self._file is None:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            # Half a surrogate pair cannot be written; as \\ud800, which JSON reads back, it can.
            self._file = self._unfinished.open("w", encoding="utf-8", errors="backslashreplace")
        fields = {"place": row.place, "problem": row.problem, "row": row.value}
        if row.unread:
            fields["unread"] = True
        self._file.write(json.dumps(fields, ensure_ascii=False, default=str) + "\n")

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Finish the file; where reading stopped before its end, it says nothing."""
        if self._file is not None:
            self._file.close()
            self._file = None
        if rank() != 0:
            return
        if kind is not None:
            self._unfinished.unlink(missing_ok=True)
        elif self.count:
            self._unfinished.replace(self.path)
        else:
            self.path.unlink(missing_ok=True)

    def rows(self) -> Iterator[SourceRow]:
        """The malformed rows, without their values."""
        if self.count:
            with self.path.open(encoding="utf-8") as lines:
                for line in lines:
                    row = json.loads(line)
                    yield SourceRow(row["place"], None, row["problem"], row.get("unread", False))

    def __len__(self) -> int:
        """How many."""
        return self.count

    def __iter__(self) -> Iterator[str]:
        """Place and problem of each."""
        return (f"{row.place}: {row.problem}" for row in self.rows())

    def __getitem__(self, place: int) -> str:
        """Place and problem of one."""
        return self.first if place == 0 else list(self)[place]
