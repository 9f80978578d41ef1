"""What records become: token ids of prompts and responses."""

from collections.abc import Iterable
from dataclasses import dataclass, field, replace

from rlhf_lightning.data.records import decided_pairs


@dataclass(frozen=True)
class LMExample:
    """Token ids of one sequence and what of it counts as a target: all from a position on, and earlier stretches."""

    input_ids: list[int]
    loss_start: int
    earlier: list[tuple[int, int]] = field(default_factory=list)


@dataclass(frozen=True)
class ComparisonExample:
    """Token ids of a prompt and of its K ranked responses."""

    prompt_ids: list[int]
    response_ids: list[list[int]]
    ranks: list[int]
    group: str


@dataclass(frozen=True)
class PromptExample:
    """Token ids of a prompt, its number in the data set and its text (without the template), mostly `PromptString`."""

    prompt_ids: list[int]
    index: int
    text: str


def split_into_pairs(examples: Iterable[ComparisonExample]) -> list[ComparisonExample]:
    """Every pair of every ranking that is no tie, as an example of its own, in the order of the responses."""
    pairs = []
    for example in examples:
        for better, worse in decided_pairs(example.ranks):
            responses = [example.response_ids[place] for place in sorted((better, worse))]
            ranks = [1, 2] if better < worse else [2, 1]
            pairs.append(replace(example, response_ids=responses, ranks=ranks))
    return pairs
