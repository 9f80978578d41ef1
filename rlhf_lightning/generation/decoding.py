"""The next token, step by step: which rows still go on, and the key-value cache that they share."""

from typing import Any, cast

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn
from transformers import DynamicCache, PreTrainedModel
from transformers.cache_utils import DynamicLayer

from rlhf_lightning.algorithms.batch import PromptBatch
from rlhf_lightning.compat import attention_implementation, cache_options
from rlhf_lightning.models.attention import additive_mask, attends_eagerly, fast_attention
from rlhf_lightning.models.log_probs import causal_logits
from rlhf_lightning.models.padding import length_groups, position_ids

PREFILL_TOKENS = 2048
"""Prompts are read in groups of similar length of about so many tokens: more would be padding, or memory."""
BLOCK = 16
"""Where torch copies keys and values that do not lie one behind the other, buffers grow by so many columns."""


def decoder(model: nn.Module, prompts: PromptBatch, max_new_tokens: int) -> "Decoder":
    """The fastest decoder that the model allows: with the cache below, with transformers' own, or with none.

    Args:
        model: A transformers model, or any module that maps ids and mask to logits.
        prompts: The prompts, padded on the left.
        max_new_tokens: Length limit of a response.
    """
    if not isinstance(model, PreTrainedModel):
        return Decoder(model, prompts)
    layers = DynamicCache(config=model.config).layers
    if any(type(layer) is not DynamicLayer for layer in layers) or not layers:
        return CachedDecoder(model, prompts)  # sliding windows, states of recurrent layers
    return InPlaceDecoder(model, prompts, max_new_tokens)


class Decoder:
    """Logits of the next token of every row that goes on, for modules without a cache: each step reads all again.

    Args:
        model: A module that maps ids, mask and positions to logits.
        prompts: The prompts, padded on the left.

    Attributes:
        rows: The number in the batch of each row that goes on, in the order of the logits.
    """

    def __init__(self, model: nn.Module, prompts: PromptBatch) -> None:
        self.model, self.device = model, prompts.prompt_ids.device
        self.input_ids, self.mask = prompts.prompt_ids, prompts.prompt_mask
        self.rows: Int[Tensor, " active"] = torch.arange(len(self.mask), device=self.device)

    def first(self) -> Float[Tensor, "active vocab"]:
        """Logits after the prompts."""
        return causal_logits(self.model, self.input_ids, self.mask, position_ids(self.mask), last=1)[:, -1]

    def next(self, chosen: Int[Tensor, " active"], going: Bool[Tensor, " active"]) -> Float[Tensor, "going vocab"]:
        """Append the chosen tokens; logits of the rows that go on."""
        keep = going.nonzero().squeeze(1)
        self.rows, self.mask = self.rows[keep], nn.functional.pad(self.mask[keep], (0, 1), value=True)
        self.input_ids = torch.cat([self.input_ids[keep], chosen[keep].unsqueeze(1)], 1)
        return self.first()


class CachedDecoder(Decoder):
    """Over the cache that transformers makes for the model, whatever its layers keep."""

    def __init__(self, model: PreTrainedModel, prompts: PromptBatch) -> None:
        super().__init__(model, prompts)
        self.cache = DynamicCache(config=model.config)

    def first(self) -> Float[Tensor, "active vocab"]:
        """Logits after the prompts."""
        return self._forward(self.input_ids, self.mask, position_ids(self.mask))

    def next(self, chosen: Int[Tensor, " active"], going: Bool[Tensor, " active"]) -> Float[Tensor, "going vocab"]:
        """Append the chosen tokens; logits of the rows that go on."""
        keep = going.nonzero().squeeze(1)
        if len(keep) < len(going):
            self.cache.batch_select_indices(keep)
        self.rows, self.mask = self.rows[keep], nn.functional.pad(self.mask[keep], (0, 1), value=True)
        return self._forward(chosen[keep].unsqueeze(1), self.mask, position_ids(self.mask)[:, -1:])

    def _forward(self, input_ids: Tensor, mask: Tensor | None, positions: Tensor) -> Tensor:
        options = {**cache_options(self.model, self.cache), "attention_mask": mask, "position_ids": positions}
        output: Any = self.model(input_ids=input_ids, logits_to_keep=1, **options)
        return cast(Tensor, output.logits[:, -1])


class InPlaceDecoder(CachedDecoder):
    """Over buffers that are filled in place: no step copies the cache, and an ended row costs nothing from then on.

    A row that has ended is overwritten by the last row that goes on, so the rows in use stay in front.
    """

    def __init__(self, model: PreTrainedModel, prompts: PromptBatch, max_new_tokens: int) -> None:
        super().__init__(model, prompts)
        rows, width = self.mask.shape
        self.gapless = attends_eagerly(model, self.device, 1)
        block = BLOCK if self.gapless else width + max_new_tokens
        self.layers = [_BufferedLayer(rows, block, self.gapless) for _ in self.cache.layers]
        self.cache.layers = list(self.layers)
        self.lengths = self.mask.sum(1)
        self.padded = not bool(self.mask.all())

    def first(self) -> Float[Tensor, "active vocab"]:
        """Logits after the prompts, which are read in groups of similar length."""
        width = self.mask.shape[1]
        logits: list[Tensor] = []
        groups = length_groups(self.lengths, PREFILL_TOKENS)
        for group in groups:
            start = width - int(self.lengths[group].max())
            ids, mask = self.input_ids[group, start:], self.mask[group, start:]
            for layer in self.layers:
                layer.prompts = group, start, width
            with fast_attention(self.model, self.device, width - start):
                logits.append(self._forward(ids, None if bool(mask.all()) else mask, position_ids(mask)))
        for layer in self.layers:
            layer.prompts, layer.length, layer.is_initialized = None, width, True
        order = torch.cat(groups)
        return torch.cat(logits)[order.argsort()]

    def next(self, chosen: Int[Tensor, " active"], going: Bool[Tensor, " active"]) -> Float[Tensor, "going vocab"]:
        """Append the chosen tokens; logits of the rows that go on."""
        count = int(going.sum())
        if count < len(going):
            holes = (~going[:count]).nonzero().squeeze(1)
            movers = going[count:].nonzero().squeeze(1) + count
            for layer in self.layers:
                layer.move(movers, holes, count)
            for name in ("rows", "mask", "lengths"):
                setattr(self, name, _moved(getattr(self, name), movers, holes, count))
            chosen = _moved(chosen, movers, holes, count)
        self.mask = nn.functional.pad(self.mask, (0, 1), value=True)
        positions = self.lengths.unsqueeze(1)
        self.lengths = self.lengths + 1
        with fast_attention(self.model, self.device, 1):
            return self._forward(chosen.unsqueeze(1), self._visible(), positions)

    def _visible(self) -> Tensor | None:
        """What the new token sees. Everything, where no prompt is padded: then attention needs no mask."""
        if self.gapless:
            unused = -self.mask.shape[1] % BLOCK
            visible = nn.functional.pad(self.mask, (0, unused), value=False)[:, None, None, :]
            return additive_mask(visible, cast(PreTrainedModel, self.model).dtype)
        if not self.padded:
            return None
        return self.mask[:, None, None, :] if attention_implementation(self.model) == "sdpa" else self.mask


class _BufferedLayer(DynamicLayer):
    """Keys and values of one layer in buffers that have room for more.

    Args:
        rows: Rows of the batch.
        block: Columns that the buffers grow by; all that will be needed where they are not to grow.
        gapless: Whether queries get the whole buffers, unused columns included, instead of a part of each row.
    """

    def __init__(self, rows: int, block: int, gapless: bool) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.rows, self.block, self.gapless, self.length = rows, block, gapless, 0
        self.prompts: tuple[Tensor, int, int] | None = None
        """Where the next keys are those of prompts: their rows, and the columns from the first to behind the last."""
        self.buffers: list[Tensor] = []

    def move(self, movers: Tensor, holes: Tensor, count: int) -> None:
        """Put some rows into the places of others and keep the first `count`."""
        for buffer in self.buffers:
            buffer[holes, :, : self.length] = buffer[movers, :, : self.length]
        self.rows = count

    def update(self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
        """Write new keys and values; all that the queries may look at."""
        new = key_states, value_states
        if self.prompts is not None:
            group, start, stop = self.prompts
            self._make_room(new, stop)
            for buffer, states in zip(self.buffers, new, strict=True):
                buffer[group, :, start:stop] = states
            return new
        start, self.length = self.length, self.length + key_states.shape[2]
        self._make_room(new, self.length)
        for buffer, states in zip(self.buffers, new, strict=True):
            buffer[: self.rows, :, start : self.length] = states
        stop = self.buffers[0].shape[2] if self.gapless else self.length
        keys, values = (buffer[: self.rows, :, :stop] for buffer in self.buffers)
        return keys, values

    def _make_room(self, new: tuple[Tensor, Tensor], columns: int) -> None:
        """Buffers of at least so many columns, with what was in the old ones."""
        if self.buffers and self.buffers[0].shape[2] >= columns:
            return
        columns += -columns % self.block
        old, self.buffers = self.buffers, []
        for place, states in enumerate(new):
            self.buffers.append(states.new_zeros(self.rows, states.shape[1], columns, states.shape[3]))
            if old:
                self.buffers[place][:, :, : old[place].shape[2]] = old[place][: self.rows]

    def get_seq_length(self) -> int:
        """Tokens that the next queries find in front of them."""
        return self.length


def _moved(values: Tensor, movers: Tensor, holes: Tensor, count: int) -> Tensor:
    kept = values[:count].clone()
    kept[holes] = values[movers]
    return kept
