"""Rows of tokens, as an engine takes them and gives them back, and the weights that it samples with."""

from collections.abc import Sequence
from pathlib import Path
from typing import cast

import torch
from jaxtyping import Int
from torch import Tensor, nn
from torch.nn.utils.rnn import pad_sequence
from transformers import PreTrainedModel

from rlhf_lightning.algorithms.batch import PromptBatch, Rollout
from rlhf_lightning.algorithms.keyed_random import distinct_index, keyed_uniforms
from rlhf_lightning.generation.sample import SamplingOptions, through_first
from rlhf_lightning.models.lora import has_adapters, merge_adapters


def unpadded(prompts: PromptBatch) -> list[list[int]]:
    """The tokens of every prompt."""
    return [ids[mask].tolist() for ids, mask in zip(prompts.prompt_ids, prompts.prompt_mask, strict=True)]


def row_seeds(key: Sequence[int], index: Int[Tensor, " rows"]) -> list[int]:
    """A whole number below 2^31 for each row, set by the key and the prompt's index."""
    seeds: list[int] = (keyed_uniforms(key, distinct_index(index), 1).squeeze(1) * 2**31).long().tolist()
    return seeds


def rollout_of(
    prompts: PromptBatch,
    options: SamplingOptions,
    tokens: Sequence[Sequence[int]],
    log_probs: Sequence[Sequence[float]],
) -> Rollout:
    """Tokens and log-probabilities of every row, cut behind the first end and padded on the right."""
    device, limit = prompts.prompt_ids.device, options.max_new_tokens
    rows = [torch.tensor(row[:limit], dtype=torch.long) for row in tokens]
    ids = pad_sequence(rows, batch_first=True, padding_value=options.pad_token_id)
    values = pad_sequence([torch.tensor(row[:limit]) for row in log_probs], batch_first=True)
    lengths = torch.tensor([len(row) for row in rows]).unsqueeze(1)
    mask = (torch.arange(ids.shape[1]) < lengths) & through_first(options.ends(ids))
    mask = mask[:, : int(mask.sum(1).max())]
    ids = ids[:, : mask.shape[1]].masked_fill(~mask, options.pad_token_id)
    values = values[:, : mask.shape[1]].masked_fill(~mask, 0.0)
    ended = options.ends(ids).any(1)
    return Rollout(prompts, ids.to(device), mask.to(device), values.to(device), ended.to(device))


def without_adapters(model: nn.Module) -> PreTrainedModel:
    """The model, or a copy with its adapters merged."""
    return cast(PreTrainedModel, merge_adapters(model) if has_adapters(model) else model)


def write_weights(model: PreTrainedModel, folder: str | Path) -> None:
    """Write a model folder without tokenizer; sharded weights must be held as a whole.

    Args:
        model: The model.
        folder: The folder.
    """
    # `state_dict` would shard them again.
    model.save_pretrained(folder, state_dict=dict(model.named_parameters(remove_duplicate=False)))
