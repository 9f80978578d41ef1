"""Random numbers that depend on nothing but their key, and tokens drawn with them."""

import math
from collections.abc import Sequence

import torch
from jaxtyping import Float, Int
from torch import Tensor


def inverse_cdf_sample(
    logits: Float[Tensor, "rows vocab"], uniforms: Float[Tensor, " rows"], temperature: float = 1.0
) -> tuple[Int[Tensor, " rows"], Float[Tensor, " rows"]]:
    """The token at which the cumulative distribution passes the uniform number, and its log-probability.

    One uniform number per row, where `torch.multinomial` draws one exponential per vocabulary entry. The cumulative
    sum is taken over blocks of the vocabulary first and then within the one block that the number falls into.

    Args:
        logits: Unnormalised log-probabilities.
        uniforms: In [0, 1), in 64 bits.
        temperature: Divides the logits.

    Returns:
        Tokens, and their log-probabilities at that temperature in nats.

    Examples:
        >>> logits = torch.tensor([[0.25, 0.75]]).log()
        >>> tokens, log_probs = inverse_cdf_sample(logits, torch.tensor([0.3], dtype=torch.float64))
        >>> tokens, log_probs.exp()  # the distribution passes .3 at its second token
        (tensor([1]), tensor([0.7500]))
    """
    rows, vocabulary = logits.shape
    size = math.isqrt(vocabulary - 1) + 1
    dtype = torch.promote_types(logits.dtype, torch.float32)
    weights = torch.empty(rows, size * size, dtype=dtype, device=logits.device)
    weights[:, vocabulary:] = 0
    used = weights[:, :vocabulary]
    used.copy_(logits).sub_(used.amax(1, keepdim=True))
    if temperature != 1:
        used /= temperature
    used.exp_()
    blocks = weights.view(rows, size, size)
    sums = blocks.sum(2).double().cumsum(1)
    threshold = (uniforms * sums[:, -1]).unsqueeze(1)
    # Only where logits are no numbers is nothing found; their log-probability is none either, and the caller sees it.
    block = torch.searchsorted(sums, threshold, right=True).clamp(max=size - 1)
    before = torch.where(block > 0, sums.gather(1, (block - 1).clamp(min=0)), 0.0)
    inside = blocks[torch.arange(rows, device=logits.device), block.squeeze(1)].double().cumsum(1)
    # The sum of a block rounds differently from its running sum; its last token of any weight takes what is left.
    rest = torch.minimum(threshold - before, inside[:, -1:].nextafter(torch.zeros_like(threshold)))
    tokens = (block * size + torch.searchsorted(inside, rest, right=True)).clamp(max=vocabulary - 1)
    log_probs = (weights.gather(1, tokens).double() / sums[:, -1:]).log()
    return tokens.squeeze(1), log_probs.squeeze(1).to(dtype)


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
