"""Weights that are sharded over processes (FSDP2); a model that is not is left alone by every function here."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, TypeVar, cast

import torch
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.fsdp import FSDPModule, fully_shard
from torch.distributed.tensor import DTensor, distribute_tensor

from rlhf_lightning.parallel.passes import Passes, tied
from rlhf_lightning.parallel.processes import all_gather_objects

T = TypeVar("T")


class Unit(nn.Module):
    """The root of a sharded model: what is gathered as a whole, around whatever is computed with the model.

    That is what is left of a model beside its layers, which are gathered one by one (`Passes`), or all of it where
    layers are not told apart. Processes may read different numbers of rows and tokens in it, and call any part of the
    model.
    """

    def __init__(self, model: nn.Module, passes: Passes | None) -> None:
        super().__init__()
        self.model, self.passes = model, passes
        self.held = False
        """Whether what is needed is at hand, or comes to hand: within a call of this unit, and within `unshard`."""

    def forward(self, function: Callable[..., Any], *arguments: Any) -> Any:
        """What the function makes of the model and the arguments."""
        self.held = True
        try:
            if self.passes is None:
                return function(self.model, *arguments)
            return self.passes.together(function, self.model, *arguments)
        finally:
            self.held = False

    def hold(self, held: bool) -> None:
        """Gather everything, or let go of it."""
        if self.passes is not None and not held:
            self.passes.mend()
        layers = cast(list[FSDPModule], [] if self.passes is None else self.passes.layers)
        for layer in layers:
            layer.set_reshard_after_forward(not held, recurse=False)
        for part in (cast(FSDPModule, self), *layers):
            part.unshard() if held else part.reshard()
        self.held = held


def shard(
    model: nn.Module, mesh: DeviceMesh, layers: Sequence[nn.Module] = (), read: Callable[[], Any] = lambda: None
) -> None:
    """Keep a part of the weights, of their gradients and of the optimizer's state in every process.

    Args:
        model: A module; it stays itself, with `DTensor` parameters.
        mesh: A one-dimensional mesh over the processes.
        layers: Modules of it that are units of their own, as `Passes` takes them; none makes the model one unit.
        read: Function that makes a pass through the layers.
    """
    for layer in layers:
        fully_shard(layer, mesh=mesh, reshard_after_forward=True)
    passes = Passes(layers, read) if layers else None
    unit = cast(Any, fully_shard(Unit(model, passes), mesh=mesh, reshard_after_forward=False))
    # Not a submodule: names of weights stay as they are.
    model.__dict__["sharded_unit"] = unit
    if passes is not None:
        for before, layer in zip([unit, *layers], cast(Sequence[Any], layers), strict=False):
            # By default it is the layer that was called before in whatever pass, a step of sampling among them.
            layer.set_modules_to_backward_prefetch([before])
            if hasattr(layer, "set_reduce_scatter_unused_params"):  # torch 2.13: for experts that no token asked
                layer.set_reduce_scatter_unused_params(True, recurse=False)
        unit.set_modules_to_backward_prefetch([layers[-1]])
        with torch.no_grad():
            unit(lambda _: None)  # the first to run is the root
    with unshard(model):  # where buffers were first made in inference mode, nothing could be trained with them
        pass


def is_sharded(model: Any) -> bool:
    """Whether the weights of the model are sharded."""
    return _unit(model) is not None


def call_unsharded(function: Callable[..., T], model: nn.Module, *arguments: Any) -> T:
    """`function(model, *arguments)`, where the weights of the model may be sharded; all processes call it together.

    Layers are gathered one by one while they are read, and again in the backward pass, which comes before the next call
    (`Passes`); the rest of the model is gathered around both. Within `unshard`, or another call, it is just called.
    """
    unit = _unit(model)
    if unit is None or unit.held:
        return function(model, *arguments)
    result = cast(T, unit(function, *arguments))
    if not torch.is_grad_enabled():
        cast(FSDPModule, unit).reshard()
    return result


@contextmanager
def unshard(*models: Any) -> Iterator[None]:
    """Hold all weights of the models in every process within the block, for passes without gradient.

    Sampling reads a model once per token, and processes do not wait for each other in it. A model whose weights are
    held already, by a block around this one, stays so.
    """
    units = [unit for model in models if (unit := _unit(model)) is not None and not unit.held]
    for unit in units:
        unit.hold(True)
    try:
        yield
    finally:
        for unit in units:
            unit.hold(False)
        if units:
            torch.clear_autocast_cache()  # it may have copies of all of their weights


def sync_on_last(model: nn.Module, parts: Iterable[T]) -> Iterator[T]:
    """The parts of a batch, for a backward pass after each.

    Gradients of a model that is one unit are exchanged in the backward pass of the last part, and its weights gathered
    until then. Those of layers are exchanged in each part, and a process with fewer parts than others joins in.
    """
    listed, unit = list(parts), _unit(model)
    most = len(listed) if unit is None or unit.passes is None else max(all_gather_objects(len(listed)))
    for number, part in enumerate(listed, 1):
        if unit is not None and unit.passes is None:
            cast(FSDPModule, unit).set_requires_gradient_sync(number == most)
            cast(FSDPModule, unit).set_reshard_after_backward(number == most)
        yield part
    for _ in range(most - len(listed)):
        call_unsharded(_nothing, model).backward()


def _nothing(model: nn.Module) -> Tensor:
    """A number without meaning, through which a gradient of zero comes to all that is gathered."""
    weights = [weight for weight in model.parameters() if weight.requires_grad and not isinstance(weight, DTensor)]
    return tied(torch.zeros((), device=weights[0].device if weights else None), weights)


def _unit(model: Any) -> Unit | None:
    return cast(Unit | None, getattr(model, "__dict__", {}).get("sharded_unit"))


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
