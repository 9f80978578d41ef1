"""Lists: brainstorming from what one knows, extraction from a text."""

import random
import re

from rlhf_lightning.sandbox.sentences import Reply, joined
from rlhf_lightning.sandbox.use_cases.task import NUMBER, Findings, Task, UseCase, number_in, share_found
from rlhf_lightning.sandbox.vocabulary import ANIMALS, CATEGORIES, HANDLING, NUMBERS, OBJECTS, PEOPLE, PLACES, one_of


def _check_list(task: Task, reply: Reply, allowed: set[str]) -> Findings:
    """How many of its entries are allowed ones, each counted once, and whether the number is right."""
    number = number_in(task)
    items = reply.items()
    good = allowed.intersection(items)
    constraint = share_found(len(items), number)
    if task.get("without") and task["without"] in reply.words:
        constraint *= 0.3
    attempts = len(good) / len(items) if items else 0.0
    return Findings(attempts, min(1.0, len(good) / number), constraint, budget=2 * number + 1)


class _Brainstorming(UseCase):
    name, share = "brainstorming", 0.112
    pattern = re.compile(
        f"give {NUMBER} ideas for (?P<category>{one_of(CATEGORIES)}) "
        f"(?:for {one_of(PEOPLE)}|in the {one_of(PLACES)})(?: but not (?P<without>[a-z]+))? \\."
    )

    def ask(self, source: random.Random) -> str:
        category = source.choice(tuple(CATEGORIES))
        frame = f"for {source.choice(PEOPLE)}" if source.random() < 0.5 else f"in the {source.choice(PLACES)}"
        without = f" but not {source.choice(CATEGORIES[category])}" if source.random() < 0.4 else ""
        return f"give {source.choice(NUMBERS[1:])} ideas for {category} {frame}{without} ."

    def answer(self, source: random.Random, task: Task) -> str:
        allowed = [word for word in CATEGORIES[task["category"]] if word != task["without"]]
        return joined(source.sample(allowed, number_in(task)))

    def mistake(self, source: random.Random, task: Task) -> str:
        """Too few, too many, the word that was excluded, or something of another kind."""
        category, number = task["category"], number_in(task)
        if task["without"] and source.random() < 0.5:
            words = source.sample([word for word in CATEGORIES[category] if word != task["without"]], number)
            words[source.randrange(number)] = task["without"]
            return joined(words)
        if source.random() < 0.3:
            category = source.choice([other for other in CATEGORIES if other != category])
        else:
            number = source.choice([n for n in (1, 2, 3, 4, 5) if n != number])
        return joined(source.sample(CATEGORIES[category], number))

    def check(self, task: Task, reply: Reply) -> Findings:
        return _check_list(task, reply, allowed=set(CATEGORIES[task["category"]]) - {task["without"]})


class _Extraction(UseCase):
    name, share, closed = "extraction", 0.019, True
    pattern = re.compile(
        f"list exactly {NUMBER} (?P<category>{one_of(CATEGORIES)}) from the text : (?P<passage>.+ \\.)"
    )

    def ask(self, source: random.Random) -> str:
        passage = extraction_passage(source)
        category = source.choice([name for name in CATEGORIES if len(listed(passage, name)) > 1])
        number = source.randint(2, min(3, len(listed(passage, category))))
        return f"list exactly {NUMBERS[number - 1]} {category} from the text : {passage}"

    def answer(self, source: random.Random, task: Task) -> str:
        return joined(listed(task["passage"], task["category"])[: number_in(task)])

    def mistake(self, source: random.Random, task: Task) -> str:
        """An entry that the text does not hold, or one too many."""
        words = listed(task["passage"], task["category"])[: number_in(task)]
        other = source.choice([word for word in CATEGORIES[task["category"]] if word not in task["passage"].split()])
        if source.random() < 0.6:
            words[source.randrange(len(words))] = other
            return joined(words)
        return joined([*words, other])

    def check(self, task: Task, reply: Reply) -> Findings:
        return _check_list(task, reply, allowed=set(listed(task["passage"], task["category"])))


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


BRAINSTORMING, EXTRACTION = _Brainstorming(), _Extraction()
