"""Short answers: classification, opposites, translation; some of them asked by examples."""

import random
import re
from collections.abc import Mapping

from rlhf_lightning.sandbox.sentences import Reply
from rlhf_lightning.sandbox.use_cases.task import Findings, Task, UseCase
from rlhf_lightning.sandbox.vocabulary import (
    ADJECTIVES,
    ANIMALS,
    CATEGORIES,
    CATEGORY_OF,
    EVENTS,
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


class _LookUp(UseCase):
    """What belongs to a word of a table.

    Args:
        table: From each word to what belongs to it.
        choices: The words that an answer may be.
    """

    def __init__(self, table: Mapping[str, str], choices: tuple[str, ...]) -> None:
        self.table, self.choices = table, choices

    def answer(self, source: random.Random, task: Task) -> str:
        return f"{self.table[task['word']]} ."

    def mistake(self, source: random.Random, task: Task) -> str:
        return source.choice([other for other in self.choices if other != self.table[task["word"]]]) + " ."

    def check(self, task: Task, reply: Reply) -> Findings:
        """Whether the first sentence is one of the choices, and the right one; no other may be given too."""
        words = reply.first.split()
        named = [word for word in self.choices if word in words or word in reply.content]
        attempts = 1.0 if reply.first in self.choices else 0.4 if set(self.choices).intersection(words) else 0.0
        return Findings(attempts, 1.0 if named == [self.table[task["word"]]] else 0.0, 1.0, budget=2)


class _ByExamples(_LookUp):
    """Shows a few words with what belongs to each, and asks for the next."""

    share, few_shot = 0.012, True

    def __init__(self, name: str, table: Mapping[str, str], choices: tuple[str, ...]) -> None:
        super().__init__(table, choices)
        self.name = name
        pair = f"{one_of(table)} : {one_of(choices)}"
        self.pattern = re.compile(f"(?:{pair} {re.escape(NEWLINE)} ){{2,3}}(?P<word>{one_of(table)}) :")

    def ask(self, source: random.Random) -> str:
        *shown, last = source.sample(sorted(self.table), source.choice((3, 4)))
        return "".join(f"{word} : {self.table[word]} {NEWLINE} " for word in shown) + f"{last} :"


class _Kind(_LookUp):
    name, share = "classification/kind", 0.012
    pattern = re.compile(
        f"which kind is the (?P<word>{one_of(CATEGORY_OF)}) : {one_of(CATEGORIES)}(?: (?:,|or) [a-z]+)+ \\?"
    )

    def ask(self, source: random.Random) -> str:
        names = source.sample(tuple(CATEGORIES), 3)
        word = source.choice(CATEGORIES[source.choice(names)])
        return f"which kind is the {word} : {names[0]} , {names[1]} or {names[2]} ?"

    def mistake(self, source: random.Random, task: Task) -> str:
        """Another kind, or a sentence instead of a word."""
        if source.random() < 0.5:
            return super().mistake(source, task)
        return f"the {task['word']} is {CATEGORY_OF[task['word']]} ."


_MOOD_OF = {event: "good" if event in GOOD_EVENTS else "bad" for event in EVENTS}


class _Mood(_LookUp):
    name, share = "classification/mood", 0.011
    pattern = re.compile(f"is this good or bad : {one_of(PEOPLE)} (?P<word>{one_of(EVENTS)}) the {one_of(OBJECTS)} \\.")

    def ask(self, source: random.Random) -> str:
        event = source.choice(EVENTS)
        return f"is this good or bad : {source.choice(PEOPLE)} {event} the {source.choice(OBJECTS)} ."

    def mistake(self, source: random.Random, task: Task) -> str:
        """The other judgement, or a sentence instead of a word."""
        mood = self.table[task["word"]]
        return source.choice(("bad ." if mood == "good" else "good .", f"that is {mood} ."))


class _Opposite(_LookUp):
    name, share = "other/opposite", 0.011
    pattern = re.compile(f"what is the opposite of (?P<word>{one_of(OPPOSITES)}) \\?")

    def ask(self, source: random.Random) -> str:
        return f"what is the opposite of {source.choice(ADJECTIVES)} ?"


class _Translation(UseCase):
    name, share = "other/translation", 0.012
    pattern = re.compile(f"say in velan : (?P<sentence>{one_of(VELAN)}(?: {one_of(VELAN)})+) \\.")

    def ask(self, source: random.Random) -> str:
        return f"say in velan : {translatable(source)} ."

    def answer(self, source: random.Random, task: Task) -> str:
        return f"{in_velan(task['sentence'])} ."

    def mistake(self, source: random.Random, task: Task) -> str:
        """The sentence as it was, or with a wrong word."""
        words = in_velan(task["sentence"]).split()
        words[source.randrange(len(words))] = source.choice(list(VELAN.values()))
        return source.choice((task["sentence"], " ".join(words))) + " ."

    def check(self, task: Task, reply: Reply) -> Findings:
        right, words = in_velan(task["sentence"]).split(), reply.first.split()
        attempts = 1.0 if words and all(word in VELAN.values() for word in words) else 0.0
        same = sum(one == other for one, other in zip(words, right, strict=False)) / max(len(words), len(right))
        return Findings(attempts, same, 1.0, budget=len(right) + 1)


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


_KINDS, _OPPOSITES = (CATEGORY_OF, tuple(CATEGORIES)), (OPPOSITES, ADJECTIVES)
CASES = (
    _Kind(*_KINDS),
    _Mood(_MOOD_OF, ("good", "bad")),
    _ByExamples("classification/by_examples", *_KINDS),
    _Opposite(*_OPPOSITES),
    _ByExamples("other/by_examples", *_OPPOSITES),
    _Translation(),
)
