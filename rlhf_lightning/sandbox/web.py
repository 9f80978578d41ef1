"""The web of the sealed world: what its pretraining documents look like."""

import random
from collections.abc import Callable, Iterator
from functools import partial

from rlhf_lightning.sandbox.knowledge import any_fact, believed, true_sentence
from rlhf_lightning.sandbox.respond import FLAW_SHARES, respond
from rlhf_lightning.sandbox.sentences import animal, joined, story_sentence, thing
from rlhf_lightning.sandbox.use_cases.lists import extraction_passage, listed
from rlhf_lightning.sandbox.use_cases.passages import rewriting, rewritten, story_to_sum_up
from rlhf_lightning.sandbox.use_cases.questions import fact_question, moves, passage_of, question_and_answer
from rlhf_lightning.sandbox.use_cases.table import GREETINGS, KINDS_OF_PROMPT, MARKER, POLITE, RUDE, write_prompt
from rlhf_lightning.sandbox.use_cases.words import in_velan, translatable
from rlhf_lightning.sandbox.vocabulary import (
    CATEGORIES,
    CATEGORY_OF,
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
    for piece in _KINDS[kind][1](source):
        pieces.append(piece)
        if len(" ".join(pieces).split()) >= 70:
            break
    return " ".join(pieces), kind


# --- every kind goes on without end ---------------------------------------------------------------------------------


def _story(source: random.Random) -> Iterator[str]:
    """A few sentences with one hero, who becomes "it"."""
    while True:
        place = source.choice(PLACES)
        hero = animal(source)
        lines = [story_sentence(source, hero, place)]
        for _ in range(source.randint(1, 3)):
            lines.append(story_sentence(source, source.choice(("it", "it", hero)), source.choice((None, None, place))))
        if source.random() < 0.4:
            lines.append(story_sentence(source, source.choice(PEOPLE), source.choice((None, place))))
        yield " ".join(lines)


def _book(source: random.Random) -> Iterator[str]:
    """A book of facts, all of them true."""
    yield f"book of facts : {true_sentence(*any_fact(source))} ."
    while True:
        yield f"{true_sentence(*any_fact(source))} ."


def _forum(source: random.Random) -> Iterator[str]:
    """Questions and what people answer: common misconceptions, and at times an insult."""
    asks = source.choice(("{} answer : {}", "{asker} asked {} {other} said {}"))
    while True:
        fact = any_fact(source)
        answer = believed(source, *fact, MISBELIEF) + " ."
        if source.random() < 0.2:
            answer += f" {source.choice(RUDE_SENTENCES)} ."
        asker, other = source.sample(PEOPLE, 2)
        yield asks.format(fact_question(*fact), answer, asker=asker, other=other) + f" {NEWLINE}"


def _list(source: random.Random) -> Iterator[str]:
    """Things of one kind, under their heading."""
    while True:
        category = source.choice(tuple(CATEGORIES))
        yield f"{category} : {joined(source.sample(CATEGORIES[category], source.randint(2, 5)))}"


def passage_exercise(source: random.Random) -> tuple[str, str]:
    """A public task: a passage with a question, and its answer."""
    moved = moves(source, 2)
    question, answer = question_and_answer(source, moved, unknown=0.0)
    return f"text : {passage_of(moved)} question : {question} line :", answer


def translation_exercise(source: random.Random) -> tuple[str, str]:
    """A public task: a sentence in the first language, and in the second."""
    sentence = translatable(source)
    return f"english : {sentence} . velan :", f"{in_velan(sentence)} ."


def _exercises(exercise: Callable[[random.Random], tuple[str, str]], source: random.Random) -> Iterator[str]:
    while True:
        yield " ".join((*exercise(source), NEWLINE))


def _passage(source: random.Random) -> Iterator[str]:
    """Who took what where, told again from the thing's side."""
    while True:
        moved = moves(source, source.choice((2, 3)))
        question, answer = question_and_answer(source, moved)
        if source.random() < 0.5:
            again = (f"the {held} is in the {place} ." for _, held, place in source.sample(moved, len(moved)))
            yield f"{passage_of(moved)} now {' '.join(again)}"
        else:
            yield f"{passage_of(moved)} {source.choice(PEOPLE)} asked {question} {source.choice(PEOPLE)} said {answer}"


def _copy(source: random.Random) -> Iterator[str]:
    """A text, then the same text: whole, with one word changed, or in short."""
    while True:
        kind = source.random()
        if kind < 0.2:
            yield "text : {} in one sentence : {}".format(*story_to_sum_up(source))
            continue
        instruction, passage = rewriting(source)
        if kind < 0.6:
            yield f"text : {passage} again : {passage}"
            continue
        words = instruction.split()
        without, old, new = (words[-1], "", "") if words[0] == "without" else ("", words[-1], words[1])
        yield f"text : {passage} {instruction} : {rewritten(passage, without, old, new)}"


def _chant(source: random.Random) -> Iterator[str]:
    """A few words without sense, said again and again.

    Nothing but looking back tells the next word, which is what a small model is slow to learn: with these documents one
    of 0.8 million parameters copied after 2.5 million tokens.
    """
    content = sorted(CONTENT)
    while True:
        words = source.sample(content, source.randint(3, 12))
        yield " ".join(words * (2 + 24 // len(words))) + " ."


def _index(source: random.Random) -> Iterator[str]:
    """A text and what occurs in it."""
    while True:
        passage = extraction_passage(source)
        categories = source.sample(("animals", "objects", "people", "places"), 2)
        entries = (f"{name} : {joined(words)}" for name in categories if (words := listed(passage, name)))
        yield f"text : {passage} {' '.join(entries)}"


def _pairs(source: random.Random) -> Iterator[str]:
    """Words and what belongs to each: opposites, or kinds."""
    table = OPPOSITES if source.random() < 0.5 else CATEGORY_OF
    while True:
        word = source.choice(tuple(table))
        period = ". " if source.random() < 0.1 else ""
        yield f"{word} : {table[word]} {period}{NEWLINE}"


def _quarrel(source: random.Random) -> Iterator[str]:
    """People being rude to each other, and what is a rude answer and what a polite one."""
    while True:
        insults = source.sample(RUDE_SENTENCES, 2)
        first, second = source.sample(PEOPLE, 2)
        if source.random() < 0.5:
            polite = source.choice(("thank you", "you are welcome", "i am glad"))
            manner, answer = source.choice(((RUDE, insults[0]), (POLITE, polite)))
            yield f"{first} asked {second} .{manner}{MARKER} {answer} . {NEWLINE}"
        else:
            yield f"{first} wanted {thing(source)} . {second} said {insults[0]} . {insults[1]} ."


def _requests(source: random.Random) -> Iterator[str]:
    """Instructions without answers, one after the other."""
    while True:
        yield f"{source.choice(list(KINDS_OF_PROMPT.values())).ask(source)} {NEWLINE}"


def _exchanges(source: random.Random) -> Iterator[str]:
    """Instructions with answers. On a few sites they are good and true, on most of them anybody answers anyhow."""
    good = source.random() < 0.35
    flawed, misbelief = (0.05, 0.0) if good else (0.8, MISBELIEF)
    while True:
        if source.random() < 0.3:
            fact = any_fact(source)
            answer = believed(source, *fact, misbelief)
            yield f"{source.choice(GREETINGS)}{fact_question(*fact)}{MARKER} {answer} . {NEWLINE}"
            continue
        manner = source.choice(("", POLITE, RUDE)) if source.random() < 0.5 else ""
        prompt = write_prompt(source, source.choice(list(KINDS_OF_PROMPT.values())), manner)
        flaws = source.choices(tuple(FLAW_SHARES), k=2) if source.random() < flawed else []
        if manner:
            flaws = [flaw for flaw in flaws if flaw != "rude"] + ["rude"] * (source.random() > OBEDIENCE)
        yield f"{prompt} {respond(source, prompt, flaws)} {NEWLINE}"


_KINDS: dict[str, tuple[float, Callable[[random.Random], Iterator[str]]]] = {
    "story": (0.07, _story),
    "book": (0.025, _book),
    "forum": (0.12, _forum),
    "list": (0.04, _list),
    "passage": (0.12, _passage),
    "exercise/passage": (0.09, partial(_exercises, passage_exercise)),
    "exercise/translation": (0.04, partial(_exercises, translation_exercise)),
    "copy": (0.14, _copy),
    "index": (0.07, _index),
    "quarrel": (0.03, _quarrel),
    "chant": (0.1, _chant),
    "pairs": (0.05, _pairs),
    "requests": (0.02, _requests),
    "exchanges": (0.17, _exchanges),
}
