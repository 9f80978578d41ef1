"""Padding: where tokens stand in their rows, and how rows are read together so that little of it is read."""

import sys

import torch
from jaxtyping import Bool, Int
from torch import Tensor

SIMILAR = 0.7
SMALL = {"cpu": 512, "cuda": 2**14}
"""Tokens of a group that is too small to be worth a pass of its own."""


def position_ids(mask: Bool[Tensor, "rows time"]) -> Int[Tensor, "rows time"]:
    """Position of each token within its row, counted over valid tokens only.

    Left padding shifts tokens; models with learned positions (GPT-2) need to be told. Padding gets position 0.

    Examples:
        >>> position_ids(torch.tensor([[False, True, True]]))
        tensor([[0, 0, 1]])
    """
    return (mask.long().cumsum(-1) - 1).clamp(min=0)


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
    lengths: Int[Tensor, " rows"], tokens: int, max_rows: int | None = None, similar: float = SIMILAR
) -> list[Int[Tensor, " group"]]:
    """Rows in groups of similar length, so that little is padding when each group is padded to its own longest row.

    A group ends where the next row would have less than a share `similar` of its longest, unless the group is small.

    Args:
        lengths: Tokens of each row.
        tokens: A group holds at most so many, padding included, or one row.
        max_rows: And at most so many rows.
        similar: Share of the longest row's tokens; 0 looks at the other two alone.

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
        different = length < similar * longest and rows * longest >= small
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
