"""Rows of a batch as one row without padding: every token is read once, and no document sees another.

The layers that read each token by itself get one long row. Attention gets the documents back, in groups of similar
length, so that it costs as much as for separate rows and needs no mask of who sees whom.
"""

import sys
from collections.abc import Sequence
from typing import Any, NamedTuple, cast

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn
from transformers import AttentionInterface, PreTrainedModel

from rlhf_lightning.compat import attention_implementation, using_attention
from rlhf_lightning.models.architecture import alike, check_length, eval_mode
from rlhf_lightning.models.attention import EAGER_TOKENS, additive_mask
from rlhf_lightning.models.padding import length_groups, padded_size, position_ids
from rlhf_lightning.models.plain_head import has_plain_head
from rlhf_lightning.models.short_rows import grouped_attention
from rlhf_lightning.models.verified import Verified

PACKED = "packed_documents"
"""What transformers calls `packed_attention`."""
PACKED_ROWS = "packed rows"
OWN_PACKING = ("flex_attention", "flash_attention_2", "flash_attention_3")
"""Attention that is told where a document begins by positions which begin anew (transformers 5.24)."""


class Documents(NamedTuple):
    """Where the documents of a packed row are."""

    sizes: list[tuple[int, int]]
    """Documents and tokens of each group of similar length, padding included."""
    places: Int[Tensor, " spread"]
    """Place in the packed row of every token of the groups; where those are padded, that of the document's first."""
    real: Bool[Tensor, " spread"]
    """Tokens of the groups that are no padding."""
    order: Int[Tensor, " tokens"]
    """Place in the groups of every token of the packed row."""


def documents_of(lengths: Int[Tensor, " rows"]) -> Documents:
    """The documents of a row in which rows of those lengths follow each other.

    Examples:
        >>> documents_of(torch.tensor([1, 3])).places  # the longest first, the other one padded
        tensor([1, 2, 3, 0, 0, 0])
    """
    starts = lengths.cumsum(0) - lengths
    order = torch.empty(int(lengths.sum()), dtype=torch.long, device=lengths.device)
    sizes, places, real, spread = [], [], [], 0
    for group in length_groups(lengths, sys.maxsize):
        index = torch.arange(int(lengths[group[0]]), device=lengths.device)
        inside = index < lengths[group].unsqueeze(1)
        at = starts[group].unsqueeze(1) + index * inside
        order[at[inside]] = spread + inside.flatten().nonzero().squeeze(1)
        sizes.append((len(group), len(index)))
        places.append(at.flatten())
        real.append(inside.flatten())
        spread += at.numel()
    return Documents(sizes, torch.cat(places), torch.cat(real), order)


def packed_hidden(
    model: PreTrainedModel, input_ids: Int[Tensor, "rows time"], mask: Bool[Tensor, "rows time"]
) -> Float[Tensor, "tokens width"]:
    """What the head reads at every real token, row after row, as for separate rows.

    Args:
        model: A transformers model for which `VerifiedPacking` said yes.
        input_ids: The tokens.
        mask: True on real tokens.
    """
    lengths = mask.sum(1)
    check_length(model, int(lengths.max()))
    options = {"input_ids": input_ids[mask].unsqueeze(0), "position_ids": position_ids(mask)[mask].unsqueeze(0)}
    if attention_implementation(model) in OWN_PACKING:
        return cast(Tensor, model.base_model(**options, use_cache=False).last_hidden_state[0])
    with using_attention(model.config, PACKED):
        output = model.base_model(**options, documents=documents_of(lengths), use_cache=False)
    return cast(Tensor, output.last_hidden_state[0])


def packed_attention(
    module: nn.Module,
    query: Float[Tensor, "1 heads tokens width"],
    key: Float[Tensor, "1 key_heads tokens width"],
    value: Float[Tensor, "1 key_heads tokens value_width"],
    attention_mask: Tensor | None,
    *,
    documents: Documents | None = None,
    dropout: float = 0.0,
    scaling: float | None = None,
    sliding_window: int | None = None,
    **others: Any,
) -> tuple[Float[Tensor, "1 tokens heads value_width"], None]:
    """Attention within each document, as transformers calls it.

    Raises:
        ValueError: When the model has an attention that this is not: a mask, sinks, caps, or no documents.
    """
    odd = [name for name in ("softcap", "s_aux", "position_bias") if others.get(name) is not None]
    if documents is None or attention_mask is not None or odd:
        raise ValueError(f"its attention is of another kind ({', '.join(odd) or 'mask'})")
    spread = [
        cast(Tensor, cast(Any, _Spread.apply)(states[0].transpose(0, 1), documents)) for states in (query, key, value)
    ]
    outputs, start = [], 0
    for rows, time in documents.sizes:
        part = slice(start, start + rows * time)
        start = part.stop
        states = [each[part].view(rows, time, *each.shape[1:]).transpose(1, 2) for each in spread]
        hidden = _causal_attention(states, dropout, scaling, sliding_window)
        outputs.append(hidden.transpose(1, 2).reshape(rows * time, *hidden.shape[1:2], hidden.shape[3]))
    whole = outputs[0] if len(outputs) == 1 else torch.cat(outputs)
    return cast(Tensor, cast(Any, _Gather.apply)(whole, documents)).unsqueeze(0), None


def _causal_attention(
    states: Sequence[Tensor], dropout: float, scaling: float | None, window: int | None
) -> Float[Tensor, "rows heads time value_width"]:
    query, key, value = states
    time, shares = query.shape[2], query.shape[1] // key.shape[1]
    windowed = window is not None and window < time
    index = torch.arange(time, device=query.device)
    sees = (index.unsqueeze(1) >= index) & (index.unsqueeze(1) - index < cast(int, window)) if windowed else None
    if query.device.type == "cpu" and query.dtype in (torch.bfloat16, torch.float16) and time <= EAGER_TOKENS:
        mask = additive_mask(index.unsqueeze(1) >= index if sees is None else sees, query.dtype)[None, None]
        return grouped_attention(query, key, value, mask, scaling or query.shape[-1] ** -0.5, dropout)
    return nn.functional.scaled_dot_product_attention(
        query, key, value, sees, dropout, is_causal=sees is None, scale=scaling, enable_gqa=shares > 1
    )


class _Spread(torch.autograd.Function):
    """From the packed row to the groups. Padding is seen by nobody, so that nothing comes back from it."""

    @staticmethod
    def forward(ctx: Any, packed: Tensor, documents: Documents) -> Tensor:
        ctx.documents = documents
        return packed[documents.places]

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        return gradients[0][ctx.documents.order], None


class _Gather(torch.autograd.Function):
    """From the groups to the packed row."""

    @staticmethod
    def forward(ctx: Any, spread: Tensor, documents: Documents) -> Tensor:
        ctx.documents = documents
        return spread[documents.order]

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        gradient = gradients[0][ctx.documents.places]
        gradient[~ctx.documents.real] = 0
        return gradient, None


AttentionInterface.register(PACKED, packed_attention)


class VerifiedPacking(Verified):
    """Whether a batch may be packed: where it gave the hidden states of separate rows, on its two longest rows.

    Args:
        wanted: Whether to pack at all.
    """

    def __init__(self, *, wanted: bool = True) -> None:
        super().__init__(
            PACKED_ROWS,
            "its rows are read in groups of similar length instead, with padding, which gives the same result.",
        )
        self.wanted = wanted

    def suits(self, model: nn.Module, input_ids: Int[Tensor, "rows time"], mask: Bool[Tensor, "rows time"]) -> bool:
        """Whether to pack these rows; a model that cannot be packed is left alone with a warning.

        Args:
            model: The model.
            input_ids: The tokens.
            mask: True on real tokens; rows that are not padded on the right are not packed.
        """
        if not self.packs:
            return False
        lengths, padded_right = mask.sum(1), bool((mask[:, 1:] <= mask[:, :-1]).all())
        longest, rows = int(lengths.max()), lengths.argsort(descending=True, stable=True)[:2]
        spans = {PACKED_ROWS: longest} if padded_right else {}
        self.verify(model, spans, lambda _: _fault(model, input_ids[rows, :longest], mask[rows, :longest]))
        return padded_right and self.packs

    @property
    def packs(self) -> bool:
        """Whether rows are packed, as far as is known."""
        return self.wanted and not self.faults

    def positions(self, mask: Bool[Tensor, "rows time"]) -> int:
        """Positions that are read of such rows, padding included."""
        lengths = mask.sum(1)
        return int(lengths.sum()) if self.packs else padded_size(lengths)


def _fault(model: nn.Module, input_ids: Tensor, mask: Tensor) -> str:
    """What is wrong with packed rows of a model; empty where they are right."""
    if not isinstance(model, PreTrainedModel):
        return "it is no transformers model with a body"
    attention = attention_implementation(model)
    if attention not in ("sdpa", *OWN_PACKING):
        return f"its attention is {attention}; model.causal_lm.attention=sdpa can be packed"
    if model.base_model is not model and not has_plain_head(model, input_ids.device):
        return "its logits are more than its last hidden states times a weight"
    input_ids = torch.where(mask, input_ids, input_ids[:, :1])
    # Two of each: what the first says must not touch the others, in any precision.
    two, real = input_ids.repeat(2, 1), mask.repeat(2, 1)
    changed = two.clone()
    changed[0] = two[0].flip(0)
    with eval_mode(model):
        packed = packed_hidden(model, two, real)
        behind = slice(int(mask[0].sum()), None)
        leak = (packed_hidden(model, changed, real) - packed)[behind].abs().max()
        rows = [row[None, : int(size)] for row, size in zip(two, real.sum(1), strict=True)]
        separate = torch.cat([model.base_model(input_ids=row, use_cache=False).last_hidden_state[0] for row in rows])
    if bool(leak < 1e-6) and alike(packed, separate, model):
        return ""
    return f"hidden states differ by {(packed - separate).abs().max():.2g}, rows reach their neighbours by {leak:.2g}"
