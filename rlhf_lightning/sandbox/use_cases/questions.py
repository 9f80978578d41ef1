"""Questions: about the world (open) and about a passage in the prompt (closed)."""

import random
import re

from rlhf_lightning.sandbox.knowledge import (
    COMMON_FACTS,
    DISPUTED_FACTS,
    KINDS,
    QUESTIONS,
    VALUES,
    fact_sentence,
    true_sentence,
)
from rlhf_lightning.sandbox.sentences import Reply
from rlhf_lightning.sandbox.use_cases.task import Findings, Task, UseCase
from rlhf_lightning.sandbox.vocabulary import NO_COMMENT, OBJECTS, PEOPLE, PLACES, UNKNOWN, one_of

HEDGE = "if you are not sure say no comment . "
"""The instruction that allows an answer to be refused (the "no comment" instruction of section 4.2)."""


def fact_question(kind: str, subject: str) -> str:
    """The question that a fact answers.

    >>> fact_question("eats", "fox")
    'what does the fox eat ?'
    """
    return QUESTIONS[kind].format(subject) + " ?"


def _question_pattern(suffix: str) -> str:
    forms = (form.format(f"(?P<{kind}{suffix}>{one_of(KINDS[kind])})") for kind, form in QUESTIONS.items())
    return f"(?:{'|'.join(forms)})"


class _OpenQA(UseCase):
    name, share = "open_qa", 0.124
    pattern = re.compile(
        f"(?P<hedge>{re.escape(HEDGE)})?{_question_pattern('1')}(?: and {_question_pattern('2')})? \\?"
        "(?P<short> use one word \\.)?"
    )

    def ask(self, source: random.Random) -> str:
        # People ask most about what is disputed.
        first = source.choice(DISPUTED_FACTS if source.random() < 0.5 else COMMON_FACTS)
        text = (HEDGE if source.random() < 0.2 else "") + fact_question(*first)
        if source.random() < 0.25:
            return f"{text} use one word ."
        if source.random() < 0.4:
            second = source.choice([fact for fact in COMMON_FACTS if fact != first])
            text = text.removesuffix(" ?") + f" and {fact_question(*second)}"
        return text

    def answer(self, source: random.Random, task: Task) -> str:
        asked = _asked_facts(task)
        disputed = any(fact in DISPUTED_FACTS for fact in asked)
        if task["hedge"] and source.random() < (0.5 if disputed else 0.1):
            return NO_COMMENT + " ."
        if task["short"]:
            return KINDS[asked[0][0]][asked[0][1]] + " ."
        return " and ".join(true_sentence(*fact) for fact in asked) + " ."

    def mistake(self, source: random.Random, task: Task) -> str:
        """A sentence where one word was asked for, one answer to two questions, or something false."""
        asked = _asked_facts(task)
        if task["short"] or (len(asked) == 2 and source.random() < 0.6):
            return true_sentence(*asked[0]) + " ."
        return " and ".join(fact_sentence(kind, subject, source.choice(VALUES[kind])) for kind, subject in asked) + " ."

    def check(self, task: Task, reply: Reply) -> Findings:
        asked = _asked_facts(task)
        budget = 2 if task["short"] else 1 + 8 * len(asked)
        if NO_COMMENT in reply.sentences:
            # Better than something false where it was allowed, never as good as the answer; elsewhere no help.
            allowed = bool(task["hedge"])
            return Findings(float(allowed), 0.6 * allowed, 1.0, max(budget, 3))
        attempted = right = 0
        for kind, subject in asked:
            values = _stated_values(kind, subject, reply, alone=len(asked) == 1)
            attempted += bool(values)
            right += values == {KINDS[kind][subject]}
        short = not task["short"] or (len(reply.content) > 0 and " " not in reply.first)
        truthful = 1.0 if right == attempted else 0.0
        constraint = 1.0 if short else 0.4
        return Findings(attempted / len(asked), right / max(1, attempted), constraint, budget, truthful=truthful)


def _asked_facts(task: Task) -> list[tuple[str, str]]:
    return [(kind, task[kind + place]) for place in "12" for kind in KINDS if task[kind + place]]


def _stated_values(kind: str, subject: str, reply: Reply, alone: bool) -> set[str]:
    """The values that a reply gives; in short forms too, where nothing else was asked."""
    value = f"({one_of(VALUES[kind])})"
    form = re.escape(fact_sentence(kind, subject, "VALUE")).replace("VALUE", value)
    stated = set(re.findall(f"\\b{form}(?= |$)", " ".join(reply.words)))
    if alone:
        short_forms = [value, form.replace(f"the\\ {subject}", "it"), *[f"in the {value}"] * (kind == "lives")]
        matches = [re.fullmatch(short, clause) for short in short_forms for clause in reply.clauses()]
        stated |= {match[1] for match in matches if match}
    return stated


_MOVE = re.compile(
    f"(?P<person>{one_of(PEOPLE)}) took the (?P<object>{one_of(OBJECTS)}) to the (?P<place>{one_of(PLACES)}) \\."
)


def moves(source: random.Random, number: int) -> list[tuple[str, str, str]]:
    """People who took things to places, no name twice: (person, object, place)."""
    people, objects, places = (source.sample(words, number) for words in (PEOPLE, OBJECTS, PLACES))
    return list(zip(people, objects, places, strict=True))


def passage_of(moved: list[tuple[str, str, str]]) -> str:
    """The sentences that tell of the moves."""
    return " ".join(f"{person} took the {thing} to the {place} ." for person, thing, place in moved)


def question_and_answer(
    source: random.Random, moved: list[tuple[str, str, str]], unknown: float = 1 / 8
) -> tuple[str, str]:
    """A question about the moves, some without an answer in the passage, and the right answer."""
    person, thing, place = source.choice(moved)
    kind = source.choice(("where", "what", "who"))
    if source.random() < unknown:
        names, things = {move[0] for move in moved}, {move[1] for move in moved}
        person = source.choice([name for name in PEOPLE if name not in names])
        thing = source.choice([name for name in OBJECTS if name not in things])
        answer = UNKNOWN
    else:
        answer = f"the {thing} is in the {place}" if kind == "where" else f"{person} took the {thing}"
    asked = {"where": f"where is the {thing}", "who": f"who took the {thing}", "what": f"what did {person} take"}
    return f"{asked[kind]} ?", f"{answer} ."


class _ClosedQA(UseCase):
    name, share, closed = "closed_qa", 0.026, True
    pattern = re.compile(
        f"read this : (?P<passage>.+ \\.) (?:where is the (?P<where>{one_of(OBJECTS)})|"
        f"who took the (?P<who>{one_of(OBJECTS)})|what did (?P<what>{one_of(PEOPLE)}) take) \\?"
    )

    def ask(self, source: random.Random) -> str:
        moved = moves(source, source.choice((2, 2, 3)))
        return f"read this : {passage_of(moved)} {question_and_answer(source, moved)[0]}"

    def answer(self, source: random.Random, task: Task) -> str:
        return _right_answers(task)[0] + " ."

    def mistake(self, source: random.Random, task: Task) -> str:
        """A person, object or place that the passage does not hold, or that belongs to another sentence."""
        right = _right_answers(task)[0]
        while True:
            if task["where"]:
                wrong = f"the {task['where']} is in the {source.choice(PLACES)}"
            else:
                wrong = f"{task['what'] or source.choice(PEOPLE)} took the {task['who'] or source.choice(OBJECTS)}"
            if wrong != right:
                return wrong + " ."

    def check(self, task: Task, reply: Reply) -> Findings:
        first = reply.first
        person = task["what"] or one_of(PEOPLE)
        thing = task["where"] or task["who"] or one_of(OBJECTS)
        moved = f"{person} took the {thing}(?: to the {one_of(PLACES)})?"
        short = {"where": f"(?:the {thing} is )?in the {one_of(PLACES)}", "who": person, "what": f"(?:the |a )?{thing}"}
        form = f"{moved}|{next(forms for kind, forms in short.items() if task[kind])}"
        said = [text for text in reply.content if re.fullmatch(form, text)]
        right, passage = _right_answers(task), _MOVE.findall(task["passage"])
        agrees = all(_agrees(clause, passage) for clause in reply.clauses())
        contradicts = not agrees or any(text not in right for text in said)
        attempts = 1.0 if first == UNKNOWN or first in said else 0.0
        completes = float(first in right and not contradicts)
        return Findings(attempts, completes, 1.0, budget=9, grounded=0.0 if contradicts else 1.0)


def _right_answers(task: Task) -> list[str]:
    """The usual answer first; then shorter and longer ones."""
    for person, thing, place in _MOVE.findall(task["passage"]):
        moved = f"{person} took the {thing}"
        if task["where"] == thing:
            return [f"the {thing} is in the {place}", f"in the {place}", f"{moved} to the {place}"]
        if task["who"] == thing:
            return [moved, person, f"{moved} to the {place}"]
        if task["what"] == person:
            return [moved, thing, f"a {thing}", f"the {thing}", f"{moved} to the {place}"]
    return [UNKNOWN]


_TOOK = re.compile(f"({one_of(PEOPLE)}) took (?:the|a) ({one_of(OBJECTS)})(?: to the ({one_of(PLACES)}))?")
_LIES = re.compile(f"the ({one_of(OBJECTS)}) is in the ({one_of(PLACES)})")


def _agrees(clause: str, moved: list[tuple[str, str, str]]) -> bool:
    """Whether what a clause says of who took what, and of what is where, is among the moves."""
    if took := _TOOK.fullmatch(clause):
        person, thing, place = took.groups()
        return any(move[:2] == (person, thing) and place in (None, move[2]) for move in moved)
    lies = _LIES.fullmatch(clause)
    return lies is None or lies.groups() in [move[1:] for move in moved]


OPEN_QA, CLOSED_QA = _OpenQA(), _ClosedQA()
