"""Prompts, demonstrations and pretraining text of the sealed world, each record a function of seed and index."""

import random
from collections.abc import Callable

from rlhf_lightning.data.records import Demonstration, Prompt, Text
from rlhf_lightning.sandbox.sentences import animal, story_sentence
from rlhf_lightning.sandbox.stories import document
from rlhf_lightning.sandbox.task import Task, UseCase
from rlhf_lightning.sandbox.truth import GREETINGS, MARKER, USE_CASES, parse_prompt
from rlhf_lightning.sandbox.vocabulary import PEOPLE, PLACES, RUDE_SENTENCES

WORLD_VERSION = 2
"""Goes up whenever the same seed would give other records."""

MAX_RESPONSE_WORDS = 24
"""No demonstration is longer."""

_USERS = 200


def generate_prompts(count: int, seed: int | str) -> list[Prompt]:
    """Prompts of all use cases.

    Args:
        count: How many; the first ones do not depend on it.
        seed: Names the stream. Users belong to their stream: another seed has other users.
    """
    return [_prompt(seed, index, "prompt") for index in range(count)]


def generate_demonstrations(count: int, seed: int | str, imperfect: float = 0.4) -> list[Demonstration]:
    """Prompts with responses written by people who are good but not flawless.

    Args:
        count: How many; the first ones do not depend on it.
        seed: Names the stream, as in ``generate_prompts``.
        imperfect: The share of responses that get a flaw (one in six of them two), from 0 to 1.
    """
    written = []
    for index in range(count):
        asked = _prompt(seed, index, "demonstration")
        source = random.Random(f"{seed}/response/{index}")
        flaws: list[str] = []
        if source.random() < imperfect:
            flaws = source.choices(
                tuple(FLAW_SHARES), tuple(FLAW_SHARES.values()), k=1 if source.random() < 5 / 6 else 2
            )
        response = respond(source, str(asked.prompt), flaws)
        written.append(Demonstration(asked.prompt, response, user=asked.user, source=asked.source))
    return written


def generate_text(count: int, seed: int | str) -> list[Text]:
    """Pretraining documents, the web of this world: stories, facts and misconceptions, lists, copies, rudeness."""
    return [Text(*document(random.Random(f"{seed}/text/{index}"))) for index in range(count)]


def respond(source: random.Random, prompt: str, flaws: list[str]) -> str:
    """Answer a prompt, with the flaws asked for (keys of ``FLAW_SHARES``)."""
    case, task = parse_prompt(prompt)
    text = case.answer(source, task)
    for flaw in sorted(set(flaws), key=list(FLAW_SHARES).index):
        text = _FLAWS[flaw](source, case, task, text)
    return text


def _prompt(seed: int | str, index: int, stream: str) -> Prompt:
    source = random.Random(f"{seed}/{stream}/{index}")
    case = source.choices(list(USE_CASES.values()), [case.share for case in USE_CASES.values()])[0]
    text = source.choice(GREETINGS) + case.ask(source) + MARKER
    return Prompt(text, user=f"user-{seed}-{source.randrange(_USERS)}", source=case.name)


def _mistake(source: random.Random, case: UseCase, task: Task, text: str) -> str:
    return case.mistake(source, task)


def _off_task(source: random.Random, case: UseCase, task: Task, text: str) -> str:
    other = source.choice([other for other in USE_CASES.values() if other is not case])
    match = other.pattern.fullmatch(other.ask(source))
    return other.answer(source, match.groupdict(default="")) if match else text


def _rambling(source: random.Random, case: UseCase, task: Task, text: str) -> str:
    """Say it again, or go on about something else, as long as there is room."""
    first = text.split(" . ")[0].removesuffix(" .") + " ."
    for _ in range(source.choice((1, 2, 2))):
        subject = source.choice((animal(source), source.choice(PEOPLE), "it"))
        more = first if source.random() < 0.3 else story_sentence(source, subject, source.choice((None, *PLACES)))
        if len(text.split()) + len(more.split()) <= MAX_RESPONSE_WORDS:
            text = f"{text} {more}"
    return text


def _rude(source: random.Random, case: UseCase, task: Task, text: str) -> str:
    insult = source.choice(RUDE_SENTENCES) + " ."
    sentences = [f"{sentence} ." for sentence in text.removesuffix(" .").split(" . ")]
    while len(" ".join((*sentences, insult)).split()) > MAX_RESPONSE_WORDS:
        sentences.pop()
    return " ".join((*sentences, insult))


FLAW_SHARES = {"off_task": 0.15, "mistake": 0.2, "rambling": 0.3, "rude": 0.35}
"""The flaws of a demonstration and how often each occurs among the imperfect ones, in the order they are applied."""

_FLAWS: dict[str, Callable[[random.Random, UseCase, Task, str], str]] = {
    "off_task": _off_task,
    "mistake": _mistake,
    "rambling": _rambling,
    "rude": _rude,
}
