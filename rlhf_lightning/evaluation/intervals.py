"""Means and shares with 95 % intervals."""

from collections.abc import Sequence
from typing import TypedDict

import numpy as np


class Interval(TypedDict):
    """A measured value and its 95 % confidence interval."""

    value: float
    low: float
    high: float


def mean_interval(
    values: Sequence[float], clusters: Sequence[int] | None = None, resamples: int = 2000, seed: int = 0
) -> Interval:
    """Mean with a 95 % percentile-bootstrap interval.

    Args:
        values: One per unit, such as a prompt.
        clusters: Units with the same number are drawn together (the pairs of one prompt, the prompts of one seed).
        resamples: Bootstrap samples.
        seed: Of the bootstrap.

    Raises:
        ValueError: When there are no values.

    Example:
        >>> mean_interval([1.0, 1.0, 1.0])
        {'value': 1.0, 'low': 1.0, 'high': 1.0}
    """
    if len(values) == 0:
        raise ValueError("a mean needs at least one value.")
    array = np.asarray(values, dtype=float)
    _, index = np.unique(np.arange(len(array)) if clusters is None else np.asarray(clusters), return_inverse=True)
    sums, counts = np.bincount(index, array), np.bincount(index)
    drawn = np.random.default_rng(seed).integers(len(sums), size=(resamples, len(sums)))
    means = sums[drawn].sum(1) / counts[drawn].sum(1)
    low, high = np.percentile(means, [2.5, 97.5])
    return {"value": float(array.mean()), "low": float(low), "high": float(high)}


def pooled_interval(groups: Sequence[Sequence[float]], resamples: int = 2000, seed: int = 0) -> Interval:
    """Mean over groups of equal weight, with a 95 % bootstrap interval over groups and over the values in each.

    Args:
        groups: One list per seed, such as the wins on every prompt.
        resamples: Bootstrap samples.
        seed: Of the bootstrap.

    Raises:
        ValueError: When there is no group or an empty one.

    Example:
        >>> pooled_interval([[1.0, 1.0], [1.0]])
        {'value': 1.0, 'low': 1.0, 'high': 1.0}
    """
    if not groups or any(len(group) == 0 for group in groups):
        raise ValueError("a pooled mean needs at least one group, and values in each.")
    random = np.random.default_rng(seed)
    arrays = [np.asarray(group, dtype=float) for group in groups]
    # Means of resampled values, one column per group; then groups are drawn too.
    means = np.stack([random.choice(array, (resamples, len(array))).mean(1) for array in arrays], 1)
    drawn = random.integers(len(arrays), size=means.shape)
    low, high = np.percentile(np.take_along_axis(means, drawn, 1).mean(1), [2.5, 97.5])
    return {"value": float(np.mean([array.mean() for array in arrays])), "low": float(low), "high": float(high)}


def wins(scores: Sequence[float], baseline: Sequence[float]) -> list[float]:
    """1 where a score beats the baseline's for the same prompt, 0 where it loses, one half where they are equal.

    Example:
        >>> wins([2.0, 1.0, 0.0], [1.0, 1.0, 1.0])
        [1.0, 0.5, 0.0]
    """
    return [float(a > b) + 0.5 * float(a == b) for a, b in zip(scores, baseline, strict=True)]
