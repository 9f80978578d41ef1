"""The ranges of PPO's arguments."""

import math
from collections.abc import Mapping
from typing import Any

_RANGES = {
    "(0, inf)": "temperature clip_range value_clip_range stop_kl max_grad_norm kl_target kl_horizon score_scale",
    "[1, inf)": "max_new_tokens num_minibatches num_ppo_epochs micro_batch_size",
    "[0, inf)": "kl_coef ptx_coef missing_eos_penalty",
    "[0, 1]": "discount gae_lambda",
    "[0, 1)": "ema_decay",
}
_MAY_BE_NONE = "micro_batch_size value_clip_range stop_kl max_grad_norm kl_target missing_eos_penalty ema_decay"


def check_arguments(values: Mapping[str, Any]) -> None:
    """Refuse arguments of PPO that are out of their range.

    Args:
        values: The arguments by name.

    Raises:
        ValueError: Naming the first one, its value and its range.
    """
    for interval, names in _RANGES.items():
        low, high = map(float, interval[1:-1].split(", "))
        for name in names.split():
            value, whole = values[name], low == 1
            if value is None and name in _MAY_BE_NONE.split():
                continue
            number = isinstance(value, int if whole else (int, float)) and math.isfinite(value)
            closed = (interval[0] == "[" and value == low) or (interval[-1] == "]" and value == high)
            if not number or not (low < value < high or closed):
                more = " and whole" * whole + ", or None" * (name in _MAY_BE_NONE.split())
                raise ValueError(f"{name} must be in {interval}{more}, got {value!r}.")
