"""Weights that learn have 32 bits: a step of training is smaller than the distance between two numbers of 16 bits."""

from typing import TypeVar

import torch
from torch import nn

from rlhf_lightning.models.lora import has_adapters, trainable_parameters

Module = TypeVar("Module", bound=nn.Module)
HALF = (torch.bfloat16, torch.float16)


def widened(model: Module) -> Module:
    """A model with weights in 32 bits where they learn, changed in place; beside adapters the others stay as they are.

    Args:
        model: A model of which some weights learn.
    """
    learned = [parameter for parameter in trainable_parameters(model) if parameter.dtype in HALF]
    if learned and not has_adapters(model):
        model.float()
    for parameter in learned:
        parameter.data = parameter.data.float()
    return model


def check_precision(precision: str | int | None) -> None:
    """Refuse gradients that are scaled: the first that overflow would stop the run, and PPO would clip them scaled.

    Args:
        precision: The Trainer's precision.

    Raises:
        ValueError: When it is 16-mixed.
    """
    if str(precision) == "16-mixed":
        raise ValueError("precision=16-mixed scales gradients, which are looked at and clipped here; use bf16-mixed.")


def check_learned(module: nn.Module) -> None:
    """Refuse to train weights in 16 bits.

    Args:
        module: The module that is about to learn.

    Raises:
        RuntimeError: When a weight that learns has 16 bits.
    """
    for name, parameter in module.named_parameters():
        if parameter.requires_grad and parameter.dtype in HALF:
            raise RuntimeError(
                f"{name} learns and has 16 bits ({parameter.dtype}), which swallow most steps of training: a precision "
                "such as bf16-true keeps no weights in 32 bits. Set precision=bf16-mixed, or 32-true."
            )
