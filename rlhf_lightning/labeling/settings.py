"""What the settings of a step say of the people that it asks."""

from typing import Literal, NotRequired, TypedDict

from rlhf_lightning.arguments import Count, Fraction, PositiveFloat

PEOPLE, FILES = "people", "files"
"""Who answers: people on the page of the run, or with a tool of their own that reads and writes files."""


class Ranked(TypedDict):
    """Node `collect.people`."""

    enough: PositiveFloat
    shared: Fraction
    labelers_per_shared: Count


class Rated(TypedDict):
    """Node `evaluate.people`."""

    prompts: Count
    labelers: NotRequired[Count]
    enough: NotRequired[PositiveFloat]
    form: NotRequired[Literal["quality", "toxicity"]]
    by: NotRequired[Literal["people", "files"]]
