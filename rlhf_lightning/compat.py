"""Private interfaces of other libraries, each with the version it was tried on and what happens where it is missing.

Nothing else in the package touches a name with a leading underscore of another library, except `cli`, which alone
may import hydra.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache as memoised
from functools import partial
from importlib import import_module
from inspect import signature
from typing import Any, cast

import torch
from torch import Tensor, nn

# torch 2.13: tensors with shapes and no values, and a hook on every operation. They are part of what the memory plan
# is made of; without them the package does not import, and the ImportError names the one that is gone.
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from transformers import Cache

__all__ = [
    "FakeTensorMode",
    "TorchDispatchMode",
    "attention_implementation",
    "cache_options",
    "has_onednn_linear",
    "onednn_linear",
    "tree_leaves",
    "using_attention",
]


def has_onednn_linear() -> bool:
    """Whether torch has `onednn_linear` (2.13 has); where not, products go through torch's own choice."""
    return torch.backends.mkldnn.is_available() and hasattr(torch.ops.mkldnn, "_linear_pointwise")


def onednn_linear(values: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """`nn.functional.linear` by oneDNN in 32 bits, where torch itself would ask MKL (torch 2.13)."""
    return cast(Tensor, torch.ops.mkldnn._linear_pointwise(values, weight, bias, "none", [], ""))


def attention_implementation(model: Any) -> str | None:
    """What transformers calls it: `sdpa`, `eager`, `flex_attention`, ... (transformers 5.24).

    Args:
        model: A model, or its configuration.

    Returns:
        None for any other module, or where the name is gone; then a model keeps the attention it was loaded with.
    """
    implementation: str | None = getattr(getattr(model, "config", model), "_attn_implementation", None)
    return implementation


@contextmanager
def using_attention(config: Any, implementation: str | None) -> Iterator[None]:
    """Let the models of a configuration attend by another implementation within the block (transformers 5.24).

    The public `set_attn_implementation` looks for kernels each time, which is too slow for one step of decoding.
    """
    before, config._attn_implementation = config._attn_implementation, implementation
    try:
        yield
    finally:
        config._attn_implementation = before


def cache_options(model: nn.Module, cache: Cache) -> dict[str, Any]:
    """The arguments of a forward pass that reads the cache and adds to it.

    The argument is called `cache` from transformers 5.24 on, `past_key_values` before; both were tried.
    """
    return {_cache_argument(type(model).forward): cache, "use_cache": True}


@memoised
def _cache_argument(forward: Callable[..., Any]) -> str:
    return "cache" if "cache" in signature(forward).parameters else "past_key_values"


@contextmanager
def harness_without_bars() -> Iterator[None]:
    """lm-evaluation-harness without its progress bar within the block, which it shows whoever calls it (0.4.13)."""
    module: Any = import_module("lm_eval.api.task")
    before, module.tqdm = module.tqdm, partial(module.tqdm, disable=True)
    try:
        yield
    finally:
        module.tqdm = before
