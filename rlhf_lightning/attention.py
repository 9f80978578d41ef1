"""Which attention a model computes with where the kernel of torch is not the fastest."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn

EAGER_TOKENS = 512
"""Rows up to this long attend by two matrix products in 16 bits on a CPU; longer ones would need too much memory."""


@contextmanager
def fast_attention(model: nn.Module, device: torch.device, tokens: int) -> Iterator[None]:
    """Run a transformers model with the attention that is fastest for rows of that many tokens.

    On a CPU in 16 bits, torch's kernel takes two to five times as long as two matrix products and a softmax.

    Args:
        model: Its configuration says ``sdpa``; any other choice, and any other module, is left alone.
        device: Where it runs.
        tokens: Of a row that is read at once; 1 where a cached response goes on.
    """
    config: Any = getattr(model, "config", None)
    own = getattr(config, "_attn_implementation", None)
    if own != "sdpa" or device.type != "cpu" or tokens > EAGER_TOKENS or not _in_16_bits(model):
        yield
        return
    config._attn_implementation = "eager"
    try:
        yield
    finally:
        config._attn_implementation = own


def _in_16_bits(model: nn.Module) -> bool:
    dtype = torch.get_autocast_dtype("cpu") if torch.is_autocast_enabled("cpu") else next(model.parameters()).dtype
    return dtype in (torch.bfloat16, torch.float16)
