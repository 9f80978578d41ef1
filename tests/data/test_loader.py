import itertools

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from rlhf_lightning.data.loader import ResumableBatches, ResumableLoader


def batches(size=10, batch_size=4, seed=0, shuffle=True, num_batches=None, position=0):
    order = ResumableBatches(size, batch_size, seed, shuffle, num_batches)
    order.position = position
    return order


def loader(**changes):
    options = {"batch_size": 3, "seed": 4, "shuffle": True, **changes}
    return ResumableLoader(list(range(10)), list, **options)


def rows_of(loader, passes=1):
    return [rows for _ in range(passes) for rows in loader]


def test_without_shuffling_rows_come_as_they_are():
    assert list(batches(shuffle=False)) == [[0, 1, 2, 3], [4, 5, 6, 7], [8, 9]]
    assert len(batches()) == 3


@given(st.integers(1, 20), st.integers(1, 7), st.integers(0, 10**9), st.integers(0, 5))
def test_a_pass_holds_every_row_once(size, batch_size, seed, number):
    order = batches(size, batch_size, seed)
    order.position = number * len(order)
    rows = list(order)
    assert sorted(itertools.chain(*rows)) == list(range(size))
    assert [len(batch) for batch in rows[:-1]] == [batch_size] * (len(rows) - 1)


def test_the_order_is_drawn_anew_for_every_seed_and_pass():
    orders = [
        tuple(itertools.chain(*batches(50, seed=seed, position=13 * number))) for seed in (0, 1) for number in (0, 1)
    ]
    assert len(set(orders)) == 4
    assert tuple(range(50)) not in orders
    assert tuple(itertools.chain(*batches(50, seed=1))) == orders[2]


@pytest.mark.parametrize("num_batches", [None, 4])
@pytest.mark.parametrize("stop", range(8))
def test_a_resumed_order_gives_the_rest(num_batches, stop):
    whole = loader(num_batches=num_batches)
    expected = rows_of(whole, passes=2)  # 4 batches each, of 10 rows or of 12
    assert len(expected) == 8
    assert whole.state_dict()["position"] == 8
    resumed = loader(num_batches=num_batches)
    resumed.load_state_dict({"position": stop})
    assert rows_of(resumed) == expected[stop : 4 * (stop // 4 + 1)]
    if stop < 4:
        assert rows_of(resumed) == expected[4:]


@pytest.mark.parametrize("num_batches", [None, 4])
def test_after_a_pass_that_was_left_early_comes_a_whole_one(num_batches):
    stopped = loader(num_batches=num_batches)
    first = list(itertools.islice(stopped, 3))
    assert first + rows_of(stopped, passes=2) == rows_of(loader(num_batches=num_batches), passes=3)[:11]


def test_position_counts_what_was_handed_out():
    interrupted = loader()
    iterator = iter(interrupted)
    first = [next(iterator), next(iterator)]
    assert interrupted.state_dict()["position"] == 2
    other = loader()
    other.load_state_dict(interrupted.state_dict())
    assert first + rows_of(other) == rows_of(loader())


def test_a_place_in_other_data_is_refused():
    state = {"position": 2, "batch_size": 3, "rows": 12}
    with pytest.raises(ValueError, match=r"2 batches into other data \(rows 12 there, 10 now\)"):
        loader().load_state_dict(state)
    with pytest.raises(ValueError, match=r"batch_size 3 there, 4 now"):
        loader(batch_size=4).load_state_dict({**state, "rows": 10})
    same = loader(seed=5)
    same.batches.position = 1
    with pytest.raises(ValueError, match=r"seed 5 there, 4 now\)"):
        loader().load_state_dict(same.state_dict())
    other = ResumableLoader([*range(9), 11], list, batch_size=3, seed=4, shuffle=True)
    with pytest.raises(ValueError, match=r"into other data \(checksum of rows \d+ there, \d+ now\)"):
        loader().load_state_dict({**other.state_dict(), "position": 1})
    loader(batch_size=4).load_state_dict({**state, "position": 0})  # as a tuner begins anew


@pytest.mark.parametrize(
    ("size", "batch_size", "num_batches", "smallest"), [(9, 8, None, 1), (8, 8, None, 8), (9, 8, 2, 8)]
)
def test_the_smallest_batch(size, batch_size, num_batches, smallest):
    order = batches(size, batch_size, num_batches=num_batches)
    assert order.smallest == min(map(len, order)) == smallest


def test_a_number_of_batches_goes_round_the_data():
    order = batches(5, 2, shuffle=False, num_batches=4)
    assert len(order) == 4
    assert list(order) == [[0, 1], [2, 3], [4, 0], [1, 2]]
    order.position = 4
    assert list(order) == [[3, 4], [0, 1], [2, 3], [4, 0]]
    # Batches larger than the data too.
    assert list(batches(2, 5, shuffle=False, num_batches=1)) == [[0, 1, 0, 1, 0]]


@given(st.integers(1, 9), st.integers(1, 9), st.integers(1, 9))
def test_going_round_every_row_comes_equally_often(size, batch_size, num_batches):
    rows = list(itertools.chain(*batches(size, batch_size, num_batches=num_batches)))
    assert len(rows) == batch_size * num_batches
    for start in range(0, len(rows) - size + 1, size):
        assert sorted(rows[start : start + size]) == list(range(size))


def test_a_worker_changes_nothing():
    alone, helped = loader(), loader(num_workers=1)
    iterator = iter(helped)
    assert next(iterator) == rows_of(alone)[0]
    # The worker is ahead, the position is not.
    assert helped.state_dict()["position"] == 1
    assert list(iterator) == rows_of(loader())[1:]
    assert helped.state_dict()["position"] == 4


def test_the_global_random_state_is_left_alone():
    torch.manual_seed(3)
    before = torch.get_rng_state()
    rows_of(loader(), passes=2)
    assert torch.equal(torch.get_rng_state(), before)
    torch.manual_seed(99)
    assert rows_of(loader()) == rows_of(loader())


def test_processes_share_a_batch(monkeypatch):
    whole = list(batches())
    monkeypatch.setattr(torch.distributed, "is_initialized", lambda: True)
    monkeypatch.setattr(torch.distributed, "get_world_size", lambda: 2)
    shares = []
    for rank in range(2):
        monkeypatch.setattr(torch.distributed, "get_rank", lambda rank=rank: rank)
        shares.append(list(batches()))
    for all_rows, even, odd in zip(whole, *shares, strict=True):
        assert (even, odd) == (all_rows[::2], all_rows[1::2])
