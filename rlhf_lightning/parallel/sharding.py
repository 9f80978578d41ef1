"""Weights that are sharded over processes (FSDP2); a model that is not is left alone by every function here."""

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any, TypeVar, cast

import torch
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.fsdp import FSDPModule, fully_shard
from torch.distributed.tensor import DTensor, distribute_tensor

T = TypeVar("T")


class Unit(nn.Module):
    """A model whose weights are gathered as a whole, around whatever is computed with it.

    Processes may read different numbers of rows and tokens in it, and call any part of the model.
    """

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, function: Callable[..., Any], *arguments: Any) -> Any:
        """What the function makes of the model and the arguments."""
        return function(self.model, *arguments)


def shard(model: nn.Module, mesh: DeviceMesh) -> None:
    """Keep a part of the weights, of their gradients and of the optimizer's state in every process.

    Args:
        model: A module; it stays itself, with `DTensor` parameters.
        mesh: A one-dimensional mesh over the processes.
    """
    # Not a submodule: names of weights stay as they are.
    model.__dict__["sharded_unit"] = fully_shard(Unit(model), mesh=mesh, reshard_after_forward=False)


def is_sharded(model: Any) -> bool:
    """Whether the weights of the model are sharded."""
    return _unit(model) is not None


def call_unsharded(function: Callable[..., T], model: nn.Module, *arguments: Any) -> T:
    """`function(model, *arguments)`, where the weights of the model may be sharded."""
    unit = _unit(model)
    if unit is None:
        return function(model, *arguments)
    result = cast(T, cast(nn.Module, unit)(function, *arguments))
    if not torch.is_grad_enabled():
        unit.reshard()
    return result


@contextmanager
def unshard(*models: Any) -> Iterator[None]:
    """Hold all weights of the models in every process within the block, for passes without gradient.

    A model whose weights are held already, by a block around this one, stays so.
    """
    found = [unit for model in models if (unit := _unit(model)) is not None]
    units = [unit for unit in found if any(isinstance(each, DTensor) for each in cast(nn.Module, unit).parameters())]
    for unit in units:
        unit.unshard()
    try:
        yield
    finally:
        for unit in units:
            unit.reshard()


def sync_on_last(model: nn.Module, parts: Iterable[T]) -> Iterator[T]:
    """The parts of a batch, with sharded gradients exchanged once, in the backward pass of the last one."""
    listed, unit = list(parts), _unit(model)
    for number, part in enumerate(listed, 1):
        if unit is not None:
            unit.set_requires_gradient_sync(number == len(listed))
            unit.set_reshard_after_backward(number == len(listed))
        yield part


def _unit(model: Any) -> FSDPModule | None:
    return cast(FSDPModule | None, getattr(model, "__dict__", {}).get("sharded_unit"))


def full_tensor(value: Tensor) -> Tensor:
    """A tensor as a whole; all processes must ask for it."""
    return value.full_tensor() if isinstance(value, DTensor) else value


@torch.no_grad()
def set_tensor(target: Tensor, value: Tensor) -> None:
    """Give a weight, which may be sharded, a value that all processes have as a whole."""
    value = value.to(target.device, target.dtype)
    if isinstance(target, DTensor):
        value = distribute_tensor(value, target.device_mesh, target.placements)
    target.copy_(value)


def full_state_dict(model: nn.Module) -> dict[str, Tensor]:
    """The weights of a model as a whole, tied ones once; all processes must ask for them."""
    state: dict[str, Tensor] = model.state_dict()
    owners = {name: id(parameter) for name, parameter in model.named_parameters(remove_duplicate=False)}
    whole: dict[int, Tensor] = {}
    for name, value in state.items():
        if isinstance(value, DTensor):
            state[name] = whole.setdefault(owners.get(name, id(value)), value.full_tensor())
    return state
