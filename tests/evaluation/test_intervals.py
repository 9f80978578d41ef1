import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from rlhf_lightning.evaluation.intervals import (
    first_places,
    mean_interval,
    outcome_interval,
    share_interval,
    wins,
)


def test_the_interval_of_two_values():
    # Four equally likely resamples: (0, 0), (0, 1), (1, 0), (1, 1). Their means are 0, 1/2, 1/2, 1.
    assert mean_interval([0.0, 1.0]) == {"value": 0.5, "low": 0.0, "high": 1.0}


def test_the_width_is_that_of_the_normal_approximation():
    values = [0.0, 1.0] * 200
    interval = mean_interval(values, resamples=4000)
    # sqrt(0.25 / 400) = 0.025, 1.96 of it on each side
    assert interval["value"] == 0.5
    assert interval["high"] - interval["low"] == pytest.approx(2 * 1.96 * 0.025, rel=0.05)


def test_intervals_cover_the_truth():
    random = np.random.default_rng(0)
    hits = 0
    for trial in range(300):
        interval = mean_interval(random.normal(2.0, 3.0, 40).tolist(), resamples=400, seed=trial)
        hits += interval["low"] <= 2.0 <= interval["high"]
    # 95 %, a little less for 40 values; the standard error of the share is 1.3 %
    assert 0.90 <= hits / 300 <= 0.98


def test_clusters_widen_the_interval():
    # Ten prompts of ten pairs that agree: ten values, not a hundred.
    values = [float(n % 2) for n in range(10) for _ in range(10)]
    prompts = [n for n in range(10) for _ in range(10)]
    apart, together = mean_interval(values), mean_interval(values, prompts)
    assert apart["value"] == together["value"] == 0.5
    ratio = (together["high"] - together["low"]) / (apart["high"] - apart["low"])
    assert ratio == pytest.approx(10**0.5, rel=0.15)


def test_clusters_weigh_by_their_size():
    # Resamples of the clusters {1} and {0, 0, 0}: means 1, 0, or 1/4.
    interval = mean_interval([1.0, 0.0, 0.0, 0.0], [5, 9, 9, 9])
    assert interval == {"value": 0.25, "low": 0.0, "high": 1.0}
    assert mean_interval([1.0, 3.0], [0, 0]) == {"value": 2.0, "low": 2.0, "high": 2.0}


@given(st.lists(st.floats(-5, 5), min_size=1, max_size=8), st.integers(0, 9))
def test_an_interval_holds_its_value_or_comes_near(values, seed):
    interval = mean_interval(values, resamples=200, seed=seed)
    assert min(values) - 1e-9 <= interval["low"] <= interval["high"] <= max(values) + 1e-9
    assert interval["value"] == pytest.approx(sum(values) / len(values), abs=1e-9)
    assert mean_interval(values, resamples=200, seed=seed) == interval


def test_wins_with_ties():
    assert wins([1.0, 0.0, 2.0, -1.0], [0.0, 1.0, 2.0, -1.5]) == [1.0, 0.0, 0.5, 1.0]
    scores, others = [0.3, 0.3, -2.0, 5.0], [0.3, 0.4, -3.0, 1.0]
    assert [a + b for a, b in zip(wins(scores, others), wins(others, scores), strict=True)] == [1.0] * 4
    with pytest.raises(ValueError, match="shorter"):
        wins([1.0, 2.0], [1.0])


def test_nothing_has_no_mean():
    with pytest.raises(ValueError, match="a mean needs at least one value"):
        mean_interval([])


@pytest.mark.parametrize(("count", "of"), [(0, 1), (0, 300), (1, 300), (150, 300), (299, 300), (300, 300), (2, 3)])
def test_a_share_has_the_interval_of_wilson(count, of):
    """Against scipy's, and no point where all are alike."""
    found = share_interval([1.0] * count + [0.0] * (of - count))
    expected = stats.binomtest(count, of).proportion_ci(method="wilson")
    assert (found["low"], found["high"]) == pytest.approx((expected.low, expected.high), abs=1e-9)
    assert found["high"] - found["low"] > 0.01


def test_ties_count_half():
    """As many wins and losses, which vary more."""
    assert share_interval([0.5] * 10) == share_interval([1.0] * 5 + [0.0] * 5)
    assert share_interval([1.0, 0.5, 0.5, 0.0]) == share_interval([1.0, 1.0, 0.0, 0.0])


def test_clusters_of_alike_units_count_once():
    alone = share_interval([1.0, 0.0] * 20)
    together = share_interval([value for value in [1.0, 0.0] * 20 for _ in range(9)], [n // 9 for n in range(360)])
    # 40 clusters, of 39 degrees of freedom: wider than 40 units by 2.0227 / 1.95996 and sqrt(40 / 39).
    ratio = (together["high"] - together["low"]) / (alone["high"] - alone["low"])
    assert ratio == pytest.approx(2.0227 / 1.95996 * (40 / 39) ** 0.5, rel=0.01)
    # All right: as many as there are clusters.
    assert share_interval([1.0] * 72, [n // 9 for n in range(72)]) == share_interval([1.0] * 8)
    assert share_interval([1.0, 0.0], [7, 7]) == {"value": 0.5, "low": 0.0, "high": 1.0}
    assert share_interval([1.0, 0.0, 1.0], [3, 1, 2]) == share_interval([1.0, 0.0, 1.0])


@pytest.mark.parametrize(("chance", "spread"), [(0.7, 0.2), (0.97, 0.02), (0.5, 0.0)])
def test_intervals_of_clustered_shares_cover_the_truth(chance, spread):
    """72 prompts with ten rankings each, of which each prompt has a chance of its own."""
    random, hits = np.random.default_rng(0), 0
    for _ in range(400):
        own = np.clip(random.normal(chance, spread, 72), 2 * chance - 1, 1)  # symmetric, so that the mean stays
        own = np.clip(own, 0, 1)
        values = random.binomial(1, own.repeat(10)).astype(float).tolist()
        interval = share_interval(values, [n // 10 for n in range(720)])
        hits += interval["low"] <= chance <= interval["high"]
    assert 0.92 <= hits / 400 <= 0.985


def test_flags_are_told_from_other_numbers():
    assert outcome_interval([1.0, 1.0]) == share_interval([1.0, 1.0])
    assert outcome_interval([0.5, 0.5]) == share_interval([0.5, 0.5])  # no point
    assert outcome_interval([2.0, 2.0]) == {"value": 2.0, "low": 2.0, "high": 2.0}
    assert outcome_interval([1.0, 0.0, 1.0], [0, 0, 1]) == share_interval([1.0, 0.0, 1.0], [0, 0, 1])
    assert first_places(["b", "a", "b", "c", "a"]) == [0, 1, 0, 3, 1]


def test_what_is_no_share_is_refused():
    with pytest.raises(ValueError, match="at least one value"):
        share_interval([])
    with pytest.raises(ValueError, match=r"between 0 and 1, got 0 \.\. 2"):
        share_interval([0.0, 2.0])
