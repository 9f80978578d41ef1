"""Prompts with planted faults. Every row is a function of its number, so that it is known what was planted."""

import random
from collections.abc import Callable, Iterator

from rlhf_lightning.data.records import Prompt

PREFIX = 128
"""Characters that a prompt which begins like another one shares with it."""

ENGLISH = {
    "open": "Please write|Tell me|Explain in simple words|Could you describe|Help me to plan|Give me ideas for|"
    "I would like to read|Summarise for my class|Compare for a beginner|Draft a polite letter about",
    "adjective": "small|quiet|famous|modern|broken|hidden|friendly|ancient|costly|green|curious|heavy|northern|daily|"
    "honest|narrow|golden|gentle|foreign|wooden|early|strange|public|private|useful|bitter|hollow|distant",
    "noun": "garden|teacher|river|machine|letter|kitchen|market|engine|mountain|doctor|library|festival|bridge|recipe|"
    "journey|painting|village|contract|sister|computer|window|harbour|lesson|forest|budget|holiday|theatre|airport|"
    "farmer|museum|station|novel|captain|student|project|weather|railway|orchard|banker|poem",
    "verb": "helps|follows|repairs|visits|describes|forgets|protects|changes|discovers|sells|remembers|paints|opens|"
    "studies|carries|answers|builds|watches|borrows|improves",
    "place": "near the old harbour|during the winter|after a long meeting|without any help|in front of the school|for "
    "the first time|because of the heavy rain|at the end of the week|with a group of friends|before the sun goes down",
}
GERMAN = {
    "open": "Bitte schreibe|Erkläre mir|Beschreibe kurz|Hilf mir bei|Erzähle eine Geschichte über",
    "adjective": "kleinen|alten|grünen|schönen|fremden|stillen|großen|neuen|schweren|frühen",
    "noun": "Garten|Lehrer|Brief|Berg|Arzt|Markt|Zug|Wald|Urlaub|Bahnhof|Schüler|Bauern|Hafen|Kuchen",
    "verb": "hilft|besucht|vergisst|repariert|beschützt|entdeckt|verkauft|malt|öffnet|beobachtet",
    "place": "in der Nähe des Hafens|während des Winters|ohne jede Hilfe|vor der Schule|am Ende der Woche",
}
SPANISH = {
    "open": "Por favor escribe|Explícame|Describe brevemente|Ayúdame con|Cuéntame una historia sobre",
    "adjective": "pequeño|antiguo|verde|hermoso|extraño|tranquilo|nuevo|pesado|famoso|curioso",
    "noun": "jardín|maestro|mercado|puente|médico|bosque|viaje|pueblo|barco|libro|cuaderno|tren",
    "verb": "ayuda|visita|olvida|repara|protege|descubre|vende|pinta|abre|observa",
    "place": "cerca del puerto|durante el invierno|sin ninguna ayuda|delante de la escuela|al final de la semana",
}
LANGUAGES = {"en": ENGLISH, "de": GERMAN, "es": SPANISH}
WORDS = {name: {part: words.split("|") for part, words in parts.items()} for name, parts in LANGUAGES.items()}

SHARES = {
    "copy": 0.02,  # of an earlier row, with other case and space
    "prefix": 0.02,  # the beginning of an earlier row, another end
    "not_quite": 0.02,  # the first half of such a beginning: must stay
    "near": 0.02,  # an earlier row with one word changed early
    "personal": 0.02,
    "decoy": 0.02,  # looks like personal data and is none: must stay
    "foreign": 0.04,
    "long": 0.01,
    "leaked": 0.01,  # an evaluation prompt with other words around it
    "clean": 0.82,
}
KINDS = tuple(SHARES)
HEAVY_USERS, HEAVY_SHARE, USERS = 20, 0.1, 50_000
MAX_TOKENS = 128
EVALUATION = 1000


def kind_of(number: int) -> str:
    """What is planted in a row; the first hundred are clean, so that there is something to copy."""
    source = random.Random(f"kind {number}")
    return source.choices(KINDS, SHARES.values())[0] if number >= 100 else "clean"


def sentence(source: random.Random, language: str) -> str:
    """Who does what to whom, and where."""
    words = WORDS[language]
    who, whom = (f"{source.choice(words['adjective'])} {source.choice(words['noun'])}" for _ in range(2))
    return f"{who} {source.choice(words['verb'])} {whom} {source.choice(words['place'])}"


def clean_text(number: int, language: str = "en", sentences: int = 0) -> str:
    """A request about a few sentences; long enough that two of them hardly ever begin alike."""
    source = random.Random(f"text {number}")
    count = sentences or source.randint(3, 5)
    return f"{source.choice(WORDS[language]['open'])} {'. '.join(sentence(source, language) for _ in range(count))}."


def original(number: int) -> int:
    """The earlier, clean row that a planted row goes back to."""
    source = random.Random(f"earlier {number}")
    while kind_of(other := source.randrange(number)) != "clean":
        pass
    return other


def evaluation_prompts() -> list[str]:
    """What nothing may be trained on: texts of no row."""
    return [clean_text(-number) for number in range(1, EVALUATION + 1)]


def digits(source: random.Random, count: int) -> str:
    """So many random ones."""
    return "".join(source.choice("0123456789") for _ in range(count))


def with_check_digit(stem: str, right: bool) -> str:
    """A card number of 16 digits."""
    doubled = [int(d) * (2 - place % 2) for place, d in enumerate(stem)]
    check = -sum(value // 10 + value % 10 for value in doubled) % 10
    return stem + str(check if right else (check + 1) % 10)


def account_number(source: random.Random) -> str:
    """A German IBAN with its check digits."""
    rest = digits(source, 18)
    return f"DE{98 - int(rest + '131400') % 97:02d}{rest}"


def personal(source: random.Random, right: bool) -> str:
    """A piece of personal data, or what looks like it and is none."""
    if right:
        makers: list[Callable[[], str]] = [
            lambda: f"write to {source.choice(WORDS['en']['noun'])}{digits(source, 3)}@mail-{digits(source, 2)}.com",
            lambda: f"call +44 20 {digits(source, 4)} {digits(source, 4)}",
            lambda: f"call ({source.randint(201, 989)}) 5{digits(source, 2)}-{digits(source, 4)}",
            lambda: f"pay with {with_check_digit('4' + digits(source, 14), True)}",
            lambda: f"send it to {account_number(source)}",
            lambda: f"the server is 8.{source.randint(1, 200)}.{source.randint(1, 200)}.{source.randint(1, 200)}",
            lambda: f"my number is {source.randint(100, 665)}-{source.randint(10, 99)}-{source.randint(1000, 9999)}",
        ]
    else:
        makers = [
            lambda: f"order {with_check_digit('4' + digits(source, 14), False)}",
            lambda: f"on 20{source.randint(10, 29)}-{source.randint(10, 12)}-{source.randint(10, 28)}",
            lambda: f"host 192.168.{source.randint(0, 255)}.{source.randint(1, 254)}",
            lambda: f"version {source.randint(1, 9)}.{source.randint(0, 30)}.{source.randint(0, 9)}",
            lambda: f"about {source.randint(1, 999)},{digits(source, 3)},{digits(source, 3)} people",
            lambda: f"item 000-{digits(source, 2)}-{digits(source, 4)}",
        ]
    return source.choice(makers)()


def text_of(number: int, kind: str) -> str:
    """The prompt of a row."""
    source = random.Random(f"plant {number}")
    if kind == "copy":
        return clean_text(original(number)).upper().replace(" ", "  ")
    if kind == "prefix":
        return f"{clean_text(original(number))[: PREFIX + 4]} {sentence(source, 'en')} {digits(source, 2)}"
    if kind == "not_quite":
        return f"{clean_text(original(number))[: PREFIX // 2]} {sentence(source, 'en')} and {sentence(source, 'en')}"
    if kind == "near":
        words = clean_text(original(number)).split()
        return " ".join([*words[:4], digits(source, 6), *words[4:]])
    if kind in ("personal", "decoy"):
        return f"{clean_text(number)} Also {personal(source, kind == 'personal')} please."
    if kind == "leaked":
        return f"{sentence(source, 'en')}. {clean_text(-source.randint(1, EVALUATION))} {sentence(source, 'en')}"
    if kind == "foreign":
        return clean_text(number, source.choice(("de", "es")))
    return clean_text(number, sentences=20 if kind == "long" else 0)


class Prompts:
    """The synthetic prompts, made anew each time they are read.

    Args:
        rows: How many.
    """

    def __init__(self, rows: int) -> None:
        self.rows = rows

    def __len__(self) -> int:
        """How many."""
        return self.rows

    def __iter__(self) -> Iterator[Prompt]:
        """Make them from the first on."""
        for number in range(self.rows):
            yield Prompt(text_of(number, kind_of(number)), user=user_of(number), source="api")


def user_of(number: int) -> str:
    """Some users ask very much, and do not copy: what they ask too much is a fault of its own."""
    source = random.Random(f"user {number}")
    heavy = source.random() < HEAVY_SHARE
    return f"heavy-{source.randrange(HEAVY_USERS)}" if heavy else f"user-{source.randrange(USERS)}"
