"""Scores of the K responses of a prompt: the prompt is read once, not K times.

Three ways to the same scores. `cached_scores` reads the prompts into a key-value cache and then all responses behind
it. `tree_scores` reads one row `[prompt | y1 | .. | yK]` under a mask; it needs no cache, and reads no padding.
`separate_scores` reads one row `[prompt | y]` per response: the plain form that both must equal.
"""

from collections.abc import Callable, Sequence
from typing import Any, TypeAlias, cast

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn
from torch.nn.attention.flex_attention import BlockMask, create_block_mask
from transformers import DynamicCache
from transformers.cache_utils import DynamicLayer, DynamicSlidingWindowLayer

from rlhf_lightning.algorithms.batch import ComparisonBatch
from rlhf_lightning.compat import attention_implementation
from rlhf_lightning.models.architecture import check_length, unwindowed_tokens
from rlhf_lightning.models.forward import token_scores
from rlhf_lightning.models.padding import compacting_order, left_aligned, length_groups, padded_size, position_ids
from rlhf_lightning.models.precision import is_exact
from rlhf_lightning.models.scalar_head import ScalarHeadModel, pooled
from rlhf_lightning.models.selected_cache import selected
from rlhf_lightning.models.verified import Verified

GROUP_TOKENS = 8192
"""Responses are read in groups of similar length of up to so many tokens."""
TREE_TOKENS = 320
"""Where no prompt has more tokens than this with its responses, one short row is faster than two passes."""

Scores: TypeAlias = Callable[[nn.Module, ComparisonBatch], Tensor]
"""From a model and a batch to `prompts x K` scores, or states (`FinalStates`); 0 where a prompt has fewer than K."""


def cached_scores(model: nn.Module, batch: ComparisonBatch) -> Float[Tensor, "prompts K *width"]:
    """Scores of responses that are read behind the cached keys and values of their prompt; gradients flow through them.

    P + sum(len y) tokens per prompt, and attention over len y * (P + len y) pairs per response, as in separate rows.
    A sliding window is no hindrance to rows within it: they are read as if there were none.

    Raises:
        ValueError: When the model keeps anything else than keys and values, or a row is longer than its window.
    """
    if not isinstance(model, ScalarHeadModel):
        raise ValueError("it has no backbone that keeps keys and values")
    layers = DynamicCache(config=cast(Any, model.backbone.config)).layers
    if any(type(layer) not in (DynamicLayer, DynamicSlidingWindowLayer) for layer in layers):
        raise ValueError("its cache does not keep all keys and values")
    _check_rows(cached_scores, model, batch)
    cache = DynamicCache()
    prompt_ids, prompt_mask = left_aligned(batch.prompt_ids, batch.prompt_mask)
    model(prompt_ids, cache=cache)
    prompt, number = batch.mask.nonzero(as_tuple=True)
    lengths = batch.response_mask[prompt, number].sum(1)
    groups, found = length_groups(lengths, GROUP_TOKENS), []
    for group in groups:
        rows, columns = prompt[group], number[group]
        width = int(lengths[group].max())
        ids, mask = batch.response_ids[rows, columns, :width], batch.response_mask[rows, columns, :width]
        both = torch.cat([prompt_mask[rows], mask], 1)
        positions = position_ids(both)[:, -width:]
        values = model(ids, continuation_mask(prompt_mask[rows], mask), positions, selected(cache, rows))
        found.append(pooled(model, values, mask))
    order = torch.cat(groups)
    return _placed(torch.cat(found), batch, prompt[order], number[order])


def tree_scores(model: nn.Module, batch: ComparisonBatch) -> Float[Tensor, "prompts K *width"]:
    """Scores from one row `[prompt | y1 | .. | yK]` per prompt.

    Every response sees the prompt and itself, never its neighbours, and its positions go on from the prompt: the
    scores are those of K separate rows, at P + sum(len y) tokens instead of K * P + sum(len y).

    Raises:
        ValueError: When a shared row is longer than a window of the model.
    """
    if not isinstance(model, ScalarHeadModel):
        raise ValueError("it has no backbone that takes a mask of who sees whom")
    _check_rows(tree_scores, model, batch)
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

    flex = attention_implementation(model.backbone) == "flex_attention"
    visible = tree_block_mask(segments, mask) if flex else tree_mask(segments, mask)
    values = model(input_ids, visible, torch.where(mask, positions, 0))
    row, number = batch.mask.nonzero(as_tuple=True)
    if model.pooling == "last":
        return _placed(values[row, (starts + lengths - 1)[row, number + 1]], batch, row, number)
    of_response = (segments[row] == (number + 1).unsqueeze(1)) & mask[row]
    return _placed(pooled(model, values[row], of_response), batch, row, number)


def separate_scores(model: nn.Module, batch: ComparisonBatch) -> Float[Tensor, "prompts K *width"]:
    """Scores from one row `[prompt | y]` per response: the plain form that the shared prefix must equal."""
    prompt, response = batch.mask.nonzero(as_tuple=True)
    input_ids = torch.cat([batch.prompt_ids[prompt], batch.response_ids[prompt, response]], 1)
    mask = torch.cat([batch.prompt_mask[prompt], batch.response_mask[prompt, response]], 1)
    input_ids, mask = left_aligned(input_ids, mask)
    begins = batch.prompt_mask.sum(1, keepdim=True)[prompt]
    counts = mask & (torch.arange(mask.shape[1], device=mask.device) >= begins)
    return _placed(pooled(model, token_scores(model, input_ids, mask), counts), batch, prompt, response)


def _placed(found: Tensor, batch: ComparisonBatch, prompt: Tensor, number: Tensor) -> Tensor:
    """Where each belongs, 0 where a prompt has fewer than K responses."""
    return found.new_zeros(*batch.mask.shape, *found.shape[1:]).index_put((prompt, number), found)


def fastest_pass(sound: Sequence[Scores], batch: ComparisonBatch) -> Scores:
    """The pass to take for a batch of such shapes, of those that are sound for the model."""
    order = (cached_scores, tree_scores)
    if tokens_spanned(tree_scores, batch) <= TREE_TOKENS:
        order = (tree_scores, cached_scores)
    return next((scores for scores in order if scores in sound), separate_scores)


def tokens_spanned(scores: Scores, batch: ComparisonBatch) -> int:
    """Tokens from the first to the last that a pass has in one row, in the longest of them."""
    responses = batch.response_mask.sum(2)
    behind = responses.sum(1) if scores is tree_scores else responses.amax(1)
    return int((batch.prompt_mask.sum(1) + behind).max())


def _check_rows(scores: Scores, model: ScalarHeadModel, batch: ComparisonBatch) -> None:
    check_length(model.backbone, tokens_spanned(cached_scores, batch))
    window, tokens = unwindowed_tokens(getattr(model.backbone, "config", None)), tokens_spanned(scores, batch)
    if window is not None and tokens > window:
        raise ValueError(f"rows of {tokens} tokens pass its window of {window}")


class VerifiedPasses(Verified):
    """The fastest pass for each batch, of those that gave the scores of separate rows on its longest prompts.

    A pass is not taken for rows longer than a window that the configuration names.

    Args:
        candidates: The passes that may be taken.
    """

    def __init__(self, candidates: Sequence[Scores] = (cached_scores, tree_scores)) -> None:
        super().__init__(
            "a shared prefix",
            "without it each response is scored in a row of its own, which is slower and gives the same result.",
        )
        self.candidates = {scores.__name__: scores for scores in candidates}

    @property
    def sound(self) -> tuple[Scores, ...]:
        """The candidates, but for those that turned out to be wrong for the model."""
        return tuple(scores for name, scores in self.candidates.items() if name not in self.faults)

    def fastest(self, model: nn.Module, batch: ComparisonBatch) -> Scores:
        """The pass to take; those that turn out to be wrong for the model are left out with a warning."""
        body = getattr(model, "backbone", model)
        check_length(body, tokens_spanned(cached_scores, batch), learned=True)
        window = unwindowed_tokens(getattr(body, "config", None))
        spans = {scores.__name__: tokens_spanned(scores, batch) for scores in self.sound}
        spans = {name: tokens for name, tokens in spans.items() if window is None or tokens <= window}
        if not bool(batch.prompt_mask.any(1).all()):  # a row without a prompt shares nothing
            spans = {}
        if batch.ranks.shape[1] == 1:  # nothing shows whether responses see each other
            spans = {name: tokens for name, tokens in spans.items() if name in self.tokens}
        self.verify(model, spans, lambda name: pass_fault(self.candidates[name], model, _longest(batch)), body)
        spans = {name: tokens for name, tokens in spans.items() if name in self.tokens}
        return fastest_pass([scores for scores in self.sound if scores.__name__ in spans], batch)


def _longest(batch: ComparisonBatch) -> ComparisonBatch:
    """The prompts with the longest rows for each pass, one or two of them."""
    prompts, responses = batch.prompt_mask.sum(1), batch.response_mask.sum(2)
    rows = [int((prompts + behind).argmax()) for behind in (responses.sum(1), responses.amax(1))]
    chosen = sorted({*rows, (rows[0] + 1) % len(prompts)})[:2] if rows[0] == rows[1] else rows
    return prompt_rows(batch, chosen)


def prompt_rows(batch: ComparisonBatch, rows: Sequence[int]) -> ComparisonBatch:
    """Some of the prompts of a batch, by number."""
    prompt_ids, prompt_mask, response_ids, response_mask, ranks = (field[list(rows)] for field in batch[:5])
    groups = [batch.groups[row] for row in rows]
    return ComparisonBatch(prompt_ids, prompt_mask, response_ids, response_mask, ranks, groups)


def tokens_read(scores: Scores, batch: ComparisonBatch) -> tuple[int, int]:
    """Tokens that a pass reads of a batch, and positions: those and the padding."""
    prompts, responses = batch.prompt_mask.sum(1), batch.response_mask.sum(2)[batch.mask]
    if scores is cached_scores:
        positions = len(prompts) * int(prompts.max()) + padded_size(responses, GROUP_TOKENS)
        return int(prompts.sum() + responses.sum()), positions
    if scores is tree_scores:
        lengths = prompts + batch.response_mask.sum((1, 2))
    else:
        lengths = responses + prompts[batch.mask.nonzero(as_tuple=True)[0]]
    return int(lengths.sum()), len(lengths) * int(lengths.max())


def pass_fault(scores: Scores, model: nn.Module, batch: ComparisonBatch) -> str:
    """How a pass differs from separate rows on some prompts; "" where it does not."""
    # What one response says must not touch the scores of its neighbours, in any precision.
    changed = batch.response_ids.clone()
    changed[:, 0] = batch.prompt_ids[:, -1:]
    shared = scores(model, batch)
    reached = (scores(model, batch._replace(response_ids=changed)) - shared)[:, 1:].abs()
    leak = reached.max() if reached.numel() else shared.new_zeros(())
    difference = (shared - separate_scores(model, batch)).abs().max()
    if bool(leak < 1e-6) and bool(difference < (1e-3 if is_exact(model) else 0.1)):
        return ""
    return f"scores differ by {difference:.2g}, responses reach their neighbours by {leak:.2g}"


def tree_mask(segments: Int[Tensor, "rows time"], mask: Bool[Tensor, "rows time"]) -> Bool[Tensor, "rows 1 time time"]:
    """Who sees whom: earlier tokens of the prompt and of the token's response.

    Padding sees itself, because a query without any key has no softmax.
    """
    rows, time = (torch.arange(size, device=segments.device) for size in segments.shape)
    visible: Tensor = _sees(segments, mask)(rows[:, None, None], None, time[:, None], time)
    return visible.unsqueeze(1)


def tree_block_mask(segments: Int[Tensor, "rows time"], mask: Bool[Tensor, "rows time"]) -> BlockMask:
    """`tree_mask` for flex attention, which leaves out whole blocks that nobody sees, such as other responses."""
    rows, time = segments.shape
    return create_block_mask(_sees(segments, mask), *(rows, None, time, time), device=str(segments.device))


def _sees(segments: Tensor, mask: Tensor) -> Callable[..., Any]:
    """The function of row, head, query and key that says whether the query sees the key; segment 0 is the prompt."""
    return lambda row, head, query, key: (
        (query == key)
        | ((query > key) & ((segments[row, key] == 0) | (segments[row, key] == segments[row, query])) & mask[row, key])
    )


def continuation_mask(
    prompt_mask: Bool[Tensor, "rows prompt_time"], mask: Bool[Tensor, "rows time"]
) -> Bool[Tensor, "rows 1 time prompt_time+time"]:
    """Each token of a response sees the prompt and what came before in the response; padding sees itself too."""
    width = mask.shape[1]
    causal = torch.ones(width, width, dtype=torch.bool, device=mask.device).tril()
    responses = (causal & mask.unsqueeze(1)) | torch.eye(width, dtype=torch.bool, device=mask.device)
    return torch.cat([prompt_mask.unsqueeze(1).expand(-1, width, -1), responses], 2).unsqueeze(1)
