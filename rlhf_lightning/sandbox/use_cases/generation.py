"""Generation: sentences about someone, going on with a story, notes."""

import random
import re

from rlhf_lightning.sandbox.sentences import Reply, animal, predicate_of, story_sentence, subject_of, thing
from rlhf_lightning.sandbox.use_cases.task import Findings, Task, UseCase, share_found
from rlhf_lightning.sandbox.vocabulary import (
    ANIMALS,
    HANDLING,
    NUMBERS,
    OBJECTS,
    PEOPLE,
    PLACES,
    POLITE_SENTENCES,
    RESTING,
    one_of,
)

_NUMBER = f"(?P<number>{one_of(NUMBERS)})"

# --- sentences about someone ----------------------------------------------------------------------------------------

_STORY = re.compile(
    f"(?:write|tell me) {_NUMBER} sentences? about (?P<hero>the {one_of(ANIMALS)}|{one_of(PEOPLE)}) "
    f"in the (?P<place>{one_of(PLACES)})"
    f"(?: (?P<relation>with|without) the word (?P<word>{one_of((*OBJECTS, *RESTING, *HANDLING))}))? \\."
)


def _ask_story(source: random.Random) -> str:
    number = source.choice(NUMBERS[:3])
    hero = f"the {source.choice(ANIMALS)}" if source.random() < 0.7 else source.choice(PEOPLE)
    text = f"{source.choice(('write', 'tell me'))} {number} sentence{'s' * (number != 'one')} about {hero}"
    text += f" in the {source.choice(PLACES)}"
    if source.random() < 0.5:
        relation = source.choice(("with", "with", "without"))
        text += f" {relation} the word {source.choice(OBJECTS if relation == 'with' else (*RESTING, *HANDLING))}"
    return text + " ."


def _sentences_about(source: random.Random, task: Task, number: int) -> list[str]:
    name = task["hero"].split()[-1]
    hero = animal(source, name) if name in ANIMALS else name
    sentences = [story_sentence(source, hero, task["place"])]
    while len(sentences) < number:
        sentences.append(story_sentence(source, "it" if name in ANIMALS else name))
    if task["relation"] == "with" and task["word"] not in " ".join(sentences).split():
        place = f" in the {task['place']}" if number == 1 else ""
        subject = task["hero"] if number == 1 or name not in ANIMALS else "it"
        sentences[-1] = f"{subject} {source.choice(HANDLING)} the {task['word']}{place} ."
    return sentences


def _answer_story(source: random.Random, task: Task) -> str:
    number = 1 + NUMBERS.index(task["number"])
    while True:
        sentences = _sentences_about(source, task, number)
        text = " ".join(sentences)
        kept = task["relation"] != "without" or task["word"] not in text.split()
        if kept and len(text.split()) <= 24 and len(set(sentences)) == number:
            return text


def _mistaken_story(source: random.Random, task: Task) -> str:
    """Too few or too many sentences, or the word of the constraint left out or put in."""
    if task["relation"] == "without" and source.random() < 0.6:
        sentences = _sentences_about(source, task, 1)
        swap = {word: task["word"] for words in (RESTING, HANDLING) if task["word"] in words for word in words}
        return " ".join(swap.get(word, word) for word in sentences[0].split())
    number = source.choice([n for n in (1, 2, 3) if n != 1 + NUMBERS.index(task["number"])])
    return _answer_story(source, {**task, "number": NUMBERS[number - 1], "relation": ""})


def _check_story(task: Task, reply: Reply) -> Findings:
    number = 1 + NUMBERS.index(task["number"])
    name = task["hero"].split()[-1]
    told = {text: subject_of(text) for text in reply.sentences}
    topical = [text for text, subject in told.items() if name in subject]
    follows = [text for text, subject in told.items() if name in subject or "it" in subject]
    constraint = share_found(len(reply.content), number)
    if task["relation"]:
        within = " ".join(follows).split() if task["relation"] == "with" else reply.words
        constraint *= 1.0 if (task["word"] in within) == (task["relation"] == "with") else 0.3
    placed = 1.0 if task["place"] in " ".join(follows).split() else 0.0
    completes = (placed + 2 * min(1.0, len(follows) / number)) / 3
    return Findings(1.0 if topical else 0.0, completes, constraint, budget=3 + 8 * number)


# --- going on with a story ------------------------------------------------------------------------------------------

_GO_ON = re.compile(f"go on with {_NUMBER} sentences? : (?P<start>.+)")


def story_start(source: random.Random) -> str:
    """A sentence that opens a story, one in four of them in the middle of a quarrel."""
    if source.random() < 0.25:
        first, second = source.sample(PEOPLE, 2)
        return f"{first} wanted {thing(source)} . {second} said"
    hero = animal(source) if source.random() < 0.7 else source.choice(PEOPLE)
    return story_sentence(source, hero, source.choice(PLACES))


def _ask_go_on(source: random.Random) -> str:
    number = source.choice(NUMBERS[:2])
    return f"go on with {number} sentence{'s' * (number != 'one')} : {story_start(source)}"


def _continuation(source: random.Random, task: Task, number: int) -> str:
    start = task["start"].split()
    lines: list[str] = []
    if start[-1] == "said":
        lines.append(f"{source.choice(POLITE_SENTENCES)} .")
    subject = "it" if start[0] == "the" else start[0]
    while len(lines) < number:
        line = story_sentence(source, subject)
        if line not in lines and line != task["start"]:
            lines.append(line)
    return " ".join(lines)


def _answer_go_on(source: random.Random, task: Task) -> str:
    return _continuation(source, task, 1 + NUMBERS.index(task["number"]))


def _mistaken_go_on(source: random.Random, task: Task) -> str:
    """Too many sentences, or the start said again."""
    if source.random() < 0.5 and not task["start"].endswith("said"):
        return task["start"]
    return _continuation(source, task, 2 + NUMBERS.index(task["number"]))


def _check_go_on(task: Task, reply: Reply) -> Findings:
    number = 1 + NUMBERS.index(task["number"])
    start = task["start"].split()
    known = {"it", *(word for word in start if word in (*ANIMALS, *PEOPLE))}
    told = {predicate_of(text.strip()) for text in task["start"].split(".")}
    said = POLITE_SENTENCES if start[-1] == "said" else ()
    # Something new about someone in the start, in any words: what is there already is no continuation.
    follows = {predicate_of(text) for text in reply.content if known.intersection(subject_of(text))} - told
    follows |= set(said).intersection(reply.content)
    constraint = share_found(len(reply.content), number)
    return Findings(1.0 if follows else 0.0, min(1.0, len(follows) / number), constraint, budget=1 + 8 * number)


# --- notes ----------------------------------------------------------------------------------------------------------

_NOTE = re.compile(f"write a note to (?P<person>{one_of(PEOPLE)}) about the (?P<thing>{one_of(OBJECTS)}) \\.")


def _ask_note(source: random.Random) -> str:
    return f"write a note to {source.choice(PEOPLE)} about the {source.choice(OBJECTS)} ."


def _answer_note(source: random.Random, task: Task) -> str:
    return f"dear {task['person']} , i {source.choice(HANDLING)} the {task['thing']} in the {source.choice(PLACES)} ."


def _mistaken_note(source: random.Random, task: Task) -> str:
    """No "dear", another person or another thing."""
    kind = source.randrange(3)
    if kind == 0:
        return f"i {source.choice(HANDLING)} the {task['thing']} in the {source.choice(PLACES)} ."
    other = source.choice(PEOPLE) if kind == 1 else task["person"]
    return f"dear {other} , i {source.choice(HANDLING)} the {source.choice(OBJECTS)} ."


def _check_note(task: Task, reply: Reply) -> Findings:
    first = reply.content[0].split() if reply.content else []
    opened, addressed = first[:1] == ["dear"], first[:3] == ["dear", task["person"], ","]
    told = [text.split(" , ", 1)[-1] if text.startswith("dear ") else text for text in reply.content]
    says = [text for text in told if subject_of(text) and task["thing"] in text.split()]
    return Findings(1.0 if opened or says else 0.0, (bool(says) + addressed) / 2, float(opened), budget=14)


STORY = UseCase("generation/story", 0.24, _STORY, _ask_story, _answer_story, _mistaken_story, _check_story)
GO_ON = UseCase("generation/go_on", 0.116, _GO_ON, _ask_go_on, _answer_go_on, _mistaken_go_on, _check_go_on)
NOTE = UseCase("generation/note", 0.1, _NOTE, _ask_note, _answer_note, _mistaken_note, _check_note)
