"""What a kind of instruction consists of: a generator, good and wrong answers, and one checker."""

import random
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import NamedTuple, TypeAlias

from rlhf_lightning.sandbox.sentences import Reply

Task: TypeAlias = Mapping[str, str]
"""The named parts of a prompt, as the pattern of its use case finds them; absent parts are ``""``."""


class Findings(NamedTuple):
    """What the checker of a use case says about a response; every number is between 0 and 1.

    Args:
        attempts: How far the response has the form that was asked for, right or wrong.
        completes: The share of what was asked that is there and right.
        constraint: How well the explicit constraints are kept; 1 where the prompt has none.
        budget: How many words, marks included, a response may take before it counts as long.
        grounded: 0 where the response contradicts the passage of the prompt.
        truthful: 0 where the response states something false about the world.
    """

    attempts: float
    completes: float
    constraint: float
    budget: int
    grounded: float = 1.0
    truthful: float = 1.0


@dataclass(frozen=True)
class UseCase:
    """One kind of instruction; several of them can be one use case of the paper's table 1.

    Args:
        name: What it is called: the use case and, where there are several kinds, which one (``generation/note``).
        share: Its share of the prompts, relative to the others.
        pattern: Matches every instruction of this use case and no other; its groups become the task.
        ask: Writes an instruction.
        answer: Writes a good answer.
        mistake: Writes an answer that a labeler marks down: a constraint ignored, a fact invented, a part left out.
        check: Judges a response.
        closed: Whether an answer may use only what the prompt holds.
        few_shot: Whether the instruction is given by examples.
    """

    name: str
    share: float
    pattern: re.Pattern[str]
    ask: Callable[[random.Random], str]
    answer: Callable[[random.Random, Task], str]
    mistake: Callable[[random.Random, Task], str]
    check: Callable[[Task, Reply], Findings]
    closed: bool = False
    few_shot: bool = False

    @property
    def use_case(self) -> str:
        """The row of the paper's table 1."""
        return self.name.partition("/")[0]


def share_found(found: int, asked: int) -> float:
    """How near a number of things is to the number asked for, 1 at the spot and 0 at nothing or twice as many.

    >>> share_found(2, 3), share_found(4, 3), share_found(9, 3)
    (0.6666666666666667, 0.6666666666666667, 0.0)
    """
    return max(0.0, 1 - abs(found - asked) / asked)
