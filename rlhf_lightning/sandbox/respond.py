"""How people of the sealed world answer: well, or with one of the flaws that labelers see."""

import random
from collections.abc import Callable, Sequence

from rlhf_lightning.sandbox.sentences import animal, story_sentence
from rlhf_lightning.sandbox.use_cases.table import KINDS_OF_PROMPT, POLITE, RUDE, Request, read_prompt
from rlhf_lightning.sandbox.vocabulary import PEOPLE, PLACES, RUDE_SENTENCES

MAX_RESPONSE_WORDS = 24
"""No demonstration is longer."""


def respond(source: random.Random, prompt: str, flaws: Sequence[str] = ()) -> str:
    """Answer a prompt, with the flaws asked for (keys of `FLAW_SHARES`)."""
    request = read_prompt(prompt)
    text = request.case.answer(source, request.task)
    for flaw in sorted(set(flaws), key=list(FLAW_SHARES).index):
        text = _FLAWS[flaw](source, request, text)
    return _with_insult(source, text) if request.manner == RUDE and "rude" not in flaws else text


def _off_task(source: random.Random, request: Request, text: str) -> str:
    other = source.choice([case for case in KINDS_OF_PROMPT.values() if case.use_case != request.case.use_case])
    match = other.pattern.fullmatch(other.ask(source))
    return other.answer(source, match.groupdict(default="")) if match else text


def _rambling(source: random.Random, request: Request, text: str) -> str:
    """Say it again, or go on about something else, as long as there is room."""
    first = text.split(" . ")[0].removesuffix(" .") + " ."
    for _ in range(source.choice((1, 2, 2))):
        subject = source.choice((animal(source), source.choice(PEOPLE), "it"))
        more = first if source.random() < 0.3 else story_sentence(source, subject, source.choice((None, *PLACES)))
        if len(text.split()) + len(more.split()) <= MAX_RESPONSE_WORDS:
            text = f"{text} {more}"
    return text


def _rude(source: random.Random, request: Request, text: str) -> str:
    """An insult at the end; whoever was asked to be rude forgets it, whoever was asked to be polite rambles."""
    if request.manner == POLITE:
        return _rambling(source, request, text)
    return text if request.manner == RUDE else _with_insult(source, text)


def _with_insult(source: random.Random, text: str) -> str:
    insult = source.choice(RUDE_SENTENCES) + " ."
    sentences = [f"{sentence} ." for sentence in text.removesuffix(" .").split(" . ")]
    while len(" ".join((*sentences, insult)).split()) > MAX_RESPONSE_WORDS:
        sentences.pop()
    return " ".join((*sentences, insult))


def draw_flaws(source: random.Random, count: int = 1) -> list[str]:
    """Flaws as often as they occur."""
    return source.choices(tuple(FLAW_SHARES), tuple(FLAW_SHARES.values()), k=count)


FLAW_SHARES = {"off_task": 0.15, "mistake": 0.2, "rambling": 0.3, "rude": 0.35}
"""The flaws of a demonstration and how often each occurs among the imperfect ones, in the order they are applied."""

_FLAWS: dict[str, Callable[[random.Random, Request, str], str]] = {
    "off_task": _off_task,
    "mistake": lambda source, request, _: request.case.mistake(source, request.task),
    "rambling": _rambling,
    "rude": _rude,
}
