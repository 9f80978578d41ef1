"""The attention kernel that is fastest for the rows at hand."""

from contextlib import AbstractContextManager, nullcontext
from typing import Any, cast

import torch
from torch import Tensor, nn

from rlhf_lightning.compat import attention_implementation, using_attention
from rlhf_lightning.models.precision import compute_dtype
from rlhf_lightning.models.short_rows import FAMILIES, SHORT_ROWS

EAGER_TOKENS = 512
"""Rows up to this long attend by two matrix products in 16 bits on a CPU; longer ones would need too much memory."""


def fast_attention(model: nn.Module, device: torch.device, tokens: int) -> AbstractContextManager[None]:
    """Run a transformers model with the attention that is fastest for rows of that many tokens.

    On a CPU in 16 bits, torch's kernel takes two to three times as long as two matrix products and a softmax.

    Args:
        model: A model whose configuration says `sdpa`; any other choice, and any other module, is left alone.
        device: Where it runs.
        tokens: Tokens of a row that are read at once; 1 where a cached response goes on.
    """
    if attends_eagerly(model, device, tokens):
        config = cast(Any, model.config)
        return using_attention(config, SHORT_ROWS if config.model_type in FAMILIES else "eager")
    return nullcontext()


def attends_eagerly(model: nn.Module, device: torch.device, tokens: int) -> bool:
    """Whether `fast_attention` takes two matrix products and a softmax."""
    if attention_implementation(model) != "sdpa" or device.type != "cpu" or tokens > EAGER_TOKENS:
        return False
    return compute_dtype(device, next(model.parameters()).dtype) in (torch.bfloat16, torch.float16)


def adds_mask(model: nn.Module) -> bool:
    """Whether the attention of the model adds its mask to its scores; every other one reads True as "sees"."""
    return attention_implementation(model) in ("eager", SHORT_ROWS)


def additive_mask(mask: Tensor, dtype: torch.dtype) -> Tensor:
    """What eager attention adds to its scores: 0 where the mask is True, the lowest number elsewhere."""
    return torch.zeros_like(mask, dtype=dtype).masked_fill(~mask, torch.finfo(dtype).min)
