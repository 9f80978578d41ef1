"""Attention of short rows in 16 bits on a CPU: two matrix products and a softmax, over query heads that share keys."""

from typing import Any, cast

import torch
from jaxtyping import Float
from torch import Tensor, nn
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.masking_utils import sdpa_mask

from rlhf_lightning.models.precision import compute_dtype

SHORT_ROWS = "short_rows"
"""What transformers calls `short_row_attention`."""
FAMILIES = frozenset(
    ("gpt2", "gpt_neox", "llama", "mistral", "qwen2", "qwen3", "gemma", "gemma3_text", "phi3", "smollm3", "olmo2")
)
"""Architectures (`model_type`) on which it was tried against their own; others attend by their own."""


def grouped_attention(
    query: Float[Tensor, "rows heads time width"],
    key: Float[Tensor, "rows key_heads seen width"],
    value: Float[Tensor, "rows key_heads seen value_width"],
    mask: Float[Tensor, "#rows 1 time seen"] | None,
    scaling: float,
    dropout: float = 0.0,
) -> Float[Tensor, "rows heads time value_width"]:
    """`softmax(query @ key.T * scaling + mask) @ value`, where several query heads read the same keys and values.

    Those heads are one matrix, so that keys and values are not repeated; the mask is added within the product where it
    is one for all rows; and the softmax, which computes in 32 bits in any case, does not make a copy in 32 bits.

    Args:
        query: The queries.
        key: The keys; their heads divide those of the queries.
        value: The values.
        mask: What is added to the scores: 0 where a query sees a key, the lowest number elsewhere. None shows all.
        scaling: What the products are multiplied by.
        dropout: Share of the weights that are set to 0.
    """
    rows, heads, time, width = query.shape
    groups, seen = rows * key.shape[1], key.shape[2]
    dtype = compute_dtype(query.device, query.dtype)
    with torch.autocast(query.device.type, enabled=False):
        queries = query.to(dtype).reshape(groups, -1, width)
        keys = key.to(dtype).reshape(groups, seen, width).transpose(1, 2)
        values = value.to(dtype).reshape(groups, seen, -1)
        # The lowest number of 32 bits would be infinity, and a row of padding that sees nothing no number.
        mask = None if mask is None else mask.clamp(min=torch.finfo(dtype).min).to(dtype)
        if mask is not None and (mask.shape[0] == 1 or mask.stride(0) == 0):
            shared = mask[0].expand(queries.shape[1] // time, -1, -1).reshape(1, -1, seen)
            scores = torch.baddbmm(shared, queries, keys, alpha=scaling)
        else:
            scores = torch.bmm(queries, keys).mul_(scaling)
            if mask is not None:
                scores.view(rows, -1, time, seen).add_(mask)
        weights = nn.functional.dropout(scores.softmax(-1), dropout)
        return torch.bmm(weights, values).view(rows, heads, time, -1)


def short_row_attention(
    module: nn.Module,
    query: Float[Tensor, "rows heads time width"],
    key: Float[Tensor, "rows key_heads seen width"],
    value: Float[Tensor, "rows key_heads seen value_width"],
    attention_mask: Tensor | None,
    scaling: float | None = None,
    dropout: float = 0.0,
    **others: Any,
) -> tuple[Float[Tensor, "rows time heads value_width"], None]:
    """`grouped_attention`, as transformers calls it; the mask is additive, as that of eager attention."""
    scaling = query.shape[-1] ** -0.5 if scaling is None else scaling
    hidden = grouped_attention(query, key, value, attention_mask, scaling, dropout * module.training)
    return hidden.transpose(1, 2), None


def _short_row_mask(*sizes: Any, dtype: torch.dtype = torch.float32, **options: Any) -> Tensor | None:
    """The mask of eager attention; where it is one for all rows, it is made once."""
    visible = cast(Any, sdpa_mask)(*sizes, **{**options, "allow_is_causal_skip": False})
    if visible is None:
        return None
    some = visible[:1] if visible.stride(0) == 0 else visible
    return torch.zeros_like(some, dtype=dtype).masked_fill(~some, torch.finfo(dtype).min).expand_as(visible)


AttentionInterface.register(SHORT_ROWS, short_row_attention)
AttentionMaskInterface.register(SHORT_ROWS, _short_row_mask)
