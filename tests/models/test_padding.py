import numpy as np
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from rlhf_lightning.models import padding
from rlhf_lightning.models.padding import length_groups, position_ids


def test_groups_end_where_rows_get_shorter_or_the_tokens_are_used_up(monkeypatch):
    monkeypatch.setitem(padding.SMALL, "cpu", 10)
    lengths = torch.tensor([3, 9, 1, 5, 8, 2, 30, 7, 2])
    # 30 alone fills its group; 5 is less than .7 of 9; 3 is too, but with 5 alone the group would be small.
    groups = [lengths[group].tolist() for group in length_groups(lengths, 40)]
    assert groups == [[30], [9, 8, 7], [5, 3], [2, 2, 1]]
    assert [len(group) for group in length_groups(lengths, 20)] == [1, 2, 2, 4]


@given(st.lists(st.integers(1, 50), max_size=30), st.integers(1, 200))
def test_every_row_is_in_one_group(lengths, tokens):
    groups = length_groups(torch.tensor(lengths, dtype=torch.long), tokens)
    assert sorted(row for group in groups for row in group.tolist()) == list(range(len(lengths)))
    for group in groups:
        assert len(group) == 1 or len(group) * max(lengths[row] for row in group.tolist()) <= tokens


@given(arrays(np.bool_, (3, 6)))
def test_position_ids_count_the_real_tokens_before(mask):
    expected = []
    for row in mask.tolist():
        seen = 0
        expected.append([])
        for real in row:
            seen += real
            expected[-1].append(max(seen - 1, 0))
    assert position_ids(torch.from_numpy(mask)).tolist() == expected


def test_position_ids_with_left_and_right_padding():
    mask = torch.tensor([[0, 0, 1, 1, 1], [1, 1, 1, 0, 0]], dtype=torch.bool)
    positions = position_ids(mask)
    assert positions[0].tolist() == [0, 0, 0, 1, 2]
    assert positions[1, :3].tolist() == [0, 1, 2]
