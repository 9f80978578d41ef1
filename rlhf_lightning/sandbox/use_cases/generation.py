"""Generation: sentences about someone, going on with a story, notes."""

import random
import re

from rlhf_lightning.sandbox.sentences import Reply, animal, predicate_of, story_sentence, subject_of, thing
from rlhf_lightning.sandbox.use_cases.task import NUMBER, Findings, Task, UseCase, number_in, share_found
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


class _Story(UseCase):
    """Sentences about someone."""

    name, share = "generation/story", 0.24
    pattern = re.compile(
        f"(?:write|tell me) {NUMBER} sentences? about (?P<hero>the {one_of(ANIMALS)}|{one_of(PEOPLE)}) "
        f"in the (?P<place>{one_of(PLACES)})"
        f"(?: (?P<relation>with|without) the word (?P<word>{one_of((*OBJECTS, *RESTING, *HANDLING))}))? \\."
    )

    def ask(self, source: random.Random) -> str:
        number = source.choice(NUMBERS[:3])
        hero = f"the {source.choice(ANIMALS)}" if source.random() < 0.7 else source.choice(PEOPLE)
        text = f"{source.choice(('write', 'tell me'))} {_sentences(number)} about {hero} in the {source.choice(PLACES)}"
        if source.random() < 0.5:
            relation = source.choice(("with", "with", "without"))
            text += f" {relation} the word {source.choice(OBJECTS if relation == 'with' else (*RESTING, *HANDLING))}"
        return text + " ."

    def answer(self, source: random.Random, task: Task) -> str:
        number = number_in(task)
        while True:
            sentences = _sentences_about(source, task, number)
            text = " ".join(sentences)
            kept = task["relation"] != "without" or task["word"] not in text.split()
            if kept and len(text.split()) <= 24 and len(set(sentences)) == number:
                return text

    def mistake(self, source: random.Random, task: Task) -> str:
        """Too few or too many sentences, or the word of the constraint left out or put in."""
        if task["relation"] == "without" and source.random() < 0.6:
            sentences = _sentences_about(source, task, 1)
            swap = {word: task["word"] for words in (RESTING, HANDLING) if task["word"] in words for word in words}
            return " ".join(swap.get(word, word) for word in sentences[0].split())
        number = source.choice([n for n in (1, 2, 3) if n != number_in(task)])
        return self.answer(source, {**task, "number": NUMBERS[number - 1], "relation": ""})

    def check(self, task: Task, reply: Reply) -> Findings:
        number, name = number_in(task), task["hero"].split()[-1]
        subjects = {text: subject_of(text) for text in reply.sentences}
        topical = any(name in subject for subject in subjects.values())
        follows = [text for text, subject in subjects.items() if name in subject or "it" in subject]
        constraint = share_found(len(reply.content), number)
        if task["relation"]:
            within = " ".join(follows).split() if task["relation"] == "with" else reply.words
            constraint *= 1.0 if (task["word"] in within) == (task["relation"] == "with") else 0.3
        placed = 1.0 if task["place"] in " ".join(follows).split() else 0.0
        completes = (placed + 2 * min(1.0, len(follows) / number)) / 3
        return Findings(1.0 if topical else 0.0, completes, constraint, budget=3 + 8 * number)


def _sentences(number: str) -> str:
    return f"{number} sentence{'s' * (number != 'one')}"


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


def story_start(source: random.Random) -> str:
    """A sentence that opens a story, one in four of them in the middle of a quarrel."""
    if source.random() < 0.25:
        first, second = source.sample(PEOPLE, 2)
        return f"{first} wanted {thing(source)} . {second} said"
    hero = animal(source) if source.random() < 0.7 else source.choice(PEOPLE)
    return story_sentence(source, hero, source.choice(PLACES))


class _GoOn(UseCase):
    """Going on with a story."""

    name, share = "generation/go_on", 0.116
    pattern = re.compile(f"go on with {NUMBER} sentences? : (?P<start>.+)")

    def ask(self, source: random.Random) -> str:
        return f"go on with {_sentences(source.choice(NUMBERS[:2]))} : {story_start(source)}"

    def answer(self, source: random.Random, task: Task) -> str:
        return self._continuation(source, task["start"], number_in(task))

    def mistake(self, source: random.Random, task: Task) -> str:
        """Too many sentences, or the start said again."""
        if source.random() < 0.5 and not task["start"].endswith("said"):
            return task["start"]
        return self._continuation(source, task["start"], 1 + number_in(task))

    def _continuation(self, source: random.Random, start: str, number: int) -> str:
        lines = [f"{source.choice(POLITE_SENTENCES)} ."] if start.endswith("said") else []
        first = start.split()[0]
        while len(lines) < number:
            line = story_sentence(source, "it" if first == "the" else first)
            if line not in lines and line != start:
                lines.append(line)
        return " ".join(lines)

    def check(self, task: Task, reply: Reply) -> Findings:
        number = number_in(task)
        start = task["start"].split()
        known = {"it", *(word for word in start if word in (*ANIMALS, *PEOPLE))}
        old = {predicate_of(text.strip()) for text in task["start"].split(".")}
        # Something new about someone in the start, in any words: what is there already is no continuation.
        follows = {predicate_of(text) for text in reply.content if known.intersection(subject_of(text))} - old
        if start[-1] == "said":
            follows |= set(POLITE_SENTENCES).intersection(reply.content)
        constraint = share_found(len(reply.content), number)
        return Findings(1.0 if follows else 0.0, min(1.0, len(follows) / number), constraint, budget=1 + 8 * number)


class _Note(UseCase):
    name, share = "generation/note", 0.1
    pattern = re.compile(f"write a note to (?P<person>{one_of(PEOPLE)}) about the (?P<thing>{one_of(OBJECTS)}) \\.")

    def ask(self, source: random.Random) -> str:
        return f"write a note to {source.choice(PEOPLE)} about the {source.choice(OBJECTS)} ."

    def answer(self, source: random.Random, task: Task) -> str:
        return f"dear {task['person']} , {self._event(source, task)}"

    def mistake(self, source: random.Random, task: Task) -> str:
        """No "dear", another person or another thing."""
        kind = source.randrange(3)
        if kind == 0:
            return self._event(source, task)
        person = source.choice(PEOPLE) if kind == 1 else task["person"]
        return f"dear {person} , i {source.choice(HANDLING)} the {source.choice(OBJECTS)} ."

    def _event(self, source: random.Random, task: Task) -> str:
        return f"i {source.choice(HANDLING)} the {task['thing']} in the {source.choice(PLACES)} ."

    def check(self, task: Task, reply: Reply) -> Findings:
        first = reply.first.split()
        opened, addressed = first[:1] == ["dear"], first[:3] == ["dear", task["person"], ","]
        clauses = [text.split(" , ", 1)[-1] if text.startswith("dear ") else text for text in reply.content]
        says = any(subject_of(text) and task["thing"] in text.split() for text in clauses)
        return Findings(1.0 if opened or says else 0.0, (says + addressed) / 2, float(opened), budget=14)


CASES = (_Story(), _GoOn(), _Note())
