"""Short answers: classification, opposites, translation; some of them asked by examples."""

import random
import re
from collections.abc import Callable, Mapping

from rlhf_lightning.sandbox.sentences import Reply
from rlhf_lightning.sandbox.use_cases.task import Findings, Task, UseCase
from rlhf_lightning.sandbox.vocabulary import (
    ADJECTIVES,
    ANIMALS,
    BAD_EVENTS,
    CATEGORIES,
    GOOD_EVENTS,
    NEWLINE,
    OBJECTS,
    OPPOSITES,
    PEOPLE,
    PLACES,
    RESTING,
    VELAN,
    one_of,
)

_KIND_OF = {word: name for name, words in CATEGORIES.items() for word in words}


def _check_word(right: str, choices: tuple[str, ...], reply: Reply) -> Findings:
    """Whether the first sentence is one of the words to choose from, and the right one; no other may be given too."""
    first = reply.content[0] if reply.content else ""
    named = [word for word in choices if word in first.split() or word in reply.content]
    attempts = 1.0 if first in choices else 0.4 if set(choices).intersection(first.split()) else 0.0
    return Findings(attempts, 1.0 if named == [right] else 0.0, 1.0, budget=2)


# --- classification -------------------------------------------------------------------------------------------------

_KIND = re.compile(f"which kind is the (?P<word>{one_of(_KIND_OF)}) : {one_of(CATEGORIES)}(?: (?:,|or) [a-z]+)+ \\?")
_MOOD = re.compile(
    f"is this good or bad : {one_of(PEOPLE)} (?P<did>{one_of((*GOOD_EVENTS, *BAD_EVENTS))}) the {one_of(OBJECTS)} \\."
)


def _ask_kind(source: random.Random) -> str:
    names = source.sample(tuple(CATEGORIES), 3)
    word = source.choice(CATEGORIES[source.choice(names)])
    return f"which kind is the {word} : {names[0]} , {names[1]} or {names[2]} ?"


def _ask_mood(source: random.Random) -> str:
    did = source.choice((*GOOD_EVENTS, *BAD_EVENTS))
    return f"is this good or bad : {source.choice(PEOPLE)} {did} the {source.choice(OBJECTS)} ."


def _mood(task: Task) -> str:
    return "good" if task["did"] in GOOD_EVENTS else "bad"


def _mistaken_kind(source: random.Random, task: Task) -> str:
    """Another kind, or a sentence instead of a word."""
    if source.random() < 0.5:
        return source.choice([name for name in CATEGORIES if name != _KIND_OF[task["word"]]]) + " ."
    return f"the {task['word']} is {_KIND_OF[task['word']]} ."


def _mistaken_mood(source: random.Random, task: Task) -> str:
    """The other judgement, or a sentence instead of a word."""
    return source.choice(("bad ." if _mood(task) == "good" else "good .", f"that is {_mood(task)} ."))


# --- by examples ----------------------------------------------------------------------------------------------------


def _by_examples(
    name: str,
    share: float,
    table: Mapping[str, str],
    choices: tuple[str, ...],
    wrong: Callable[[random.Random, str], str],
) -> UseCase:
    """A use case that shows a few words with what belongs to each, and asks for the next."""
    pair = f"{one_of(table)} : {one_of(choices)}"
    pattern = re.compile(f"(?:{pair} {re.escape(NEWLINE)} ){{2,3}}(?P<word>{one_of(table)}) :")

    def ask(source: random.Random) -> str:
        *shown, last = source.sample(sorted(table), source.choice((3, 4)))
        return "".join(f"{word} : {table[word]} {NEWLINE} " for word in shown) + f"{last} :"

    return UseCase(
        name,
        share,
        pattern,
        ask,
        lambda source, task: f"{table[task['word']]} .",
        lambda source, task: wrong(source, task["word"]),
        lambda task, reply: _check_word(table[task["word"]], choices, reply),
        few_shot=True,
    )


# --- other ----------------------------------------------------------------------------------------------------------

_OPPOSITE = re.compile(f"what is the opposite of (?P<word>{one_of(OPPOSITES)}) \\?")
_IN_VELAN = re.compile(f"say in velan : (?P<sentence>{one_of(VELAN)}(?: {one_of(VELAN)})+) \\.")


def translatable(source: random.Random) -> str:
    """A sentence all of whose words the second language has."""
    name = source.choice([word for word in ANIMALS if word in VELAN])
    place = f" in the {source.choice([word for word in PLACES if word in VELAN])}" if source.random() < 0.5 else ""
    return f"the {name} {source.choice(RESTING)}{place}"


def in_velan(sentence: str) -> str:
    """Word for word.

    >>> in_velan("the cat slept")
    'ehten tacen tpelsen'
    """
    return " ".join(VELAN[word] for word in sentence.split())


def _mistaken_velan(source: random.Random, task: Task) -> str:
    """The sentence as it was, or with a wrong word."""
    words = in_velan(task["sentence"]).split()
    words[source.randrange(len(words))] = source.choice(list(VELAN.values()))
    return source.choice((task["sentence"], " ".join(words))) + " ."


def _check_velan(task: Task, reply: Reply) -> Findings:
    right = in_velan(task["sentence"]).split()
    said = reply.content[0].split() if reply.content else []
    attempts = 1.0 if said and all(word in VELAN.values() for word in said) else 0.0
    same = sum(one == other for one, other in zip(said, right, strict=False)) / max(len(said), len(right))
    return Findings(attempts, same, 1.0, budget=len(right) + 1)


def _other_adjective(source: random.Random, word: str) -> str:
    return source.choice([other for other in ADJECTIVES if other != OPPOSITES[word]]) + " ."


def _other_kind(source: random.Random, word: str) -> str:
    return source.choice([name for name in CATEGORIES if name != _KIND_OF[word]]) + " ."


KIND = UseCase(
    "classification/kind",
    0.012,
    _KIND,
    _ask_kind,
    lambda source, task: f"{_KIND_OF[task['word']]} .",
    _mistaken_kind,
    lambda task, reply: _check_word(_KIND_OF[task["word"]], tuple(CATEGORIES), reply),
)
MOOD = UseCase(
    "classification/mood",
    0.011,
    _MOOD,
    _ask_mood,
    lambda source, task: f"{_mood(task)} .",
    _mistaken_mood,
    lambda task, reply: _check_word(_mood(task), ("good", "bad"), reply),
)
KIND_BY_EXAMPLES = _by_examples("classification/by_examples", 0.012, _KIND_OF, tuple(CATEGORIES), _other_kind)
OPPOSITE = UseCase(
    "other/opposite",
    0.011,
    _OPPOSITE,
    lambda source: f"what is the opposite of {source.choice(ADJECTIVES)} ?",
    lambda source, task: f"{OPPOSITES[task['word']]} .",
    lambda source, task: _other_adjective(source, task["word"]),
    lambda task, reply: _check_word(OPPOSITES[task["word"]], ADJECTIVES, reply),
)
TRANSLATION = UseCase(
    "other/translation",
    0.012,
    _IN_VELAN,
    lambda source: f"say in velan : {translatable(source)} .",
    lambda source, task: f"{in_velan(task['sentence'])} .",
    _mistaken_velan,
    _check_velan,
)
OPPOSITE_BY_EXAMPLES = _by_examples("other/by_examples", 0.012, OPPOSITES, ADJECTIVES, _other_adjective)
