"""The gradient of a batch from a backward pass for each part of it, so that memory holds one part."""

from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import torch
from lightning.pytorch.strategies import DeepSpeedStrategy, Strategy
from torch import Tensor, nn

from rlhf_lightning.algorithms.batch import ComparisonBatch, LMBatch
from rlhf_lightning.algorithms.losses import RankingStatistics, ranking_loss
from rlhf_lightning.models.lora import trainable_parameters
from rlhf_lightning.models.shared_prefix import prompt_rows
from rlhf_lightning.parallel.processes import all_gather_objects, process_weight
from rlhf_lightning.parallel.sharding import is_sharded, sync_on_last

Part = TypeVar("Part")
Statistics = TypeVar("Statistics")


def loss_in_parts(
    module: Any, parts: Sequence[tuple[Part, Tensor]], loss_of: Callable[[Part], tuple[Tensor, Statistics]]
) -> tuple[Tensor, list[tuple[Tensor, Statistics]]]:
    """The loss of a batch, after the backward passes of all its parts but the last: its own is that of the last part.

    Args:
        module: The `RLHFModule` that learns.
        parts: The parts of the batch, each with the weight of its mean loss in that of the whole batch.
        loss_of: From a part to its mean loss and what was measured.

    Returns:
        The loss, and for every part its loss, weighted, without gradient, and what was measured.
    """
    found: list[tuple[Tensor, Statistics]] = []
    count = len(parts)
    if is_sharded(module.model):  # all processes gather the weights for every part together
        part, weight = parts[0]
        parts = [*parts, *[(part, weight * 0)] * (max(all_gather_objects(count)) - count)]
    for part, weight in sync_on_last(module.model, parts):
        mean, statistics = loss_of(part)
        loss = mean * weight
        module.check_finite(loss=loss.detach())
        found.append((loss.detach(), statistics))
        if len(found) < len(parts):
            add_gradient(module, loss, first=len(found) == 1)
    module.gradient_added = len(parts) > 1
    if len(parts) == 1:
        return loss, found
    whole = torch.stack([each for each, _ in found]).sum()
    return keeping_parts(loss + (whole - loss.detach()), module.model), found[:count]


def row_parts(batch: LMBatch, size: int | None) -> list[tuple[LMBatch, Tensor]]:
    """Parts of a batch of rows, each with the weight of its mean loss in that of the batches of all processes.

    A loss is a mean over tokens that count, so a part weighs as much as it has of those.

    Args:
        batch: The batch of this process; every process must ask at the same time.
        size: Rows of a part; None is all of them, in the order of the batch. Parts hold rows of similar length, the
            longest first.
    """
    count = batch.loss_mask[:, 1:].sum()
    whole = process_weight(count)
    if size is None or size >= len(batch.mask):
        return [(batch, whole)]
    # Where padding is on the left, the last real token is in the last column.
    widths = (batch.mask * torch.arange(1, batch.mask.shape[1] + 1, device=batch.mask.device)).amax(1)
    groups = widths.argsort(descending=True, stable=True).split(size)
    parts = [LMBatch(*(field[group, : int(widths[group].max())] for field in batch)) for group in groups]
    return [(part, whole * (part.loss_mask[:, 1:].sum() / count.clamp(min=1))) for part in parts]


def ranking_parts(batch: ComparisonBatch, size: int | None) -> list[tuple[ComparisonBatch, Tensor]]:
    """Parts of a batch, each with the weight of its mean loss in that of the batches of all processes.

    A loss is a mean over the prompts that have a pair which is no tie, so a part weighs as much as it has of those.

    Args:
        batch: The batch of this process; every process must ask at the same time.
        size: Prompts of a part; None is all of them, in the order of the batch. Parts hold prompts of similar length,
            the longest first, so that little is padding and memory is at its fullest at once.
    """

    def decided(part: ComparisonBatch) -> Tensor:
        return ranking_loss(torch.zeros_like(part.ranks, dtype=torch.float), part.ranks, part.mask)[1].num_prompts

    count = decided(batch)
    whole = process_weight(count)
    if size is None or size >= len(batch.ranks):
        return [(batch, whole)]
    tokens = batch.prompt_mask.sum(1) + batch.response_mask.sum((1, 2))
    order: list[int] = tokens.argsort(descending=True, stable=True).tolist()
    parts = [prompt_rows(batch, order[start : start + size]) for start in range(0, len(order), size)]
    return [(part, whole * (decided(part) / count.clamp(min=1))) for part in parts]


def together(found: Sequence[tuple[Tensor, RankingStatistics]]) -> tuple[Tensor, RankingStatistics]:
    """The loss and the statistics of a batch from those of its parts, losses weighted already."""
    if len(found) == 1:
        return found[0]
    losses, statistics = zip(*found, strict=True)
    pairs, accuracy, margin, prompts = (torch.stack(values) for values in zip(*statistics, strict=True))
    mean_over = pairs / pairs.sum().clamp(min=1)
    whole = RankingStatistics(pairs.sum(), (accuracy * mean_over).sum(), (margin * mean_over).sum(), prompts.sum())
    return torch.stack(losses).sum(), whole


def add_gradient(module: Any, loss: Tensor, first: bool) -> None:
    """The backward pass of a part that is not the last, whose pass is that of whoever steps the optimizer.

    Args:
        module: The `RLHFModule` that learns. `DistributedDataParallel` exchanges gradients in the last pass alone.
        loss: The part's loss, weighted.
        first: Whether it is the first part: a Trainer would clear gradients after `training_step`, so here it is done
            before. Anyone else clears them before `training_step`.
    """
    trainer = module.running_trainer
    if trainer is None:
        module.backward_loss(loss)
        return
    if first:
        module.zero_grad()
    trainer.strategy.backward(loss, None)  # through its precision, as Lightning's own loop does


def keeping_parts(loss: Tensor, model: nn.Module) -> Tensor:
    """The loss of the last part, which in its backward pass makes sure that the gradient of the others is there."""

    def look(_gradient: Tensor) -> None:
        if all(parameter.grad is None for parameter in trainable_parameters(model)):
            raise RuntimeError(
                "the gradients of the first parts of the batch were cleared. With micro_batch_size, call "
                "optimizer.zero_grad() before training_step, not between it and the backward pass."
            )

    if loss.requires_grad and not is_sharded(model):
        loss.register_hook(look)
    return loss


def check_parts(size: int | None, strategy: Strategy) -> None:
    """Refuse parts of a batch under a strategy that keeps gradients by itself.

    Args:
        size: Rows or prompts of a part, None for the whole batch.
        strategy: The Trainer's strategy.

    Raises:
        ValueError: When the strategy is DeepSpeed's.
    """
    if size is not None and isinstance(strategy, DeepSpeedStrategy):
        raise ValueError(
            f"micro_batch_size={size} adds up gradients, of which DeepSpeed has its own keeping. Leave it null, or set "
            "trainer=ddp or fsdp."
        )
