"""Sharding a model by its decoder layers, so that a process holds one or two of them at a time while it learns."""

import warnings
from collections import Counter
from functools import partial

import torch
from torch import nn
from torch.distributed.device_mesh import DeviceMesh
from transformers import PreTrainedModel
from transformers.modeling_layers import GradientCheckpointingLayer

from rlhf_lightning.models.architecture import eval_mode
from rlhf_lightning.models.lora import has_adapters
from rlhf_lightning.models.packed_values import packable
from rlhf_lightning.parallel.processes import rank
from rlhf_lightning.parallel.sharding import is_sharded, shard


def shard_model(name: str, model: nn.Module, mesh: DeviceMesh) -> None:
    """Shard the weights of a model: by its layers where it learns, as one unit where it is only read.

    Args:
        name: The model's name in errors and warnings.
        model: The model; one that is sharded already, or has no weights, stays as it is.
        mesh: A one-dimensional mesh over the processes.

    Raises:
        ValueError: When it has adapters, whose body belongs to two models.
    """
    if has_adapters(model):
        raise ValueError(f"{name} has adapters, which cannot be sharded; set lora.rank=0 or use trainer=ddp.")
    weights = list(model.parameters())
    if not weights or is_sharded(model):
        return
    learns = any(weight.requires_grad for weight in weights)
    layers = decoder_layers(model) if learns else []
    if learns and not layers and rank() == 0:
        warnings.warn(
            f"{type(model).__name__} does not call layers one after the other, as far as can be told, so {name} is "
            "gathered as a whole in every process while it learns.",
            stacklevel=2,
        )
    shard(model, mesh, layers, partial(_read_token, packable(model)))


def decoder_layers(model: nn.Module) -> list[nn.Module]:
    """The layers that a pass through a transformers model calls, once each and in this order; none where it is another.

    Args:
        model: Any module.
    """
    body = packable(model)
    if not isinstance(body, PreTrainedModel) or getattr(body.config, "layerdrop", False):
        return []
    called: list[nn.Module] = []
    blocks = [module for module in body.modules() if isinstance(module, GradientCheckpointingLayer)]
    hooks = [block.register_forward_pre_hook(lambda block, _: called.append(block)) for block in blocks]
    try:
        with eval_mode(body), torch.no_grad():
            _read_token(body)
    except (AttributeError, LookupError, RuntimeError, TypeError, ValueError):
        return []  # it wants more than ids
    finally:
        for hook in hooks:
            hook.remove()
    inner = {module for block in called for module in block.modules() if module is not block}
    layers = [block for block in called if block not in inner]
    places = Counter(id(weight) for _, weight in model.named_parameters(remove_duplicate=False))
    shared = any(places[id(weight)] > 1 for layer in layers for weight in layer.parameters())
    return layers if len(layers) == len(set(layers)) > 1 and not shared else []


def _read_token(body: nn.Module) -> None:
    ids = torch.zeros(1, 1, dtype=torch.long, device=next(body.parameters()).device)
    getattr(body, "base_model", body)(input_ids=ids, attention_mask=torch.ones_like(ids), use_cache=False)
