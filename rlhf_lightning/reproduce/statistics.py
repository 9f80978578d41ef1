"""Whether a mean over seeds and prompts is above a number, or equal to it within a margin."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TypeAlias

import numpy as np
from scipy import optimize, stats

from rlhf_lightning.evaluation.intervals import Interval

Values: TypeAlias = Sequence[float | None]
"""One value per prompt, None where the question does not arise."""
LEVEL = 0.05
"""How often all checks of a claim together may be wrong."""
POWER = 0.8


@dataclass(frozen=True)
class Error:
    """The standard error of a mean, of one cause.

    Args:
        size: The standard error.
        freedom: Its degrees of freedom.
    """

    size: float
    freedom: int

    def above(self, distance: float) -> float:
        """The one-sided p-value of a mean that lies so far above a number."""
        if self.size == 0:
            return float(distance <= 0)
        return float(stats.t.sf(distance / self.size, self.freedom))

    def half(self, share: float = 0.95) -> float:
        """Half of the width of a confidence interval."""
        return float(stats.t.ppf((1 + share) / 2, self.freedom)) * self.size


@dataclass(frozen=True)
class Estimate:
    """A mean over seeds, with what chance adds to it by the seeds and by the prompts.

    Both stand alone: the runs of one seed vary together, and so do the answers to one prompt. A test is passed where
    each of the two passes it.

    Args:
        value: The mean, every seed alike.
        seeds: The error by seeds, Student's; None with one seed.
        prompts: The error by prompts, the same prompt of all seeds together; None with one value per seed.
    """

    value: float
    seeds: Error | None
    prompts: Error | None

    @property
    def errors(self) -> list[Error]:
        """Those that are known."""
        return [error for error in (self.seeds, self.prompts) if error is not None]

    def interval(self, error: Error | None) -> Interval | None:
        """The 95 % confidence interval of one cause."""
        half = None if error is None else error.half()
        return None if half is None else {"value": self.value, "low": self.value - half, "high": self.value + half}

    def above(self, number: float = 0.0) -> float:
        """The two-sided p-value that the mean lies above a number; 1 where it lies below."""
        one_sided = max((error.above(self.value - number) for error in self.errors), default=1.0)
        return min(1.0, 2 * one_sided)

    def below(self, number: float = 0.0) -> float:
        """The two-sided p-value that the mean lies below a number; 1 where it lies above."""
        return replace(self, value=-self.value).above(-number)

    def within(self, margin: float) -> float:
        """The p-value that the mean lies less than a margin from 0, by two one-sided tests."""
        distances = (margin - self.value, margin + self.value)
        return max((error.above(each) for error in self.errors for each in distances), default=1.0)

    def detectable(self, level: float) -> float:
        """The difference that such a sample of seeds shows in 80 of 100 cases, at a two-sided level.

        Args:
            level: The level of the test; that of a claim divided by its number of checks is on the safe side.
        """
        return max((_detectable(error, level) for error in self.errors), default=float("inf"))


def estimate(groups: Sequence[Values]) -> Estimate:
    """The mean over groups of equal weight, and its errors.

    Args:
        groups: The values of each seed. Where all have as many they are about the same prompts, in the same order.

    Raises:
        ValueError: When there is no group, or one without a value.

    Examples:
        >>> found = estimate([[1.0, 2.0], [2.0, 3.0], [3.0, 4.0]])
        >>> found.value, round(found.seeds.size, 4), found.seeds.freedom
        (2.5, 0.5774, 2)
        >>> round(found.prompts.size, 4), found.prompts.freedom
        (0.5, 1)
    """
    if not groups or any(all(value is None for value in group) for group in groups):
        raise ValueError("an estimate needs at least one group, and values in each.")
    arrays = [np.asarray([np.nan if value is None else value for value in group], dtype=float) for group in groups]
    means = np.asarray([np.nanmean(array) for array in arrays])
    seeds = Error(float(means.std(ddof=1) / len(means) ** 0.5), len(means) - 1) if len(means) > 1 else None
    # What each value adds to the mean of its seed, and to the whole: of a prompt they add up over the seeds.
    parts = [
        np.nan_to_num(array - mean) / np.count_nonzero(~np.isnan(array)) / len(arrays)
        for array, mean in zip(arrays, means, strict=True)
    ]
    same = len({len(part) for part in parts}) == 1
    influence = np.sum(parts, 0) if same else np.concatenate(parts)
    known = np.any([~np.isnan(array) for array in arrays], 0) if same else ~np.isnan(np.concatenate(arrays))
    count = int(known.sum())
    if count < 2 or all(np.count_nonzero(~np.isnan(array)) == 1 for array in arrays):
        prompts = None
    else:
        prompts = Error(float(np.sqrt(np.square(influence).sum() * count / (count - 1))), count - 1)
    return Estimate(float(means.mean()), seeds, prompts)


def holm(p_values: Sequence[float]) -> list[float]:
    """P-values for which one limit holds all of them together.

    Source: Holm, "A simple sequentially rejective multiple test procedure" (1979).

    Args:
        p_values: Those of single tests, in [0, 1].

    Examples:
        >>> [round(p, 3) for p in holm([0.01, 0.04, 0.03])]
        [0.03, 0.06, 0.06]
    """
    order = np.argsort(p_values, kind="stable")
    adjusted, largest = [0.0] * len(p_values), 0.0
    for place, index in enumerate(order):
        largest = max(largest, min(1.0, (len(p_values) - place) * p_values[index]))
        adjusted[index] = largest
    return adjusted


def _detectable(error: Error, level: float) -> float:
    """The true difference at which Student's test rejects with `POWER`."""
    if error.size == 0:
        return 0.0
    limit = float(stats.t.ppf(1 - level / 2, error.freedom))

    def lacking(shift: float) -> float:
        return float(stats.nct.sf(limit, error.freedom, shift)) - POWER

    return float(optimize.brentq(lacking, 0.0, 10 * limit + 20)) * error.size
