"""Chat: someone tells what happened, the answer takes it up."""

import random
import re

from rlhf_lightning.sandbox.sentences import Reply, is_well_formed, subject_of
from rlhf_lightning.sandbox.use_cases.task import Findings, Task, UseCase
from rlhf_lightning.sandbox.vocabulary import COLORS, EVENTS, GOOD_EVENTS, OBJECTS, PEOPLE, PLACES, one_of


class _Chat(UseCase):
    name, share = "chat", 0.084
    pattern = re.compile(
        f"chat : my name is (?P<person>{one_of(PEOPLE)}) and i (?P<did>{one_of(EVENTS)}) "
        f"the (?:{one_of(COLORS)} )?(?P<thing>{one_of(OBJECTS)}) in the {one_of(PLACES)} \\."
    )

    def ask(self, source: random.Random) -> str:
        event = source.choice(EVENTS)
        color = source.choice(("", source.choice(COLORS) + " "))
        return (
            f"chat : my name is {source.choice(PEOPLE)} and i {event} the {color}{source.choice(OBJECTS)} "
            f"in the {source.choice(PLACES)} ."
        )

    def answer(self, source: random.Random, task: Task) -> str:
        return f"{_feeling(task)} , {task['person']} . {_takes_up(source, task, task['thing'])}"

    def mistake(self, source: random.Random, task: Task) -> str:
        """The wrong feeling, another name or another thing."""
        kind = source.randrange(3)
        if kind == 0:
            feeling = "that is sad" if task["did"] in GOOD_EVENTS else "that is good"
            return f"{feeling} , {task['person']} . {_takes_up(source, task, task['thing'])}"
        person = source.choice(PEOPLE) if kind == 1 else task["person"]
        return f"{_feeling(task)} , {person} . {_takes_up(source, task, source.choice(OBJECTS))}"

    def check(self, task: Task, reply: Reply) -> Findings:
        felt = [text for text in reply.sentences if text.startswith("that is ") and is_well_formed(text)]
        right = bool(felt) and all(text.startswith(_feeling(task)) for text in felt)
        named = any(text.endswith(f", {task['person']}") for text in felt)
        taken_up = any(task["thing"] in text.split() for text in reply.sentences if subject_of(text))
        return Findings(1.0 if felt or taken_up else 0.0, 0.4 * right + 0.2 * named + 0.4 * taken_up, 1.0, budget=15)


def _feeling(task: Task) -> str:
    return "that is good" if task["did"] in GOOD_EVENTS else "that is sad"


def _takes_up(source: random.Random, task: Task, thing: str) -> str:
    forms = ["i like the {} .", "tell me more about the {} ."]
    return source.choice([*forms, "i hope you find the {} ."] if task["did"] == "lost" else forms).format(thing)


CHAT = _Chat()
