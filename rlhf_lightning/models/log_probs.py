"""Log-probabilities of the tokens of a causal language model, without keeping its logits."""

import sys
from collections.abc import Callable
from typing import Any, NamedTuple, cast

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn
from transformers import PreTrainedModel

from rlhf_lightning.algorithms.functional import token_log_probs
from rlhf_lightning.models.architecture import check_length, lookup_errors
from rlhf_lightning.models.attention import fast_attention
from rlhf_lightning.models.forward import token_logits
from rlhf_lightning.models.matmul import matmul
from rlhf_lightning.models.packing import packed_hidden
from rlhf_lightning.models.padding import length_groups, position_ids
from rlhf_lightning.models.plain_head import has_plain_head
from rlhf_lightning.models.precision import compute_dtype

CHUNK = 2**22
"""Logits that are in memory at once, at most (16 MiB in 32 bits), besides those kept for the backward pass."""
KEPT = 2**25
"""Logits up to this many are kept for the backward pass (128 MiB in 32 bits), more are computed again."""
GPU_LOGITS = 2**28
"""Both numbers on a GPU (1 GiB in 32 bits): products of few rows would leave most of it idle."""
GPU_COLUMNS = 64
"""There the vocabulary is filled up to a multiple of this; products of odd sizes, such as 50,257, take far longer."""


def causal_log_probs(
    model: nn.Module,
    input_ids: Int[Tensor, "rows time"],
    mask: Bool[Tensor, "rows time"],
    counts: Bool[Tensor, "rows time"],
    temperature: float = 1.0,
    packed: bool = False,
) -> Float[Tensor, "rows time-1"]:
    """Log-probability of each token that counts, given those before it.

    The head of the model runs at the positions before those tokens only, and in chunks: at no time are there logits of
    all tokens, which for a large vocabulary would be most of the memory. Rows that are padded on the right are read in
    groups of similar length, and their padding is not masked: no real token sees it, and attention is faster without.

    Args:
        model: A transformers model, or any module that maps ids and mask to logits (`rlhf_lightning.models.forward`).
        input_ids: The tokens.
        mask: True on real tokens.
        counts: True on the tokens that are wanted. The first of a row has none before it and is left out.
        temperature: What divides the logits.
        packed: Whether the rows are read as one, where `rlhf_lightning.models.packing.VerifiedPacking` allows it.

    Returns:
        A log-probability for every token but the first; 0 where it does not count.
    """
    rows, times = counts[:, 1:].nonzero(as_tuple=True)
    targets = input_ids[rows, times + 1]
    if isinstance(model, PreTrainedModel) and has_plain_head(model, input_ids.device):
        if packed:
            lengths = mask.sum(1)
            hidden = packed_hidden(model, input_ids, mask)[(lengths.cumsum(0) - lengths)[rows] + times]
        elif bool((mask[:, 1:] <= mask[:, :-1]).all()):
            hidden, places = _hidden_by_length(model, input_ids, mask)
            hidden = hidden[places[rows], times]
        else:
            hidden = last_hidden(model, input_ids, attention_mask=mask, position_ids=position_ids(mask))[rows, times]
        weight = cast(Tensor, model.get_output_embeddings().weight)
        log_probs = linear_log_probs(hidden, weight, targets, temperature)
    else:
        logits = token_logits(model, input_ids, mask, position_ids(mask))[rows, times]
        if len(targets) and logits.shape[1] <= int(targets.max()):
            raise ValueError(
                f"{type(model).__name__} gives {logits.shape[1]} logits per token, and token {int(targets.max())} is "
                "among the targets; it must give one for each token of the tokenizer."
            )
        log_probs = token_log_probs(logits / temperature, targets)
    return log_probs.new_zeros(counts[:, 1:].shape).index_put((rows, times), log_probs)


def last_hidden(
    model: PreTrainedModel, input_ids: Int[Tensor, "rows time"], **options: Tensor
) -> Float[Tensor, "rows time width"]:
    """What the head of a transformers model reads."""
    check_length(model, input_ids.shape[1])
    with lookup_errors(model, input_ids), fast_attention(model, input_ids.device, input_ids.shape[1]):
        return cast(Tensor, model.base_model(input_ids=input_ids, use_cache=False, **options).last_hidden_state)


def _hidden_by_length(model: PreTrainedModel, input_ids: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
    """Last hidden states of rows that are padded on the right, the longest first, and the place of each row."""
    lengths = mask.sum(1)
    # transformers would warn about pad tokens without a mask.
    input_ids = torch.where(mask, input_ids, input_ids[:, :1])
    groups = length_groups(lengths, sys.maxsize)
    parts = [last_hidden(model, input_ids[group, : int(lengths[group[0]])]) for group in groups]
    width = parts[0].shape[1]
    if len(parts) > 1:  # the longest rows are copied once, not twice
        padding = [nn.functional.pad(part, (0, 0, 0, width - part.shape[1])) for part in parts[1:]]
        parts = [torch.cat([parts[0], *padding])]
    return parts[0], torch.cat(groups).argsort()


def linear_log_probs(
    hidden: Float[Tensor, "tokens width"],
    weight: Float[Tensor, "vocab width"],
    targets: Int[Tensor, " tokens"],
    temperature: float = 1.0,
) -> Float[Tensor, " tokens"]:
    """`token_log_probs(hidden @ weight.T / temperature, targets)` in chunks, in 32 bits at least.

    Args:
        hidden: What the head reads at each position.
        weight: The weight of the head, which has no bias.
        targets: The token that came at each position.
        temperature: What divides the logits.

    Examples:
        >>> linear_log_probs(torch.ones(1, 1), torch.zeros(4, 1), torch.tensor([2])).exp()
        tensor([0.2500])
    """
    dtype, size, columns = compute_dtype(hidden.device, hidden.dtype), len(weight), _sizes(hidden.device).columns
    weight = weight.to(dtype)
    if size % columns:
        weight = nn.functional.pad(weight, (0, 0, 0, -size % columns))
    apply = cast(Callable[..., Tensor], _LinearLogProbs.apply)
    return apply(hidden.to(dtype), weight, targets, temperature, size)


class _Sizes(NamedTuple):
    chunk: int
    kept: int
    columns: int


def _sizes(device: torch.device) -> _Sizes:
    if device.type == "cuda":
        return _Sizes(GPU_LOGITS, GPU_LOGITS, GPU_COLUMNS)
    return _Sizes(CHUNK, KEPT, 1)


class _LinearLogProbs(torch.autograd.Function):
    """Keeps the probabilities of what fits into `KEPT` and computes the rest again in the backward pass."""

    @staticmethod
    def forward(ctx: Any, hidden: Tensor, weight: Tensor, targets: Tensor, temperature: float, size: int) -> Tensor:
        """Chunk by chunk; the chunks are the same with and without gradient, and so is the result.

        Rows of the weight from `size` on are no tokens.
        """
        ctx.temperature, ctx.size = temperature, size
        needed = any(ctx.needs_input_grad)
        keep = needed and len(targets) * len(weight) <= _sizes(hidden.device).kept
        log_probs, kept = [], []
        for part, wanted in zip(_chunks(hidden, weight), _chunks(targets, weight), strict=True):
            logits = _logits(part, weight, temperature, size)
            # One pass of exponentials: the largest probability is exp(largest logit - total).
            probabilities = logits.softmax(1)
            total = logits.amax(1) - probabilities.amax(1).log()
            log_probs.append(logits.gather(1, wanted.unsqueeze(1)).squeeze(1) - total)
            if keep:
                kept.append(probabilities)
        if needed:
            ctx.save_for_backward(hidden, weight, targets)
            ctx.kept = kept
        if not log_probs:
            return hidden.new_zeros(0, dtype=torch.promote_types(hidden.dtype, torch.float32))
        return torch.cat(log_probs)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, Tensor | None, None, None, None]:
        hidden, weight, targets = ctx.saved_tensors
        hidden_gradient = torch.empty_like(hidden) if ctx.needs_input_grad[0] else None
        exact = torch.promote_types(weight.dtype, torch.float32)
        weight_gradient = torch.zeros_like(weight, dtype=exact) if ctx.needs_input_grad[1] else None
        start = 0
        for number, part in enumerate(_chunks(hidden, weight)):
            chunk = slice(start, start + len(part))
            start += len(part)
            slope = ctx.kept[number] if ctx.kept else None
            if slope is not None:
                ctx.kept[number] = None  # it is overwritten below
            else:
                slope = _logits(part, weight, ctx.temperature, ctx.size).softmax(1)
            # d log p(target) / d logits = [v is the target] - p(v)
            gradient = gradients[0][chunk].unsqueeze(1) / ctx.temperature
            slope.mul_(-gradient).scatter_add_(1, targets[chunk].unsqueeze(1), gradient.to(slope.dtype))
            slope = slope.to(hidden.dtype)
            if hidden_gradient is not None:
                hidden_gradient[chunk] = matmul(slope, weight)
            if weight_gradient is not None:
                weight_gradient += matmul(slope.t(), part)
        weight_gradient = None if weight_gradient is None else weight_gradient.to(weight.dtype)
        return hidden_gradient, weight_gradient, None, None, None


def _chunks(values: Tensor, weight: Tensor) -> tuple[Tensor, ...]:
    return values.split(max(1, _sizes(values.device).chunk // len(weight))) if len(values) else ()


def _logits(hidden: Tensor, weight: Tensor, temperature: float, size: int) -> Tensor:
    logits = matmul(hidden, weight.t())
    logits = logits.float() if logits.dtype in (torch.float16, torch.bfloat16) else logits
    logits[:, size:] = -torch.inf
    return logits if temperature == 1 else logits.div_(temperature)
