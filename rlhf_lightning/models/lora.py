"""Low-rank adapters (LoRA, Hu et al. 2022): few weights learn beside frozen ones, and one model serves as two.

With its adapters on a model is the policy or the critic; with them off it is the reference or the reward model, at no
further memory. The adapters are those of peft (extra `lora`), put into the model in place.
"""

import copy
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any, TypeVar, cast

from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from rlhf_lightning.arguments import Count, NonNegativeInt, PositiveFloat, checked
from rlhf_lightning.models.adapter_folder import peft_module
from rlhf_lightning.models.loading import freeze
from rlhf_lightning.models.scalar_head import ScalarHeadModel, widen_vocabulary

Module = TypeVar("Module", bound=nn.Module)


@checked
def add_adapters(
    model: PreTrainedModel | ScalarHeadModel,
    rank: Count,
    alpha: PositiveFloat | None = None,
    targets: str | Sequence[str] = "all-linear",
) -> None:
    """Freeze a model and put adapters into it that learn; they change nothing before the first step.

    Args:
        model: The model, changed in place; the scalar head of one that has it learns on.
        rank: Rank of each adapter, at least 1.
        alpha: Adapters count `alpha / rank` times; None is twice the rank.
        targets: Names of the layers that get one; `all-linear` is all but the output layer.

    Raises:
        ImportError: When peft is not installed.
        ValueError: When the model has adapters already, or a target is none of its layers, or one of its embedding and
            output layers.
    """
    peft = peft_module()
    if has_adapters(model):
        raise ValueError(f"this {type(model).__name__} has adapters already.")
    body = model.backbone if isinstance(model, ScalarHeadModel) else model
    freeze(body)
    config = peft.LoraConfig(
        r=rank,
        lora_alpha=2 * rank if alpha is None else alpha,
        target_modules=targets if isinstance(targets, str) else list(targets),
        fan_in_fan_out=any(isinstance(module, Conv1D) for module in body.modules()),
    )
    peft.inject_adapter_in_model(config, body)
    _check_targets(body, targets)
    from rlhf_lightning.models.fused_adapter import fuse_adapters  # it needs peft

    fuse_adapters(body)
    for parameter in trainable_parameters(body):
        parameter.data = parameter.data.float()  # 16 bits would swallow the small steps


@checked
def with_adapters(
    model: Module,
    *,
    rank: NonNegativeInt = 0,
    alpha: PositiveFloat | None = None,
    targets: str | Sequence[str] = "all-linear",
) -> Module:
    """The model itself, with adapters where the rank is above 0; arguments as those of `add_adapters`."""
    if rank:
        add_adapters(cast(PreTrainedModel, model), rank, alpha, targets)
    return model


def _check_targets(model: nn.Module, targets: str | Sequence[str]) -> None:
    """Refuse names without a layer, and layers whose weights are read, or tied, past their adapters."""
    adapted = _adapted(model)
    names = [] if isinstance(targets, str) else targets
    lost = [name for name in names if not any(f".{layer}".endswith(f".{name}") for layer in adapted)]
    if lost:
        raise ValueError(f"lora.targets names {lost[0]}, which is no layer of this {type(model).__name__}.")
    ends = [getattr(model, f"get_{side}_embeddings", lambda: None)() for side in ("input", "output")]
    for name, layer in adapted.items():
        if any(layer is end for end in ends):
            raise ValueError(f"lora.targets names {name}; the embedding and output layers can have no adapters.")


def critic_with_adapters(reward: ScalarHeadModel, **options: Any) -> ScalarHeadModel:
    """A critic on the body of the reward model: with adapters and a head of its own, equal to it at the start.

    Args:
        reward: The reward model; frozen, and given adapters that only the critic reads.
        options: Arguments of `add_adapters`.
    """
    freeze(reward)
    add_adapters(reward, **options)
    value = ScalarHeadModel(reward.backbone, reward.head.in_features)
    value.head, value.bias = copy.deepcopy(reward.head).requires_grad_(True), reward.bias.clone()
    return value


def ppo_models(
    policy: PreTrainedModel,
    reward: Any,
    reference: PreTrainedModel | None = None,
    value: ScalarHeadModel | None = None,
    *,
    rank: int = 0,
    **options: Any,
) -> dict[str, Any]:
    """The four models of PPO: of their own, or with adapters in the two that are given, which then serve as two each.

    Args:
        policy: The model that learns.
        reward: The reward.
        reference: The model that the KL penalty pulls to; None is the policy, before it learns.
        value: The model that the critic starts as; None is the reward, which is a reward model then.
        rank: Rank of the adapters; 0 is none.
        options: Further arguments of `add_adapters`.
    """
    start: ScalarHeadModel = reward if value is None else value
    for model in (start, *(reward.modules() if isinstance(reward, nn.Module) else ())):
        if isinstance(model, ScalarHeadModel):
            widen_vocabulary(model, policy)
    if rank:
        add_adapters(policy, rank, **options)
        reference, critic = reference or policy, critic_with_adapters(start, rank=rank, **options)
    else:
        reference, critic = reference or copy.deepcopy(policy), copy.deepcopy(start)
    return dict[str, Any](policy=policy, reference=reference, reward=reward, value=critic)


def freeze_unshared(model: Any, learner: nn.Module) -> Any:
    """Freeze a model in eval mode; of one that shares its body with a learner only what is not shared.

    Args:
        model: The model to freeze; anything that is no module comes back as it is.
        learner: The model that learns.

    Raises:
        ValueError: When the two share a body that has no adapters, so that the frozen one would learn too.
    """
    if not isinstance(model, nn.Module):
        return model
    learned = {id(parameter) for parameter in learner.parameters()}
    shared = any(id(parameter) in learned for parameter in model.parameters())
    if shared and not has_adapters(learner):
        raise ValueError(
            f"a frozen {type(model).__name__} shares weights with the {type(learner).__name__} that learns, and would "
            "change with it. Give it a copy, or add adapters (rlhf_lightning.models.lora)."
        )
    for parameter in model.parameters():
        if id(parameter) not in learned:
            parameter.requires_grad_(False)
    return model.eval()


def trainable_parameters(model: nn.Module) -> list[nn.Parameter]:
    """The parameters of a model that learn."""
    return [parameter for parameter in model.parameters() if parameter.requires_grad]


def learning_parameters(model: nn.Module) -> list[nn.Parameter]:
    """`trainable_parameters` for an optimizer.

    Raises:
        ValueError: When there are none.
    """
    parameters = trainable_parameters(model)
    if not parameters:
        raise ValueError(
            f"no weight of this {type(model).__name__} learns: requires_grad is off for each. Turn it on for those "
            "that shall (model.requires_grad_(True)), or add adapters (rlhf_lightning.models.lora.add_adapters)."
        )
    return parameters


def has_adapters(model: Any) -> bool:
    """Whether there are adapters in the model."""
    return isinstance(model, nn.Module) and bool(_adapted(model))


@contextmanager
def adapters_disabled(*models: Any) -> Iterator[None]:
    """Turn the adapters of the models off within the block; anything that has none stays as it is."""
    layers = [layer for model in models if isinstance(model, nn.Module) for layer in _adapted(model).values()]
    for layer in layers:
        layer.enable_adapters(False)
    try:
        yield
    finally:
        for layer in layers:
            layer.enable_adapters(True)


def merge_adapters(model: Module) -> Module:
    """A copy that has its adapters added to its weights and is a plain model again.

    One of 16 bits becomes one of 32: what the adapters add is mostly smaller than the distance between two numbers of
    16 bits.
    """
    plain = copy.deepcopy(model)
    adapted = _adapted(plain)
    if any(parameter.itemsize < 4 for parameter in plain.parameters()):
        plain.float()
    for layer in adapted.values():
        layer.merge()
    return _without(plain, adapted)


def merged_weights(model: nn.Module) -> dict[nn.Module, Callable[[], Tensor]]:
    """The layers below adapters that are on, with what makes their weights with what the adapters add.

    Of a quantized model there are none.
    """

    def merged(layer: Any) -> Tensor:
        weight: Tensor = layer.get_base_layer().weight
        return cast(Tensor, (weight + sum(map(layer.get_delta_weight, layer.active_adapters))).to(weight.dtype))

    layers = {layer.get_base_layer(): layer for layer in _adapted(model).values() if not layer.disable_adapters}
    if not all(base.weight.is_floating_point() for base in layers):
        return {}
    return {base: partial(merged, layer) for base, layer in layers.items()}


def without_adapters(model: Module) -> Module:
    """A copy without its adapters: the model that they were put into."""
    plain = copy.deepcopy(model)
    return _without(plain, _adapted(plain))


def _without(model: Module, adapted: Mapping[str, Any]) -> Module:
    for name, layer in adapted.items():
        parent, _, child = name.rpartition(".")
        setattr(model.get_submodule(parent), child, layer.get_base_layer())
    for module in model.modules():
        module.__dict__.pop("peft_config", None)
    return model.requires_grad_(False)


def plain_names(model: nn.Module) -> set[str]:
    """Names of the weights that the model has without its adapters."""
    return {name.replace(".base_layer.", ".") for name in model.state_dict() if ".lora_" not in name}


def _adapted(model: nn.Module) -> dict[str, Any]:
    if "peft" not in sys.modules:
        return {}
    from peft.tuners.tuners_utils import BaseTunerLayer

    return {name: module for name, module in model.named_modules() if isinstance(module, BaseTunerLayer)}
