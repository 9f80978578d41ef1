"""Pooling, against numbers worked out by hand."""

from collections.abc import Callable

import pytest

from rlhf_lightning.reproduce.measure import (
    Source,
    UndefinedError,
    Values,
    blocks,
    combined,
    joined,
    pooled_estimates,
    pooled_ratio,
    weighted,
    won,
)


def given(*values: float | None) -> Source:
    return lambda seed: list(values)


def test_differences_leave_out_what_is_not_asked() -> None:
    difference: Callable[[int], Values] = combined(lambda a, b: a - b, given(3.0, None, 1.0), given(1.0, 1.0, None))
    assert difference(1) == [2.0, None, None]


def test_wins_count_ties_half() -> None:
    assert won(given(1.0, 2.0, 3.0, None), given(2.0, 2.0, 2.0, 2.0))(1) == [0.0, 0.5, 1.0, None]


def test_items_that_ask_the_same_count_once() -> None:
    assert blocks(given(1.0, 0.0, 1.0, 1.0), 2)(1) == [0.5, 1.0]


def test_tasks_have_equal_weight_whatever_their_size() -> None:
    values = [value for value in joined([given(1.0), given(0.0, 0.0, 0.0)])(1) if value is not None]
    assert sum(values) / len(values) == pytest.approx(0.5)


def test_errors_of_a_difference_add_up() -> None:
    value, error = weighted([(1.0, lambda seed: (0.7, 0.03)), (-1.0, lambda seed: (0.6, 0.04))])(1)
    assert value == pytest.approx(0.1)
    assert error == pytest.approx(0.05)


def test_estimates_of_one_seed_keep_their_interval() -> None:
    found = pooled_estimates([(0.7, 0.01)], resamples=20_000)
    assert found["value"] == pytest.approx(0.7)
    assert found["low"] == pytest.approx(0.7 - 0.0196, abs=1e-3)
    assert found["high"] == pytest.approx(0.7 + 0.0196, abs=1e-3)


def test_a_ratio_is_of_the_means() -> None:
    found = pooled_ratio([[(1.0, 1.0), (0.0, 1.0)], [(1.0, 2.0), (1.0, 2.0)]])
    assert found["value"] == pytest.approx(0.75 / 1.5)
    assert found["low"] < 0.5 < found["high"]
    with pytest.raises(UndefinedError, match="multiple of nothing"):
        pooled_ratio([[(1.0, 0.0)]])
