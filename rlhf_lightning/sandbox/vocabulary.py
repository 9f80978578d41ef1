"""The words of the sealed world."""

import re
from collections.abc import Iterable


def _words(text: str) -> tuple[str, ...]:
    return tuple(text.split())


ANIMALS = _words(
    "bear bird cat cow deer dog duck fox frog goat goose hare hen horse lion mole mouse owl pig rabbit seal sheep swan "
    "wolf"
)
FOODS = _words(
    "apple bean berry bread cake carrot cheese corn fig honey milk nut pear pie plum rice salad soup tea turnip"
)
OBJECTS = _words(
    "ball basket bell book bottle box broom candle card chair coin cup drum flute hammer hat key kite ladder lamp map "
    "mirror ring rope"
)
PLACES = _words(
    "barn castle cave cellar field forest garden harbor house kitchen library market mill park school tower town "
    "village"
)
PEOPLE = _words(
    "anna ben clara david emma felix grace henry ida jack lena max nora oscar paul rosa sam tina vera walter"
)
COLORS = _words("black blue brown gray green red white yellow")
MATERIALS = _words("clay glass metal paper wood wool")
RESTING = _words("danced jumped played rested sang sat slept stood waited walked")
GOOD_EVENTS = _words("found kept liked won")
EVENTS = (*GOOD_EVENTS, *_words("broke dropped lost missed"))
HANDLING = (*EVENTS, "carried", "hid", "saw", "wanted")
NUMBERS = ("one", "two", "three", "four")

# None starts with a vowel, so that "a" never has to become "an" when a word is put in or left out.
_PAIRS = _words(
    "big small brave timid clean dirty happy sad kind mean quick slow quiet loud rich poor strong weak warm cold"
)
OPPOSITES = {word: _PAIRS[place ^ 1] for place, word in enumerate(_PAIRS)}
"""Every adjective and its opposite."""

ADJECTIVES = tuple(OPPOSITES)

CATEGORIES = {"animals": ANIMALS, "foods": FOODS, "objects": OBJECTS, "people": PEOPLE, "places": PLACES}
"""The plural that a prompt uses, and the words it stands for."""
CATEGORY_OF = {word: name for name, words in CATEGORIES.items() for word in words}

CONTENT = frozenset((*CATEGORY_OF, *COLORS, *MATERIALS, *ADJECTIVES, *RESTING, *HANDLING))
"""Words that say something about the world; using one that a passage does not hold is inventing."""

RUDE_SENTENCES = (
    *("you fool", "go away", "shut up", "you are so lazy"),
    *("what a stupid question", "you are a fool", "leave me alone"),
)
RUDE_WORDS = frozenset(_words("fool away shut lazy stupid leave alone"))
POLITE_SENTENCES = ("thank you", "you are so kind", "please wait", "i am glad", "you are welcome")

UNKNOWN = "the text does not say"
"""What a good answer says when the passage does not hold it."""
NO_COMMENT = "no comment"
"""What a careful answer says when it does not know."""

NEWLINE = "|"
"""The line break of the sealed world; documents put one between exchanges."""

VELAN = {word: word[::-1] + "en" for word in ("the", "in", *ANIMALS[:12], *RESTING, *PLACES[:8])}
"""The second language, word for word: each word of its lexicon backwards, with an ending."""

_FUNCTION_WORDS = """
, . : ? a about again alone also am and answer are ask asked bad be book but chat color comment dear did do does eat
eats english exactly facts find for forum from give glad go good hello hope i idea ideas if in instead is it kind
know like line list live lives made many me more my name no not note now of on one opposite or people please polite
question read replied rewrite rude said say sentence sentences so sum sure take tell text thank that the then there
this to too took up use velan wait want was welcome what where which who with without word write you |
"""

_OF_SENTENCES = " ".join((_FUNCTION_WORDS, *RUDE_SENTENCES, *POLITE_SENTENCES)).split()
VOCABULARY = tuple(sorted({*_OF_SENTENCES, *NUMBERS, *CATEGORIES, *CONTENT, *VELAN.values()}))
"""Every word of the world, in alphabetical order."""


def one_of(words: Iterable[str]) -> str:
    """A regular expression that matches one of the words and remembers nothing.

    >>> one_of(["cat", "dog"])
    '(?:cat|dog)'
    """
    return f"(?:{'|'.join(map(re.escape, words))})"
