"""The passes that the plan of the memory runs on tensors without values, in the shapes of the real ones."""

from typing import cast

import torch
from torch import Tensor
from transformers import DynamicCache

from rlhf_lightning.generation.inverse_cdf import inverse_cdf_sample
from rlhf_lightning.models.scalar_head import ScalarHeadModel
from rlhf_lightning.models.selected_cache import selected
from rlhf_lightning.models.shared_prefix import GROUP_TOKENS, continuation_mask


def token_ids(rows: int, tokens: int) -> Tensor:
    """Ids of rows, none of which is padding."""
    return torch.zeros(rows, tokens, dtype=torch.long)


def sampled_tokens(rows: int, vocabulary: int, dtype: torch.dtype) -> Tensor:
    """One token for every row."""
    return inverse_cdf_sample(torch.zeros(rows, vocabulary, dtype=dtype), torch.zeros(rows, dtype=torch.float64))[1]


def read_cached(model: ScalarHeadModel, prompts: int, width: int, responses: int, tokens: int) -> Tensor:
    """As `rlhf_lightning.models.shared_prefix.cached_scores`."""
    cache = DynamicCache()
    model(token_ids(prompts, width), cache=cache)
    last = []
    for rows in torch.arange(prompts).repeat_interleave(responses).split(max(1, GROUP_TOKENS // tokens)):
        ids = token_ids(len(rows), tokens)
        everything = torch.ones(len(ids), width, dtype=torch.bool)
        mask = continuation_mask(everything, torch.ones_like(ids, dtype=torch.bool))
        last.append(model(ids, mask, torch.arange(width, width + tokens).expand_as(ids), selected(cache, rows))[:, -1])
    return torch.cat(last)


def read_rows(model: ScalarHeadModel, prompts: int, width: int, responses: int, tokens: int) -> Tensor:
    """As `separate_scores`."""
    return cast(Tensor, model(token_ids(prompts * responses, width + tokens))[:, -1])


def read_tree(model: ScalarHeadModel, prompts: int, width: int, responses: int, tokens: int) -> Tensor:
    """As `tree_scores`."""
    ids = token_ids(prompts, width + responses * tokens)
    mask = torch.ones(prompts, 1, ids.shape[1], ids.shape[1], dtype=torch.bool)
    return cast(Tensor, model(ids, mask, torch.arange(ids.shape[1]).expand_as(ids)))
