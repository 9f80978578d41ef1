"""Tests over seeds and prompts, against scipy's, simulations and numbers worked out by hand."""

import numpy as np
import pytest
from scipy import stats

from rlhf_lightning.evaluation.estimates import Error, Estimate, estimate, holm, pooled_interval
from rlhf_lightning.evaluation.intervals import mean_interval, share_interval


def test_seeds_are_students_test_of_their_means():
    groups = [[0.1, 0.3], [0.4, 0.2], [0.0, 0.5], [0.2, 0.6]]
    found = estimate(groups)
    expected = stats.ttest_1samp([np.mean(group) for group in groups], 0.1)
    assert found.seeds is not None
    assert Estimate(found.value, found.seeds, None, found.seeds).above(0.1) == pytest.approx(expected.pvalue)


def test_prompts_are_clusters_over_the_seeds():
    # The same prompt with both seeds: their mean is one value, as many as there are prompts.
    groups = [[1.0, 0.0, 1.0, 1.0], [1.0, 0.0, 1.0, 0.0]]
    found = estimate(groups)
    assert found.prompts is not None
    assert found.prompts.size == pytest.approx(stats.sem(np.mean(groups, 0)))
    assert found.prompts.freedom == 3
    apart = estimate([[1.0, 0.0, 1.0, 1.0], [1.0, 0.0, 1.0]])
    assert apart.prompts is not None
    assert apart.prompts.freedom == 6


def test_a_question_that_does_not_arise_has_no_weight():
    known, spaced = (
        estimate([[1.0, 0.0, 3.0], [2.0, 2.0, 5.0]]),
        estimate([[1.0, None, 0.0, 3.0], [2.0, None, 2.0, 5.0]]),
    )
    assert spaced == known


def test_an_equivalence_is_two_one_sided_tests():
    values = [0.01, -0.02, 0.015, 0.0, 0.005]
    found = estimate([[value] for value in values])
    expected = max(
        stats.ttest_1samp(values, -0.05, alternative="greater").pvalue,
        stats.ttest_1samp(values, 0.05, alternative="less").pvalue,
    )
    assert found.within(0.05) == pytest.approx(expected)
    assert found.within(0.001) > 0.5
    assert estimate([[0.0], [0.0]]).within(0.01) == 0.0


def test_one_number_says_nothing():
    assert estimate([[0.5]]).above() == estimate([[0.5]]).within(9.0) == 1.0


def test_seeds_and_prompts_both_count_under_the_null():
    """Runs of a seed and answers to a prompt vary together, as much by either: 2.5 of 100 tests of a side are wrong."""
    random = np.random.default_rng(2)
    wrong = []
    for _ in range(2000):
        by_seed, by_prompt = random.normal(0, 0.1, (5, 1)), random.normal(0, 0.1 * 60**0.5 / 5**0.5, (1, 60))
        values = by_seed + by_prompt + random.normal(0, 0.05, (5, 60))
        wrong.append(estimate(values.tolist()).above() < 0.05)
    assert np.mean(wrong) == pytest.approx(0.025, abs=0.008)


def test_a_prompt_that_lacks_in_one_seed_is_still_the_same_in_the_others():
    random = np.random.default_rng(3)
    prompts = random.normal(size=200)
    whole = estimate([prompts.tolist()] * 3)
    keys = [[*range(200)], [*range(199)], [*range(200)]]
    ragged = estimate([prompts.tolist(), prompts[:199].tolist(), prompts.tolist()], keys)
    assert ragged.prompts is not None
    assert whole.prompts is not None
    assert ragged.prompts.size == pytest.approx(whole.prompts.size, rel=0.01)


def test_equal_prompts_are_one_cluster():
    found = estimate([[1.0, 1.0, 0.0, 0.0]], [["a", "a", "b", "b"]])
    assert found.prompts == estimate([[1.0, 0.0]]).prompts


def test_the_detectable_difference_is_found_in_four_of_five_simulated_samples():
    random = np.random.default_rng(0)
    seeds, spread, level = 5, 0.3, 0.01
    shift = Estimate(0.0, None, None, Error(spread / seeds**0.5, seeds - 1)).detectable(level)
    drawn = random.normal(shift, spread, (20_000, seeds))
    found = stats.ttest_1samp(drawn, 0.0, axis=1)
    # The size of the error is that of the population here, so that only the limit's own chance is simulated.
    assert np.mean((found.pvalue < level) & (found.statistic > 0)) == pytest.approx(0.8, abs=0.01)


def test_holm_keeps_the_family_at_its_level():
    random = np.random.default_rng(1)
    wrong = [min(holm(list(random.uniform(size=6)))) < 0.05 for _ in range(4000)]
    assert np.mean(wrong) == pytest.approx(0.05, abs=0.012)
    assert holm([]) == []
    assert holm([0.2, 0.001]) == [0.2, 0.002]


@pytest.mark.parametrize("groups", [[], [[1.0], [None]]])
def test_nothing_is_no_estimate(groups):
    with pytest.raises(ValueError, match="needs at least one group"):
        estimate(groups)


def test_groups_weigh_the_same_whatever_their_size():
    assert pooled_interval([[1.0] * 9, [0.0]])["value"] == 0.5


def test_a_pooled_interval_is_wide_where_seeds_differ():
    random = np.random.default_rng(1)
    alike = [random.normal(0, 1, 200).tolist() for _ in range(5)]
    shifted = [[value + shift for value in group] for group, shift in zip(alike, (-2, -1, 0, 1, 2), strict=True)]
    narrow, wide = pooled_interval(alike), pooled_interval(shifted)
    # The mean of five seeds of variance 2.5: 2.776 * sqrt(2.5 / 5) on each side, by any table of Student's.
    assert wide["high"] - wide["low"] == pytest.approx(2 * 2.776 * (2.5 / 5) ** 0.5, rel=0.1)
    assert narrow["high"] - narrow["low"] < 0.25 * (wide["high"] - wide["low"])


def test_one_group_is_a_mean_over_its_values():
    values = [0.0, 1.0] * 50
    one, plain = pooled_interval([values]), mean_interval(values)
    assert one["value"] == plain["value"]
    assert one["high"] - one["low"] == pytest.approx(plain["high"] - plain["low"], rel=0.15)


def test_one_value_per_group_gives_the_interval_of_student():
    # Mean 2, standard error 1 / sqrt(3); the quantile .975 with two degrees of freedom is 4.3027 in any table.
    interval = pooled_interval([[1.0], [2.0], [3.0]])
    assert interval["value"] == 2.0
    assert interval["high"] - 2 == pytest.approx(4.30265 / 3**0.5, abs=1e-4) == 2 - interval["low"]
    assert pooled_interval([[1.5]]) == {"value": 1.5, "low": 1.5, "high": 1.5}


@pytest.mark.parametrize(("spread", "least"), [(0.0, 0.95), (1.0, 0.92), (2.0, 0.87), (7.0, 0.9)])
def test_three_seeds_cover_the_truth(spread, least):
    """What the page on sweeps says of its intervals; the bootstrap of both covers 97, 95, 86 and 74 of 100."""
    random, hits = np.random.default_rng(0), 0
    for _ in range(1000):
        values = random.normal(random.normal(0, spread / 300**0.5, (3, 1)), 1, (3, 300))
        interval = pooled_interval(values.tolist())
        hits += interval["low"] <= 0 <= interval["high"]
    assert least <= hits / 1000 <= 0.99


def test_pooled_shares_are_no_point_and_no_more_than_all():
    always = [[1.0] * 50] * 3
    assert pooled_interval(always) == {"value": 1.0, "low": 1.0, "high": 1.0}
    assert pooled_interval(always, shares=True) == share_interval([1.0] * 50)
    ties = pooled_interval([[0.5] * 9] * 3, shares=True)
    assert ties == share_interval([0.5] * 9)
    nearly = [[1.0] * 49 + [0.0], [1.0] * 50, [1.0] * 50]
    assert pooled_interval(nearly)["high"] > 1 == pooled_interval(nearly, shares=True)["high"]
    assert pooled_interval([[3.0, 4.0]], shares=True)["high"] > 3.5  # no share after all


def test_nothing_has_no_pooled_mean():
    for groups in ([], [[1.0], []]):
        with pytest.raises(ValueError, match="at least one group, and values in each"):
            pooled_interval(groups)
