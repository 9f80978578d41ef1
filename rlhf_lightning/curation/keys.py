"""Which rows are the same, and which of them stay."""

import unicodedata
from collections.abc import Sequence
from hashlib import blake2b

import numpy as np
from numpy.typing import NDArray

from rlhf_lightning.data.records import PromptText

PREFIX_CHARACTERS = 128
"""A beginning of two dozen English words: prompts that share so much were asked from one template.

The paper drops prompts "that share a long common prefix" (InstructGPT, section 3.2). Comparing prefixes of one length
needs no sorting and no pairs; what it misses is a text shorter than that length which another one goes on from.
"""


def plain_text(prompt: PromptText) -> str:
    """A prompt as one text; of a conversation, each message behind its role."""
    if isinstance(prompt, str):
        return prompt
    return "\n".join(f"{message['role']}: {message['content']}" for message in prompt)


def words_of(prompt: PromptText) -> str:
    """A prompt as one text, of a conversation what is said alone."""
    return prompt if isinstance(prompt, str) else "\n".join(message["content"] for message in prompt)


def normalised(text: str) -> str:
    r"""The text without differences of case, width and white space. Signs stay: ``2 + 3`` is not ``2 - 3``.

    >>> normalised("  What IS\n2 + 3? ")
    'what is 2 + 3?'
    """
    return " ".join(unicodedata.normalize("NFKC", text).casefold().split())


def key_of(text: str, salt: str = "") -> int:
    """64 bits that depend on the text and the salt alone: of a million texts two agree with a probability of 3e-8."""
    digest = blake2b(text.encode("utf-8", "surrogatepass"), digest_size=8, key=salt.encode())
    return int.from_bytes(digest.digest(), "big")


def kept_per_key(
    keys: Sequence[int] | NDArray[np.integer], ranks: Sequence[int] | NDArray[np.integer], most: int
) -> NDArray[np.bool_]:
    """Of the rows that share a key, at most so many stay: those of the smallest ranks.

    With a hash of the whole row as its rank the choice does not depend on the order of the rows. It needs 16 bytes per
    row and some more while it sorts them.

    Args:
        keys: What the rows may share, 64 bits per row.
        ranks: Which of them stay first, 64 bits per row.
        most: Rows to keep per key, at least 1.

    Examples:
        >>> kept_per_key([7, 7, 9, 7], [3, 1, 5, 2], most=2).tolist()
        [False, True, True, True]
    """
    keys, ranks = np.asarray(keys, np.uint64), np.asarray(ranks, np.uint64)
    order = np.lexsort((ranks, keys))
    numbers = np.arange(len(keys))
    first = np.ones(len(keys), bool)
    first[1:] = keys[order][1:] != keys[order][:-1]
    place = numbers - np.maximum.accumulate(np.where(first, numbers, 0))
    kept = np.empty(len(keys), bool)
    kept[order] = place < most
    return kept
