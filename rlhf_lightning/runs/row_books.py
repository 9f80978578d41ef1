"""Which rows of a file are others than they were: a few numbers for each file, kept beside a step."""

import base64
import struct
from collections.abc import Iterable, Mapping, Sequence
from itertools import zip_longest
from typing import Any
from zlib import crc32

BLOCKS = 1024
"""The most blocks of a file; of one with no more rows, each row is a block."""


def row_book(rows: Iterable[bytes]) -> dict[str, Any]:
    """How many rows there are, and a checksum of 16 bits for each block of them, in order.

    Blocks grow by doubling, and the checksum of two neighbours is the sum of theirs, so that books of files of
    different lengths can be compared.

    Examples:
        >>> book = row_book([b"a", b"b", b"c"])
        >>> book["rows"], book["block"], first_other_row(book, row_book([b"a", b"B", b"c"]))
        (3, 1, (2, 2))
    """
    block, count, sums = 1, 0, list[int]()
    for number, row in enumerate(rows):
        if number == block * BLOCKS:
            block, sums = 2 * block, _halved(sums)
        if number == block * len(sums):
            sums.append(0)
        # The number as the start value: two rows that changed places are no longer the same.
        sums[-1] = (sums[-1] + (crc32(row, number) & 0xFFFF)) & 0xFFFF
        count = number + 1
    return {"rows": count, "block": block, "sums": base64.b64encode(struct.pack(f"<{len(sums)}H", *sums)).decode()}


def first_other_row(old: Mapping[str, Any], new: Mapping[str, Any]) -> tuple[int, int] | None:
    """The first and the last row, counted from 1, of the first block that differs; None where none does."""
    block = max(old["block"], new["block"])
    before, now = _sums(old, block), _sums(new, block)
    for number, (one, other) in enumerate(zip_longest(before, now)):
        if one != other:
            return number * block + 1, min((number + 1) * block, max(old["rows"], new["rows"]))
    return None


def _sums(book: Mapping[str, Any], block: int) -> list[int]:
    """The checksums of blocks of that many rows."""
    sums = [each for (each,) in struct.iter_unpack("<H", base64.b64decode(book["sums"]))]
    for _ in range((block // book["block"]).bit_length() - 1):
        sums = _halved(sums)
    return sums


def _halved(sums: Sequence[int]) -> list[int]:
    return [(one + other) & 0xFFFF for one, other in zip_longest(sums[::2], sums[1::2], fillvalue=0)]
