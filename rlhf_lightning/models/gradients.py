"""What one loss adds to the gradient of another."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from rlhf_lightning.models.lora import trainable_parameters
from rlhf_lightning.parallel.processes import mean_gradients
from rlhf_lightning.parallel.sharding import full_tensor


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
