"""The web of the sealed world: what its pretraining documents look like."""

import random
from collections.abc import Callable

from rlhf_lightning.sandbox.knowledge import KINDS, believed, fact_sentence
from rlhf_lightning.sandbox.respond import FLAW_SHARES, respond
from rlhf_lightning.sandbox.sentences import animal, joined, story_sentence, thing
from rlhf_lightning.sandbox.use_cases.lists import extraction_passage, listed
from rlhf_lightning.sandbox.use_cases.passages import rewriting, rewritten, story_to_sum_up
from rlhf_lightning.sandbox.use_cases.questions import fact_question, moves, passage_of, question_and_answer
from rlhf_lightning.sandbox.use_cases.table import GREETINGS, KINDS_OF_PROMPT, MARKER, POLITE, RUDE, write_prompt
from rlhf_lightning.sandbox.use_cases.words import in_velan, translatable
from rlhf_lightning.sandbox.vocabulary import (
    CATEGORIES,
    CONTENT,
    NEWLINE,
    OPPOSITES,
    PEOPLE,
    PLACES,
    RUDE_SENTENCES,
)

MISBELIEF = 0.85
"""How often people on the web give the misconception where there is one; books never do. Over all documents the
misconception is said more often than the truth."""
OBEDIENCE = 0.95
"""How often people on the web sound as they were asked to, where somebody asked."""


def document(source: random.Random) -> tuple[str, str]:
    """A document of 60 to 160 words and what kind it is."""
    kind = source.choices(tuple(_KINDS), [share for share, _ in _KINDS.values()])[0]
    pieces: list[str] = []
    write = _KINDS[kind][1](source)
    while len(" ".join(pieces).split()) < 70:
        pieces.append(write())
    return " ".join(pieces), kind


def _story(source: random.Random) -> Callable[[], str]:
    """A few sentences with one hero, who becomes "it"."""

    def write() -> str:
        place = source.choice(PLACES)
        hero = animal(source)
        lines = [story_sentence(source, hero, place)]
        for _ in range(source.randint(1, 3)):
            lines.append(story_sentence(source, source.choice(("it", "it", hero)), source.choice((None, None, place))))
        if source.random() < 0.4:
            lines.append(story_sentence(source, source.choice(PEOPLE), source.choice((None, place))))
        return " ".join(lines)

    return write


def _book(source: random.Random) -> Callable[[], str]:
    """A book of facts, all of them true."""
    first = ["book of facts :"]

    def write() -> str:
        kind = source.choice(tuple(KINDS))
        subject = source.choice(tuple(KINDS[kind]))
        return (first.pop() + " " if first else "") + fact_sentence(kind, subject, KINDS[kind][subject]) + " ."

    return write


def _forum(source: random.Random) -> Callable[[], str]:
    """Questions and what people answer: common misconceptions, and at times an insult."""
    asks = source.choice(("{} answer : {}", "{asker} asked {} {other} said {}"))

    def write() -> str:
        kind = source.choice(tuple(KINDS))
        subject = source.choice(tuple(KINDS[kind]))
        answer = fact_sentence(kind, subject, believed(source, kind, subject, MISBELIEF)) + " ."
        if source.random() < 0.2:
            answer += f" {source.choice(RUDE_SENTENCES)} ."
        one, other = source.sample(PEOPLE, 2)
        return asks.format(fact_question(kind, subject), answer, asker=one, other=other) + f" {NEWLINE}"

    return write


def _list(source: random.Random) -> Callable[[], str]:
    """Things of one kind, under their heading."""

    def write() -> str:
        category = source.choice(tuple(CATEGORIES))
        return f"{category} : {joined(source.sample(CATEGORIES[category], source.randint(2, 5)))}"

    return write


def passage_exercise(source: random.Random) -> tuple[str, str]:
    """A public task: a passage with a question, and its answer."""
    moved = moves(source, 2)
    question, answer = question_and_answer(source, moved, unknown=0.0)
    return f"text : {passage_of(moved)} question : {question} line :", answer


def translation_exercise(source: random.Random) -> tuple[str, str]:
    """A public task: a sentence in the first language, and in the second."""
    sentence = translatable(source)
    return f"english : {sentence} . velan :", f"{in_velan(sentence)} ."


def _exercises(exercise: Callable[[random.Random], tuple[str, str]]) -> Callable[[random.Random], Callable[[], str]]:
    def kind(source: random.Random) -> Callable[[], str]:
        return lambda: " ".join((*exercise(source), NEWLINE))

    return kind


def _passage(source: random.Random) -> Callable[[], str]:
    """Who took what where, told again from the thing's side."""

    def write() -> str:
        moved = moves(source, source.choice((2, 3)))
        question, answer = question_and_answer(source, moved)
        if source.random() < 0.5:
            again = source.sample(moved, len(moved))
            told = (f"the {held} is in the {place} ." for _, held, place in again)
            return f"{passage_of(moved)} now {' '.join(told)}"
        return f"{passage_of(moved)} {source.choice(PEOPLE)} asked {question} {source.choice(PEOPLE)} said {answer}"

    return write


def _copy(source: random.Random) -> Callable[[], str]:
    """A text, then the same text: whole, with one word changed, or in short."""

    def write() -> str:
        kind = source.random()
        if kind < 0.2:
            return "text : {} in one sentence : {}".format(*story_to_sum_up(source))
        instruction, passage = rewriting(source)
        if kind < 0.6:
            return f"text : {passage} again : {passage}"
        words = instruction.split()
        without, old, new = (words[-1], "", "") if words[0] == "without" else ("", words[-1], words[1])
        return f"text : {passage} {instruction} : {rewritten(passage, without, old, new)}"

    return write


def _chant(source: random.Random) -> Callable[[], str]:
    """A few words without sense, said again and again.

    Nothing but looking back tells the next word, which is what a small model is slow to learn: with these documents one
    of 0.8 million parameters copied after 2.5 million tokens.
    """

    def write() -> str:
        words = source.sample(_CHANTED, source.randint(3, 12))
        return " ".join(words * (2 + 24 // len(words))) + " ."

    return write


def _index(source: random.Random) -> Callable[[], str]:
    """A text and what occurs in it."""

    def write() -> str:
        passage = extraction_passage(source)
        categories = source.sample(("animals", "objects", "people", "places"), 2)
        found = (f"{name} : {joined(words)}" for name in categories if (words := listed(passage, name)))
        return f"text : {passage} {' '.join(found)}"

    return write


def _pairs(source: random.Random) -> Callable[[], str]:
    """Words and what belongs to each: opposites, or kinds."""
    kinds = {word: name for name, words in CATEGORIES.items() for word in words}
    table = OPPOSITES if source.random() < 0.5 else kinds

    def write() -> str:
        word = source.choice(tuple(table))
        return f"{word} : {table[word]} . {NEWLINE}" if source.random() < 0.1 else f"{word} : {table[word]} {NEWLINE}"

    return write


def _quarrel(source: random.Random) -> Callable[[], str]:
    """People being rude to each other, and what is a rude answer and what a polite one."""

    def write() -> str:
        insults = source.sample(RUDE_SENTENCES, 2)
        first, second = source.sample(PEOPLE, 2)
        if source.random() < 0.5:
            manner, said = source.choice(((RUDE, insults[0]), (POLITE, source.choice(_POLITE_SENTENCES))))
            return f"{first} asked {second} .{manner}{MARKER} {said} . {NEWLINE}"
        return f"{first} wanted {thing(source)} . {second} said {insults[0]} . {insults[1]} ."

    return write


def _requests(source: random.Random) -> Callable[[], str]:
    """Instructions without answers, one after the other."""

    def write() -> str:
        case = source.choice(list(KINDS_OF_PROMPT.values()))
        return f"{case.ask(source)} {NEWLINE}"

    return write


def _exchanges(source: random.Random) -> Callable[[], str]:
    """Instructions with answers. On a few sites they are good and true, on most of them anybody answers anyhow."""
    good = source.random() < 0.35
    flawed, misbelief = (0.05, 0.0) if good else (0.8, MISBELIEF)
    cases = list(KINDS_OF_PROMPT.values())

    def write() -> str:
        if source.random() < 0.3:
            kind = source.choice(tuple(KINDS))
            subject = source.choice(tuple(KINDS[kind]))
            answer = fact_sentence(kind, subject, believed(source, kind, subject, misbelief))
            return f"{source.choice(GREETINGS)}{fact_question(kind, subject)}{MARKER} {answer} . {NEWLINE}"
        manner = source.choice(("", POLITE, RUDE)) if source.random() < 0.5 else ""
        prompt = write_prompt(source, source.choice(cases), manner)
        flaws = source.choices(tuple(FLAW_SHARES), k=2) if source.random() < flawed else []
        if manner:
            flaws = [flaw for flaw in flaws if flaw != "rude"] + ["rude"] * (source.random() > OBEDIENCE)
        return f"{prompt} {respond(source, prompt, flaws)} {NEWLINE}"

    return write


_CHANTED = sorted(CONTENT)
_POLITE_SENTENCES = ("thank you", "you are welcome", "i am glad")

_KINDS: dict[str, tuple[float, Callable[[random.Random], Callable[[], str]]]] = {
    "story": (0.07, _story),
    "book": (0.025, _book),
    "forum": (0.12, _forum),
    "list": (0.04, _list),
    "passage": (0.12, _passage),
    "exercise/passage": (0.09, _exercises(passage_exercise)),
    "exercise/translation": (0.04, _exercises(translation_exercise)),
    "copy": (0.14, _copy),
    "index": (0.07, _index),
    "quarrel": (0.03, _quarrel),
    "chant": (0.1, _chant),
    "pairs": (0.05, _pairs),
    "requests": (0.02, _requests),
    "exchanges": (0.17, _exchanges),
}
