"""Counting the bytes of tensors that are alive, and models that have shapes but no values."""

import weakref
from collections.abc import Callable, Iterable
from typing import Any, cast

import torch
from torch import Tensor, nn

from rlhf_lightning.compat import TorchDispatchMode, tree_leaves


class LiveBytes(TorchDispatchMode):
    """Counts the bytes of the tensors that are made while it is on, and the most that were alive at once."""

    def __init__(self) -> None:
        cast(Any, super()).__init__()
        self.now, self.peak = 0, 0
        self._seen: set[int] = set()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Run the operation and count what it made; views of what was there before are not made."""
        for storage in _storages((args, kwargs)):
            self._count(storage, 0)
        out = func(*args, **(kwargs or {}))
        for storage in _storages(out):
            self._count(storage, storage.nbytes())
        return out

    def _count(self, storage: torch.UntypedStorage, size: int) -> None:
        key = id(storage)
        if key in self._seen:
            return
        self._seen.add(key)
        self.now += size
        self.peak = max(self.peak, self.now)
        weakref.finalize(storage, self._release, key, size)

    def _release(self, key: int, size: int) -> None:
        self._seen.discard(key)
        self.now -= size


def _storages(values: Any) -> list[torch.UntypedStorage]:
    return [value.untyped_storage() for value in tree_leaves(values) if isinstance(value, Tensor)]


def without_values(models: Iterable[nn.Module]) -> None:
    """Put fake tensors of the CPU where the models have tensors of no device; what they share, they share still."""
    fakes: dict[Tensor, Tensor] = {}
    for module in (module for model in models for module in model.modules()):
        parameters = module.named_parameters(recurse=False, remove_duplicate=False)
        buffers = module.named_buffers(recurse=False, remove_duplicate=False)
        for name, old in [*parameters, *buffers]:
            if old.device.type == "meta":
                if old not in fakes:
                    fake = torch.empty(old.shape, dtype=old.dtype, device="cpu")
                    fakes[old] = nn.Parameter(fake, old.requires_grad) if isinstance(old, nn.Parameter) else fake
                setattr(module, name, fakes[old])


def parameter_bytes(model: nn.Module) -> int:
    """Bytes of all parameters, shared ones once."""
    return sum(int(p.numel()) * p.element_size() for p in model.parameters())


def trainable_bytes(model: nn.Module) -> int:
    """Bytes of the parameters that have a gradient."""
    return sum(int(p.numel()) * p.element_size() for p in model.parameters() if p.requires_grad)


def optimizer_bytes(factory: Callable[..., torch.optim.Optimizer]) -> float:
    """State per byte of parameters, from one step of the optimizer on a few numbers."""
    parameter = nn.Parameter(torch.zeros(64, 64))
    parameter.grad = torch.zeros_like(parameter)
    optimizer = factory([parameter])
    optimizer.step()
    state = [value for value in optimizer.state[parameter].values() if isinstance(value, Tensor)]
    size = sum(value.numel() * value.element_size() for value in state if value.numel() > 1)
    return size / (parameter.numel() * parameter.element_size())
