import torch
from hypothesis import given
from hypothesis import strategies as st

from rlhf_lightning.data.examples import ComparisonExample, LMExample, PromptExample
from rlhf_lightning.data.loader import collate_comparisons, collate_lm, collate_prompts, padded

PAD = 9


def test_lm_batch():
    batch = collate_lm([LMExample([3, 4, 5, 1], 2), LMExample([6, 1], 1)], PAD)
    assert batch.input_ids.tolist() == [[3, 4, 5, 1], [6, 1, PAD, PAD]]
    assert batch.mask.tolist() == [[True] * 4, [True, True, False, False]]
    assert batch.loss_mask.tolist() == [[False, False, True, True], [False, True, False, False]]


def test_a_real_token_with_the_number_of_padding_counts():
    batch = collate_lm([LMExample([PAD, PAD], 1)], PAD)
    assert batch.mask.all()
    assert batch.loss_mask.tolist() == [[False, True]]


def test_comparison_batch_with_ragged_k():
    examples = [
        ComparisonExample([3, 4], [[5, 1], [6, 7, 1], [8]], [1, 2, 2], "a"),
        ComparisonExample([3], [[5], [6, 1]], [2, 1], "b"),
    ]
    batch = collate_comparisons(examples, PAD)
    assert batch.prompt_ids.tolist() == [[3, 4], [PAD, 3]]
    assert batch.prompt_mask.tolist() == [[True, True], [False, True]]
    assert batch.response_ids.tolist() == [
        [[5, 1, PAD], [6, 7, 1], [8, PAD, PAD]],
        [[5, PAD, PAD], [6, 1, PAD], [PAD, PAD, PAD]],
    ]
    assert batch.response_mask.sum(-1).tolist() == [[2, 3, 1], [1, 2, 0]]
    assert batch.mask.tolist() == [[True, True, True], [True, True, False]]
    assert batch.ranks.tolist() == [[1, 2, 2], [2, 1, 0]]
    assert batch.groups == ["a", "b"]
    # The examples are used again in the next pass.
    assert examples[1].response_ids == [[5], [6, 1]]
    assert examples[1].ranks == [2, 1]


def test_prompt_batch():
    batch = collate_prompts([PromptExample([3], 7, "w3"), PromptExample([4, 5, 6], 2, "w4 w5 w6")], PAD)
    assert batch.prompt_ids.tolist() == [[PAD, PAD, 3], [4, 5, 6]]
    assert batch.prompt_mask.tolist() == [[False, False, True], [True, True, True]]
    assert batch.prompt_index.tolist() == [7, 2]
    assert batch.texts == ["w3", "w4 w5 w6"]


@given(st.lists(st.lists(st.integers(0, 20), max_size=5), min_size=1, max_size=4), st.booleans())
def test_padding_can_be_undone(rows, left):
    ids, mask = padded(rows, PAD, left)
    assert ids.dtype == torch.long
    assert [row[real].tolist() for row, real in zip(ids, mask, strict=True)] == rows
    assert (ids[~mask] == PAD).all()
    lengths = [len(row) for row in rows]
    side = mask.flip(1) if left else mask
    assert side.long().cumprod(1).sum(1).tolist() == lengths  # one run of real tokens, from the right side on
