"""Weights that learn have 32 bits: a step of training is smaller than the distance between two numbers of 16 bits."""

import torch
from torch import nn

from rlhf_lightning.models.lora import has_adapters, trainable_parameters

HALF = (torch.bfloat16, torch.float16)


def widen_learned(*models: nn.Module) -> None:
    """Give models that learn weights in 32 bits; beside adapters the frozen weights stay as they are.

    Args:
        models: Models of which some weights learn, changed in place.
    """
    for model in models:
        learned = [parameter for parameter in trainable_parameters(model) if parameter.dtype in HALF]
        if learned and not has_adapters(model):
            model.float()
        for parameter in learned:
            parameter.data = parameter.data.float()


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
