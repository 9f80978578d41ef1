"""The ten use cases of InstructGPT's table 1 with its shares, and how a prompt is put together and read."""

import random
import re
from collections.abc import Mapping
from functools import lru_cache
from types import MappingProxyType
from typing import NamedTuple

from rlhf_lightning.sandbox.use_cases.chat import CHAT
from rlhf_lightning.sandbox.use_cases.generation import GO_ON, NOTE, STORY
from rlhf_lightning.sandbox.use_cases.lists import BRAINSTORMING, EXTRACTION
from rlhf_lightning.sandbox.use_cases.passages import REWRITE, SUMMARY
from rlhf_lightning.sandbox.use_cases.questions import CLOSED_QA, OPEN_QA
from rlhf_lightning.sandbox.use_cases.task import Task, UseCase
from rlhf_lightning.sandbox.use_cases.words import (
    KIND,
    KIND_BY_EXAMPLES,
    MOOD,
    OPPOSITE,
    OPPOSITE_BY_EXAMPLES,
    TRANSLATION,
)

KINDS_OF_PROMPT: Mapping[str, UseCase] = MappingProxyType(
    {
        case.name: case
        for case in (
            STORY,
            GO_ON,
            NOTE,
            OPEN_QA,
            BRAINSTORMING,
            CHAT,
            REWRITE,
            SUMMARY,
            KIND,
            MOOD,
            KIND_BY_EXAMPLES,
            OPPOSITE,
            OPPOSITE_BY_EXAMPLES,
            TRANSLATION,
            CLOSED_QA,
            EXTRACTION,
        )
    }
)
"""Every kind of instruction; a new one needs one line here."""

SHARES: Mapping[str, float] = MappingProxyType(
    {
        "generation": 0.456,
        "open_qa": 0.124,
        "brainstorming": 0.112,
        "chat": 0.084,
        "rewrite": 0.066,
        "summarisation": 0.042,
        "classification": 0.035,
        "other": 0.035,
        "closed_qa": 0.026,
        "extraction": 0.019,
    }
)
"""InstructGPT, table 1: the share of each use case among the prompts of the API."""

MARKER = " answer :"
"""What every prompt ends with."""

GREETINGS = ("", "please ", "hello . ", "hello . please ")
"""What a prompt may start with."""

POLITE, RUDE = " polite", " rude"
_MANNERS = {"": 0.76, POLITE: 0.12, RUDE: 0.12}
"""How the answer should sound, and how often a prompt says so, in front of the marker: "rude answer :" (the biased
prompt of section 4.2; "polite" is the respectful one)."""

_OPENING = re.compile(
    f"(?P<greeting>hello \\. )?(?P<please>please )?(?P<instruction>.+?)(?P<manner>{POLITE}|{RUDE})?{MARKER}"
)


class Request(NamedTuple):
    """A prompt, read.

    Args:
        case: Its use case.
        task: The named parts of its instruction.
        manner: ``POLITE``, ``RUDE`` or ``""``.
    """

    case: UseCase
    task: Task
    manner: str


def write_prompt(source: random.Random, case: UseCase, manner: str | None = None) -> str:
    """A prompt of a use case; None draws the manner."""
    if manner is None:
        manner = source.choices(tuple(_MANNERS), tuple(_MANNERS.values()))[0]
    return source.choice(GREETINGS) + case.ask(source) + manner + MARKER


def instruction_of(prompt: str) -> str:
    """What a prompt asks, without greeting and tone; the whole prompt where it is none of this world.

    >>> instruction_of("hello . please what does the cat eat ? rude answer :")
    'what does the cat eat ?'
    """
    opened = _OPENING.fullmatch(prompt)
    return opened["instruction"] if opened else prompt


@lru_cache(maxsize=65536)
def read_prompt(prompt: str) -> Request:
    """The use case of a prompt and the parts of its instruction.

    Raises:
        ValueError: When no use case knows the prompt.
    """
    opened = _OPENING.fullmatch(prompt)
    if opened:
        for case in KINDS_OF_PROMPT.values():
            match = case.pattern.fullmatch(opened["instruction"])
            if match:
                return Request(case, MappingProxyType(match.groupdict(default="")), opened["manner"] or "")
    raise ValueError(
        f"no use case of the sealed world knows the prompt {prompt[:80]!r}; the truth is only defined for prompts "
        "that generate_prompts makes."
    )
