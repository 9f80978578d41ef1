"""The attention kernel that is fastest for the rows at hand."""

from contextlib import AbstractContextManager, nullcontext

import torch
from torch import Tensor, nn

from rlhf_lightning.compat import attention_implementation, using_attention
from rlhf_lightning.models.precision import compute_dtype

EAGER_TOKENS = 512
"""Rows up to this long attend by two matrix products in 16 bits on a CPU; longer ones would need too much memory."""


def fast_attention(model: nn.Module, device: torch.device, tokens: int) -> AbstractContextManager[None]:
    """Run a transformers model with the attention that is fastest for rows of that many tokens.

    On a CPU in 16 bits, torch's kernel takes two to five times as long as two matrix products and a softmax.

    Args:
        model: A model whose configuration says `sdpa`; any other choice, and any other module, is left alone.
        device: Where it runs.
        tokens: Tokens of a row that are read at once; 1 where a cached response goes on.
    """
    if attends_eagerly(model, device, tokens):
        return using_attention(model.config, "eager")
    return nullcontext()


def attends_eagerly(model: nn.Module, device: torch.device, tokens: int) -> bool:
    """Whether `fast_attention` takes two matrix products and a softmax."""
    if attention_implementation(model) != "sdpa" or device.type != "cpu" or tokens > EAGER_TOKENS:
        return False
    return compute_dtype(device, next(model.parameters()).dtype) in (torch.bfloat16, torch.float16)


def additive_mask(mask: Tensor, dtype: torch.dtype) -> Tensor:
    """What eager attention adds to its scores: 0 where the mask is True, the lowest number elsewhere."""
    return torch.zeros_like(mask, dtype=dtype).masked_fill(~mask, torch.finfo(dtype).min)
