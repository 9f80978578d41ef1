"""What a kind of instruction consists of: a generator, good and wrong answers, and one checker."""

import random
import re
from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import NamedTuple, TypeAlias

from rlhf_lightning.sandbox.sentences import Reply
from rlhf_lightning.sandbox.vocabulary import NUMBERS, one_of

Task: TypeAlias = Mapping[str, str]
"""The named parts of a prompt, as the pattern of its use case finds them; absent parts are `""`."""

NUMBER = f"(?P<number>{one_of(NUMBERS)})"
"""How many are asked for, as part of a pattern."""


class Findings(NamedTuple):
    """What the checker of a use case says about a response; every number is between 0 and 1.

    Args:
        attempts: The degree to which the response has the form that was asked for, right or wrong.
        completes: The share of what was asked that is there and right.
        constraint: The degree to which the explicit constraints are kept; 1 where the prompt has none.
        budget: The number of words, marks included, that a response may take before it counts as long.
        grounded: 0 where the response contradicts the passage of the prompt.
        truthful: 0 where the response states something false about the world.
    """

    attempts: float
    completes: float
    constraint: float
    budget: int
    grounded: float = 1.0
    truthful: float = 1.0


class UseCase(ABC):
    """One kind of instruction; several of them can be one use case of the paper's table 1."""

    name: str
    """The use case and, where there are several kinds, which one (`generation/note`)."""
    share: float
    """Its share of the prompts, relative to the others."""
    pattern: re.Pattern[str]
    """Matches every instruction of this use case and no other; its groups become the task."""
    closed = False
    """Whether an answer may use only what the prompt holds."""
    few_shot = False
    """Whether the instruction is given by examples."""

    @property
    def use_case(self) -> str:
        """The row of the paper's table 1."""
        return self.name.partition("/")[0]

    @abstractmethod
    def ask(self, source: random.Random) -> str:
        """Write an instruction."""

    @abstractmethod
    def answer(self, source: random.Random, task: Task) -> str:
        """Write a good answer."""

    @abstractmethod
    def mistake(self, source: random.Random, task: Task) -> str:
        """Write an answer that a labeler marks down: a constraint ignored, a fact invented, a part left out."""

    @abstractmethod
    def check(self, task: Task, reply: Reply) -> Findings:
        """Judge a response."""


def number_in(task: Task) -> int:
    """The number that a task names."""
    return 1 + NUMBERS.index(task["number"])


def share_found(count: int, asked: int) -> float:
    """How near a count of things is to the number asked for, 1 at the spot and 0 at nothing or twice as many.

    >>> share_found(2, 3), share_found(4, 3), share_found(9, 3)
    (0.6666666666666667, 0.6666666666666667, 0.0)
    """
    return max(0.0, 1 - abs(count - asked) / asked)
