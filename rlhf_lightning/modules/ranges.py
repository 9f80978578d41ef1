"""The ranges of PPO's arguments."""

import math
from collections.abc import Callable, Mapping
from typing import Any

from torch.optim import Optimizer

_RANGES: tuple[tuple[str, Callable[[Any], bool], tuple[str, ...]], ...] = (
    (
        "a whole number above 0",
        lambda value: isinstance(value, int) and value > 0,
        ("max_new_tokens", "num_minibatches", "num_ppo_epochs", "micro_batch_size"),
    ),
    (
        "above 0",
        lambda value: value > 0,
        (
            *("temperature", "clip_range", "value_clip_range", "stop_kl"),
            *("max_grad_norm", "kl_target", "kl_horizon", "score_scale"),
        ),
    ),
    ("0 or above", lambda value: value >= 0, ("kl_coef", "ptx_coef", "missing_eos_penalty")),
    ("from 0 to 1", lambda value: 0 <= value <= 1, ("discount", "gae_lambda")),
    ("from 0 to below 1", lambda value: 0 <= value < 1, ("ema_decay",)),
)
_MAY_BE_NONE = {"micro_batch_size", "value_clip_range", "stop_kl", "max_grad_norm", "kl_target", "missing_eos_penalty"}
_MAY_BE_NONE.add("ema_decay")


def check_ranges(values: Mapping[str, Any]) -> None:
    """Refuse arguments of PPO that are out of their range.

    Args:
        values: The arguments by name; others than those of the table are not looked at.

    Raises:
        ValueError: Naming the first one, its value and its range.
    """
    for words, fits, names in _RANGES:
        for name in names:
            value = values[name]
            if value is None and name in _MAY_BE_NONE:
                continue
            if not isinstance(value, (int, float)) or not math.isfinite(value) or not fits(value):
                none = ", or None" if name in _MAY_BE_NONE else ""
                raise ValueError(f"{name} must be {words}{none}, got {value!r}.")


def check_factories(**factories: Any) -> None:
    """Refuse optimizers that are built already: their parameters would be others than those that learn.

    Args:
        factories: What was given for each argument.

    Raises:
        ValueError: Naming the argument and the remedy.
    """
    for name, factory in factories.items():
        if isinstance(factory, Optimizer) or not callable(factory):
            kind = type(factory).__name__
            raise ValueError(
                f"{name} must be a factory, which makes an optimizer of parameters, got a {kind}. Give "
                f"functools.partial(torch.optim.{kind if isinstance(factory, Optimizer) else 'Adam'}, lr=...)."
            )
