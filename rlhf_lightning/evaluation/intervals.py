"""Means and shares with 95 % intervals."""

from collections.abc import Callable, Hashable, Sequence
from functools import lru_cache
from typing import TypedDict

import numpy as np
from numpy.typing import NDArray
from scipy.special import ndtri, stdtrit


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
        values: One number per unit, such as a prompt.
        clusters: The number of each unit's cluster; a cluster is drawn as a whole (the pairs of one prompt, the prompts
            of one seed).
        resamples: Number of bootstrap samples.
        seed: Seed of the bootstrap.

    Raises:
        ValueError: When there are no values.

    Examples:
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


@lru_cache(maxsize=1)
def bootstrap_counts(number: int, resamples: int, seed: int) -> NDArray[np.float64]:
    """How often each of so many units is in each bootstrap sample; many statistics of the same units ask for it.

    Args:
        number: Number of units.
        resamples: Number of bootstrap samples.
        seed: Seed of the bootstrap.
    """
    return np.random.default_rng(seed).multinomial(number, np.full(number, 1 / number), size=resamples).astype(float)


def share_interval(values: Sequence[float], clusters: Sequence[int] | None = None) -> Interval:
    """Share of units with a property, with Wilson's 95 % interval, which is no point where all or none have it.

    Values of one half, such as ties among wins, count half: the interval is that of as many wins and losses, which vary
    more, so it is wider than need be. Clusters enter by the number of independent units that would leave the share as
    uncertain: the clusters themselves where all units are alike, never more than there are units.

    Source: Wilson, "Probable inference" (1927); for clusters Korn and Graubard, "Confidence intervals for proportions
    with small expected number of positive counts estimated from survey data" (1998).

    Args:
        values: One number in [0, 1] per unit: 1 where it has the property, 0 where it has not.
        clusters: The number of each unit's cluster, as in `mean_interval`.

    Raises:
        ValueError: When there are no values, or one is outside of [0, 1].

    Examples:
        >>> {name: round(end, 3) for name, end in share_interval([1.0] * 100).items()}
        {'value': 1.0, 'low': 0.963, 'high': 1.0}
    """
    if len(values) == 0:
        raise ValueError("a share needs at least one value.")
    array = np.asarray(values, dtype=float)
    if array.min() < 0 or array.max() > 1:
        raise ValueError(f"a share is of values between 0 and 1, got {array.min():g} .. {array.max():g}.")
    share, count, z = float(array.mean()), float(len(array)), float(ndtri(0.975))
    _, index = np.unique(np.arange(len(array)) if clusters is None else np.asarray(clusters), return_inverse=True)
    number = int(index.max()) + 1
    if array.min() == array.max():
        count = float(number)
    elif 1 < number < len(array):
        # The deviations of a cluster add up before they are squared.
        variance = np.square(np.bincount(index, array - share)).sum() / count**2 * number / (number - 1)
        count = min(count, share * (1 - share) / max(float(variance), 1e-12))
        count *= float(z / stdtrit(number - 1, 0.975)) ** 2
    elif number == 1:
        return {"value": share, "low": 0.0, "high": 1.0}
    middle = (share + z**2 / (2 * count)) / (1 + z**2 / count)
    half = z / (1 + z**2 / count) * float(np.sqrt(share * (1 - share) / count + z**2 / (4 * count**2)))
    low, high = max(0.0, min(share, middle - half)), min(1.0, max(share, middle + half))
    return {"value": share, "low": low, "high": high}


def outcome_interval(values: Sequence[float], clusters: Sequence[int] | None = None) -> Interval:
    """`share_interval` where every value is 0, 1 or one half, or all are the same part of 1; else `mean_interval`.

    The arguments are as those; a bootstrap of equal values would be a point.
    """
    alike = len({*values}) == 1 and 0 <= values[0] <= 1
    return (share_interval if alike or {*values} <= {0.0, 0.5, 1.0} else mean_interval)(values, clusters)


def known_interval(
    values: Sequence[float | None],
    clusters: Sequence[int] | None = None,
    interval: Callable[[Sequence[float], Sequence[int] | None], Interval] = outcome_interval,
) -> Interval | None:
    """An interval of those values that are known; None where none is."""
    places = [place for place, value in enumerate(values) if value is not None]
    known = [float(value) for value in values if value is not None]
    return interval(known, None if clusters is None else [clusters[place] for place in places]) if known else None


def first_places(items: Sequence[Hashable]) -> list[int]:
    """For each item the place where it stands first: the clusters of rows that share a prompt.

    Examples:
        >>> first_places(["a", "b", "a"])
        [0, 1, 0]
    """
    places: dict[Hashable, int] = {}
    return [places.setdefault(item, place) for place, item in enumerate(items)]


def pooled_means(
    groups: Sequence[Sequence[float] | Sequence[Sequence[float]]], resamples: int, seed: int
) -> NDArray[np.float64]:
    """Means of bootstrap samples that draw groups, and values in each group.

    Where all groups have as many values they are about the same items, such as the prompts of the test: then each
    sample draws its items once for all groups. Drawing them anew for each would count the same prompts several times
    and make intervals too narrow.

    Args:
        groups: One list per seed, of numbers or of rows of numbers.
        resamples: Number of bootstrap samples.
        seed: Seed of the bootstrap.

    Returns:
        Shape `(resamples,)`, or `(resamples, columns)` for rows.
    """
    random = np.random.default_rng(seed)
    arrays = [np.asarray(group, dtype=float) for group in groups]
    same = len({len(array) for array in arrays}) == 1
    drawn = [random.integers(len(array), size=(resamples, len(array))) for array in (arrays[:1] if same else arrays)]
    means = np.stack([array[drawn[0 if same else place]].mean(1) for place, array in enumerate(arrays)], 1)
    chosen = random.integers(len(arrays), size=(resamples, len(arrays)))
    pooled: NDArray[np.float64] = means[np.arange(resamples)[:, None], chosen].mean(1)
    return pooled


def wins(scores: Sequence[float], baseline: Sequence[float]) -> list[float]:
    """1 where a score beats the baseline's for the same prompt, 0 where it loses, one half where they are equal.

    Examples:
        >>> wins([2.0, 1.0, 0.0], [1.0, 1.0, 1.0])
        [1.0, 0.5, 0.0]
    """
    return [float(a > b) + 0.5 * float(a == b) for a, b in zip(scores, baseline, strict=True)]
