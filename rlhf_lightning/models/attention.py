"""How a transformers model attends: with which kernel, and to which cache."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache as memoised
from inspect import signature
from typing import Any

import torch
from torch import nn
from transformers import Cache

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
    if not attends_eagerly(model, device, tokens):
        yield
        return
    config: Any = model.config
    config._attn_implementation = "eager"
    try:
        yield
    finally:
        config._attn_implementation = "sdpa"


def attends_eagerly(model: nn.Module, device: torch.device, tokens: int) -> bool:
    """Whether :func:`fast_attention` takes two matrix products and a softmax."""
    own = attention_implementation(model)
    return own == "sdpa" and device.type == "cpu" and tokens <= EAGER_TOKENS and _in_16_bits(model)


def attention_implementation(model: nn.Module) -> str | None:
    """What transformers calls it: ``sdpa``, ``eager``, ``flex_attention``, ...; None for any other module."""
    implementation: str | None = getattr(getattr(model, "config", None), "_attn_implementation", None)
    return implementation


def _in_16_bits(model: nn.Module) -> bool:
    dtype = torch.get_autocast_dtype("cpu") if torch.is_autocast_enabled("cpu") else next(model.parameters()).dtype
    return dtype in (torch.bfloat16, torch.float16)


def cache_options(model: nn.Module, cache: Cache) -> dict[str, Any]:
    """The arguments of a forward pass that reads the cache and adds to it.

    The argument is called ``cache`` from transformers 5.24 on, ``past_key_values`` before.
    """
    return {_cache_argument(type(model).forward): cache, "use_cache": True}


@memoised
def _cache_argument(forward: Callable[..., Any]) -> str:
    return "cache" if "cache" in signature(forward).parameters else "past_key_values"
