"""From token ids to padded batches.

The last batch of an epoch may have fewer rows than there are processes. Who gets none reads a row that counts for
nothing, so that every process takes the same steps.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from rlhf_lightning.batch import ComparisonBatch, LMBatch, PromptBatch
from rlhf_lightning.data.tokens import ComparisonExample, LMExample, PromptExample


def collate_lm(examples: Sequence[LMExample], pad_token_id: int) -> LMBatch:
    """Sequences padded on the right."""
    examples = examples or [LMExample([_not(pad_token_id)], loss_start=1)]
    ids, mask = padded([example.input_ids for example in examples], pad_token_id)
    starts = torch.tensor([example.loss_start for example in examples]).unsqueeze(1)
    return LMBatch(ids, mask, mask & (torch.arange(ids.shape[1]) >= starts))


def collate_comparisons(examples: Sequence[ComparisonExample], pad_token_id: int) -> ComparisonBatch:
    """Prompts padded on the left, responses on the right; prompts with fewer responses get empty ones."""
    any_ids = [_not(pad_token_id)]
    examples = examples or [ComparisonExample(any_ids, [any_ids, any_ids], [1, 1], group="")]
    prompt_ids, prompt_mask = padded([example.prompt_ids for example in examples], pad_token_id, left=True)
    most = max(len(example.ranks) for example in examples)
    responses = [ids for example in examples for ids in example.response_ids + [[]] * (most - len(example.ranks))]
    response_ids, response_mask = padded(responses, pad_token_id)
    ranks = torch.tensor([example.ranks + [0] * (most - len(example.ranks)) for example in examples])
    shape = (len(examples), most, -1)
    return ComparisonBatch(
        prompt_ids,
        prompt_mask,
        response_ids.view(shape),
        response_mask.view(shape),
        ranks,
        [example.group for example in examples],
    )


def collate_prompts(examples: Sequence[PromptExample], pad_token_id: int) -> PromptBatch:
    """Prompts padded on the left."""
    ids, mask = padded([example.prompt_ids for example in examples], pad_token_id, left=True)
    index = torch.tensor([example.index for example in examples])
    return PromptBatch(ids, mask, index, [example.text for example in examples])


def padded(rows: Sequence[Sequence[int]], pad_token_id: int, left: bool = False) -> tuple[Tensor, Tensor]:
    """Rows of one length, and the mask of real tokens."""
    width = max(len(row) for row in rows)
    ids = torch.full((len(rows), width), pad_token_id)
    mask = torch.zeros(len(rows), width, dtype=torch.bool)
    for number, row in enumerate(rows):
        place = slice(width - len(row), width) if left else slice(0, len(row))
        ids[number, place] = torch.tensor(row, dtype=torch.long)
        mask[number, place] = True
    return ids, mask


def _not(pad_token_id: int) -> int:
    return int(pad_token_id == 0)
