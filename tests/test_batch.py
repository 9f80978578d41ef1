import torch
from hypothesis import given
from hypothesis import strategies as st

from rlhf_lightning.batch import length_groups


def test_groups_are_as_large_as_the_tokens_allow():
    lengths = torch.tensor([3, 9, 1, 5, 9, 2, 30, 7])
    assert [lengths[group].tolist() for group in length_groups(lengths, 20)] == [[1, 2, 3, 5], [7, 9], [9], [30]]


@given(st.lists(st.integers(1, 50), max_size=30), st.integers(1, 200))
def test_every_row_is_in_one_group(lengths, tokens):
    groups = length_groups(torch.tensor(lengths, dtype=torch.long), tokens)
    assert sorted(row for group in groups for row in group.tolist()) == list(range(len(lengths)))
    for group in groups:
        assert len(group) == 1 or len(group) * max(lengths[row] for row in group.tolist()) <= tokens
