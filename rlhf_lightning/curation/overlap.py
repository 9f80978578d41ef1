"""Decontamination: what is evaluated on must not be trained on."""

import re
from collections.abc import Iterator

_WORDS = re.compile(r"\w+")


class EvaluationOverlap:
    """Knows the evaluation prompts by their runs of words and finds them in other texts.

    A text overlaps when one run of so many words occurs in an evaluation prompt too. What is shorter than a run is
    compared as a whole. Case and signs do not count.

    Args:
        words: Length of a run. GPT-3 took 13 (its appendix C); fewer find more, and take common phrases for copies.
    """

    def __init__(self, words: int = 13) -> None:
        self.words = words
        self._runs: set[str] = set()

    def add(self, text: str) -> None:
        """Remember an evaluation prompt."""
        self._runs.update(self._runs_of(text))

    def __call__(self, text: str) -> bool:
        """Whether the text shares a run of words with an evaluation prompt."""
        return any(run in self._runs for run in self._runs_of(text))

    def _runs_of(self, text: str) -> Iterator[str]:
        words = _WORDS.findall(text.casefold())
        for start in range(max(1, len(words) - self.words + 1) if words else 0):
            yield " ".join(words[start : start + self.words])
