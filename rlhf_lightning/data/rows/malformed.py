"""Malformed rows: counted, named in messages, and put aside in a file where one is asked for."""

import json
from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager, ExitStack
from pathlib import Path
from typing import IO, Any, TypeVar

from rlhf_lightning.data.records import RecordError
from rlhf_lightning.data.rows.readers import SourceRow
from rlhf_lightning.parallel.processes import rank
from rlhf_lightning.runs.files import replacing

Item = TypeVar("Item")
_SHOWN = 3
_HINT = "(data.on_error=quarantine puts malformed rows into a file and reads the others.)"


class MalformedRows(AbstractContextManager["MalformedRows"]):
    """Counts malformed rows, keeps the first few as sentences and, where a file is named, writes all of them to it.

    The file is JSONL with the place, the problem and the value of each row. As a context the collection finishes it:
    it appears when all is read, and without a malformed row one of an earlier run goes. Rank 0 writes.

    Args:
        path: The file; None only counts.
    """

    def __init__(self, path: Path | None = None) -> None:
        self.path, self.count = path, 0
        self.sentences: list[str] = []
        self._stack = ExitStack()
        self._file: IO[Any] | None = None

    def __len__(self) -> int:
        """How many there are."""
        return self.count

    def __str__(self) -> str:
        """The first row as a sentence, then how many there are and the next few."""
        if self.count < 2:
            return "".join(self.sentences)
        shown = "".join(f"\n  {sentence}" for sentence in self.sentences[1:])
        rest = "" if self.count <= _SHOWN else f"\n  and {self.count - _SHOWN} more"
        return f"{self.sentences[0]}\n{self.count} malformed rows in all; also{shown}{rest}"

    def add(self, row: SourceRow) -> None:
        """Collect one."""
        self.count += 1
        if self.count <= _SHOWN:
            self.sentences.append(f"{row.place}: {row.problem}")
        if self.path is None or rank() != 0:
            return
        if self._file is None:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            self._file = self._stack.enter_context(replacing(self.path, alone=False))
        unread = {"unread": True} if row.unread else {}
        fields = {"place": row.place, "problem": row.problem, "row": row.value, **unread}
        self._file.write(json.dumps(fields, ensure_ascii=False, default=str) + "\n")

    def sift(
        self,
        rows: Iterable[SourceRow],
        make: Callable[[SourceRow], Item | None],
        keep: Callable[[SourceRow], None] | None = None,
    ) -> Iterator[tuple[str, Item]]:
        """What is made of each row, with the row's place; a row of which nothing can be made is malformed.

        Args:
            rows: The rows of one source.
            make: Makes a record of a row, or None of a row that the source does not want.
            keep: Gets each malformed row; None stops at them, once all are counted.

        Raises:
            RecordError: Names the first malformed rows, and how many there are.
        """
        for row in rows:
            try:
                if row.problem is not None:
                    raise RecordError(row.problem)
                item = make(row)
            except RecordError as error:
                malformed = row._replace(problem=str(error))
                self.add(malformed)
                if keep is not None:
                    keep(malformed)
                continue
            if item is not None:
                yield row.place, item
        if self.count and keep is None:
            raise RecordError(f"{self}\n{_HINT}")

    def rows(self) -> Iterator[SourceRow]:
        """All of them as the file has them, without their values."""
        if self.path is not None and self.count:
            with self.path.open(encoding="utf-8") as lines:
                for line in lines:
                    row = json.loads(line)
                    yield SourceRow(row["place"], None, row["problem"], row.get("unread", False))

    def __exit__(self, *error: Any) -> None:
        """Finish the file; where reading stopped before its end, it says nothing."""
        self._stack.__exit__(*error)
        if self.path is not None and rank() == 0 and error[0] is None and not self.count:
            self.path.unlink(missing_ok=True)
