"""The typed batches that flow between data, generation and modules.

Legend of the shapes: `rows` sequences, `time` tokens, `prompts` prompts, `K` responses per prompt. Token masks
are True on real tokens. Prompts are padded on the left, so that responses start in one column; everything else is
padded on the right.
"""

import sys
from collections.abc import Sequence
from itertools import combinations
from typing import NamedTuple

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

SIMILAR = 0.7
SMALL = {"cpu": 512, "cuda": 2**14}
"""Tokens of a group that is too small to be worth a pass of its own."""


class LMBatch(NamedTuple):
    """Sequences for a language model loss."""

    input_ids: Int[Tensor, "rows time"]
    mask: Bool[Tensor, "rows time"]
    loss_mask: Bool[Tensor, "rows time"]
    """Tokens that count as targets: the response and its EOS, or all but the first token of pretraining text."""


class ComparisonBatch(NamedTuple):
    """Prompts with their K ranked responses; one prompt is one element (InstructGPT, section 3.5)."""

    prompt_ids: Int[Tensor, "prompts prompt_time"]
    prompt_mask: Bool[Tensor, "prompts prompt_time"]
    response_ids: Int[Tensor, "prompts K response_time"]
    response_mask: Bool[Tensor, "prompts K response_time"]
    ranks: Int[Tensor, "prompts K"]
    """1 is best, equal is a tie, 0 where a prompt has fewer than K responses."""
    groups: list[str]
    """Data set or labeler group of each prompt, for metrics per group."""

    @property
    def mask(self) -> Bool[Tensor, "prompts K"]:
        """Responses that exist."""
        return self.response_mask.any(-1)


class PromptBatch(NamedTuple):
    """Prompts to answer."""

    prompt_ids: Int[Tensor, "rows prompt_time"]
    prompt_mask: Bool[Tensor, "rows prompt_time"]
    prompt_index: Int[Tensor, " rows"]
    """Number of the prompt in its data set: the key of its random numbers."""
    texts: list[str]


class Rollout(NamedTuple):
    """Prompts and the responses that a policy sampled for them."""

    prompts: PromptBatch
    response_ids: Int[Tensor, "rows response_time"]
    response_mask: Bool[Tensor, "rows response_time"]
    """Up to and including the first EOS."""
    log_probs: Float[Tensor, "rows response_time"]
    """Of the sampled tokens, as the sampler saw them."""
    ended: Bool[Tensor, " rows"]
    """Whether the response ends in EOS rather than at the length limit."""

    @property
    def lengths(self) -> Int[Tensor, " rows"]:
        """Tokens of prompt and response together."""
        return self.prompts.prompt_mask.sum(1) + self.response_mask.sum(1)


class Experience(NamedTuple):
    """A scored rollout: all that the PPO update needs. Token tensors are `rows x response_time`."""

    rollout: Rollout
    scores: Float[Tensor, " rows"]
    old_log_probs: Float[Tensor, "rows response_time"]
    reference_log_probs: Float[Tensor, "rows response_time"]
    old_values: Float[Tensor, "rows response_time"]
    advantages: Float[Tensor, "rows response_time"]
    """Whitened over the whole rollout."""
    returns: Float[Tensor, "rows response_time"]
    minibatches: list[Int[Tensor, " minibatch"]]
    """Row numbers of the minibatches of the first epoch, drawn before the old log-probs were computed on them."""


def decided_pairs(ranks: Sequence[int]) -> list[tuple[int, int]]:
    """Every pair of ranked responses that is no tie, as the places of the better and of the worse one.

    Examples:
        >>> decided_pairs([2, 1, 2])
        [(1, 0), (1, 2)]
    """
    pairs = combinations(range(len(ranks)), 2)
    return [(i, j) if ranks[i] < ranks[j] else (j, i) for i, j in pairs if ranks[i] != ranks[j]]


def compacting_order(mask: Bool[Tensor, "rows time"]) -> Int[Tensor, "rows kept"]:
    """Columns in an order that moves real tokens to the left, cut to the longest row."""
    return (~mask).int().argsort(dim=1, stable=True)[:, : int(mask.sum(1).max())]


def left_aligned(
    input_ids: Int[Tensor, "rows time"], mask: Bool[Tensor, "rows time"]
) -> tuple[Int[Tensor, "rows kept"], Bool[Tensor, "rows kept"]]:
    """Rows with their padding on the right, where no real token sees it: attention needs no mask but the causal one.

    In place of padding stands the row's first token; transformers warns about pad tokens that come without a mask.

    Examples:
        >>> import torch
        >>> mask = torch.tensor([[False, True, True], [True, True, True]])
        >>> left_aligned(torch.tensor([[0, 5, 6], [7, 8, 9]]), mask)[0]
        tensor([[5, 6, 5],
                [7, 8, 9]])
    """
    order = compacting_order(mask)
    input_ids, mask = input_ids.gather(1, order), mask.gather(1, order)
    return torch.where(mask, input_ids, input_ids[:, :1]), mask


def length_groups(
    lengths: Int[Tensor, " rows"], tokens: int, max_rows: int | None = None
) -> list[Int[Tensor, " group"]]:
    """Rows in groups of similar length, so that little is padding when each group is padded to its own longest row.

    A group ends where the next row would have less than `SIMILAR` of its longest, unless the group is small.

    Args:
        lengths: Tokens of each row.
        tokens: A group holds at most so many, padding included, or one row.
        max_rows: And at most so many rows.

    Returns:
        Row numbers, the longest rows first.

    Examples:
        >>> import torch
        >>> length_groups(torch.tensor([3, 9, 1, 5]), 18)
        [tensor([1, 3]), tensor([0, 2])]
    """
    order = lengths.argsort(descending=True, stable=True)
    ordered: list[int] = lengths[order].tolist()
    groups, start, small = [], 0, SMALL.get(lengths.device.type, SMALL["cuda"])
    for stop, length in enumerate([*ordered[1:], 0], 1):
        longest, rows = ordered[start] if ordered else 0, stop - start
        different = length < SIMILAR * longest and rows * longest >= small
        full = (rows + 1) * longest > tokens or rows == max_rows
        if stop == len(ordered) or full or different:
            groups.append(order[start:stop])
            start = stop
    return groups if ordered else []


def padded_size(lengths: Int[Tensor, " rows"], tokens: int = sys.maxsize) -> int:
    """Positions, padding included, of rows that are read in their `length_groups`.

    Examples:
        >>> import torch
        >>> padded_size(torch.tensor([3, 9, 1, 5]), 18)
        24
    """
    return sum(len(group) * int(lengths[group].max()) for group in length_groups(lengths, tokens))
