"""The ten use cases of InstructGPT's table 1 and how a prompt is put together and read."""

import random
import re
from collections.abc import Mapping
from functools import lru_cache
from types import MappingProxyType
from typing import NamedTuple

from rlhf_lightning.sandbox.use_cases import generation, passages, words
from rlhf_lightning.sandbox.use_cases.chat import CHAT
from rlhf_lightning.sandbox.use_cases.lists import BRAINSTORMING, EXTRACTION
from rlhf_lightning.sandbox.use_cases.questions import CLOSED_QA, OPEN_QA
from rlhf_lightning.sandbox.use_cases.task import Task, UseCase

_MADE = (*generation.CASES, OPEN_QA, BRAINSTORMING, CHAT, *passages.CASES, *words.CASES, CLOSED_QA, EXTRACTION)
KINDS_OF_PROMPT: Mapping[str, UseCase] = MappingProxyType({case.name: case for case in _MADE})
"""Every kind of instruction, in the order of table 1."""

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
        manner: `POLITE`, `RUDE` or `""`.
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
    """The use case of a prompt and the parts of its instruction; a `ValueError` where no use case knows it."""
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
