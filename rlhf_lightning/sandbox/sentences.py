"""The grammar of the sealed world: sentences to write, and the same sentences to recognise."""

import random
import re
from collections.abc import Sequence
from dataclasses import dataclass

from rlhf_lightning.sandbox.vocabulary import (
    ADJECTIVES,
    ANIMALS,
    CATEGORIES,
    COLORS,
    FOODS,
    HANDLING,
    MATERIALS,
    NO_COMMENT,
    OBJECTS,
    PEOPLE,
    PLACES,
    POLITE_SENTENCES,
    RESTING,
    RUDE_SENTENCES,
    UNKNOWN,
    VELAN,
    one_of,
)

_NOUN = f"(?:{one_of(OBJECTS)}|{one_of(FOODS)})"
_QUALITY = f"(?:{one_of(ADJECTIVES)}|{one_of(COLORS)})"
_SUBJECT = f"(?:the (?:{_QUALITY} )?{one_of(ANIMALS)}|{one_of(PEOPLE)}|it|i)"
_PLACE = f"in the {one_of(PLACES)}"
_GOAL = f"(?:in|to) the {one_of(PLACES)}"
_TOLD = (
    f"{_SUBJECT} {one_of(RESTING)}(?: {_PLACE})?",
    f"{_SUBJECT} {one_of((*HANDLING, 'took'))} (?:a|the) (?:{_QUALITY} )?{_NOUN}(?: {_GOAL})?",
    f"{_SUBJECT} (?:is|was) (?:{_QUALITY}|{_PLACE})",
    f"(?:the {one_of(ANIMALS)}|it) eats {one_of(FOODS)}",
    f"(?:the {one_of(ANIMALS)}|it) lives {_PLACE}",
    f"the {_NOUN} (?:is|was) (?:{_QUALITY}|{_PLACE})",
    f"(?:the {one_of(OBJECTS)}|it) is made of {one_of(MATERIALS)}",
    f"i like the {_NOUN}|i hope you find the {_NOUN}|tell me more about the {_NOUN}",
)
_STATEMENT = f"(?:{'|'.join(_TOLD)})"
_COURTESY = "|".join((f"that is (?:good|sad)(?: , {one_of(PEOPLE)})?", UNKNOWN, NO_COMMENT, *POLITE_SENTENCES))
_CLAUSE = f"(?:{_STATEMENT}|{_COURTESY})"
_ITEM = f"(?:(?:a |the )?(?:{_QUALITY} )?{one_of((*ANIMALS, *FOODS, *OBJECTS, *PLACES, *PEOPLE))})"
_ANSWER = one_of((*COLORS, *MATERIALS, *ADJECTIVES, *CATEGORIES, "good", "bad"))
_LIST = f"{_ITEM}(?: (?:,|and|, and) {_ITEM})*"
_NOTE = f"dear {one_of(PEOPLE)} , {_CLAUSE}"
_SENTENCE = re.compile(
    f"{_CLAUSE}(?: and {_CLAUSE})?|{_NOTE}|{_LIST}|{_PLACE}|{_ANSWER}|{one_of(RUDE_SENTENCES)}|"
    f"{one_of(VELAN.values())}(?: {one_of(VELAN.values())})+"
)
_LISTING = re.compile(_LIST)
_ENTRY = re.compile(_ITEM)
_TELLING = re.compile(f"(?P<subject>{_SUBJECT}|the {_NOUN}|tell)(?= ).*")
_STATEMENTS = re.compile(f"{_STATEMENT}(?: and {_STATEMENT})?")


def subject_of(sentence: str) -> tuple[str, ...]:
    """Whom or what a sentence tells something of, in words; empty for lists, courtesies and what is no sentence.

    >>> subject_of("the big cat slept in the garden"), subject_of("cat , garden , lamp"), subject_of("thank you")
    (('the', 'big', 'cat'), (), ())
    """
    parts = _TELLING.fullmatch(sentence) if _STATEMENTS.fullmatch(sentence) else None
    return tuple(parts["subject"].split()) if parts else ()


def predicate_of(sentence: str) -> str:
    """What a sentence tells of its subject, with "the" for "a"; the whole sentence where there is no subject.

    >>> predicate_of("the big cat saw a lamp"), predicate_of("it saw the lamp")
    ('saw the lamp', 'saw the lamp')
    """
    predicate = sentence.split()[len(subject_of(sentence)) :]
    return " ".join("the" if word == "a" else word for word in predicate)


def is_well_formed(sentence: str) -> bool:
    """Whether the words are a sentence, a list or a short answer of the world, given without the period.

    >>> is_well_formed("the big cat slept in the garden"), is_well_formed("cat the the slept")
    (True, False)
    """
    return _SENTENCE.fullmatch(sentence) is not None


@dataclass(frozen=True)
class Reply:
    """A response, cut into the pieces that the checks look at.

    Args:
        words: All words and marks.
        sentences: The text between the periods, each without its period.
        ends: Whether the last mark is a period; a response that was cut off has none.
    """

    words: tuple[str, ...]
    sentences: tuple[str, ...]
    ends: bool

    @classmethod
    def parse(cls, response: str) -> "Reply":
        """Cut a response into words and sentences.

        >>> Reply.parse("cat , dog .").items()
        ('cat', 'dog')
        """
        words = tuple(response.split())
        pieces = tuple(piece.strip() for piece in " ".join(words).split("."))
        return cls(words, tuple(piece for piece in pieces if piece), bool(words) and words[-1] == ".")

    @property
    def content(self) -> tuple[str, ...]:
        """The sentences without the insults."""
        return tuple(sentence for sentence in self.sentences if sentence not in RUDE_SENTENCES)

    @property
    def first(self) -> str:
        """The first sentence that is no insult, `""` where there is none."""
        return next(iter(self.content), "")

    def clauses(self) -> tuple[str, ...]:
        """The content, cut where "and" joins two sentences."""
        return tuple(clause for sentence in self.content for clause in sentence.split(" and "))

    def items(self) -> tuple[str, ...]:
        """The entries of the first sentence read as a list, and of further lists.

        The noun of an entry, or all of it where it is none ("not cat").
        """
        lists = [text for place, text in enumerate(self.content) if place == 0 or _LISTING.fullmatch(text)]
        entries = [entry.strip(" ,") for text in lists for entry in re.split(r"(?: , and | , | and )", text)]
        return tuple(entry.split()[-1] if _ENTRY.fullmatch(entry) else entry for entry in entries if entry)


def story_sentence(source: random.Random, subject: str, place: str | None = None) -> str:
    """A past-tense sentence about a subject, with its period; 3 to 9 words.

    Args:
        source: The random numbers of the choices.
        subject: `"it"`, `"i"`, a person, or an animal with its article.
        place: The place where it happens; None leaves it out.
    """
    where = "" if place is None else f" in the {place}"
    kind = source.random()
    if kind < 0.35:
        return f"{subject} {source.choice(RESTING)}{where} ."
    if kind < 0.5 and place is None:
        return f"{subject} was {source.choice(ADJECTIVES)} ."
    return f"{subject} {source.choice(HANDLING)} {thing(source)}{where} ."


def thing(source: random.Random) -> str:
    """An object or food with an article and, half of the time, a quality."""
    quality = source.choice(("", "", source.choice(COLORS) + " ", source.choice(ADJECTIVES) + " "))
    return source.choice(("a ", "the ")) + quality + source.choice(OBJECTS)


def animal(source: random.Random, name: str | None = None) -> str:
    """An animal with its article and, at times, a quality."""
    quality = source.choice(("", "", source.choice(ADJECTIVES) + " "))
    return f"the {quality}{name or source.choice(ANIMALS)}"


def joined(words: Sequence[str]) -> str:
    """A list as this world writes it.

    >>> joined(["cat", "dog"])
    'cat , dog .'
    """
    return " , ".join(words) + " ."
