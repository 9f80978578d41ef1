"""The win rate that is left when the length of the responses is taken out."""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from scipy.special import expit

from rlhf_lightning.evaluation.intervals import Interval, bootstrap_counts, share_interval

PRIOR = 2.5
"""Standard deviation of the slope's normal prior, which keeps it finite where length alone tells all wins from losses
(Gelman et al., "A weakly informative default prior distribution for logistic regression", 2008)."""
_RIDGE, _LARGEST_STEP, _MOST_STEPS = 1e-6, 2.0, 60
Array = NDArray[np.float64]


def length_controlled_win_rate(
    outcomes: Sequence[float],
    differences: Sequence[float],
    clusters: Sequence[int] | None = None,
    resamples: int = 1000,
    seed: int = 0,
) -> Interval:
    """What a policy would win if its responses were as long as the baseline's.

    A logistic regression of the outcome on the difference of lengths d, with an intercept for the policy:

        `P(win) = sigmoid(intercept + slope * tanh(d / std(d)))`

    The rate is `sigmoid(intercept)`, the prediction for d = 0. A tie counts as half a win and half a loss. The slope
    has a weak prior (`PRIOR`). The interval is a percentile bootstrap over prompts; where all outcomes are the same the
    rate is that of `share_interval`, and where every resample gives the same the interval reaches as far as that one.

    Source: Dubois et al., "Length-controlled AlpacaEval" (2024), equation 2, without its term for how hard each
    instruction is, which only a regression over many models together can tell.

    Args:
        outcomes: 1 for a win, 0 for a loss, one half for a tie, per prompt.
        differences: Length of the policy's response minus that of the baseline's, in tokens.
        clusters: The number of each prompt, as in `mean_interval`.
        resamples: Number of bootstrap samples.
        seed: Seed of the bootstrap.

    Raises:
        ValueError: When there are no outcomes, or not a difference for each.

    Examples:
        >>> won = [1, 1, 1, 0] * 40 + [1, 0, 0, 0] * 20  # the longer one wins 3 of 4, on either side
        >>> lengths = [5] * 160 + [-5] * 80
        >>> sum(won) / 240, round(length_controlled_win_rate(won, lengths)["value"], 2)
        (0.5833333333333334, 0.5)
    """
    won, lengths = np.asarray(outcomes, dtype=float), np.asarray(differences, dtype=float)
    if len(won) == 0 or len(won) != len(lengths):
        raise ValueError(
            f"{len(won)} outcomes need a difference of lengths each, and one at least: got {len(lengths)}."
        )
    plain = share_interval(outcomes, clusters)
    if won.min() == won.max():
        return plain
    distinct, place = np.unique(lengths, return_inverse=True)
    spread = float(lengths.std())
    x = np.tanh(distinct / spread) if spread else np.zeros(len(distinct))
    _, cluster = np.unique(np.arange(len(won)) if clusters is None else np.asarray(clusters), return_inverse=True)
    number = int(cluster.max()) + 1
    count, wins = np.zeros((2, number, len(distinct)))
    np.add.at(count, (cluster, place), 1.0)
    np.add.at(wins, (cluster, place), won)
    drawn = bootstrap_counts(number, resamples, seed)
    value = float(_rates(count.sum(0, keepdims=True), wins.sum(0, keepdims=True), x)[0])
    low, high = map(float, np.percentile(_rates(drawn @ count, drawn @ wins, x), [2.5, 97.5]))
    if high - low < _RIDGE:
        low, high = min(value, plain["low"]), max(value, plain["high"])
    return {"value": value, "low": low, "high": high}


def _rates(count: Array, wins: Array, x: Array) -> Array:
    """The rate at equal lengths for each row of counts, by Newton's method."""
    intercept, slope = np.zeros((2, len(count), 1))
    for _ in range(_MOST_STEPS):
        predicted = expit(intercept + slope * x)
        left, weight = wins - count * predicted, count * predicted * (1 - predicted)
        gradients = (
            left.sum(1, keepdims=True) - _RIDGE * intercept,
            (left * x).sum(1, keepdims=True) - slope / PRIOR**2,
        )
        a, b, c = ((weight * power).sum(1, keepdims=True) for power in (1.0, x, x * x))
        a, c = a + _RIDGE, c + PRIOR**-2
        determinant = a * c - b * b
        steps = (
            (c * gradients[0] - b * gradients[1]) / determinant,
            (a * gradients[1] - b * gradients[0]) / determinant,
        )
        intercept = intercept + np.clip(steps[0], -_LARGEST_STEP, _LARGEST_STEP)
        slope = slope + np.clip(steps[1], -_LARGEST_STEP, _LARGEST_STEP)
        if max(float(abs(step).max()) for step in steps) < 1e-9:
            break
    rates: Array = expit(intercept)[:, 0]
    return rates
