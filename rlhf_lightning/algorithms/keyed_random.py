"""Random numbers that depend on nothing but their key."""

from collections.abc import Sequence

import torch
from jaxtyping import Float, Int
from torch import Tensor


def distinct_index(index: Int[Tensor, " rows"]) -> Int[Tensor, " rows"]:
    """The index of each row, made another one where it stands there again: a prompt asked twice is not copied."""
    occurrence = (index.unsqueeze(0) == index.unsqueeze(1)).tril(-1).sum(1)
    return index + occurrence * 2**40


def keyed_uniforms(key: Sequence[int], index: Int[Tensor, " rows"], count: int) -> Float[Tensor, "rows count"]:
    """Uniform numbers in [0, 1) that depend on nothing but the key, the row's index and the column.

    A counter-based generator: the finaliser of SplitMix64 (Steele et al. 2014) over the mixed key.

    Args:
        key: Whole numbers, such as (seed, iteration).
        index: One whole number per row.
        count: Columns.
    """
    state = torch.zeros((), dtype=torch.int64, device=index.device)
    for number in key:
        state = _mix(state + number)
    rows = _mix(state + index.long())
    bits = _mix(rows.unsqueeze(1) + torch.arange(count, device=index.device))
    return ((bits >> 20) & (2**44 - 1)).double() / 2**44


def _mix(state: Tensor) -> Tensor:
    """SplitMix64 on signed 64-bit integers, which wrap around as unsigned ones do."""
    state = state + _signed(0x9E3779B97F4A7C15)
    for shift, factor in ((30, 0xBF58476D1CE4E5B9), (27, 0x94D049BB133111EB)):
        state = (state ^ ((state >> shift) & (2 ** (64 - shift) - 1))) * _signed(factor)
    return state ^ ((state >> 31) & (2**33 - 1))


def _signed(number: int) -> int:
    return number - 2**64 if number >= 2**63 else number
