"""Scores of the K responses of a prompt: the prompt is read once, not K times.

Three ways to the same scores. :func:`cached_scores` reads the prompts into a key-value cache and then all responses
behind it. :func:`tree_scores` reads one row ``[prompt | y1 | .. | yK]`` under a mask; it needs no cache, and reads no
padding. :func:`separate_scores` reads one row ``[prompt | y]`` per response: the plain form that both must equal.
"""

from typing import Any, cast

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from transformers import DynamicCache
from transformers.cache_utils import DynamicLayer

from rlhf_lightning.batch import ComparisonBatch, length_groups
from rlhf_lightning.functional import position_ids
from rlhf_lightning.models import ScalarHeadModel

GROUP_TOKENS = 2048
"""Responses are read in groups of similar length of about so many tokens."""


def cached_scores(model: ScalarHeadModel, batch: ComparisonBatch) -> Float[Tensor, "prompts K"]:
    """Scores of responses that are read behind the cached keys and values of their prompt; gradients flow through them.

    P + sum(len y) tokens per prompt, and attention over len y * (P + len y) pairs per response, as in separate rows.

    Raises:
        ValueError: When the model's cache holds anything else than all keys and values.
    """
    cache = DynamicCache(config=cast(Any, model.backbone.config))
    if any(type(layer) is not DynamicLayer for layer in cache.layers):
        raise ValueError("its cache does not keep all keys and values")
    longest = int(batch.prompt_mask.sum(1).max())
    prompt_ids, prompt_mask = batch.prompt_ids[:, -longest:], batch.prompt_mask[:, -longest:]
    model(prompt_ids, prompt_mask, position_ids(prompt_mask), cache)
    prompt, number = batch.mask.nonzero(as_tuple=True)
    lengths = batch.response_mask[prompt, number].sum(1)
    scores = batch.response_mask.new_zeros(batch.mask.shape, dtype=model.head.weight.dtype)
    for group in length_groups(lengths, GROUP_TOKENS):
        rows, columns = prompt[group], number[group]
        width = int(lengths[group].max())
        ids, mask = batch.response_ids[rows, columns, :width], batch.response_mask[rows, columns, :width]
        both = torch.cat([prompt_mask[rows], mask], 1)
        positions = position_ids(both)[:, -width:]
        values = model(ids, _continuation_mask(prompt_mask[rows], mask), positions, _selected(cache, rows))
        last = values.gather(1, (lengths[group] - 1).unsqueeze(1)).squeeze(1)
        scores = scores.to(last.dtype).index_put((rows, columns), last)
    return scores


def tree_scores(model: ScalarHeadModel, batch: ComparisonBatch) -> Float[Tensor, "prompts K"]:
    """Scores from one row ``[prompt | y1 | .. | yK]`` per prompt.

    Every response sees the prompt and itself, never its neighbours, and its positions go on from the prompt: the
    scores are those of K separate rows, at P + sum(len y) tokens instead of K * P + sum(len y).
    """
    prompts, count, width = batch.response_ids.shape
    # 0 is the prompt, k the k-th response.
    owner = torch.arange(1, count + 1, device=batch.ranks.device).repeat_interleave(width).expand(prompts, -1)
    segments = torch.cat([torch.zeros_like(batch.prompt_ids), owner], 1)
    input_ids = torch.cat([batch.prompt_ids, batch.response_ids.flatten(1)], 1)
    mask = torch.cat([batch.prompt_mask, batch.response_mask.flatten(1)], 1)

    order = compacting_order(mask)
    input_ids, segments, mask = (x.gather(1, order) for x in (input_ids, segments, mask))
    lengths = torch.cat([batch.prompt_mask.sum(1, keepdim=True), batch.response_mask.sum(2)], 1)
    starts = lengths.cumsum(1) - lengths
    index = torch.arange(input_ids.shape[1], device=mask.device).expand_as(input_ids)
    positions = index - starts.gather(1, segments) + lengths[:, :1] * (segments > 0)

    scores = model(input_ids, tree_mask(segments, mask), torch.where(mask, positions, 0))
    last = (starts + lengths - 1)[:, 1:].clamp(min=0)
    return torch.where(batch.mask, scores.gather(1, last), 0.0)


def separate_scores(model: ScalarHeadModel, batch: ComparisonBatch) -> Float[Tensor, "prompts K"]:
    """Scores from one row ``[prompt | y]`` per response: the plain form that the shared prefix must equal."""
    prompt, response = batch.mask.nonzero(as_tuple=True)
    input_ids = torch.cat([batch.prompt_ids[prompt], batch.response_ids[prompt, response]], 1)
    mask = torch.cat([batch.prompt_mask[prompt], batch.response_mask[prompt, response]], 1)
    order = compacting_order(mask)
    input_ids, mask = input_ids.gather(1, order), mask.gather(1, order)
    values = model(input_ids, mask, position_ids(mask))
    last = values.gather(1, mask.sum(1, keepdim=True) - 1).squeeze(1)
    return torch.zeros(batch.mask.shape, dtype=last.dtype, device=last.device).index_put((prompt, response), last)


def compacting_order(mask: Bool[Tensor, "rows time"]) -> Int[Tensor, "rows kept"]:
    """Columns in an order that moves real tokens to the left, cut to the longest row."""
    return (~mask).int().argsort(dim=1, stable=True)[:, : int(mask.sum(1).max())]


def tree_mask(segments: Int[Tensor, "rows time"], mask: Bool[Tensor, "rows time"]) -> Bool[Tensor, "rows 1 time time"]:
    """Who sees whom: earlier tokens of the prompt and of one's own response.

    Padding sees itself, because a query without any key has no softmax.
    """
    query, key = segments.unsqueeze(2), segments.unsqueeze(1)
    time = torch.arange(segments.shape[1], device=segments.device)
    causal = time.unsqueeze(1) >= time
    visible = causal & ((key == 0) | (key == query)) & mask.unsqueeze(1)
    return (visible | (time.unsqueeze(1) == time)).unsqueeze(1)


def _continuation_mask(
    prompt_mask: Bool[Tensor, "rows prompt_time"], mask: Bool[Tensor, "rows time"]
) -> Bool[Tensor, "rows 1 time prompt_time+time"]:
    """Each token of a response sees the prompt and what came before in the response; padding sees itself too."""
    width = mask.shape[1]
    causal = torch.ones(width, width, dtype=torch.bool, device=mask.device).tril()
    own = (causal & mask.unsqueeze(1)) | torch.eye(width, dtype=torch.bool, device=mask.device)
    return torch.cat([prompt_mask.unsqueeze(1).expand(-1, width, -1), own], 2).unsqueeze(1)


def _selected(cache: DynamicCache, rows: Int[Tensor, " chosen"]) -> DynamicCache:
    """The cache of those rows; the original stays as it is."""
    chosen = DynamicCache()
    for number, layer in enumerate(cache.layers):
        full = cast(DynamicLayer, layer)
        chosen.update(cast(Tensor, full.keys)[rows], cast(Tensor, full.values)[rows], number)
    return chosen
