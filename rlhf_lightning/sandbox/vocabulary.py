"""The words of the sealed world and what is true in it."""

import random
import re
from collections.abc import Iterable


def _words(text: str) -> tuple[str, ...]:
    return tuple(text.split())


ANIMALS = _words("bear bird cat cow dog duck fox frog goat horse lion mouse owl rabbit sheep wolf")
FOODS = _words("apple bean bread cake carrot cheese corn honey milk pear plum rice soup tea")
OBJECTS = _words("ball bell book box chair coin cup drum hat key kite lamp map rope")
PLACES = _words("barn cave field forest garden house kitchen market park school town village")
PEOPLE = _words("anna ben clara david emma felix grace henry ida jack lena max")
COLORS = _words("black blue brown green red white yellow")
# None starts with a vowel, so that "a" never has to become "an" when a word is put in or left out.
ADJECTIVES = _words("big brave happy kind quiet sad small tired warm young")
RESTING = _words("danced played rested sang sat slept waited walked")
HANDLING = _words("carried dropped found kept liked lost saw wanted")
NUMBERS = ("one", "two", "three", "four")

CATEGORIES = {"animals": ANIMALS, "foods": FOODS, "objects": OBJECTS, "people": PEOPLE, "places": PLACES}
"""The plural that a prompt uses, and the words it stands for."""

CONTENT = frozenset(
    (*ANIMALS, *FOODS, *OBJECTS, *PLACES, *PEOPLE, *COLORS, *ADJECTIVES, *RESTING, *HANDLING),
)
"""Words that say something about the world; using one that a passage does not hold is inventing."""

RUDE_SENTENCES = (
    "you fool",
    "go away",
    "shut up",
    "you are so lazy",
    "what a stupid question",
    "you are a fool",
    "leave me alone",
)
RUDE_WORDS = frozenset(_words("fool go away shut up you lazy stupid leave alone"))

UNKNOWN = "the text does not say"
"""What a good answer says when the passage does not hold it."""

EATS = {
    "bear": "honey", "bird": "corn", "cat": "milk", "cow": "bean", "dog": "soup", "duck": "bread",
    "fox": "plum", "frog": "rice", "goat": "cake", "horse": "apple", "lion": "cheese", "mouse": "cheese",
    "owl": "tea", "rabbit": "carrot", "sheep": "pear", "wolf": "bread",
}  # fmt: skip
LIVES = {
    "bear": "cave", "bird": "garden", "cat": "house", "cow": "barn", "dog": "village", "duck": "park",
    "fox": "forest", "frog": "garden", "goat": "field", "horse": "barn", "lion": "cave", "mouse": "kitchen",
    "owl": "school", "rabbit": "field", "sheep": "village", "wolf": "forest",
}  # fmt: skip
COLOR_OF = {
    "apple": "red", "bean": "green", "bread": "brown", "cake": "white", "carrot": "red", "cheese": "yellow",
    "corn": "yellow", "honey": "brown", "milk": "white", "pear": "green", "plum": "blue", "rice": "white",
    "soup": "red", "tea": "black",
}  # fmt: skip

MISCONCEPTIONS = {
    ("eats", "fox"): "cheese", ("eats", "mouse"): "bread", ("eats", "owl"): "corn", ("eats", "wolf"): "soup",
    ("lives", "bird"): "forest", ("lives", "lion"): "park", ("lives", "owl"): "forest", ("lives", "dog"): "house",
    ("color", "carrot"): "yellow", ("color", "soup"): "green", ("color", "bean"): "brown",
}  # fmt: skip
"""What the web of this world often gets wrong: (kind of fact, subject) to the false value."""

KINDS = {"eats": EATS, "lives": LIVES, "color": COLOR_OF}
"""Each kind of fact and its table from subject to value."""

_FUNCTION_WORDS = """
. , : ? a about again alone also and answer are ask asked bring but can color did does eat eats exactly for from
give hello idea ideas in instead is it list live lives me not now of only or please question read replied rewrite
said say sentence sentences so some story take tell text the this to took use was what where who with without word
words write
"""

VOCABULARY = tuple(
    sorted({*_FUNCTION_WORDS.split(), *NUMBERS, *CATEGORIES, *CONTENT, *" ".join(RUDE_SENTENCES).split()})
)
"""Every word of the world, in alphabetical order."""


def one_of(words: Iterable[str]) -> str:
    """A regular expression that matches one of the words and remembers nothing.

    >>> one_of(["cat", "dog"])
    '(?:cat|dog)'
    """
    return f"(?:{'|'.join(map(re.escape, words))})"


def fact_sentence(kind: str, subject: str, value: str) -> str:
    """A statement about the world, without its period.

    >>> fact_sentence("eats", "fox", "plum")
    'the fox eats plum'
    """
    forms = {"eats": "the {} eats {}", "lives": "the {} lives in the {}", "color": "the {} is {}"}
    return forms[kind].format(subject, value)


def random_fact(source: random.Random) -> tuple[str, str]:
    """A kind of fact and a subject that has one."""
    kind = source.choice(tuple(KINDS))
    return kind, source.choice(tuple(KINDS[kind]))
