"""The layers of a sharded model, gathered one after the other, in passes that all processes make together."""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, TypeVar, cast

import torch
from torch import Tensor, nn
from torch.distributed.fsdp import FSDPModule

from rlhf_lightning.parallel.processes import all_gather_objects

T = TypeVar("T")


class Passes:
    """Passes through the layers of a model, of which every process makes as many as any other.

    A layer is gathered by all processes at once, in the forward pass and again in the backward pass, where its gradient
    is exchanged too. But how many passes a process makes depends on its rows: groups of similar length, a prompt and
    what comes behind it, a check. So a process that begins a pass says so to the others, and one that has made all of
    its own makes idle ones until nobody has more. Backward passes go through them in the reverse order, which is thus
    the same in all processes. Numbers do not depend on any of it.

    Args:
        layers: The layers, each a unit of FSDP2, in the order in which every pass calls them, once each.
        read: Function that makes a pass over as little as there is.
    """

    def __init__(self, layers: Sequence[nn.Module], read: Callable[[], Any]) -> None:
        self.layers, self.read = list(layers), read
        self.place = 0
        """Layers that the pass at hand has called."""
        self.learned = 0
        """Passes with gradient of this process."""
        self.counted, self.idle = False, False
        self.ends: list[Tensor] = []
        for number, layer in enumerate(layers):
            layer.register_forward_pre_hook(partial(self._enter, number), prepend=True)
        layers[-1].register_forward_hook(self._leave)

    def together(self, function: Callable[..., T], *arguments: Any) -> T:
        """What a function returns that makes any number of passes, with a gradient that goes back through all of them.

        Args:
            function: The function; all processes call one at the same time. With gradient it returns a tensor.
            arguments: Its arguments.
        """
        self.place, self.learned, self.ends, self.counted = 0, 0, [], True
        # Autocast would keep a copy of every weight, and its gradient would come after that of its layer is exchanged.
        caching = torch.is_autocast_cache_enabled()
        torch.set_autocast_cache_enabled(False)
        try:
            result = function(*arguments)
            self._join()
        finally:
            torch.set_autocast_cache_enabled(caching)
            self.counted, ends, self.ends = False, self.ends, []
        return cast(T, tied(cast(Tensor, result), ends)) if ends else result

    def mend(self) -> None:
        """Bring a pass that an error has ended to its end: hooks of a layer that has not returned are out of step."""
        stopped = self.place % len(self.layers)
        if not stopped:
            return
        if self.counted:
            cast(FSDPModule, self.layers[stopped - 1]).reshard()
            for layer in self.layers[stopped:]:
                cast(FSDPModule, layer).unshard()
                cast(FSDPModule, layer).reshard()
            all_gather_objects((True, self.learned))
        with torch.no_grad():
            self._read()

    def _join(self) -> None:
        """Make idle passes until every process has ended its own and all have made as many with gradient."""
        while True:
            self.mend()
            others = all_gather_objects((False, self.learned))
            most = max(learned for _, learned in others)
            if not any(going_on or learned < most for going_on, learned in others):
                return
            behind = self.learned < most
            self.learned += behind
            with torch.set_grad_enabled(behind):
                self._read()

    def _read(self) -> None:
        self.place, self.idle = 0, True
        try:
            self.read()
        finally:
            self.idle = False

    def _enter(self, number: int, layer: nn.Module, arguments: Any) -> None:
        if self.counted and number == 0 and not self.idle:
            self.mend()
            self.learned += torch.is_grad_enabled()
            all_gather_objects((True, self.learned))
        if self.counted and number != self.place % len(self.layers):
            raise RuntimeError(
                f"layer {number} of {len(self.layers)} was called after {self.place}: this pass does not go through the"
                f" layers ({type(layer).__name__}) in order, and so cannot gather them one by one. Use trainer=ddp."
            )
        self.place = number + 1

    def _leave(self, _layer: nn.Module, _arguments: Any, output: Any) -> None:
        states = output[0] if isinstance(output, tuple) else output
        if self.counted and states.requires_grad:
            self.ends.append(states)


def tied(result: Tensor, others: Sequence[Tensor]) -> Tensor:
    """A result whose backward pass goes through other tensors too, with a gradient of zero.

    Args:
        result: The result.
        others: Tensors that it may depend on or not.
    """
    return cast(Tensor, cast(Any, _Tied.apply)(result, *others))


class _Tied(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, result: Tensor, *others: Tensor) -> Tensor:
        ctx.others = [(other.shape, other.dtype, other.device) for other in others]
        return result.clone()

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, ...]:
        zeros = [torch.zeros(shape, dtype=dtype, device=device) for shape, dtype, device in ctx.others]
        return (gradients[0], *zeros)
