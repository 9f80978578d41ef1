"""What a gradient is made of: whole batches, and what one loss adds to the gradient of another."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
from lightning import Callback
from lightning.pytorch.callbacks import GradientAccumulationScheduler
from lightning.pytorch.plugins.precision import MixedPrecision, Precision
from torch import Tensor, nn
from torch.optim import Optimizer

from rlhf_lightning.models.lora import trainable_parameters
from rlhf_lightning.parallel.processes import mean_gradients
from rlhf_lightning.parallel.sharding import full_tensor


def check_gradient_settings(
    accumulate_grad_batches: int,
    gradient_clip_val: float | None = None,
    callbacks: Sequence[Callback] = (),
    *,
    automatic: bool = True,
) -> None:
    """Refuse settings of a Trainer under which the gradient would not be that of the whole batch, clipped as a whole.

    Args:
        accumulate_grad_batches: Batches whose gradients the Trainer adds up.
        gradient_clip_val: Norm or value that the Trainer clips gradients to, None for none.
        callbacks: The Trainer's callbacks, of which one may change the first.
        automatic: Whether the Trainer steps the optimizer, and not the module.

    Raises:
        ValueError: Saying what to do instead.
    """
    schedules = [callback.scheduling for callback in callbacks if isinstance(callback, GradientAccumulationScheduler)]
    most = max([accumulate_grad_batches, *(batches for schedule in schedules for batches in schedule.values())])
    if most != 1:
        raise ValueError(
            f"trainer.accumulate_grad_batches={most} is not the gradient of one large batch: each "
            "part would count alike, however many tokens or pairs it has, and a checkpoint between two parts would "
            "lose a gradient. Set it to 1. Where a batch does not fit into memory, use "
            "module.activation_checkpointing=true, module.micro_batch_size, whose gradient is exact, trainer=ddp "
            "or fsdp, or a smaller data.batch_size."
        )
    if gradient_clip_val is not None and not gradient_clip_val >= 0:
        raise ValueError(f"trainer.gradient_clip_val={gradient_clip_val} must not be below 0; None does not clip.")
    if gradient_clip_val and not automatic:
        raise ValueError(
            f"trainer.gradient_clip_val={gradient_clip_val} does nothing for PPO, which steps its optimizers itself. "
            f"Set PPO's own limit, module.max_grad_norm={gradient_clip_val}."
        )


def clip_unscaled(
    plugin: Precision, optimizer: Optimizer, gradient_clip_val: float | None, gradient_clip_algorithm: str | None
) -> bool:
    """Clip the gradients of a fused optimizer in bf16-mixed; whether that was done.

    Lightning refuses it under mixed precision, because fused kernels divide by the scale of the loss themselves;
    without a gradient scaler there is none.

    Args:
        plugin: The Trainer's precision plugin.
        optimizer: The optimizer whose gradients are clipped.
        gradient_clip_val: Norm or value that they are clipped to, None for none.
        gradient_clip_algorithm: `value`, or the norm.
    """
    if type(plugin) is not MixedPrecision or plugin.scaler is not None or not gradient_clip_val:
        return False
    if gradient_clip_algorithm == "value":
        plugin.clip_grad_by_value(optimizer, gradient_clip_val)
    else:
        plugin.clip_grad_by_norm(optimizer, gradient_clip_val)
    return True


@contextmanager
def measured_gradient(
    model: nn.Module, names: tuple[str, str, str], *, wanted: bool = True
) -> Iterator[dict[str, Tensor]]:
    """Norms of the gradient before the block and of what the block adds, and the cosine between the two.

    Of the mean gradient, where there are several processes.

    Args:
        model: The model that has the gradient.
        names: Names of the two norms and of the cosine.
        wanted: Whether to measure at all; it takes a copy of the gradient.

    Yields:
        A dictionary that has the figures after the block.
    """
    figures: dict[str, Tensor] = {}
    if not wanted:
        yield figures
        return
    parameters = trainable_parameters(model)
    first = mean_gradients([torch.zeros_like(p) if p.grad is None else p.grad.clone() for p in parameters])
    yield figures
    both = mean_gradients([torch.zeros_like(p) if p.grad is None else p.grad for p in parameters])
    squares = torch.zeros(3, dtype=torch.float64, device=first[0].device)
    for old, new in zip(first, both, strict=True):
        rest = new - old
        products = [(old * old).sum(), (rest * rest).sum(), (old * rest).sum()]
        squares += torch.stack([full_tensor(product).double() for product in products])
    old_norm, added_norm = squares[0].sqrt(), squares[1].sqrt()
    cosine = squares[2] / (old_norm * added_norm).clamp(min=1e-30)
    figures |= {name: value.float() for name, value in zip(names, (old_norm, added_norm, cosine), strict=True)}
