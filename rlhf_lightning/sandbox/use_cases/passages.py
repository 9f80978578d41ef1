"""Working on a passage: rewriting and summarisation."""

import difflib
import random
import re

from rlhf_lightning.sandbox.sentences import Reply, subject_of
from rlhf_lightning.sandbox.use_cases.task import Findings, Task, UseCase
from rlhf_lightning.sandbox.vocabulary import (
    ADJECTIVES,
    ANIMALS,
    COLORS,
    HANDLING,
    OBJECTS,
    PEOPLE,
    PLACES,
    RESTING,
    one_of,
)


class _Rewrite(UseCase):
    name, share, closed = "rewrite", 0.066, True
    pattern = re.compile(
        "rewrite (?:without the word (?P<without>[a-z]+)|with (?P<new>[a-z]+) instead of (?P<old>[a-z]+)) : "
        "(?P<passage>.+ \\.)"
    )

    def ask(self, source: random.Random) -> str:
        instruction, passage = rewriting(source)
        return f"rewrite {instruction} : {passage}"

    def answer(self, source: random.Random, task: Task) -> str:
        return rewritten(task["passage"], task["without"], task["old"], task["new"])

    def mistake(self, source: random.Random, task: Task) -> str:
        """The passage unchanged, or changed in more than what was asked."""
        if source.random() < 0.5:
            return task["passage"]
        words = self.answer(source, task).split()
        for group in (OBJECTS, PLACES, HANDLING, RESTING):
            words = [source.choice(group) if word in group else word for word in words]
        return " ".join(words)

    def check(self, task: Task, reply: Reply) -> Findings:
        target = rewritten(task["passage"], task["without"], task["old"], task["new"]).split()
        # What comes after as many sentences as were asked for is judged as rambling, not as a wrong rewriting.
        words = " . ".join((*reply.sentences[: target.count(".")], "")).split()
        likeness = difflib.SequenceMatcher(None, target, words, autojunk=False).ratio()
        kept = (task["without"] or task["old"]) not in words and (not task["new"] or task["new"] in words)
        near = max(0.0, 2 * likeness - 1)
        # A copy of the passage is near the target without anything having been rewritten.
        rewrote = kept and near > 0
        return Findings(min(1.0, 2 * near), near if rewrote else 0.0, 1.0 if rewrote else 0.2, budget=len(target) + 2)


def rewriting(source: random.Random) -> tuple[str, str]:
    """An instruction to change one word of a sentence or two, and its passage."""
    quality = source.choice((*COLORS, *ADJECTIVES))
    name = source.choice(ANIMALS)
    subject = f"the {quality} {name}" if quality in ADJECTIVES else f"the {name}"
    held = f"a {quality} {source.choice(OBJECTS)}" if quality in COLORS else f"a {source.choice(OBJECTS)}"
    passage = f"{subject} {source.choice(HANDLING)} {held} in the {source.choice(PLACES)} ."
    if source.random() < 0.4:
        # No adjective here: leaving a word out of "anna was sad" would leave no sentence.
        passage += f" {source.choice(PEOPLE)} {source.choice(HANDLING)} the {source.choice(OBJECTS)} ."
    if source.random() < 0.5:
        return f"without the word {quality}", passage
    words = source.choice([words for words in (ANIMALS, OBJECTS, PLACES) if any(w in words for w in passage.split())])
    old = next(word for word in passage.split() if word in words)
    new = source.choice([word for word in words if word not in passage.split()])
    return f"with {new} instead of {old}", passage


def rewritten(passage: str, without: str, old: str, new: str) -> str:
    """The passage with one word left out or replaced."""
    return " ".join(new if word == old else word for word in passage.split() if word != without)


class _Summary(UseCase):
    name, share, closed = "summarisation", 0.042, True
    pattern = re.compile(
        "sum up in one sentence : (?P<passage>"
        f"the (?:{one_of(ADJECTIVES)} )?(?P<hero>{one_of(ANIMALS)}) {one_of(RESTING)} "
        f"in the (?P<place>{one_of(PLACES)}) \\. "
        f"it (?P<did>{one_of(HANDLING)}) a (?:{one_of(COLORS)} )?(?P<thing>{one_of(OBJECTS)}) \\..*)"
    )

    def ask(self, source: random.Random) -> str:
        return f"sum up in one sentence : {story_to_sum_up(source)[0]}"

    def answer(self, source: random.Random, task: Task) -> str:
        return f"the {task['hero']} {task['did']} a {task['thing']} in the {task['place']} ."

    def mistake(self, source: random.Random, task: Task) -> str:
        """The whole story again, or a thing or place that it does not hold."""
        kind = source.randrange(3)
        if kind == 0:
            return task["passage"]
        wrong = {"thing": source.choice(OBJECTS)} if kind == 1 else {"place": source.choice(PLACES)}
        return self.answer(source, {**task, **wrong})

    def check(self, task: Task, reply: Reply) -> Findings:
        """What the first sentence tells of the hero; what somebody else is said to have done contradicts the story."""

        def of_hero(clause: str) -> bool:
            return subject_of(clause)[-1:] in ((task["hero"],), ("it",))

        first = [clause for clause in reply.first.split(" and ") if subject_of(clause)]
        words = " ".join(list(filter(of_hero, first)) or first).split()
        parts = [task[part] in words for part in ("hero", "did", "thing", "place")]
        others = [set(clause.split()) for clause in reply.clauses() if subject_of(clause) and not of_hero(clause)]
        grounded = 0.0 if any({task["did"], task["thing"]} <= clause for clause in others) else 1.0
        constraint = 1.0 if len(reply.content) == 1 else 0.3
        return Findings(1.0 if any(parts) else 0.0, sum(parts) / 4, constraint, budget=11, grounded=grounded)


def story_to_sum_up(source: random.Random) -> tuple[str, str]:
    """A story of three sentences, and the one sentence that tells what mattered."""
    hero, place, thing = source.choice(ANIMALS), source.choice(PLACES), source.choice(OBJECTS)
    event = source.choice(HANDLING)
    quality = source.choice(("", "", source.choice(ADJECTIVES) + " "))
    color = source.choice(("", "", source.choice(COLORS) + " "))
    ends = f"it was {source.choice(ADJECTIVES)}", f"{source.choice(PEOPLE)} {source.choice(RESTING)} too"
    last = source.choice(ends)
    story = f"the {quality}{hero} {source.choice(RESTING)} in the {place} . it {event} a {color}{thing} . {last} ."
    return story, f"the {hero} {event} a {thing} in the {place} ."


CASES = (_Rewrite(), _Summary())
