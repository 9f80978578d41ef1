"""Pooling, against numbers worked out by hand."""

import pytest

from rlhf_lightning.reproduce.measure import (
    Source,
    UndefinedError,
    blocks,
    combined,
    joined,
    pooled_ratio,
    won,
)


def given(*values: float | None) -> Source:
    return Source(lambda seed: list(values))


def test_differences_leave_out_what_is_not_asked() -> None:
    difference = combined(lambda a, b: a - b, given(3.0, None, 1.0), given(1.0, 1.0, None))
    assert difference(1) == [2.0, None, None]


def test_wins_count_ties_half() -> None:
    assert won(given(1.0, 2.0, 3.0, None), given(2.0, 2.0, 2.0, 2.0))(1) == [0.0, 0.5, 1.0, None]


def test_items_that_ask_the_same_count_once() -> None:
    assert blocks(given(1.0, 0.0, 1.0, 1.0), 2)(1) == [0.5, 1.0]


def test_tasks_have_equal_weight_whatever_their_size() -> None:
    parts = [given(1.0, None, None, None), given(None, 0.0, 0.0, 0.0)]
    values = [value for value in joined(parts)(1) if value is not None]
    assert sum(values) / len(values) == pytest.approx(0.5)


def test_a_ratio_is_of_the_means() -> None:
    found = pooled_ratio([[(1.0, 1.0), (0.0, 1.0)], [(1.0, 2.0), (1.0, 2.0)]])
    assert found["value"] == pytest.approx(0.75 / 1.5)
    assert found["low"] < 0.5 < found["high"]
    with pytest.raises(UndefinedError, match="multiple of nothing"):
        pooled_ratio([[(1.0, 0.0)]])
