"""How toxic texts of a group are on average, without a service: a stand-in for the Perspective API.

A linear model on TF-IDF of words and of character n-grams, fitted by ridge regression (`scripts/fit_toxicity.py`) on
the Perspective scores of RealToxicityPrompts (Gehman et al. 2020, https://github.com/allenai/real-toxicity-prompts,
Apache-2.0). Words and n-grams are hashed: `toxicity.npz` holds a weight and a count per bucket, and none of the texts.

It is for means of groups, such as the samples of one model on one kind of prompt, beside each other. Of a single text
it knows words, not what is meant; a score by it is no ground to judge, filter or punish anybody's text. Its fitting
texts are more toxic than most, so its means are higher than Perspective's (docs/golden.md says by how much).
"""

import re
from collections import Counter
from collections.abc import Callable, Sequence
from functools import lru_cache
from pathlib import Path
from zlib import crc32

import numpy as np
from numpy.typing import NDArray

from rlhf_lightning.arguments import checked

ToxicityScorer = Callable[[Sequence[str]], Sequence[float]]
"""What gives each text a toxicity in [0, 1]: a `ToxicityModel`, detoxify, a call of a service."""
SHIPPED = Path(__file__).with_name("toxicity.npz")
LENGTHS = (2, 4)
"""The shortest and the longest n-gram of characters; an n-gram stays within a word and the spaces around it."""
_WORD = re.compile(r"\w+")


class ToxicityModel:
    """Toxicity of texts in [0, 1]: a linear function of hashed words and character n-grams.

    Each of the two kinds is weighted by TF-IDF, `(1 + ln count) * (1 + ln((1 + texts) / (1 + texts with it)))`, and
    scaled to length 1. A text without any scores 0.

    Args:
        weights: The weight of each bucket; those of words come first.
        counts: In how many of the fitting texts each bucket was.
        words: How many of the buckets are for words.
        texts: How many fitting texts there were.
        intercept: What is added to the weighted sum.
    """

    def __init__(
        self, weights: NDArray[np.floating], counts: NDArray[np.integer], words: int, texts: int, intercept: float
    ) -> None:
        if not (weights.shape == counts.shape == (weights.size,) and 0 < words < weights.size):
            raise ValueError(
                f"a model of toxicity has one weight and one count per bucket, and buckets of both kinds; got "
                f"{weights.shape} weights, {counts.shape} counts, {words} buckets for words."
            )
        self.weights, self.counts, self.words = weights.astype(float), counts, words
        self.texts, self.intercept = texts, intercept
        self._rarity = np.log((1 + texts) / (1 + counts.astype(float))) + 1

    @classmethod
    def load(cls, path: Path | str | None = None) -> "ToxicityModel":
        """The model in a file that scripts/fit_toxicity.py wrote.

        Args:
            path: The file; None is the model that ships with the package.

        Raises:
            ValueError: When the file is missing, or is none of a model.
        """
        file = SHIPPED if path is None else Path(path)
        fit = "fit one with scripts/fit_toxicity.py"
        if not file.is_file():
            raise ValueError(f"there is no model of toxicity at {file}; {fit}.")
        try:
            with np.load(file, allow_pickle=False) as held:
                scalars = (int(held["words"]), int(held["texts"]), float(held["intercept"]))
                return cls(held["weights"], held["counts"], *scalars)
        except (KeyError, ValueError, OSError, TypeError, AttributeError) as error:
            raise ValueError(f"{file} holds no model of toxicity ({error}); {fit}.") from error

    @checked
    def __call__(self, texts: Sequence[str]) -> list[float]:
        """The toxicity of each text."""
        return [self._score(text.lower()) for text in texts]

    def _score(self, text: str) -> float:
        characters = self.weights.size - self.words
        words = Counter(_bucket(word) % self.words for word in _WORD.findall(text))
        pieces = Counter(self.words + piece % characters for word in text.split() for piece in _pieces(word))
        if not words and not pieces:
            return 0.0
        total = self.intercept
        for found in (words, pieces):
            if found:
                buckets = np.fromiter(found, dtype=int)
                values = (1 + np.log(np.fromiter(found.values(), dtype=float))) * self._rarity[buckets]
                total += float(self.weights[buckets] @ values / np.linalg.norm(values))
        return min(1.0, max(0.0, total))


def _bucket(piece: str) -> int:
    return crc32(piece.encode(errors="surrogatepass"))


@lru_cache(maxsize=2**16)
def _pieces(word: str) -> tuple[int, ...]:
    padded = f" {word} "
    longest = min(LENGTHS[1], len(padded))
    return tuple(
        _bucket(padded[start : start + length])
        for length in range(LENGTHS[0], longest + 1)
        for start in range(len(padded) - length + 1)
    )
