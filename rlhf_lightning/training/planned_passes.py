"""The passes that the memory planner runs on tensors without values, as the steps run them."""

from typing import cast

import torch
from torch import Tensor
from transformers import DynamicCache

from rlhf_lightning.generation.inverse_cdf import inverse_cdf_sample
from rlhf_lightning.models.scalar_head import ScalarHeadModel
from rlhf_lightning.models.selected_cache import selected
from rlhf_lightning.models.shared_prefix import GROUP_TOKENS, continuation_mask


def token_ids(rows: int, tokens: int) -> Tensor:
    """Rows of so many tokens."""
    return torch.zeros(rows, tokens, dtype=torch.long)


def drawn_log_probs(rows: int, vocabulary: int, dtype: torch.dtype) -> Tensor:
    """A token for each row."""
    return inverse_cdf_sample(torch.zeros(rows, vocabulary, dtype=dtype), torch.zeros(rows, dtype=torch.float64))[1]


def read_cached(model: ScalarHeadModel, prompts: int, width: int, responses: int, tokens: int) -> Tensor:
    """Responses behind the cached prompt."""
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
    """Each response behind a prompt of its own."""
    return cast(Tensor, model(token_ids(prompts * responses, width + tokens))[:, -1])


def read_tree(model: ScalarHeadModel, prompts: int, width: int, responses: int, tokens: int) -> Tensor:
    """All responses to a prompt in one row."""
    ids = token_ids(prompts, width + responses * tokens)
    mask = torch.ones(prompts, 1, ids.shape[1], ids.shape[1], dtype=torch.bool)
    return cast(Tensor, model(ids, mask, torch.arange(ids.shape[1]).expand_as(ids)))
