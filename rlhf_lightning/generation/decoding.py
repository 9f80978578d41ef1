"""The next token, step by step: which rows still go on, and the key-value cache that they share."""

import warnings
from inspect import signature
from typing import Any, cast
from weakref import WeakKeyDictionary

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn
from transformers import DynamicCache, PreTrainedModel
from transformers.cache_utils import DynamicLayer, DynamicSlidingWindowLayer

from rlhf_lightning.algorithms.batch import PromptBatch
from rlhf_lightning.compat import attention_implementation, cache_options
from rlhf_lightning.generation.buffers import BufferedLayer, moved
from rlhf_lightning.generation.shared_prompts import SHARED_TOKENS, behind_prefix, distinct_rows, shared_tokens
from rlhf_lightning.models.architecture import alike, check_length, eval_mode, probe_tokens
from rlhf_lightning.models.attention import additive_mask, attends_eagerly, fast_attention
from rlhf_lightning.models.forward import token_logits
from rlhf_lightning.models.padding import left_aligned, length_groups, position_ids

PREFILL_TOKENS = 2048
"""Prompts are read in groups of similar length of about so many tokens: more would be padding, or memory."""
GPU_PREFILL_TOKENS = 2**14
"""On a GPU, which waits for Python between smaller groups."""
BLOCK = 16
"""Where torch copies keys and values that do not lie one behind the other, buffers grow by so many columns."""


def prefill_tokens(device: torch.device) -> int:
    """Tokens of a group of prompts on a device."""
    return GPU_PREFILL_TOKENS if device.type == "cuda" else PREFILL_TOKENS


def decoder(
    model: nn.Module, prompts: PromptBatch, max_new_tokens: int, preferred: tuple[type["Decoder"], ...] = ()
) -> "Decoder":
    """The fastest decoder that is right for the model: over buffers, over transformers' cache, or with none.

    Which one that is is tried once per model, on a few tokens (`verified_decoder`).

    Args:
        model: A transformers model, or any module that maps ids and mask to logits.
        prompts: The prompts, padded on the left.
        max_new_tokens: Length limit of a response.
        preferred: Further decoders for layers that keep all keys and values, tried before the others.

    Raises:
        ValueError: When prompt and response together pass what the model reads in one way (`check_length`).
    """
    check_length(model, int(prompts.prompt_mask.sum(1).max()) + max_new_tokens, learned=True, new=max_new_tokens)
    known = _DECODERS.setdefault(model, {})
    if preferred not in known:
        known[preferred] = Decoder
        if isinstance(model, PreTrainedModel):
            known[preferred] = verified_decoder(model, prompts.prompt_ids.device, preferred)
        if preferred and known[preferred] not in preferred:
            instead = f"{type(model).__name__} cannot be sampled by {preferred[0].__name__}, which gives other logits"
            warnings.warn(f"{instead} or none; {known[preferred].__name__} samples.", stacklevel=2)
    return known[preferred](cast(Any, model), prompts, max_new_tokens)


def verified_decoder(
    model: PreTrainedModel, device: torch.device, preferred: tuple[type["Decoder"], ...] = ()
) -> type["Decoder"]:
    """The first of the decoders for such layers that gives the logits of reading all again.

    Three rows of a few tokens are tried, padded on the left, of which one ends before the others; the same again
    behind tokens that they share.

    Args:
        model: The model.
        device: Where it runs.
        preferred: What is tried first, where all layers keep all keys and values.
    """
    layers = {type(layer) for layer in DynamicCache(config=cast(Any, model.config)).layers}
    candidates: list[type[Decoder]] = [GroupedDecoder]
    if layers <= {DynamicLayer, DynamicSlidingWindowLayer}:
        candidates = [CachedDecoder, GroupedDecoder]
    if layers == {DynamicLayer}:
        candidates = [*preferred, InPlaceDecoder, PaddedDecoder, CachedDecoder, GroupedDecoder]
    ids = probe_tokens(model, 15).view(3, 5)
    mask = torch.arange(5, device=device) >= 5 - torch.tensor([[2], [5], [3]], device=device)
    with torch.no_grad(), eval_mode(model):
        batches = [_probe(ids, mask, before) for before in (ids[0, :0], probe_tokens(model, SHARED_TOKENS))]
        expected = torch.cat([_tried(Decoder(model, few, 4), ids) for few in batches])
        if not bool(expected.isfinite().all()):
            return candidates[0]  # any will do: sampling stops at such numbers
        for candidate in candidates:
            try:
                found = torch.cat([_tried(candidate(model, few, 4), ids) for few in batches])
            except (AttributeError, LookupError, NotImplementedError, RuntimeError, TypeError, ValueError):
                continue  # its cache is of another kind
            if alike(found, expected, model):
                return candidate
    return Decoder


def _probe(ids: Tensor, mask: Tensor, before: Tensor) -> PromptBatch:
    """Those rows behind the same tokens."""
    rows = [torch.cat([row[~real], before, row[real]]) for row, real in zip(ids, mask, strict=True)]
    real = nn.functional.pad(mask, (0, len(before)), value=True)
    return PromptBatch(torch.stack(rows), real, torch.arange(len(ids), device=ids.device), [""] * len(ids))


def _tried(steps: "Decoder", tokens: Tensor) -> Tensor:
    """Logits of four steps in the order of the rows; the first row ends after two."""
    found, logits = [], steps.first()
    for step in range(4):
        found.append(logits[steps.rows.argsort()].float())
        if step < 3:
            logits = steps.next(tokens[steps.rows, step], (steps.rows > 0) | (step != 1))
    return torch.cat(found)


_DECODERS: WeakKeyDictionary[nn.Module, dict[tuple[type["Decoder"], ...], type["Decoder"]]] = WeakKeyDictionary()


class Decoder:
    """Logits of the next token of every row that goes on, without a cache: each step reads all again.

    No row has padding before it, which recurrent layers would take for tokens.

    Args:
        model: A module that maps ids, mask and positions to logits.
        prompts: The prompts, padded on the left.
        max_new_tokens: Length limit of a response.

    Attributes:
        rows: The number in the batch of each row that goes on, in the order of the logits.
    """

    def __init__(self, model: nn.Module, prompts: PromptBatch, max_new_tokens: int) -> None:
        self.model, self.device = model, prompts.prompt_ids.device
        self.input_ids, self.mask = prompts.prompt_ids, prompts.prompt_mask
        self.rows: Int[Tensor, " active"] = torch.arange(len(self.mask), device=self.device)

    def first(self) -> Float[Tensor, "active vocab"]:
        """Logits after the prompts."""
        input_ids, mask = left_aligned(self.input_ids, self.mask)
        lengths, logits = mask.sum(1), []
        groups = length_groups(lengths, PREFILL_TOKENS)  # the head gives logits of all tokens of a group
        for group in groups:
            width = int(lengths[group[0]])
            ids, real = input_ids[group, :width], mask[group, :width]
            read = token_logits(self.model, ids, real, position_ids(real))
            logits.append(read[torch.arange(len(group), device=self.device), lengths[group] - 1])
        return torch.cat(logits)[torch.cat(groups).argsort()]

    def next(self, chosen: Int[Tensor, " active"], going: Bool[Tensor, " active"]) -> Float[Tensor, "going vocab"]:
        """Append the chosen tokens; logits of the rows that go on."""
        keep = going.nonzero().squeeze(1)
        self.rows, self.mask = self.rows[keep], nn.functional.pad(self.mask[keep], (0, 1), value=True)
        self.input_ids = torch.cat([self.input_ids[keep], chosen[keep].unsqueeze(1)], 1)
        return self.first()


class CachedDecoder(Decoder):
    """Over the cache that transformers makes for the model, whatever its layers keep."""

    def __init__(self, model: PreTrainedModel, prompts: PromptBatch, max_new_tokens: int) -> None:
        super().__init__(model, prompts, max_new_tokens)
        self.cache = DynamicCache(config=model.config)
        self.padded = not bool(self.mask.all())

    def first(self) -> Float[Tensor, "active vocab"]:
        """Logits after the prompts."""
        return self._forward(self.input_ids, self.mask if self.padded else None, position_ids(self.mask))

    def next(self, chosen: Int[Tensor, " active"], going: Bool[Tensor, " active"]) -> Float[Tensor, "going vocab"]:
        """Append the chosen tokens; logits of the rows that go on."""
        keep = going.nonzero().squeeze(1)
        if len(keep) < len(going):
            self.cache.reorder_cache(cast(Any, keep))  # recurrent layers have no other way to select rows
        self.rows, self.mask = self.rows[keep], nn.functional.pad(self.mask[keep], (0, 1), value=True)
        mask = self.mask if self.padded else None
        return self._forward(chosen[keep].unsqueeze(1), mask, position_ids(self.mask)[:, -1:])

    def _forward(self, input_ids: Tensor, mask: Tensor | None, positions: Tensor) -> Tensor:
        options: dict[str, Any] = {"attention_mask": mask, "position_ids": positions}
        options |= cache_options(self.model, self.cache)
        if "logits_to_keep" in signature(self.model.forward).parameters:
            options["logits_to_keep"] = 1
        output: Any = self.model(input_ids=input_ids, **options)
        return cast(Tensor, output.logits[:, -1])


class GroupedDecoder(Decoder):
    """A cache for every length of prompts, so that no row is padded: for layers that keep a state of all they read."""

    def __init__(self, model: PreTrainedModel, prompts: PromptBatch, max_new_tokens: int) -> None:
        super().__init__(model, prompts, max_new_tokens)
        lengths = self.mask.sum(1)
        self.parts: list[tuple[Tensor, CachedDecoder]] = []
        for length in lengths.unique().tolist():
            rows = (lengths == length).nonzero().squeeze(1)
            ids = prompts.prompt_ids[rows, -length:]
            texts = [prompts.texts[row] for row in rows.tolist()]
            part = PromptBatch(ids, torch.ones_like(ids, dtype=torch.bool), prompts.prompt_index[rows], texts)
            self.parts.append((rows, CachedDecoder(model, part, max_new_tokens)))

    def first(self) -> Float[Tensor, "active vocab"]:
        """Logits after the prompts."""
        self.rows = torch.cat([rows for rows, _ in self.parts])
        return torch.cat([part.first() for _, part in self.parts])

    def next(self, chosen: Int[Tensor, " active"], going: Bool[Tensor, " active"]) -> Float[Tensor, "going vocab"]:
        """Append the chosen tokens; logits of the rows that go on."""
        sizes, logits, parts = [len(part.rows) for _, part in self.parts], [], []
        for (rows, part), tokens, on in zip(self.parts, chosen.split(sizes), going.split(sizes), strict=True):
            if bool(on.any()):
                logits.append(part.next(tokens, on))
                parts.append((rows, part))
        self.parts = parts
        self.rows = torch.cat([rows[part.rows] for rows, part in self.parts])
        return torch.cat(logits)


class InPlaceDecoder(CachedDecoder):
    """Over buffers that are filled in place: no step copies the cache, and an ended row costs nothing from then on.

    A row that has ended is overwritten by the last row that goes on, so the rows in use stay in front. A prompt that
    comes several times is read once, and so is what all prompts begin with, which stands in front of the padding.
    """

    shares = True

    def __init__(self, model: PreTrainedModel, prompts: PromptBatch, max_new_tokens: int) -> None:
        super().__init__(model, prompts, max_new_tokens)
        rows, width = self.mask.shape
        self.gapless = attends_eagerly(model, self.device, 1)
        block = BLOCK if self.gapless else width + max_new_tokens
        self.layers = [BufferedLayer(rows, block, self.gapless) for _ in self.cache.layers]
        self.cache.layers = list(self.layers)
        self.lengths = self.mask.sum(1)
        self.shared = shared_tokens(self.input_ids, self.mask) if self.shares else 0
        if self.shared:
            self.input_ids, self.mask = behind_prefix(self.input_ids, self.mask, self.shared)

    def first(self) -> Float[Tensor, "active vocab"]:
        """Logits after the prompts, which are read in groups of similar length."""
        width, shared, (rows, first, same) = self.mask.shape[1], self.shared, distinct_rows(self.input_ids, self.mask)
        if shared:
            self._read(rows, torch.zeros_like(rows), rows[:1], 0, shared)
        for layer in self.layers:
            layer.length, layer.is_initialized = shared, True
        logits: list[Tensor] = []
        groups = length_groups(self.lengths[first] - shared, prefill_tokens(self.device))
        for group in groups:
            place = torch.full_like(first, -1).index_put((group,), torch.arange(len(group), device=self.device))[same]
            start = width - int(self.lengths[first[group]].max()) + shared
            logits.append(self._read(rows[place >= 0], place[place >= 0], first[group], start, width))
        for layer in self.layers:
            layer.prompts, layer.length = None, width
        order = torch.cat(groups)
        return torch.cat(logits)[order.argsort()][same]

    def _read(self, rows: Tensor, which: Tensor, asked: Tensor, start: int, stop: int) -> Tensor:
        """Logits after those columns of the prompts asked; their keys and values are put where they belong."""
        for layer in self.layers:
            layer.prompts = rows, which, start, stop
        before = self.shared if start else 0
        ids, mask = self.input_ids[asked, start:stop], self.mask[asked, start:stop]
        with fast_attention(self.model, self.device, before + stop - start):
            seen = None if bool(mask.all()) else nn.functional.pad(mask, (before, 0), value=True)
            return self._forward(ids, seen, position_ids(mask) + before)

    def next(self, chosen: Int[Tensor, " active"], going: Bool[Tensor, " active"]) -> Float[Tensor, "going vocab"]:
        """Append the chosen tokens; logits of the rows that go on."""
        count = int(going.sum())
        if count < len(going):
            holes = (~going[:count]).nonzero().squeeze(1)
            movers = going[count:].nonzero().squeeze(1) + count
            for layer in self.layers:
                layer.move(movers, holes, count)
            for name in ("rows", "mask", "lengths"):
                setattr(self, name, moved(getattr(self, name), movers, holes, count))
            chosen = moved(chosen, movers, holes, count)
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


class PaddedDecoder(InPlaceDecoder):
    """The same with all padding in front, for layers that count columns and not positions back."""

    shares = False
