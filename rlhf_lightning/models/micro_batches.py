"""The gradient of a batch of rankings from a backward pass for each part of it, so that memory holds one part."""

from collections.abc import Sequence
from typing import Any

import torch
from lightning import LightningModule
from lightning.pytorch.strategies import DeepSpeedStrategy
from torch import Tensor, nn
from torch.optim import Optimizer

from rlhf_lightning.algorithms.batch import ComparisonBatch
from rlhf_lightning.algorithms.losses import RankingStatistics, ranking_loss
from rlhf_lightning.models.lora import trainable_parameters
from rlhf_lightning.models.optimizers import OptimizerFactory
from rlhf_lightning.models.shared_prefix import prompt_rows
from rlhf_lightning.parallel.processes import process_weight
from rlhf_lightning.parallel.sharding import is_sharded


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


def ranking_optimizer(module: LightningModule, factory: OptimizerFactory, head_lr: float | None) -> Optimizer:
    """The optimizer over what learns, the head at a rate of its own.

    Args:
        module: The `RewardModule`.
        factory: The optimizer's factory.
        head_lr: The rate of the head; None is that of all.

    Raises:
        ValueError: When there is no head, or DeepSpeed is to add up gradients of parts.
    """
    own: Any = module
    model, trainer = own.model, own.running_trainer
    if own.hparams.micro_batch_size is not None and isinstance(getattr(trainer, "strategy", None), DeepSpeedStrategy):
        raise ValueError(
            "micro_batch_size adds up gradients, of which DeepSpeed has its own keeping. Leave it null, or set "
            "trainer=ddp or fsdp."
        )
    if head_lr is None:
        return factory(trainable_parameters(module))
    head = getattr(model, "head", None)
    if not isinstance(head, nn.Module):
        raise ValueError(f"head_lr={head_lr}: {type(model).__name__} has no `head`. Leave it None.")
    own = trainable_parameters(head)
    others = [parameter for parameter in trainable_parameters(module) if not any(parameter is one for one in own)]
    groups: Any = [*([{"params": others}] if others else []), {"params": own, "lr": head_lr}]
    return factory(groups)
