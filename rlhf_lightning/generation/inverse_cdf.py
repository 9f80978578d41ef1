"""Tokens drawn by the inverse of the cumulative distribution, with one uniform number each."""

import math

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
        uniforms: Uniform numbers in [0, 1), in 64 bits.
        temperature: Temperature, which divides the logits.

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
    # Only where logits are NaN is nothing found; their log-probability is NaN too, and the caller sees it.
    block = torch.searchsorted(sums, threshold, right=True).clamp(max=size - 1)
    before = torch.where(block > 0, sums.gather(1, (block - 1).clamp(min=0)), 0.0)
    inside = blocks[torch.arange(rows, device=logits.device), block.squeeze(1)].double().cumsum(1)
    # The sum of a block rounds differently from its running sum; its last token of any weight takes what is left.
    rest = torch.minimum(threshold - before, inside[:, -1:].nextafter(torch.zeros_like(threshold)))
    tokens = (block * size + torch.searchsorted(inside, rest, right=True)).clamp(max=vocabulary - 1)
    log_probs = (weights.gather(1, tokens).double() / sums[:, -1:]).log()
    return tokens.squeeze(1), log_probs.squeeze(1).to(dtype)
