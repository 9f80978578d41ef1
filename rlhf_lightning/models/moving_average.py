"""The moving average of a policy's weights (InstructGPT, appendix C.4)."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor, distribute_tensor


class MovingAverage(nn.Module):
    """Exponential moving average of the parameters of a model that learn, in 32 bits: 16 would swallow the small steps.

    Args:
        model: What is averaged; the average starts where it is.
        decay: Of the old average per update, in [0, 1).
    """

    def __init__(self, model: nn.Module, decay: float) -> None:
        super().__init__()
        self.decay = decay
        for name, parameter in _learning(model):
            self.register_buffer(name.replace(".", "/"), parameter.detach().to(torch.float32, copy=True))

    def shard_like(self, model: nn.Module) -> None:
        """Keep the part of the average in each process that it keeps of the model's weights."""
        for (name, average), (_, parameter) in zip(list(self.named_buffers()), _learning(model), strict=True):
            if isinstance(parameter, DTensor) and not isinstance(average, DTensor):
                self._buffers[name] = distribute_tensor(average, parameter.device_mesh, parameter.placements)

    @torch.no_grad()
    def update(self, model: nn.Module) -> None:
        """Move towards the model."""
        for average, (_, parameter) in zip(self.buffers(), _learning(model), strict=True):
            average.lerp_(parameter.to(average), 1 - self.decay)

    @contextmanager
    def applied(self, model: nn.Module) -> Iterator[None]:
        """Give the model the averaged weights within the block."""
        own: list[Tensor] = []
        try:
            for average, (_, parameter) in zip(self.buffers(), _learning(model), strict=True):
                own.append(parameter.detach().clone())
                parameter.data.copy_(average)
            yield
        finally:
            for (_, parameter), old in zip(_learning(model), own, strict=False):
                parameter.data.copy_(old)


def _learning(model: nn.Module) -> list[tuple[str, nn.Parameter]]:
    return [(name, parameter) for name, parameter in model.named_parameters() if parameter.requires_grad]
