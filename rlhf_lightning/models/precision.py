"""In how many bits numbers are computed."""

from collections.abc import Mapping
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import nn

_TRUE = {"bf16-true": torch.bfloat16, "16-true": torch.float16, "64-true": torch.float64, "64": torch.float64}
_MIXED = {"bf16-mixed": torch.bfloat16, "bf16": torch.bfloat16, "16-mixed": torch.float16, "16": torch.float16}


def compute_dtype(device: torch.device, dtype: torch.dtype) -> torch.dtype:
    """The type in which matrix products of numbers of that type run: autocast's, where that is on."""
    return torch.get_autocast_dtype(device.type) if torch.is_autocast_enabled(device.type) else dtype


def is_exact(module: nn.Module) -> bool:
    """Whether a module computes in 32 bits at least, so that two ways to the same number agree closely."""
    parameter = next(module.parameters())
    return compute_dtype(parameter.device, parameter.dtype) in (torch.float32, torch.float64)


def trainer_dtypes(precision: str | int | None) -> tuple[torch.dtype | None, torch.dtype | None]:
    """Types of the weights and of autocast under a precision of Lightning's Trainer.

    Args:
        precision: The Trainer's argument, such as `bf16-mixed`; None is `32-true`.

    Returns:
        The type that the Trainer gives the weights, or None where it leaves them as they are; and the type of
        autocast, or None where it is off.

    Examples:
        >>> trainer_dtypes("bf16-mixed"), trainer_dtypes("16-true"), trainer_dtypes(None)
        ((None, torch.bfloat16), (torch.float16, None), (None, None))
    """
    name = str(precision or "32-true")
    return _TRUE.get(name), _MIXED.get(name)


def trainer_precision(settings: Mapping[str, Any], device: torch.device) -> AbstractContextManager[None]:
    """Compute as a Trainer does where models score or sample without one.

    Args:
        settings: The Trainer's arguments; a mixed `precision` alone makes a difference.
        device: Where the models are.
    """
    mixed = trainer_dtypes(settings.get("precision"))[1]
    return nullcontext() if mixed is None else torch.autocast(device.type, mixed)
