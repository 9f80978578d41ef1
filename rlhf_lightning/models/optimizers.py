"""Optimizers and schedules by factory: what builds them, and what is no factory."""

import inspect
import math
import warnings
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from typing import Any, TypeAlias, cast

import torch
from lightning.pytorch.utilities.types import OptimizerLRScheduler, OptimizerLRSchedulerConfig
from torch import nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler, ReduceLROnPlateau

from rlhf_lightning.arguments import is_default, parameters_of
from rlhf_lightning.models.lora import learning_parameters, trainable_parameters

OptimizerFactory: TypeAlias = Callable[[Iterable[nn.Parameter]], Optimizer]
"""From parameters to an optimizer, for instance `functools.partial(torch.optim.AdamW, lr=1e-5)`."""
SchedulerFactory: TypeAlias = Callable[..., LRScheduler]
"""From an optimizer to its schedule, for instance `partial(torch.optim.lr_scheduler.LinearLR, total_iters=10)`.

A factory with a parameter `num_training_steps`, as transformers' have, is given the number of steps under that name.
"""

GIVEN_LATER = ("params", "optimizer", "num_training_steps")
"""What factories get when they are called."""


def check_factories(**factories: Any) -> None:
    """Refuse optimizers and schedules that are built already, or cannot be called.

    A module builds them when it knows its weights: sharded, with adapters, and in 32 bits.

    Args:
        factories: The arguments by name.

    Raises:
        TypeError: Saying how to make a factory of it.
    """
    for name, factory in factories.items():
        if not callable(factory):
            example = "lr_scheduler.LinearLR, total_iters=10" if "scheduler" in name else "AdamW, lr=1e-5"
            raise TypeError(
                f"{name} is {_named(factory)}, but the module builds its own, over the weights that it trains. Give it "
                f"a factory: {name}=functools.partial(torch.optim.{example})."
            )


def factory_fault(factory: Callable[..., Any], options: Mapping[str, Any]) -> str | None:
    """What speaks against the options of an optimizer or a schedule, tried on one weight; None where nothing does.

    Args:
        factory: A class of torch, or a function of transformers; anything else is not tried.
        options: Its arguments, besides the weights or the optimizer.
    """
    if factory.__module__.partition(".")[0] not in ("torch", "transformers"):
        return None
    schedule_factory: SchedulerFactory = factory
    optimizer: Optimizer = torch.optim.SGD([nn.Parameter(torch.zeros(1, 1))], lr=1.0)
    try:
        if isinstance(factory, type) and issubclass(factory, Optimizer):
            built = factory(optimizer.param_groups[0]["params"], **options)
            return None if built.defaults.get("lr", 1) else "lr=0 would train nothing"
        defaults = parameters_of(schedule_factory).defaults
        for name, value in options.items():
            if isinstance(value, int | float) and value < 0 and not is_default(value, defaults, name):
                return f"{name}={value} must not be below 0"
            if name.endswith(("_lr_rate", "_lr_ratio")) and isinstance(value, int | float) and value > 1:
                return f"{name}={value} must be in [0, 1]: it is a share of the highest rate"
        with warnings.catch_warnings(action="ignore"):
            schedule = build_scheduler(partial(schedule_factory, **options), optimizer, 100)
            optimizer.step()
            schedule.step()
        rate = optimizer.param_groups[0]["lr"]
        if not 0 <= rate < math.inf:
            return f"it multiplies the learning rate by {rate}"
    except (ValueError, TypeError) as error:
        return str(error)
    return None


def _named(value: Any) -> str:
    built = isinstance(value, Optimizer | LRScheduler | ReduceLROnPlateau)
    return f"built already ({type(value).__name__})" if built else f"{value!r}, which cannot be called"


def scheduled(
    optimizers: Sequence[Optimizer], factory: SchedulerFactory | None, num_training_steps: Callable[[], float]
) -> OptimizerLRScheduler:
    """Optimizers with a schedule for each, stepped once per optimizer step, as Lightning takes them.

    Args:
        optimizers: The optimizers.
        factory: Factory of the schedules; None keeps the learning rates.
        num_training_steps: Tells the steps until training ends, where there is a schedule.
    """
    if factory is None:
        return list(optimizers)
    steps = int(num_training_steps())
    schedulers = [build_scheduler(factory, optimizer, steps) for optimizer in optimizers]
    return [
        OptimizerLRSchedulerConfig(optimizer=optimizer, lr_scheduler={"scheduler": scheduler, "interval": "step"})
        for optimizer, scheduler in zip(optimizers, schedulers, strict=True)
    ]


def build_scheduler(factory: SchedulerFactory, optimizer: Optimizer, num_training_steps: int) -> LRScheduler:
    """Call the factory with the optimizer, and with the number of steps where it has a parameter of that name.

    Args:
        factory: The schedule's class or function, its other arguments bound by `functools.partial`.
        optimizer: The optimizer whose learning rate follows the schedule.
        num_training_steps: Steps of the schedule until training ends.

    Raises:
        ValueError: When the factory needs other arguments, or its schedule follows a metric instead of the steps.
    """
    try:
        signature = inspect.signature(factory)
        steps = {"num_training_steps": num_training_steps} if "num_training_steps" in signature.parameters else {}
        signature.bind(optimizer, **steps)
    except (TypeError, ValueError) as error:
        raise ValueError(
            f"the scheduler {factory} cannot be called with the optimizer alone ({error}). Call the parameter that is "
            "the number of steps num_training_steps, and bind the others with functools.partial or _partial_."
        ) from error
    scheduler = factory(optimizer, **steps)
    if isinstance(scheduler, ReduceLROnPlateau):
        raise ValueError("ReduceLROnPlateau follows a metric; take a scheduler that follows the steps.")
    return scheduler


def ranking_optimizer(module: Any, factory: OptimizerFactory, head_lr: float | None) -> Optimizer:
    """The optimizer over what learns, the head at a rate of its own.

    Args:
        module: The `RewardModule`.
        factory: The optimizer's factory.
        head_lr: The rate of the head; None is that of all.

    Raises:
        ValueError: When there is no head.
    """
    model = module.model
    if head_lr is None:
        return factory(learning_parameters(module))
    head = getattr(model, "head", None)
    if not isinstance(head, nn.Module):
        raise ValueError(f"head_lr={head_lr}: {type(model).__name__} has no `head`. Leave it None.")
    own = trainable_parameters(head)
    others = [parameter for parameter in trainable_parameters(module) if not any(parameter is one for one in own)]
    groups: list[dict[str, Any]] = [{"params": others}, {"params": own, "lr": head_lr}]
    return factory(cast(Any, [group for group in groups if group["params"]]))
