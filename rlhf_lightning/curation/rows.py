"""Rows on their way through curation, and where they wait: on disk, so that memory does not grow with their texts."""

import json
from collections.abc import Callable, Iterable, Iterator
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

from rlhf_lightning.data.records import Comparison, Demonstration, Prompt

Item = TypeVar("Item")
KINDS: dict[str, type[Demonstration | Comparison | Prompt]] = {
    kind.kind: kind for kind in (Demonstration, Comparison, Prompt)
}
Progress = Callable[[str, int], None]
"""Told what is being done, and with how many more rows."""
CHUNK = 1000
"""Rows that are tokenized together."""


class Row(NamedTuple):
    """A record and what was found out about it.

    Args:
        place: Where it stood in the data, such as ``prompts.train 17``.
        split: The split it belongs to.
        record: ``Demonstration``, ``Prompt`` or ``Comparison``.
        prompt_tokens: Length of its prompt.
        response_tokens: Length of its response; 0 for anything but a demonstration.
    """

    place: str
    split: str
    record: Any
    prompt_tokens: int = 0
    response_tokens: int = 0


class Spill:
    """Rows in a file, to be read any number of times in the order in which they came.

    Args:
        path: The file; it is overwritten.
        rows: The rows; they are consumed at once.
    """

    def __init__(self, path: Path, rows: Iterable[Row]) -> None:
        self.path, self.count = path, 0
        with path.open("w", encoding="utf-8") as file:
            for row in rows:
                place, split, record, *lengths = row
                file.write(json.dumps((place, split, record.kind, vars(record), *lengths)) + "\n")
                self.count += 1

    def __len__(self) -> int:
        """How many rows."""
        return self.count

    def __iter__(self) -> Iterator[Row]:
        """Read them from the start."""
        with self.path.open(encoding="utf-8") as file:
            for line in file:
                place, split, kind, fields, *lengths = json.loads(line)
                yield Row(place, split, KINDS[kind](**fields), *lengths)


def chunks(items: Iterable[Item], size: int = CHUNK) -> Iterator[list[Item]]:
    """Lists of so many items, the last one shorter."""
    rest = iter(items)
    while chunk := list(islice(rest, size)):
        yield chunk


def watched(items: Iterable[Item], what: str, progress: Progress) -> Iterator[Item]:
    """The same items, counted as they go by."""
    number = 0
    for number, item in enumerate(items, 1):
        yield item
        if number % CHUNK == 0:
            progress(what, CHUNK)
    progress(what, number % CHUNK)
