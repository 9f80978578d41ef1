"""What the sections of the report are made of: figures with their table."""

from collections.abc import Sequence
from typing import Any, NamedTuple

from markupsafe import Markup

from rlhf_lightning.evaluation.plots import Legend


class Head(NamedTuple):
    """The head of a column."""

    title: str
    unit: str = ""
    colour: str = ""
    """That of the policy whose column it is."""
    text: bool = False
    """Whether it has words, which stand on the left."""


class Part(NamedTuple):
    """Figures, and the table with what they show."""

    title: str
    note: str
    heads: Sequence[Head]
    rows: Sequence[Sequence[Any]]
    """One entry per column: a text, or what `rlhf_lightning.evaluation.tables.cell` makes; ``shade`` beside it is how
    strongly it is coloured, from 0 to 100."""
    figures: Sequence[tuple[str, Markup]] = ()
    """Title and picture."""
    folded: bool = False
    """Whether the table is seen only when it is asked for."""


class Section(NamedTuple):
    """A section of the page."""

    key: str
    title: str
    note: str
    parts: Sequence[Part]


def policy_heads(policies: Sequence[str], legend: Legend) -> list[Head]:
    """A column for each policy."""
    return [Head(legend.label(name), colour=legend.colour(name)) for name in policies]


def policy_colours(policies: Sequence[str], legend: Legend) -> dict[str, str]:
    """Colours by what the policies are called."""
    return {legend.label(name): legend.colour(name) for name in policies}
