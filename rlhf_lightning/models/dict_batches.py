"""Batches of other collators: dicts of tensors, as those of transformers and TRL make them, become the typed ones."""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from rlhf_lightning.algorithms.batch import ComparisonBatch, LMBatch
from rlhf_lightning.parallel.processes import world_size

NO_TARGET = -100
"""The label of a token that is no target, in transformers."""
LM_KEYS = ("input_ids", "attention_mask", "labels")
PAIR_KEYS = ("input_ids_chosen", "attention_mask_chosen", "input_ids_rejected", "attention_mask_rejected")
TEXT = "pretrain"
"""What the pretraining text of PPO-ptx is called beside the prompts."""
NEWER_PAIR_KEYS = ("chosen_input_ids", "chosen_attention_mask", "rejected_input_ids", "rejected_attention_mask")


def lm_batch(batch: Any) -> LMBatch:
    """A batch for a language model's loss.

    Args:
        batch: An `LMBatch`, or a dict with `input_ids`, `labels`, the same tokens with -100 where one is no target, and
            `attention_mask`, without which every token is real. A token behind padding is no target: nothing says it.

    Raises:
        ValueError: When a key is missing or not used, shapes differ, or the labels are other tokens or none.

    Examples:
        >>> ids = torch.tensor([[5, 6, 7]])
        >>> labels = torch.tensor([[-100, 6, 7]])
        >>> lm_batch({"input_ids": ids, "attention_mask": torch.ones_like(ids), "labels": labels}).loss_mask
        tensor([[False,  True,  True]])
    """
    if isinstance(batch, LMBatch):
        return batch
    if isinstance(batch, Mapping) and "attention_mask" not in batch and isinstance(batch.get("input_ids"), Tensor):
        batch = {**batch, "attention_mask": torch.ones_like(batch["input_ids"])}
    input_ids, mask, labels = _tensors(batch, LMBatch, LM_KEYS)
    if input_ids.shape != labels.shape:
        shapes = f"{tuple(labels.shape)}, input_ids {tuple(input_ids.shape)}"
        raise ValueError(f"one label belongs to each token; labels have the shape {shapes}.")
    mask, counts = mask.bool(), labels != NO_TARGET
    if bool((counts & (labels != input_ids)).any()):
        raise ValueError(
            "labels are other tokens than input_ids: give the same tokens, not shifted, -100 for no target."
        )
    if bool((counts & ~mask).any()):
        raise ValueError("labels count tokens that attention_mask hides; give those -100, or unhide them.")
    if not bool(counts.any()):
        raise ValueError("labels count no token: every one is -100, and the batch would teach nothing.")
    behind_padding = mask & ~torch.nn.functional.pad(mask, (1, 0), value=True)[:, :-1]
    return LMBatch(input_ids, mask, counts & ~behind_padding)


def comparison_batch(batch: Any) -> ComparisonBatch:
    """A batch of rankings.

    Args:
        batch: A `ComparisonBatch`, or a dict with `input_ids_chosen`, `attention_mask_chosen` and the same of
            `rejected` (or `chosen_input_ids`, ...), prompt and response in one row. The tokens with which both begin
            are read as the prompt, which changes no score.

    Raises:
        ValueError: When a key is missing or not used, shapes differ, or a row has no token.
    """
    if isinstance(batch, ComparisonBatch):
        return batch
    newer = isinstance(batch, Mapping) and any(name in batch for name in NEWER_PAIR_KEYS)
    values = _tensors(batch, ComparisonBatch, NEWER_PAIR_KEYS if newer else PAIR_KEYS)
    chosen, rejected = (_unpadded(ids, mask) for ids, mask in (values[:2], values[2:]))
    starts = [_common(*pair) for pair in zip(chosen, rejected, strict=True)]
    prompts = [row[:start] for row, start in zip(chosen, starts, strict=True)]
    responses = [
        row[start:] for pair, start in zip(zip(chosen, rejected, strict=True), starts, strict=True) for row in pair
    ]
    prompt_ids, prompt_mask = _padded(prompts, "left")
    response_ids, response_mask = (rows.view(len(starts), 2, -1) for rows in _padded(responses, "right"))
    ranks = torch.tensor([[1, 2]] * len(starts), device=prompt_ids.device)
    return ComparisonBatch(prompt_ids, prompt_mask, response_ids, response_mask, ranks, [""] * len(starts))


def is_filler(batch: LMBatch | ComparisonBatch) -> bool:
    """Whether a batch is what a data module gives a process that has no rows of it: a token, and nothing to learn."""
    if world_size() == 1 or len(batch[0]) > 1 or int(batch[1].sum()) > 1:
        return False
    if isinstance(batch, LMBatch):
        return not bool(batch.loss_mask.any())
    return batch.ranks.tolist() == [[1, 1]] and bool((batch.response_ids == batch.prompt_ids[0, -1]).all())


def ppo_batch(batch: Any) -> tuple[Any, LMBatch | None]:
    """The prompts of an iteration and the text beside them, where there is some.

    Args:
        batch: A dict with `prompts`, a `PromptBatch` or what the module's own `rollout` takes, and maybe `pretrain`, as
            `lm_batch`.

    Raises:
        ValueError: When there are no prompts, or other keys.
    """
    prompts = batch.get("prompts") if isinstance(batch, Mapping) else None
    if prompts is None or isinstance(prompts, Mapping | Tensor) or batch.keys() - {"prompts", TEXT}:
        raise ValueError(
            f"PPO takes {{'prompts': PromptBatch, 'pretrain': LMBatch}}, the second for ptx_coef, not {_named(batch)}. "
            "RLHFDataModule('ppo', ...) gives such batches; a PromptBatch has ids, mask, numbers and texts."
        )
    text = batch.get(TEXT)
    return prompts, None if text is None else lm_batch(text)


def _tensors(batch: Any, kind: type[Any], names: Sequence[str]) -> list[Tensor]:
    """The tensors of those names, tokens before their mask, all of two dimensions, some rows, and the same number."""
    found = batch if isinstance(batch, Mapping) else {}
    lacking = [name for name in names if name not in found]
    there = [name for name in names if name in found and not isinstance(found[name], Tensor)]
    others = [f"{name}, a {type(found[name]).__name__}" for name in there]
    unused = sorted(map(str, found.keys() - set(names)))
    if lacking or others or unused:
        has, lacks = ", ".join(others or [*unused, "unused"]), ", ".join(lacking)
        wrong = f"lacks {lacks}" if lacks and not others else f"has {has}"
        raise ValueError(
            f"a batch here is a {kind.__name__}, or a dict of tensors with {', '.join(names)} and nothing else; this "
            f"is {_named(batch)}, which {wrong}. RLHFDataModule makes such batches of records."
        )
    shapes = [tuple(found[name].shape) for name in names]
    alike = all(ids == mask for ids, mask in zip(shapes[::2], shapes[1::2], strict=False))
    if not alike or any(len(own) != 2 or 0 in own or own[0] != shapes[0][0] for own in shapes):
        told = ", ".join(f"{name} {shape}" for name, shape in zip(names, shapes, strict=True))
        raise ValueError(
            f"rows by tokens are needed, at least one row, and one mark of padding for each token; there is {told}."
        )
    return [found[name] for name in names]


def _named(batch: Any) -> str:
    return f"a dict with {', '.join(map(str, batch))}" if isinstance(batch, Mapping) else f"a {type(batch).__name__}"


def _unpadded(input_ids: Tensor, mask: Tensor) -> list[Tensor]:
    rows = [ids[real] for ids, real in zip(input_ids, mask.bool(), strict=True)]
    if empty := [number for number, row in enumerate(rows) if not len(row)]:
        raise ValueError(f"row {empty[0]} of the batch has no token that attention_mask shows; leave it out.")
    return rows


def _common(row: Tensor, other: Tensor) -> int:
    """Tokens with which two rows begin alike, leaving at least one to each."""
    length = min(len(row), len(other)) - 1
    return int((row[:length] == other[:length]).long().cumprod(0).sum())


def _padded(rows: Sequence[Tensor], side: str) -> tuple[Tensor, Tensor]:
    """Rows of one length, of one column at least, and the mask of real tokens."""
    ids, mask = (
        pad_sequence(list(values), batch_first=True, padding_side=side)
        for values in (rows, [torch.ones_like(row, dtype=torch.bool) for row in rows])
    )
    if not ids.shape[1]:
        ids, mask = ids.new_zeros(len(rows), 1), mask.new_zeros(len(rows), 1)
    return ids, mask
