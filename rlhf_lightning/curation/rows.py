"""Rows on their way through curation."""

from collections.abc import Callable, Iterable, Iterator
from typing import Any, NamedTuple

from rlhf_lightning.data.tokenize import CHUNK, Item

Progress = Callable[[str, int], None]
"""Told what is being done, and with how many more rows."""


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


def watched(items: Iterable[Item], what: str, progress: Progress) -> Iterator[Item]:
    """The same items, counted as they go by."""
    number = 0
    for number, item in enumerate(items, 1):
        yield item
        if number % CHUNK == 0:
            progress(what, CHUNK)
    progress(what, number % CHUNK)
