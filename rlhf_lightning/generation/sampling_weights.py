"""Weights as sampling multiplies by them, made once and not at every token: cast, and with the adapters added."""

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import nn
from torch.distributed.tensor import DTensor
from transformers.pytorch_utils import Conv1D

from rlhf_lightning.models.lora import adapters_disabled, merged_weights
from rlhf_lightning.models.precision import compute_dtype

Weights = dict[str, nn.Parameter | None]


@contextmanager
def sampling_weights(model: nn.Module, device: torch.device) -> Iterator[None]:
    """Within the block every linear layer of the model has the weights that its products are made of.

    Autocast casts what does not learn at every call, and an adapter costs two products more: on a CPU that is half of
    the time of a token. What learns is not touched, and is in its place again afterwards.

    Args:
        model: Any module; layers of other kinds and sharded weights are left alone.
        device: Where it runs.
    """
    merged = merged_weights(model)
    kept: list[tuple[Weights, Weights]] = []
    with ExitStack() as stack:
        stack.enter_context(adapters_disabled(*([model] if merged else [])))
        stack.callback(lambda: [own.update(weights) for own, weights in kept])
        for layer in (module for module in model.modules() if isinstance(module, nn.Linear | Conv1D)):
            own: Weights = layer._parameters
            if not any(isinstance(weight, DTensor) for weight in own.values()):
                kept.append((own, dict(own)))
                weight = {"weight": merged[layer].to(layer.weight.dtype)} if layer in merged else {}
                own |= {name: _cast(value, device) for name, value in {**own, **weight}.items()}
        yield


@torch.no_grad()
def _cast(weight: nn.Parameter | torch.Tensor | None, device: torch.device) -> Any:
    if weight is None or not weight.is_floating_point():  # quantized
        return weight
    cast = weight.to(compute_dtype(device, weight.dtype))
    return weight if cast is weight and isinstance(weight, nn.Parameter) else nn.Parameter(cast, requires_grad=False)
