"""The sealed world as a source of records."""

import hashlib
import json
import random
from dataclasses import dataclass, field, fields
from typing import Any, cast, get_args

from rlhf_lightning.arguments import Fraction, NonNegativeInt, checked
from rlhf_lightning.sandbox.respond import respond
from rlhf_lightning.sandbox.truth import TrueUtility
from rlhf_lightning.sandbox.world import WORLD_VERSION, Split, generate_demonstrations, generate_prompts, generate_text

__all__ = ["SandboxData", "TrueUtility"]
_MADE = ("demonstrations", "prompts", "text")


@checked
@dataclass(frozen=True, kw_only=True)
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

    seed: int = 0
    demonstrations: NonNegativeInt = 1500
    prompts: NonNegativeInt = 8000
    text: NonNegativeInt = 4000
    validation: NonNegativeInt = 300
    imperfect: Fraction = 0.4
    malformed: dict[str, Any] = field(default_factory=dict, init=False, compare=False)

    def has(self, name: str, split: str) -> bool:
        """Whether the sandbox makes that kind of record; it does not make comparisons, which have to be collected.

        Raises:
            ValueError: When the split does not exist.
        """
        if split not in get_args(Split):
            raise ValueError(f"split {split!r} does not exist; use one of {', '.join(get_args(Split))}.")
        return name in _MADE

    def records(self, name: str, split: str) -> list[Any] | None:
        """The records of one kind and split; None where the sandbox makes none.

        Each split is a stream with its own users and its own instructions: none of either occurs in two splits. A
        split that does not exist is an error as in `has`.
        """
        if not self.has(name, split):
            return None
        count: int = getattr(self, name) if split == "train" else self.validation
        stream, instructions = f"{self.seed}-{split}", cast(Split, split)
        if name == "text":
            return generate_text(count, stream)
        if name == "prompts":
            return generate_prompts(count, stream, instructions)
        return generate_demonstrations(count, stream, self.imperfect, instructions)

    def stream(self, name: str, split: str) -> list[Any] | None:
        """The same, which are few enough to be held."""
        return self.records(name, split)

    def demonstrate(self, prompt: str) -> str:
        """What somebody who makes no mistakes writes for a prompt of this world."""
        return respond(random.Random(f"{self.seed}/demonstrate/{prompt}"), prompt)

    def fingerprint(self) -> str:
        """A short hash of the arguments and of the version of the world."""
        arguments = {field.name: getattr(self, field.name) for field in fields(self) if field.init}
        text = json.dumps({**arguments, "version": WORLD_VERSION}, sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()[:16]
