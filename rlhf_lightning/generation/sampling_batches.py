"""Sampling in batches that fit into the memory; a response does not depend on them, up to rounding of the logits."""

from collections.abc import Callable, Sequence
from typing import Any, TypeAlias

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from rlhf_lightning.algorithms.batch import PromptBatch, Rollout
from rlhf_lightning.algorithms.keyed_random import distinct_index
from rlhf_lightning.arguments import Count, checked
from rlhf_lightning.generation.rewards import FORWARD_TOKENS
from rlhf_lightning.generation.sample import SamplingOptions, sample_responses, select_prompts, select_rows
from rlhf_lightning.generation.shared_prompts import distinct_rows
from rlhf_lightning.models.device_memory import available_memory
from rlhf_lightning.models.padding import length_groups
from rlhf_lightning.models.precision import compute_dtype

Sampler: TypeAlias = Callable[[nn.Module, PromptBatch, SamplingOptions, Sequence[int]], Rollout]
"""Samples one response per prompt from the full distribution of a policy; arguments as `sample_responses`."""
SHARE = 4
"""Keys, values and logits of a sampling batch may take one part of so many of the memory."""
LOGIT_BYTES = 24
"""Bytes per entry of the vocabulary while a token is drawn: logits, probabilities and their sums in 64 bits."""


class SamplingBatches:
    """A sampler that is asked for a part of the prompts at a time, the longest ones first.

    Prompts that repeat stay together, so that they are still read once.

    Args:
        sampler: The sampler of one batch.
        tokens: Rows times tokens of prompt and longest response of a batch, at most; a batch has one row at least. None
            is what the memory allows (`sampling_tokens`) for our own loop; other engines see to that themselves.
    """

    @checked
    def __init__(self, sampler: Sampler = sample_responses, tokens: Count | None = None) -> None:
        self.sampler, self.tokens = sampler, tokens

    def __call__(
        self, model: nn.Module, prompts: PromptBatch, options: SamplingOptions, key: Sequence[int] = (0,)
    ) -> Rollout:
        """Sample; arguments as `sample_responses`."""
        batches = self._batches(model, prompts, options.max_new_tokens)
        if len(batches) == 1:
            return self.sampler(model, prompts, options, key)
        # Which of several equal prompts a row is must be known before they are parted.
        asked = prompts._replace(prompt_index=distinct_index(prompts.prompt_index))
        parts = [self.sampler(model, select_prompts(asked, rows), options, key) for rows in batches]
        return _joined(prompts, batches, parts, options.pad_token_id)

    def _batches(self, model: nn.Module, prompts: PromptBatch, new: int) -> list[Int[Tensor, " rows"]]:
        mask, tokens = prompts.prompt_mask, self.tokens
        lengths = mask.sum(1) + new
        if tokens is None:
            loop = getattr(self.sampler, "func", self.sampler) is sample_responses
            tokens = sampling_tokens(model, mask.device, int(lengths.max())) if loop else mask.numel() + new * len(mask)
        if len(lengths) * int(lengths.max()) <= tokens:
            return [torch.arange(len(mask), device=mask.device)]
        _, first, same = distinct_rows(prompts.prompt_ids, mask)
        order = first[same].argsort(stable=True)
        return [order[group] for group in length_groups(lengths[order], tokens, similar=0.0)]


OWN_LOOP = SamplingBatches()
"""Our own loop, in batches that fit into the memory."""


def sampling_tokens(model: nn.Module, device: torch.device, row: int) -> int:
    """Tokens of a sampling batch that the memory allows; a whole number of rows.

    Args:
        model: The model that samples.
        device: Where it runs.
        row: Tokens of the longest row, its response included.
    """
    config = getattr(model, "config", None)
    parameter = next(model.parameters(), torch.zeros(()))
    width = compute_dtype(device, parameter.dtype).itemsize
    return row * rows_within(config, width, row, available_memory(device))


def rows_within(config: Any, width: int, row: int, memory: int | None) -> int:
    """Rows of a sampling batch whose keys, values and logits fit into their share of the memory.

    Args:
        config: The configuration of a transformers model; any other model has no keys and values that are kept.
        width: Bytes of a number of its activations.
        row: Tokens of the longest row.
        memory: Bytes that there are; None where that is not known, and then 4 GiB.

    Examples:
        >>> from transformers import GPT2Config
        >>> rows_within(GPT2Config(vocab_size=1000, n_embd=64, n_layer=2, n_head=2), 4, 100, 2**30)  # 126,400 B a row
        2123
    """
    text = config.get_text_config() if hasattr(config, "get_text_config") else None
    vocabulary = int(getattr(text, "vocab_size", 0))
    kept = 0 if text is None else 2 * key_value_width(text) * width
    return max(1, (memory or 2**32) // SHARE // max(1, row * kept + LOGIT_BYTES * vocabulary))


def key_value_width(config: Any) -> int:
    """Numbers that one token leaves in the keys, or in the values, of all layers.

    Args:
        config: The configuration of a transformers model.
    """
    text: Any = config.get_text_config()
    attention = getattr(text, "num_attention_heads", None) or 1
    heads = getattr(text, "num_key_value_heads", None) or attention
    size = getattr(text, "head_dim", None) or text.hidden_size // attention
    return int(text.num_hidden_layers * heads * size)


def even_batch_size(count: int, most: int) -> int:
    """Rows of a batch, at most so many, of which there are an even number from 64 rows on, for two processes.

    It does not depend on how many processes there are, and so neither does what comes out.

    Args:
        count: Rows in all.
        most: Rows of a batch at most.

    Examples:
        >>> even_batch_size(600, 256), even_batch_size(100, 256), even_batch_size(60, 256), even_batch_size(49, 8)
        (150, 50, 60, 5)
    """
    if count <= most and count < 64:
        return max(1, count)
    most = min(most, -(-count // 2))
    batches = -(-count // most)
    size = -(-count // (batches + batches % 2))
    while -(-count // size) % 2 and size > 1:
        size -= 1
    return size


def scoring_batches(lengths: Int[Tensor, " rows"], tokens: int) -> list[Int[Tensor, " batch"]]:
    """Rows that models without gradient read together: all where they fit, else in groups of similar length.

    Args:
        lengths: Tokens of each row.
        tokens: Tokens of a group, padding included, at most.
    """
    if not len(lengths) or len(lengths) * int(lengths.max()) <= tokens:
        return [torch.arange(len(lengths), device=lengths.device)]
    return length_groups(lengths, tokens)


def in_scoring_batches(
    rollout: Rollout, figure: Callable[[Rollout], Float[Tensor, " *shape"]], tokens: int = FORWARD_TOKENS
) -> Float[Tensor, " *shape"]:
    """A figure of each row, or of each of its response tokens, from one scoring batch after the other.

    Args:
        rollout: Prompts and responses.
        figure: From some of the rows to theirs.
        tokens: Tokens of a batch, padding included, at most.
    """
    batches = scoring_batches(rollout.lengths, tokens)
    if len(batches) == 1:
        return figure(rollout)
    found = [figure(select_rows(rollout, rows)) for rows in batches]
    shape = rollout.response_mask.shape[: found[0].dim()]
    whole = found[0].new_zeros(shape)
    for rows, part in zip(batches, found, strict=True):
        places: tuple[Any, ...] = (rows, *(slice(size) for size in part.shape[1:]))
        whole[places] = part
    return whole


def _joined(prompts: PromptBatch, batches: Sequence[Tensor], parts: Sequence[Rollout], pad: int) -> Rollout:
    """The rows of all batches in the order of the prompts."""
    order = torch.cat(list(batches)).argsort()
    width = max(part.response_ids.shape[1] for part in parts)

    def whole(name: str, value: float) -> Tensor:
        fields = [getattr(part, name) for part in parts]
        padded = [nn.functional.pad(field, (0, width - field.shape[1]), value=value) for field in fields]
        return torch.cat(padded)[order]

    ended = torch.cat([part.ended for part in parts])[order]
    return Rollout(prompts, whole("response_ids", pad), whole("response_mask", False), whole("log_probs", 0.0), ended)
