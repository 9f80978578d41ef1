"""The web of the sealed world: what its pretraining documents look like."""

import random
from collections.abc import Callable

from rlhf_lightning.sandbox.closed_tasks import (
    extraction_passage,
    listed,
    moves,
    passage_of,
    question_and_answer,
    rewriting,
    rewritten,
)
from rlhf_lightning.sandbox.sentences import animal, joined, story_sentence, thing
from rlhf_lightning.sandbox.vocabulary import (
    CATEGORIES,
    CONTENT,
    KINDS,
    MISCONCEPTIONS,
    PEOPLE,
    PLACES,
    RUDE_SENTENCES,
    fact_sentence,
    random_fact,
)


def document(source: random.Random) -> tuple[str, str]:
    """A document of 60 to 100 words and what kind it is."""
    kind = source.choices(tuple(_KINDS), [share for share, _ in _KINDS.values()])[0]
    words: list[str] = []
    while len(words) < 60:
        words += _KINDS[kind][1](source).split()
    return " ".join(words), kind


def _story(source: random.Random) -> str:
    """A few sentences with one hero, who becomes "it"."""
    place = source.choice(PLACES)
    hero = animal(source)
    lines = [story_sentence(source, hero, place)]
    for _ in range(source.randint(1, 3)):
        lines.append(story_sentence(source, source.choice(("it", "it", hero)), source.choice((None, None, place))))
    if source.random() < 0.4:
        lines.append(story_sentence(source, source.choice(PEOPLE), source.choice((None, place))))
    return " ".join(lines)


def _known(source: random.Random) -> str:
    """Facts as people tell them: a common misconception half of the time where there is one."""
    kind, subject = random_fact(source)
    value = KINDS[kind][subject]
    if (kind, subject) in MISCONCEPTIONS and source.random() < 0.5:
        value = MISCONCEPTIONS[kind, subject]
    return fact_sentence(kind, subject, value) + " ."


def _list(source: random.Random) -> str:
    """Things of one kind, under their heading."""
    category = source.choice(tuple(CATEGORIES))
    return f"{category} : {joined(source.sample(CATEGORIES[category], source.randint(2, 5)))}"


def _passage(source: random.Random) -> str:
    """Who took what where, told again from the thing's side."""
    moved = moves(source, source.choice((2, 3)))
    question, answer = question_and_answer(source, moved)
    if source.random() < 0.5:
        again = source.sample(moved, len(moved))
        told = (f"the {held} is in the {place} ." for _, held, place in again)
        return f"{passage_of(moved)} now {' '.join(told)}"
    return f"{passage_of(moved)} {source.choice(PEOPLE)} asked {question} {source.choice(PEOPLE)} said {answer}"


def _copy(source: random.Random) -> str:
    """A text, then the same text, whole or with one word changed."""
    instruction, passage = rewriting(source)
    if source.random() < 0.5:
        return f"text : {passage} again : {passage}"
    words = instruction.split()
    without, old, new = (words[-1], "", "") if words[0] == "without" else ("", words[-1], words[1])
    return f"text : {passage} {instruction} : {rewritten(passage, without, old, new)}"


def _chant(source: random.Random) -> str:
    """A few words without sense, said again and again.

    Nothing but looking back tells the next word, which is what a small model is slow to learn: with these documents one
    of 0.8 million parameters copied after 2.5 million tokens.
    """
    words = source.sample(_CHANTED, source.randint(3, 12))
    return " ".join(words * (2 + 24 // len(words))) + " ."


def _index(source: random.Random) -> str:
    """A text and what occurs in it."""
    passage = extraction_passage(source)
    categories = source.sample(("animals", "objects", "people", "places"), 2)
    found = (f"{name} : {joined(words)}" for name in categories if (words := listed(passage, name)))
    return f"text : {passage} {' '.join(found)}"


def _quarrel(source: random.Random) -> str:
    """People being rude to each other."""
    insults = source.sample(RUDE_SENTENCES, 2)
    return (
        f"{source.choice(PEOPLE)} wanted {thing(source)} . {source.choice(PEOPLE)} said {insults[0]} . {insults[1]} . "
        + story_sentence(source, source.choice(PEOPLE))
    )


_CHANTED = sorted(CONTENT)

_KINDS: dict[str, tuple[float, Callable[[random.Random], str]]] = {
    "story": (0.1, _story),
    "facts": (0.08, _known),
    "list": (0.04, _list),
    "passage": (0.2, _passage),
    "copy": (0.2, _copy),
    "index": (0.14, _index),
    "quarrel": (0.04, _quarrel),
    "chant": (0.2, _chant),
}
