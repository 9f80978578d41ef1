"""The moving average of a policy's weights (InstructGPT, appendix C.4)."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor, distribute_tensor

from rlhf_lightning.models.lora import trainable_parameters


class MovingAverage(nn.Module):
    """Exponential moving average of a model's trainable parameters, in 32 bits: 16 would swallow the small steps.

    Args:
        model: The model that is averaged; the average starts at its weights.
        decay: Weight of the old average in each update, in [0, 1).
    """

    def __init__(self, model: nn.Module, decay: float) -> None:
        super().__init__()
        self.decay = decay
        for name, parameter in model.named_parameters():
            if parameter.requires_grad:
                self.register_buffer(name.replace(".", "/"), parameter.detach().to(torch.float32, copy=True))

    def shard_like(self, model: nn.Module) -> None:
        """Keep the part of the average in each process that it keeps of the model's weights."""
        for (name, average), parameter in zip(list(self.named_buffers()), trainable_parameters(model), strict=True):
            if isinstance(parameter, DTensor) and not isinstance(average, DTensor):
                self.register_buffer(name, distribute_tensor(average, parameter.device_mesh, parameter.placements))

    @torch.no_grad()
    def update(self, model: nn.Module) -> None:
        """Move towards the model."""
        for average, parameter in zip(self.buffers(), trainable_parameters(model), strict=True):
            average.lerp_(parameter.to(average), 1 - self.decay)

    @contextmanager
    def applied(self, model: nn.Module) -> Iterator[None]:
        """Give the model the averaged weights within the block."""
        before: list[Tensor] = []
        try:
            for average, parameter in zip(self.buffers(), trainable_parameters(model), strict=True):
                before.append(parameter.detach().clone())
                parameter.data.copy_(average)
            yield
        finally:
            for parameter, old in zip(trainable_parameters(model), before, strict=False):
                parameter.data.copy_(old)
