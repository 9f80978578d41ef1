import random
from collections import defaultdict

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from rlhf_lightning.curation.keys import kept_per_key, key_of, normalised, plain_text


def test_case_width_and_space_do_not_count_but_signs_do():
    assert normalised("  Hello\t\nWORLD ") == "hello world"
    assert normalised("\uff26\uff55ll\u3000width") == "full width"
    assert normalised("2 + 3") != normalised("2 - 3")
    assert normalised("Straße") == normalised("STRASSE")


def test_a_conversation_is_told_by_its_roles():
    said = [{"role": "user", "content": "hi"}, {"role": "assistant", "content": "hello"}]
    assert plain_text(said) == "user: hi\nassistant: hello"
    assert plain_text("hi") == "hi"


def test_keys_are_the_same_in_every_process_and_differ_by_salt():
    # blake2b of "hello" with 8 bytes, as b2sum -l 64 prints it.
    assert key_of("hello") == 0xA7B6EDA801E5347D
    assert key_of("hello", "a") != key_of("hello", "b")
    assert key_of("\ud800") != key_of("")


def test_the_smallest_ranks_stay():
    assert kept_per_key([5, 5, 5, 8], [2**63, 7, 9, 1], 1).tolist() == [False, True, False, True]
    assert kept_per_key([5, 5, 5, 8], [2**63, 7, 9, 1], 2).tolist() == [False, True, True, True]
    assert kept_per_key([], [], 1).tolist() == []


@given(
    st.lists(st.tuples(st.integers(0, 5), st.integers(0, 2**64 - 1)), unique_by=lambda row: row[1]), st.integers(1, 4)
)
def test_as_many_as_a_sorted_list_per_key_would_keep(rows, most):
    by_key = defaultdict(list)
    for key, rank in rows:
        by_key[key].append(rank)
    expected = [rank in sorted(by_key[key])[:most] for key, rank in rows]
    assert kept_per_key([key for key, _ in rows], [rank for _, rank in rows], most).tolist() == expected


def test_the_order_of_the_rows_does_not_matter():
    source = random.Random(0)
    rows = [(source.randrange(20), source.getrandbits(64)) for _ in range(500)]
    kept = {row for row, stays in zip(rows, kept_per_key(*zip(*rows, strict=True), most=3), strict=True) if stays}
    source.shuffle(rows)
    again = {row for row, stays in zip(rows, kept_per_key(*zip(*rows, strict=True), most=3), strict=True) if stays}
    assert kept == again
    assert len(kept) == 60


@pytest.mark.parametrize("count", [1, 2, 1000])
def test_copies_with_one_rank_leave_one(count):
    assert kept_per_key(np.zeros(count, np.uint64), np.zeros(count, np.uint64), 1).sum() == 1
