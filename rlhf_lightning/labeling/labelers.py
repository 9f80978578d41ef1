"""Labelers: anyone who can rank the responses to a prompt."""

from collections.abc import Sequence
from typing import Protocol, runtime_checkable

from rlhf_lightning.data.records import Comparison, Prompt


@runtime_checkable
class Labeler(Protocol):
    """Anyone who can rank responses; one with a `team` names it as the source of the rankings."""

    @property
    def name(self) -> str:
        """Who it is."""

    def rank(self, prompt: str, responses: Sequence[str]) -> list[int]:
        """One rank per response; 1 is best, equal is a tie; dense (1, 2, 2, 3) or competition ranks (1, 2, 2, 4)."""


def ranking(labeler: Labeler, prompt: Prompt, text: str, responses: list[str]) -> Comparison:
    """The responses to a prompt as a labeler ranks them.

    Args:
        labeler: The labeler who is asked.
        prompt: The prompt with what is known of it.
        text: The prompt as the labeler reads it.
        responses: Two responses or more.
    """
    source = getattr(labeler, "team", None) or "collected"
    ranks = labeler.rank(text, responses)
    return Comparison(prompt.prompt, responses, ranks, labeler.name, source, prompt.labels, prompt.user)
