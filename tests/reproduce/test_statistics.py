"""Tests over seeds and prompts, against scipy's, simulations and numbers worked out by hand."""

import numpy as np
import pytest
from scipy import stats

from rlhf_lightning.reproduce.statistics import Error, Estimate, estimate, holm


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
