"""Activation checkpointing: keep the input of every block and compute the rest again in the backward pass."""

import copy
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint
from transformers import Cache, PreTrainedModel
from transformers.modeling_layers import GradientCheckpointingLayer

from rlhf_lightning.compat import attention_implementation, using_attention
from rlhf_lightning.models.selected_cache import SelectedLayer


def checkpoint_activations(model: nn.Module) -> None:
    """Trade a second forward pass for the memory of what is inside the blocks of a transformers model.

    The switch of transformers works in train mode only, where dropout is on; here models learn in eval mode too. A
    pass that fills a key-value cache fills it once: the second forward pass reads what the first one found there.

    Args:
        model: A transformers model, or a module that has one within.

    Raises:
        ValueError: When nothing in it can be checkpointed.
    """
    found = False
    for body in (module for module in model.modules() if isinstance(module, PreTrainedModel)):
        for layer in body.modules():
            if isinstance(layer, GradientCheckpointingLayer) and "forward" not in vars(layer):
                layer.forward = partial(_checkpointed, layer.forward, body.config)
                found = True
    if not found:
        raise ValueError(
            f"{type(model).__name__} has no blocks whose activations could be computed again. "
            "Set activation_checkpointing=false."
        )


def _checkpointed(forward: Callable[..., Any], config: Any, *arguments: Any, **options: Any) -> Any:
    if not torch.is_grad_enabled():
        return forward(*arguments, **options)
    attention = attention_implementation(config)
    cache = next((value for value in (*arguments, *options.values()) if isinstance(value, Cache)), None)
    before = [] if cache is None else [copy.copy(layer) for layer in cache.layers]

    def again(*arguments: Any, **options: Any) -> tuple[Any, dict[int, tuple[Tensor, Tensor]]]:
        added: dict[int, tuple[Tensor, Tensor]] = {}
        if cache is not None:
            noting = _noting(cache, before, added)
            arguments = tuple(noting if value is cache else value for value in arguments)
            options = {name: noting if value is cache else value for name, value in options.items()}
        # The backward pass runs when the choice of rlhf_lightning.models.attention has been taken back.
        with using_attention(config, attention):
            return forward(*arguments, **options), added

    output, added = cast(Any, checkpoint(again, *arguments, use_reentrant=False, **options))
    for number, (keys, values) in added.items():
        if number >= len(before) or not isinstance(before[number], SelectedLayer):
            cast(Cache, cache).update(keys, values, number)
    return output


def _noting(cache: Cache, before: Sequence[Any], added: dict[int, tuple[Tensor, Tensor]]) -> Cache:
    """A cache as it was before a block, which notes what the block adds."""
    noting: Any = copy.copy(cache)
    noting.layers = [copy.copy(layer) for layer in before]

    def update(keys: Tensor, values: Tensor, number: int, *arguments: Any, **options: Any) -> tuple[Tensor, Tensor]:
        added[number] = keys, values
        return type(cache).update(noting, keys, values, number, *arguments, **options)

    noting.update = update
    return cast(Cache, noting)
