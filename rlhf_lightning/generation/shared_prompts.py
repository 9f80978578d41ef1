"""What prompts of a batch have in common, so that it is read once."""

import torch
from jaxtyping import Bool, Int
from torch import Tensor

from rlhf_lightning.models.padding import left_aligned

SHARED_TOKENS = 8
"""Where all prompts begin with so many tokens or more, as behind a few-shot prefix, those are read once."""


def shared_tokens(input_ids: Int[Tensor, "rows time"], mask: Bool[Tensor, "rows time"]) -> int:
    """How many tokens all rows begin with, less than the shortest has; 0 where those are few or there is one row.

    Args:
        input_ids: Rows, padded on the left.
        mask: False on padding.
    """
    ids, real = left_aligned(input_ids, mask)
    alike_so_far = ((ids == ids[:1]) & real).all(0).long().cumprod(0)
    shared = min(int(alike_so_far.sum()), int(mask.sum(1).min()) - 1)
    return shared if len(ids) > 1 and shared >= SHARED_TOKENS else 0


def behind_prefix(
    input_ids: Int[Tensor, "rows time"], mask: Bool[Tensor, "rows time"], shared: int
) -> tuple[Int[Tensor, "rows time"], Bool[Tensor, "rows time"]]:
    """The first tokens of each row in the first columns, the padding behind them.

    Examples:
        >>> ids, mask = torch.tensor([[0, 7, 8, 3], [7, 8, 4, 5]]), torch.tensor([[0, 1, 1, 1], [1, 1, 1, 1]]).bool()
        >>> [values.tolist() for values in behind_prefix(ids, mask, 2)]
        [[[7, 8, 0, 3], [7, 8, 4, 5]], [[True, True, False, True], [True, True, True, True]]]
    """
    padding, columns = (~mask).sum(1, keepdim=True), torch.arange(mask.shape[1], device=mask.device)
    behind = columns >= shared + padding
    source = torch.where(behind, columns, torch.where(columns < shared, columns + padding, columns - shared))
    return input_ids.gather(1, source), behind | (columns < shared)


def distinct_rows(
    input_ids: Int[Tensor, "rows time"], mask: Bool[Tensor, "rows time"]
) -> tuple[Int[Tensor, " rows"], Int[Tensor, " distinct"], Int[Tensor, " rows"]]:
    """The numbers of the rows, the first row of each kind, and which of those each row is the same as.

    Examples:
        >>> ids = torch.tensor([[4, 5], [0, 5], [4, 5]])
        >>> distinct_rows(ids, ids > 0)[1:]
        (tensor([0, 1]), tensor([0, 1, 0]))
    """
    rows = torch.arange(len(mask), device=mask.device)
    _, kind = torch.where(mask, input_ids, -1).unique(dim=0, return_inverse=True)
    earliest = torch.full_like(rows, len(rows)).scatter_reduce(0, kind, rows, "amin")[kind]
    first, same = earliest.unique(return_inverse=True)
    return rows, first, same
