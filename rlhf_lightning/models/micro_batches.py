"""The gradient of a whole batch with the activations of a part of it in memory."""

from collections.abc import Callable, Sequence
from typing import Any, TypeVar, cast

import torch
from jaxtyping import Float, Num
from torch import Tensor, nn

from rlhf_lightning.algorithms.batch import LMBatch
from rlhf_lightning.models.lora import trainable_parameters
from rlhf_lightning.parallel.sharding import is_sharded

Part = TypeVar("Part")


def mean_in_parts(
    model: nn.Module, parts: Sequence[Part], mean_of: Callable[[Part], tuple[Float[Tensor, ""], Num[Tensor, ""]]]
) -> tuple[Float[Tensor, ""], Num[Tensor, ""]]:
    """The mean loss of a batch that is read part by part; its backward pass gives the gradient of the whole batch.

    `sum_i n_i L_i / sum_i n_i`, where `n_i` is what counts in a part, such as tokens. The gradients of all parts but
    the last are kept and added in the backward pass of the last one: nothing is left in `.grad` before, and processes
    exchange gradients once.

    Args:
        model: The model that learns.
        parts: The parts of the batch, one or more.
        mean_of: From a part to its mean loss and how much counts in it.

    Returns:
        The mean, with gradient, and how much counts in all parts together.

    Raises:
        ValueError: When there are several parts and the weights are sharded.

    Examples:
        >>> model = nn.Linear(1, 1, bias=False)
        >>> def mean_of(rows):
        ...     return model(rows).mean(), torch.tensor(len(rows))
        >>> loss, _ = mean_in_parts(model, [torch.tensor([[1.0], [2.0]]), torch.tensor([[6.0]])], mean_of)
        >>> loss.backward()
        >>> model.weight.grad  # (1 + 2 + 6) / 3
        tensor([[3.]])
    """
    if len(parts) == 1:
        return mean_of(parts[0])
    if is_sharded(model):
        raise ValueError(
            "module.micro_batch_size is not possible for sharded weights (trainer=fsdp); set it to null, and "
            "module.activation_checkpointing=true or a smaller data.batch_size where a batch does not fit."
        )
    learning = trainable_parameters(model)
    gradients: list[Tensor | None] = [None] * len(learning)
    total, count = torch.zeros(()), torch.zeros(())
    for number, part in enumerate(parts, 1):
        mean, counted = mean_of(part)
        loss = mean * counted
        total, count = total.to(loss.device) + loss.detach(), count.to(counted.device) + counted
        if number < len(parts):
            found = torch.autograd.grad(loss, learning, allow_unused=True)
            gradients = [
                new if old is None else old if new is None else old.add_(new)
                for old, new in zip(gradients, found, strict=True)
            ]
    last = cast(Tensor, _WithGradients.apply(loss, total, gradients, *learning))
    return last / count.clamp(min=1), count


def row_parts(batch: LMBatch, rows: int | None) -> list[LMBatch]:
    """A batch in parts of so many rows of similar length, the longest first; as a whole where it has no more."""
    if rows is None or len(batch.mask) <= rows:
        return [batch]
    # Where padding is on the left, the last real token is in the last column.
    widths = (batch.mask * torch.arange(1, batch.mask.shape[1] + 1, device=batch.mask.device)).amax(1)
    groups = widths.argsort(descending=True, stable=True).split(rows)
    return [LMBatch(*(field[group, : int(widths[group].max())] for field in batch)) for group in groups]


class _WithGradients(torch.autograd.Function):
    """A value whose backward pass goes through one of its summands, and brings gradients that are known already."""

    @staticmethod
    def forward(ctx: Any, last: Tensor, total: Tensor, gradients: list[Tensor | None], *_: Tensor) -> Tensor:
        """The total."""
        ctx.gradients = gradients
        return total.clone()

    @staticmethod
    def backward(ctx: Any, *slopes: Tensor) -> tuple[Any, ...]:
        """One gradient after the other is handed over."""
        gradients, ctx.gradients = ctx.gradients, None
        return slopes[0], None, None, *(None if each is None else each.mul_(slopes[0]) for each in gradients)
