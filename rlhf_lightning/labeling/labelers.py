"""Labelers: anyone who can rank the responses to a prompt."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

from rlhf_lightning.data.labeling import Labeling
from rlhf_lightning.data.records import Comparison, Prompt


@runtime_checkable
class Labeler(Protocol):
    """Anyone who can rank responses; one with a `team` names it as the source of the rankings."""

    @property
    def name(self) -> str:
        """Who it is."""

    def rank(self, prompt: str, responses: Sequence[str]) -> list[int]:
        """One rank per response; 1 is best, equal is a tie; dense (1, 2, 2, 3) or competition ranks (1, 2, 2, 4)."""


@dataclass(frozen=True)
class Unranked:
    """Stands for people who are still to rank: to it all is equal."""

    name: str = "people"
    team: str = "people"

    def rank(self, prompt: str, responses: Sequence[str]) -> list[int]:
        """All tied."""
        return [1] * len(responses)


def ranking(
    labeler: Labeler, prompt: Prompt, text: str, responses: list[str], policies: Sequence[str] | None = None
) -> Comparison:
    """The responses to a prompt as a labeler ranks them.

    Args:
        labeler: The labeler who is asked.
        prompt: The prompt with what is known of it.
        text: The prompt as the labeler reads it.
        responses: Two responses or more.
        policies: Who wrote each, to be kept with the ranking.
    """
    source = getattr(labeler, "team", None) or "collected"
    ranks = labeler.rank(text, responses)
    labeling: Labeling | None = {"policies": [*policies]} if policies else None
    return Comparison(prompt.prompt, responses, ranks, labeler.name, source, prompt.labels, prompt.user, labeling)
