"""Prompts and demonstrations of the sealed world, each record a function of seed and index."""

import random
import zlib
from typing import Literal, TypeAlias

from rlhf_lightning.data.records import Demonstration, Prompt, Text
from rlhf_lightning.sandbox.annotations import annotations
from rlhf_lightning.sandbox.respond import draw_flaws, respond
from rlhf_lightning.sandbox.use_cases.table import KINDS_OF_PROMPT, instruction_of, write_prompt
from rlhf_lightning.sandbox.web import document

WORLD_VERSION = 7
"""Goes up whenever the same seed would give other records."""

Split: TypeAlias = Literal["train", "validation", "test"]
_PARTS: tuple[Split, ...] = ("test", "validation") + 8 * ("train",)
"""Instructions are shared out over the splits by their hash: what the test asks, no other split asks in the same words,
whatever greeting or tone goes with it (the paper deduplicates prompts, section 3.2)."""

USERS = 800
"""People who use the API, in each stream. Some ask much more than others."""

DEMONSTRATION_SOURCES = {"labeler_plain": 0.5, "labeler_few_shot": 0.12, "labeler_user_based": 0.27, "api": 0.11}
"""Where prompts with demonstrations come from (InstructGPT, section 3.2 and table 6: 89 % of them from labelers)."""


def generate_prompts(count: int, seed: int | str, split: Split = "train") -> list[Prompt]:
    """Prompts of all use cases, from users of the API only (InstructGPT, section 3.2).

    Args:
        count: Number of prompts; the first ones do not depend on it.
        seed: Name of the stream. Users belong to their stream: another seed has other users.
        split: The split whose instructions are asked.
    """
    return [_prompt(random.Random(f"{seed}/prompt/{index}"), seed, "api", split) for index in range(count)]


def generate_demonstrations(
    count: int, seed: int | str, imperfect: float = 0.4, split: Split = "train"
) -> list[Demonstration]:
    """Prompts with responses written by people who are good but not flawless.

    Args:
        count: Number of demonstrations; the first ones do not depend on it.
        seed: Name of the stream, as in `generate_prompts`.
        imperfect: The share of responses that get a flaw (one in six of them two), from 0 to 1.
        split: The split whose instructions are asked.
    """
    written = []
    for index in range(count):
        source = random.Random(f"{seed}/demonstration/{index}")
        origin = source.choices(tuple(DEMONSTRATION_SOURCES), tuple(DEMONSTRATION_SOURCES.values()))[0]
        asked = _prompt(source, seed, origin, split)
        flaws: list[str] = []
        if source.random() < imperfect:
            flaws = draw_flaws(source, 1 if source.random() < 5 / 6 else 2)
        response = respond(source, str(asked.prompt), flaws)
        written.append(Demonstration(asked.prompt, response, asked.user, asked.source, asked.labels))
    return written


def generate_text(count: int, seed: int | str) -> list[Text]:
    """Pretraining documents, the web of this world."""
    return [Text(*document(random.Random(f"{seed}/text/{index}"))) for index in range(count)]


def split_of(prompt: str) -> Split:
    """The only split in which an instruction occurs."""
    return _PARTS[zlib.crc32(f"0/{instruction_of(prompt)}".encode()) % len(_PARTS)]


def _prompt(source: random.Random, seed: int | str, origin: str, split: Split) -> Prompt:
    """One prompt and who wrote it: a labeler for the project, or one of the users."""
    cases = [case for case in KINDS_OF_PROMPT.values() if case.few_shot or origin != "labeler_few_shot"]
    case = source.choices(cases, [case.share for case in cases])[0]
    text = write_prompt(source, case)
    while split_of(text) != split:
        text = write_prompt(source, case)
    if origin.startswith("labeler"):
        user = f"labeler-{seed}-{source.randrange(40)}"
    else:
        # The first users more often than the last; the most frequent one has about 1.2 % of the prompts.
        user = f"user-{seed}-{int(USERS * source.random() ** 1.5)}"
    return Prompt(text, user, origin, annotations(text))
