"""The win rate at equal lengths, beside a second fit of the same regression and cases worked out by hand."""

import numpy as np
import pytest
from scipy.optimize import minimize
from scipy.special import expit

from rlhf_lightning.evaluation.intervals import share_interval
from rlhf_lightning.evaluation.length_control import PRIOR, length_controlled_win_rate

LENGTHS = [12, -3, 7, 0, 5, 9, -8, 4, 15, -2, 6, 3]
WON = [1, 0, 0.5, 1, 1, 0, 0, 1, 1, 1, 0, 0.5]


def test_the_rate_is_that_of_a_fit_by_another_algorithm():
    x = np.tanh(np.array(LENGTHS) / np.std(LENGTHS))

    def loss(parameters):
        predicted = expit(parameters[0] + parameters[1] * x)
        likelihood = np.array(WON) * np.log(predicted) + (1 - np.array(WON)) * np.log(1 - predicted)
        return -likelihood.sum() + parameters[1] ** 2 / (2 * PRIOR**2)

    fitted = minimize(loss, [0.0, 0.0], method="Nelder-Mead", options={"xatol": 1e-9, "fatol": 1e-12}).x
    found = length_controlled_win_rate(WON, LENGTHS)
    assert found["value"] == pytest.approx(expit(fitted[0]), abs=1e-5)
    assert found["low"] < found["value"] < found["high"]


def test_a_preference_for_length_alone_leaves_one_half():
    """The policy is longer on 4 of 5 prompts, and the longer response wins 9 of 10: it wins 74 % and is no better."""
    won = [1, 1, 1, 1, 1, 1, 1, 1, 1, 0] * 80 + [0, 0, 0, 0, 0, 0, 0, 0, 0, 1] * 20
    lengths = [10] * 800 + [-10] * 200
    assert sum(won) / len(won) == 0.74
    found = length_controlled_win_rate(won, lengths)
    assert found["value"] == pytest.approx(0.5, abs=0.01)
    assert found["low"] < 0.5 < found["high"]
    assert share_interval(won)["low"] > 0.7


def test_what_length_does_not_explain_stays():
    """Longer and shorter responses both win 3 of 4; so does, in its interval, the plain rate."""
    won, lengths = [1, 1, 1, 0] * 100, [4, 4, 4, 4, -4, -4, -4, -4] * 50
    found = length_controlled_win_rate(won, lengths)
    assert found["value"] == pytest.approx(0.75, abs=1e-6)
    # By the normal distribution: 1.96 * sqrt(.75 * .25 / 400).
    assert found["high"] - found["low"] == pytest.approx(2 * 0.0424, abs=0.01)


def test_equal_lengths_and_clear_wins_are_the_plain_rate():
    equal = length_controlled_win_rate([1, 1, 0, 1], [0] * 4)
    assert equal["value"] == pytest.approx(0.75, abs=1e-5)
    assert length_controlled_win_rate([1.0] * 5, [1, 2, 3, 4, 5]) == share_interval([1.0] * 5)
    # Ties are half won: Wilson's interval of 4 wins and 4 losses in 8, 1 / (1 + 1.96^2 / 8) around one half.
    ties = length_controlled_win_rate([0.5] * 8, [1, 2, 3, 4, 5, 6, 7, 8])
    assert ties == {"value": 0.5, "low": pytest.approx(0.2152, abs=1e-4), "high": pytest.approx(0.7848, abs=1e-4)}


def test_one_prompt_tells_nothing():
    """Every resample is the same."""
    found = length_controlled_win_rate([1, 0, 1, 1], [3, -1, 2, 5], [0] * 4)
    assert (found["low"], found["high"]) == (0.0, 1.0)
    found = length_controlled_win_rate([1, 0, 1, 0], [3, -1, 3, -1], [0, 0, 1, 1])
    assert found["low"] < 0.1
    assert found["high"] > 0.9


def test_rows_that_share_a_prompt_are_drawn_together():
    apart, together = (
        length_controlled_win_rate(WON * 4, LENGTHS * 4, clusters) for clusters in (None, [*range(12)] * 4)
    )
    assert apart["value"] == together["value"]
    assert together["high"] - together["low"] > 1.5 * (apart["high"] - apart["low"])


def test_a_difference_is_needed_for_each_outcome():
    for won, lengths in (([], []), ([1.0], [])):
        with pytest.raises(ValueError, match="need a difference of lengths each"):
            length_controlled_win_rate(won, lengths)
