"""Weights of linear layers as products are made of them, cast once and not in every pass."""

from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor

from rlhf_lightning.models.matmul import LINEAR
from rlhf_lightning.models.precision import compute_dtype

Weights = dict[str, nn.Parameter | None]


@contextmanager
def cast_weights(
    *models: nn.Module, others: Mapping[nn.Module, Callable[[], Tensor]] | None = None, learned: bool = False
) -> Iterator[None]:
    """Within the block the linear layers of the models have weights of the type that autocast computes in.

    Autocast casts what does not learn in every pass anew. Outside of it nothing is cast. The weights themselves are in
    their places again afterwards.

    Args:
        models: The models; layers of other kinds and sharded weights are left alone.
        others: What makes the weights of some of the layers, in place of their own.
        learned: Whether to cast what learns too, which then does not within the block.
    """
    others = others or {}
    kept: list[tuple[Weights, Weights]] = []
    with ExitStack() as stack:
        stack.callback(lambda: [own.update(weights) for own, weights in reversed(kept)])
        for layer in (module for model in models for module in model.modules()):
            own: Weights = layer._parameters
            sharded = any(isinstance(weight, DTensor) for weight in own.values())
            if sharded or not (type(layer) in LINEAR or layer in others):
                continue
            kept.append((own, dict(own)))
            with torch.no_grad():
                weight = {"weight": others[layer]()} if layer in others else {}
                own |= {name: _cast(value, learned) for name, value in {**own, **weight}.items()}
        yield


def _cast(weight: Tensor | None, learned: bool) -> nn.Parameter | None:
    if weight is None:
        return None
    cast = weight.to(compute_dtype(weight.device, weight.dtype))
    learns = weight.requires_grad and not learned
    return weight if isinstance(weight, nn.Parameter) and (learns or cast is weight) else nn.Parameter(cast, False)
