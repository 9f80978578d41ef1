"""Decontamination: what is evaluated on must not be trained on."""

import re
from array import array
from collections.abc import Iterable, Iterator

import numpy as np
from numpy.typing import NDArray

from rlhf_lightning.curation.keys import key_of

# Thai and Lao, Burmese, Khmer, kana, and the Chinese characters: written without spaces.
_UNSPACED = (
    "\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\U00020000-\U0003ffff"
)
_SIGN = re.compile(f"[{_UNSPACED}]")
_UNITS = re.compile(rf"[{_UNSPACED}]|[^\W{_UNSPACED}]+")


class EvaluationOverlap:
    """Knows the evaluation prompts by their runs of words and finds them in other texts.

    A text overlaps when one run of so many words occurs in an evaluation prompt too. What is shorter than a run is
    compared as a whole. Case and signs do not count. In scripts without spaces two characters count as one word. It
    needs eight bytes per word of the prompts.

    Args:
        words: Length of a run. GPT-3 took 13 (its appendix C); fewer find more, and take common phrases for copies.
        prompts: Evaluation prompts; `add` brings more.

    Examples:
        >>> overlap = EvaluationOverlap(4, ["What is the capital of France?"])
        >>> overlap("Tell me: what is THE capital ..."), overlap("The capital of Spain")
        (True, False)
    """

    def __init__(self, words: int = 13, prompts: Iterable[str] = ()) -> None:
        self.words = words
        self._new = array("Q")
        self._known: NDArray[np.uint64] = np.empty(0, np.uint64)
        for prompt in prompts:
            self.add(prompt)

    def add(self, text: str) -> None:
        """Remember an evaluation prompt."""
        self._new.extend(self._runs_of(text))

    def __bool__(self) -> bool:
        """Whether there is any."""
        return len(self._new) > 0 or len(self._known) > 0

    def __call__(self, text: str) -> bool:
        """Whether the text shares a run of words with an evaluation prompt."""
        if self._new:
            self._known = np.unique(np.concatenate([self._known, np.asarray(self._new, np.uint64)]))
            self._new = array("Q")
        if not len(self._known):
            return False
        runs = np.fromiter(self._runs_of(text), np.uint64)
        places = np.searchsorted(self._known, runs)
        return bool((self._known[np.minimum(places, len(self._known) - 1)] == runs).any())

    def _runs_of(self, text: str) -> Iterator[int]:
        """The key of each run."""
        units = _UNITS.findall(text.casefold())
        halves = [1 if _SIGN.match(unit) else 2 for unit in units]
        end = length = 0
        for start, half in enumerate(halves):
            while length < 2 * self.words and end < len(units):
                length, end = length + halves[end], end + 1
            if length < 2 * self.words and start > 0:
                return
            yield key_of(" ".join(units[start:end]))
            length -= half
