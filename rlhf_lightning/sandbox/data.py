"""The sealed world as a source of records."""

import hashlib
import json
from collections.abc import Callable, Sequence

from rlhf_lightning.data.records import Record
from rlhf_lightning.sandbox.truth import TrueUtility
from rlhf_lightning.sandbox.world import WORLD_VERSION, Split, generate_demonstrations, generate_prompts, generate_text

__all__ = ["SandboxData", "TrueUtility"]

_SPLITS: tuple[Split, ...] = ("train", "validation", "test")
_COLLECTED = ("comparisons", "judge_comparisons")


class SandboxData:
    """The records of the sealed world, made on the fly from a seed.

    Args:
        seed: Another seed gives other records and other users.
        demonstrations: How many demonstrations to train on.
        prompts: How many prompts to train on.
        text: How many pretraining documents to train on.
        validation: How many records of each kind in the validation split, and in the test split.
        imperfect: The share of demonstrations with a flaw, from 0 to 1.
    """

    def __init__(
        self,
        *,
        seed: int = 0,
        demonstrations: int = 1500,
        prompts: int = 8000,
        text: int = 4000,
        validation: int = 300,
        imperfect: float = 0.4,
    ) -> None:
        self._arguments = {
            "seed": seed,
            "demonstrations": demonstrations,
            "prompts": prompts,
            "text": text,
            "validation": validation,
            "imperfect": imperfect,
        }
        self._counts = {"demonstrations": demonstrations, "prompts": prompts, "text": text}
        self._validation = validation
        self._seed = seed
        self._makers: dict[str, Callable[[int, str, Split], Sequence[Record]]] = {
            "demonstrations": lambda count, stream, split: generate_demonstrations(count, stream, imperfect, split),
            "prompts": generate_prompts,
            "text": lambda count, stream, split: generate_text(count, stream),
        }

    def records(self, name: str, split: str) -> list[Record] | None:
        """The records of one kind and split; None for comparisons, which have to be collected.

        Each split is a stream with its own users and its own instructions: none of either occurs in two splits.

        Raises:
            ValueError: When the kind or the split does not exist.
        """
        own = next((known for known in _SPLITS if known == split), None)
        if own is None:
            raise ValueError(f"split {split!r} does not exist; use one of {', '.join(_SPLITS)}.")
        if name in _COLLECTED:
            return None
        if name not in self._makers:
            known = ", ".join((*self._makers, *_COLLECTED))
            raise ValueError(f"the sandbox has no records called {name!r}; it has {known}.")
        count = self._counts[name] if split == "train" else self._validation
        return list(self._makers[name](count, f"{self._seed}-{split}", own))

    def fingerprint(self) -> str:
        """A short hash of the arguments and of the version of the world."""
        text = json.dumps({**self._arguments, "version": WORLD_VERSION}, sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()[:16]

    @property
    def dropped(self) -> dict[str, int]:
        """How many rows were left out, by reason; the sandbox leaves none out."""
        return {}
