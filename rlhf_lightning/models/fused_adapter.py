"""An adapter that is scaled and added within its second product."""

from typing import Any, cast

import torch
from peft.tuners.lora import Linear
from torch import Tensor, nn

from rlhf_lightning.models.precision import compute_dtype


class FusedAdapter(Linear):
    """A linear layer with an adapter of peft, whose own forward pass goes twice more over its output."""

    def forward(self, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        """`base(x) + B A x * scaling`."""
        names = self.active_adapters
        if self.disable_adapters or self.merged or len(names) != 1 or args or kwargs:
            return super().forward(x, *args, **kwargs)
        parts = self.lora_A[names[0]], self.lora_B[names[0]], self.get_base_layer()
        down, up, layer = (cast(nn.Linear, part) for part in parts)
        types = {compute_dtype(x.device, weight.dtype) for weight in (layer.weight, down.weight)}
        if len(types) > 1:  # a base of 16 bits below an adapter of 32
            return super().forward(x)
        base, rows = layer(x), down(x).flatten(0, -2)
        added = torch.addmm(base.flatten(0, -2), rows, up.weight.t(), alpha=self.scaling[names[0]])
        return added.view(base.shape)


def fuse_adapters(model: nn.Module) -> None:
    """Let the plain adapters of a model, just put into it without dropout or bias, add themselves so."""
    for module in model.modules():
        if type(module) is Linear:
            module.__class__ = FusedAdapter
