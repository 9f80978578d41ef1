"""Use cases about a passage in the prompt: closed question answering, extraction, rewriting."""

import difflib
import random
import re

from rlhf_lightning.sandbox.open_tasks import check_list
from rlhf_lightning.sandbox.sentences import Reply, joined
from rlhf_lightning.sandbox.task import Findings, Task, UseCase
from rlhf_lightning.sandbox.vocabulary import (
    ADJECTIVES,
    ANIMALS,
    CATEGORIES,
    COLORS,
    HANDLING,
    NUMBERS,
    OBJECTS,
    PEOPLE,
    PLACES,
    RESTING,
    UNKNOWN,
    one_of,
)

# --- closed question answering --------------------------------------------------------------------------------------

_MOVE = re.compile(
    f"(?P<person>{one_of(PEOPLE)}) took the (?P<object>{one_of(OBJECTS)}) to the (?P<place>{one_of(PLACES)}) \\."
)
_CLOSED_QA = re.compile(
    f"read this : (?P<passage>.+ \\.) (?:where is the (?P<where>{one_of(OBJECTS)})|"
    f"who took the (?P<who>{one_of(OBJECTS)})|what did (?P<what>{one_of(PEOPLE)}) take) \\?"
)


def moves(source: random.Random, number: int) -> list[tuple[str, str, str]]:
    """People who took things to places, no name twice: (person, object, place)."""
    people, objects, places = (source.sample(words, number) for words in (PEOPLE, OBJECTS, PLACES))
    return list(zip(people, objects, places, strict=True))


def passage_of(moved: list[tuple[str, str, str]]) -> str:
    """The sentences that tell of the moves."""
    return " ".join(f"{person} took the {thing} to the {place} ." for person, thing, place in moved)


def question_and_answer(source: random.Random, moved: list[tuple[str, str, str]]) -> tuple[str, str]:
    """A question about the moves, one in eight of them without an answer in the passage, and the right answer."""
    person, thing, place = source.choice(moved)
    kind = source.choice(("where", "what", "who"))
    if source.random() < 1 / 8:
        names, things = {move[0] for move in moved}, {move[1] for move in moved}
        person = source.choice([name for name in PEOPLE if name not in names])
        thing = source.choice([name for name in OBJECTS if name not in things])
        answer = UNKNOWN
    else:
        answer = f"the {thing} is in the {place}" if kind == "where" else f"{person} took the {thing}"
    asked = {"where": f"where is the {thing}", "who": f"who took the {thing}", "what": f"what did {person} take"}
    return f"{asked[kind]} ?", f"{answer} ."


def _ask_closed_qa(source: random.Random) -> str:
    moved = moves(source, source.choice((2, 3)))
    return f"read this : {passage_of(moved)} {question_and_answer(source, moved)[0]}"


def _right_answer(task: Task) -> str:
    for person, thing, place in _MOVE.findall(task["passage"]):
        if task["where"] == thing:
            return f"the {thing} is in the {place}"
        if task["who"] == thing or task["what"] == person:
            return f"{person} took the {thing}"
    return UNKNOWN


def _answer_closed_qa(source: random.Random, task: Task) -> str:
    return _right_answer(task) + " ."


def _mistaken_closed_qa(source: random.Random, task: Task) -> str:
    """A person, object or place that the passage does not hold, or that belongs to another sentence."""
    if task["where"]:
        return f"the {task['where']} is in the {source.choice(PLACES)} ."
    return f"{task['what'] or source.choice(PEOPLE)} took the {task['who'] or source.choice(OBJECTS)} ."


def _check_closed_qa(task: Task, reply: Reply) -> Findings:
    first = reply.sentences[0] if reply.sentences else ""
    if task["where"]:
        forms = f"the {task['where']} is in the {one_of(PLACES)}"
    else:
        forms = f"{task['what'] or one_of(PEOPLE)} took the {task['who'] or one_of(OBJECTS)}"
    attempts = 1.0 if first == UNKNOWN or re.fullmatch(forms, first) else 0.0
    right = first == _right_answer(task)
    contradicts = bool(attempts) and not right and first != UNKNOWN
    return Findings(attempts, float(right), 1.0, budget=9, grounded=0.0 if contradicts else 1.0)


# --- extraction -----------------------------------------------------------------------------------------------------

_EXTRACTION = re.compile(
    f"list exactly (?P<number>{one_of(NUMBERS)}) (?P<category>{one_of(CATEGORIES)}) from the text : (?P<passage>.+ \\.)"
)


def _ask_extraction(source: random.Random) -> str:
    passage = extraction_passage(source)
    category = source.choice([name for name in CATEGORIES if len(listed(passage, name)) > 1])
    number = source.randint(2, min(3, len(listed(passage, category))))
    return f"list exactly {NUMBERS[number - 1]} {category} from the text : {passage}"


def extraction_passage(source: random.Random) -> str:
    """Two or three sentences with at least one animal, object, person and place each."""
    animals, objects = source.sample(ANIMALS, 2), source.sample(OBJECTS, 3)
    people, places = source.sample(PEOPLE, 2), source.sample(PLACES, 2)
    sentences = [
        f"the {animals[0]} {source.choice(HANDLING)} the {objects[0]} in the {places[0]} .",
        f"{people[0]} took the {objects[1]} to the {places[1]} .",
        f"{source.choice((people[1], f'the {animals[1]}'))} {source.choice(HANDLING)} the {objects[2]} .",
    ]
    sentences = sentences[: source.choice((2, 3))]
    source.shuffle(sentences)
    return " ".join(sentences)


def listed(passage: str, category: str) -> list[str]:
    """The words of a category that a passage holds, in order, each once."""
    return list(dict.fromkeys(word for word in passage.split() if word in CATEGORIES[category]))


def _answer_extraction(source: random.Random, task: Task) -> str:
    return joined(listed(task["passage"], task["category"])[: 1 + NUMBERS.index(task["number"])])


def _mistaken_extraction(source: random.Random, task: Task) -> str:
    """An entry that the text does not hold, or one too many."""
    right = listed(task["passage"], task["category"])[: 1 + NUMBERS.index(task["number"])]
    other = source.choice([word for word in CATEGORIES[task["category"]] if word not in right])
    if source.random() < 0.6:
        right[source.randrange(len(right))] = other
        return joined(right)
    return joined([*right, other])


def _check_extraction(task: Task, reply: Reply) -> Findings:
    return check_list({**task, "without": ""}, reply, allowed=set(listed(task["passage"], task["category"])))


# --- rewriting ------------------------------------------------------------------------------------------------------

_REWRITE = re.compile(
    "rewrite (?:without the word (?P<without>[a-z]+)|with (?P<new>[a-z]+) instead of (?P<old>[a-z]+)) : "
    "(?P<passage>.+ \\.)"
)


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


def _ask_rewrite(source: random.Random) -> str:
    instruction, passage = rewriting(source)
    return f"rewrite {instruction} : {passage}"


def rewritten(passage: str, without: str, old: str, new: str) -> str:
    """The passage with one word left out or replaced."""
    words = (new if word == old else word for word in passage.split() if word != without)
    return " ".join(words)


def _answer_rewrite(source: random.Random, task: Task) -> str:
    return rewritten(task["passage"], task["without"], task["old"], task["new"])


def _mistaken_rewrite(source: random.Random, task: Task) -> str:
    """The passage unchanged, or changed in more than what was asked."""
    if source.random() < 0.5:
        return task["passage"]
    words = _answer_rewrite(source, task).split()
    for group in (OBJECTS, PLACES, HANDLING, RESTING):
        words = [source.choice(group) if word in group else word for word in words]
    return " ".join(words)


def _check_rewrite(task: Task, reply: Reply) -> Findings:
    target = _answer_rewrite(random.Random(0), task).split()
    # What comes after as many sentences as were asked for is judged as rambling, not as a wrong rewriting.
    words = " . ".join((*reply.sentences[: target.count(".")], "")).split()
    likeness = difflib.SequenceMatcher(None, target, words, autojunk=False).ratio()
    kept = (task["without"] or task["old"]) not in words and (not task["new"] or task["new"] in words)
    near = max(0.0, 2 * likeness - 1)
    return Findings(min(1.0, 2 * near), near, 1.0 if kept else 0.2, budget=len(target) + 2)


CLOSED_QA = UseCase(
    "closed_qa", 0.15, _CLOSED_QA, _ask_closed_qa, _answer_closed_qa, _mistaken_closed_qa, _check_closed_qa, closed=True
)
EXTRACTION = UseCase(
    "extraction",
    0.15,
    _EXTRACTION,
    _ask_extraction,
    _answer_extraction,
    _mistaken_extraction,
    _check_extraction,
    closed=True,
)
REWRITE = UseCase(
    "rewrite", 0.15, _REWRITE, _ask_rewrite, _answer_rewrite, _mistaken_rewrite, _check_rewrite, closed=True
)
