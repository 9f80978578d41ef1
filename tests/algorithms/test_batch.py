import torch
from hypothesis import given
from hypothesis import strategies as st

from rlhf_lightning.algorithms import batch
from rlhf_lightning.algorithms.batch import length_groups


def test_groups_end_where_rows_get_shorter_or_the_tokens_are_used_up(monkeypatch):
    monkeypatch.setitem(batch.SMALL, "cpu", 10)
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
