"""Activation checkpointing: keep the input of every block and compute the rest again in the backward pass."""

from collections.abc import Callable
from functools import partial
from typing import Any, cast

import torch
from torch import nn
from torch.utils.checkpoint import checkpoint
from transformers import Cache, PreTrainedModel
from transformers.modeling_layers import GradientCheckpointingLayer

from rlhf_lightning.compat import attention_implementation, using_attention


def checkpoint_activations(model: nn.Module) -> None:
    """Trade a second forward pass for the memory of what is inside the blocks of a transformers model.

    The switch of transformers works in train mode only, where dropout is on; here models learn in eval mode too. A
    pass that fills a key-value cache is left as it is, because the second forward pass would fill it twice.

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
    cached = any(isinstance(value, Cache) for value in (*arguments, *options.values()))
    if cached or not torch.is_grad_enabled():
        return forward(*arguments, **options)
    attention = attention_implementation(config)

    def again(*arguments: Any, **options: Any) -> Any:
        # The backward pass runs when the choice of rlhf_lightning.models.attention has been taken back.
        with using_attention(config, attention):
            return forward(*arguments, **options)

    return cast(Any, checkpoint(again, *arguments, use_reentrant=False, **options))
