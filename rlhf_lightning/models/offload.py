"""Frozen models wait in the CPU's memory while the policy learns."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn

from rlhf_lightning.models.lora import has_adapters


def offload(*models: Any) -> None:
    """Move models to the CPU; those with adapters stay, for they are the ones that learn."""
    for model in _movable(models):
        model.to("cpu")


@contextmanager
def on_device_within(device: torch.device, *models: Any) -> Iterator[None]:
    """Models on the device within the block, and back on the CPU after it."""
    for model in _movable(models):
        model.to(device)
    try:
        yield
    finally:
        offload(*models)


def _movable(models: tuple[Any, ...]) -> list[nn.Module]:
    return [model for model in models if isinstance(model, nn.Module) and not has_adapters(model)]
