"""Near-duplicates: texts that share most of their short strings of characters."""

import zlib
from collections.abc import Iterable

import numpy as np
from numpy.typing import NDArray

from rlhf_lightning.runs.extras import needs_extra

SHINGLE = 5
"""Characters per string that two texts can have in common; a shorter text is one string."""
PERMUTATIONS = 128
"""Hashes per text, which estimate a similarity of 0.8 within 0.035 (one standard deviation)."""


def near_duplicate_groups(texts: Iterable[str], similarity: float = 0.8) -> NDArray[np.int64]:
    """Numbers the groups of texts that are alike; texts alone in their group differ from all others.

    Two texts belong together when the Jaccard similarity of their sets of 5-character strings, estimated by MinHash, is
    at least ``similarity``, or when a chain of such pairs joins them. The groups do not depend on the order. About 4 KB
    of memory per text.

    Args:
        texts: Normalised.
        similarity: Least similarity of two texts in one group, above 0 and at most 1.

    Returns:
        For each text the place of the first one of its group.

    Raises:
        ImportError: When the extra ``curation`` is not installed.
    """
    with needs_extra("near-duplicates", "curation"):
        from datasketch import MinHash, MinHashLSH

    # Rather too many candidates than too few: each is compared.
    index = MinHashLSH(similarity, PERMUTATIONS, weights=(0.1, 0.9))
    signatures: list[NDArray[np.uint32]] = []
    parents: list[int] = []

    def root(place: int) -> int:
        while parents[place] != place:
            parents[place] = place = parents[parents[place]]
        return place

    empty = MinHash(PERMUTATIONS, hashfunc=zlib.crc32)
    for place, text in enumerate(texts):
        sketch = empty.copy()
        count = max(1, len(text) - SHINGLE + 1)
        shingles = {text[start : start + SHINGLE].encode("utf-8", "surrogatepass") for start in range(count)}
        sketch.update_batch(list(shingles))
        signatures.append(sketch.hashvalues.astype(np.uint32))
        parents.append(place)
        candidates = index.query(sketch)
        shared = np.mean([signatures[other] == signatures[place] for other in candidates], axis=1) if candidates else []
        for other, estimate in zip(candidates, shared, strict=True):
            if estimate >= similarity:
                low, high = sorted((root(place), root(other)))
                parents[high] = low
        index.insert(place, sketch, check_duplication=False)
    return np.array([root(place) for place in range(len(parents))], np.int64)
