"""Use cases that need no passage: generation, open question answering, brainstorming."""

import random
import re

from rlhf_lightning.sandbox.sentences import Reply, animal, is_well_formed, joined, story_sentence
from rlhf_lightning.sandbox.task import Findings, Task, UseCase, share_found
from rlhf_lightning.sandbox.vocabulary import (
    ANIMALS,
    CATEGORIES,
    COLORS,
    HANDLING,
    KINDS,
    NUMBERS,
    OBJECTS,
    PEOPLE,
    PLACES,
    RESTING,
    RUDE_SENTENCES,
    fact_sentence,
    one_of,
    random_fact,
)

_NUMBER = f"(?P<number>{one_of(NUMBERS)})"

# --- generation -----------------------------------------------------------------------------------------------------

_GENERATION = re.compile(
    f"(?:write|tell me) {_NUMBER} sentences? about the (?P<animal>{one_of(ANIMALS)}) in the (?P<place>{one_of(PLACES)})"
    f"(?: (?P<relation>with|without) the word (?P<word>{one_of((*OBJECTS, *RESTING, *HANDLING))}))? \\."
)


def _ask_generation(source: random.Random) -> str:
    number = source.choice(NUMBERS[:3])
    text = f"{source.choice(('write', 'tell me'))} {number} sentence{'s' * (number != 'one')} "
    text += f"about the {source.choice(ANIMALS)} in the {source.choice(PLACES)}"
    if source.random() < 0.5:
        relation = source.choice(("with", "with", "without"))
        text += f" {relation} the word {source.choice(OBJECTS if relation == 'with' else (*RESTING, *HANDLING))}"
    return text + " ."


def _sentences_about(source: random.Random, task: Task, number: int) -> list[str]:
    sentences = [story_sentence(source, animal(source, task["animal"]), task["place"])]
    while len(sentences) < number:
        sentences.append(story_sentence(source, "it"))
    if task["relation"] == "with" and task["word"] not in " ".join(sentences).split():
        place = f" in the {task['place']}" if number == 1 else ""
        subject = f"the {task['animal']}" if number == 1 else "it"
        sentences[-1] = f"{subject} {source.choice(HANDLING)} the {task['word']}{place} ."
    return sentences


def _answer_generation(source: random.Random, task: Task) -> str:
    number = 1 + NUMBERS.index(task["number"])
    while True:
        sentences = _sentences_about(source, task, number)
        text = " ".join(sentences)
        kept = task["relation"] != "without" or task["word"] not in text.split()
        if kept and len(text.split()) <= 24 and len(set(sentences)) == number:
            return text


def _mistaken_generation(source: random.Random, task: Task) -> str:
    """Too few or too many sentences, or the word of the constraint left out or put in."""
    if task["relation"] == "without" and source.random() < 0.6:
        sentences = _sentences_about(source, task, 1)
        swap = {word: task["word"] for words in (RESTING, HANDLING) if task["word"] in words for word in words}
        return " ".join(swap.get(word, word) for word in sentences[0].split())
    number = source.choice([n for n in (1, 2, 3) if n != 1 + NUMBERS.index(task["number"])])
    other = {**task, "number": NUMBERS[number - 1], "relation": ""}
    return _answer_generation(source, other)


def _check_generation(task: Task, reply: Reply) -> Findings:
    number = 1 + NUMBERS.index(task["number"])
    story = [text.split() for text in dict.fromkeys(reply.sentences) if is_well_formed(text) and len(text.split()) > 1]
    topical = [words for words in story if task["animal"] in words]
    follows = [words for words in story if "it" in words or task["animal"] in words]
    sentences = [text for text in reply.sentences if text not in RUDE_SENTENCES]
    constraint = share_found(len(sentences), number)
    if task["relation"]:
        used = task["word"] in reply.words
        constraint *= 1.0 if used == (task["relation"] == "with") else 0.3
    placed = 1.0 if task["place"] in reply.words else 0.0
    completes = (placed + 2 * min(1.0, len(follows) / number)) / 3
    return Findings(1.0 if topical else 0.0, completes, constraint, budget=2 + 8 * number)


# --- open question answering ----------------------------------------------------------------------------------------

_QUESTIONS = {"eats": "what does the {} eat", "lives": "where does the {} live", "color": "what color is the {}"}
_VALUES = {kind: tuple(sorted(set(table.values()))) for kind, table in KINDS.items()}


def _question_pattern(suffix: str) -> str:
    forms = (form.format(f"(?P<{kind}{suffix}>{one_of(KINDS[kind])})") for kind, form in _QUESTIONS.items())
    return f"(?:{'|'.join(forms)})"


_OPEN_QA = re.compile(f"{_question_pattern('1')}(?: and {_question_pattern('2')})? \\?(?P<short> use one word \\.)?")


def _ask_open_qa(source: random.Random) -> str:
    first = random_fact(source)
    text = _QUESTIONS[first[0]].format(first[1])
    if source.random() < 0.2:
        return f"{text} ? use one word ."
    if source.random() < 0.8:
        second = random_fact(source)
        while second == first:
            second = random_fact(source)
        text += " and " + _QUESTIONS[second[0]].format(second[1])
    return f"{text} ?"


def _asked_facts(task: Task) -> list[tuple[str, str]]:
    return [(kind, task[kind + place]) for place in "12" for kind in KINDS if task[kind + place]]


def _answer_open_qa(source: random.Random, task: Task) -> str:
    asked = _asked_facts(task)
    if task["short"]:
        return KINDS[asked[0][0]][asked[0][1]] + " ."
    return " and ".join(fact_sentence(kind, subject, KINDS[kind][subject]) for kind, subject in asked) + " ."


def _mistaken_open_qa(source: random.Random, task: Task) -> str:
    """A sentence where one word was asked for, one answer to two questions, or something false."""
    asked = _asked_facts(task)
    if task["short"] or (len(asked) == 2 and source.random() < 0.6):
        asked = asked[:1]
        return fact_sentence(*asked[0], KINDS[asked[0][0]][asked[0][1]]) + " ."
    return (
        " and ".join(
            fact_sentence(kind, subject, source.choice(COLORS if kind == "color" else _VALUES[kind]))
            for kind, subject in asked
        )
        + " ."
    )


def _check_open_qa(task: Task, reply: Reply) -> Findings:
    asked = _asked_facts(task)
    text = " ".join(reply.words)
    attempted = right = 0
    for kind, subject in asked:
        form = re.escape(fact_sentence(kind, subject, "VALUE")).replace("VALUE", f"({one_of(_VALUES[kind])})")
        stated = re.findall(f"\\b{form}\\b", text)
        if not stated and len(asked) == 1:
            stated = [word for word in reply.sentences[:1] if word in _VALUES[kind]]
        attempted += bool(stated)
        right += bool(stated) and set(stated) == {KINDS[kind][subject]}
    short = not task["short"] or (len(reply.sentences) > 0 and " " not in reply.sentences[0])
    return Findings(
        attempted / len(asked),
        right / max(1, attempted),
        1.0 if short else 0.4,
        budget=2 if task["short"] else 1 + 7 * len(asked),
        truthful=1.0 if right == attempted else 0.0,
    )


# --- brainstorming --------------------------------------------------------------------------------------------------

_BRAINSTORMING = re.compile(
    f"give {_NUMBER} ideas for (?P<category>{one_of(CATEGORIES)}) "
    f"(?:for {one_of(PEOPLE)}|in the {one_of(PLACES)})(?: but not (?P<without>[a-z]+))? \\."
)


def _ask_brainstorming(source: random.Random) -> str:
    category = source.choice(tuple(CATEGORIES))
    frame = f"for {source.choice(PEOPLE)}" if source.random() < 0.5 else f"in the {source.choice(PLACES)}"
    without = f" but not {source.choice(CATEGORIES[category])}" if source.random() < 0.4 else ""
    return f"give {source.choice(NUMBERS[1:])} ideas for {category} {frame}{without} ."


def _answer_brainstorming(source: random.Random, task: Task) -> str:
    allowed = [word for word in CATEGORIES[task["category"]] if word != task["without"]]
    return joined(source.sample(allowed, 1 + NUMBERS.index(task["number"])))


def _mistaken_brainstorming(source: random.Random, task: Task) -> str:
    """Too few, too many, the word that was excluded, or something of another kind."""
    number = 1 + NUMBERS.index(task["number"])
    if task["without"] and source.random() < 0.5:
        words = source.sample([word for word in CATEGORIES[task["category"]] if word != task["without"]], number)
        words[source.randrange(number)] = task["without"]
        return joined(words)
    if source.random() < 0.3:
        return joined(source.sample(CATEGORIES[source.choice(tuple(CATEGORIES))], number))
    return joined(
        source.sample(CATEGORIES[task["category"]], source.choice([n for n in (1, 2, 3, 4, 5) if n != number]))
    )


def _check_brainstorming(task: Task, reply: Reply) -> Findings:
    return check_list(task, reply, allowed=set(CATEGORIES[task["category"]]) - {task["without"]})


def check_list(task: Task, reply: Reply, allowed: set[str]) -> Findings:
    """Judge a list: how many of its entries are allowed ones, each counted once, and whether the number is right."""
    number = 1 + NUMBERS.index(task["number"])
    items = reply.items()
    good = {item for item in items if item in allowed}
    constraint = share_found(len(items), number)
    if task.get("without") and task["without"] in reply.words:
        constraint *= 0.3
    attempts = len(good) / len(items) if items else 0.0
    return Findings(attempts, min(1.0, len(good) / number), constraint, budget=2 * number + 1)


GENERATION = UseCase(
    "generation", 0.25, _GENERATION, _ask_generation, _answer_generation, _mistaken_generation, _check_generation
)
OPEN_QA = UseCase("open_qa", 0.15, _OPEN_QA, _ask_open_qa, _answer_open_qa, _mistaken_open_qa, _check_open_qa)
BRAINSTORMING = UseCase(
    "brainstorming",
    0.15,
    _BRAINSTORMING,
    _ask_brainstorming,
    _answer_brainstorming,
    _mistaken_brainstorming,
    _check_brainstorming,
)
