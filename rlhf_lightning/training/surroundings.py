"""What a user adds around the trainer, loggers and callbacks, and which of its settings the recipe makes."""

import inspect
import os
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from lightning import Callback
from lightning.pytorch.callbacks import (
    BatchSizeFinder,
    GradientAccumulationScheduler,
    LearningRateFinder,
    StochasticWeightAveraging,
)
from lightning.pytorch.loggers import Logger, MLFlowLogger, WandbLogger

from rlhf_lightning.models.gradients import check_gradient_settings
from rlhf_lightning.parallel.processes import rank, world_size
from rlhf_lightning.runs.folders import PipelineError
from rlhf_lightning.runs.secrets import redacted

_LENGTH = "how long a step trains stands in its own node, such as sft.fit.epochs or ppo.data.num_batches"
OWNED = {
    **dict.fromkeys(("max_epochs", "min_epochs", "max_steps", "min_steps"), _LENGTH),
    "log_every_n_steps": "each step has its own, such as sft.fit.log_every",
    "enable_checkpointing": "every step writes checkpoints, as often as sft.fit.checkpoint_every says",
    "enable_progress_bar": "every step shows its own bar",
    "enable_model_summary": "use callbacks=model_summary",
    "num_sanity_val_steps": "validation before training would move the random state; debug=fast tries everything",
    "default_root_dir": "set paths.runs and run",
    "fast_dev_run": "use debug=fast",
    "barebones": "metrics and checkpoints are always written",
    "profiler": "its report would be lost; time/* in metrics.csv has seconds and tokens per second of each phase",
}
"""Arguments of the trainer that the recipe sets, and what to do instead of setting them."""
OWNED_CALLBACKS: dict[type[Callback], str] = {
    GradientAccumulationScheduler: "several batches are not the gradient of one large one; see data.batch_size",
    BatchSizeFinder: "plan=true says what fits, and data.batch_size and module.micro_batch_size set it",
    LearningRateFinder: "sweep module.optimizer.lr instead",
    StochasticWeightAveraging: "ppo has module.ema_decay, and steps that train have their schedules",
}
"""Callbacks that set what the recipe sets, and what to do instead."""
NO_TELEMETRY = {"MLFLOW_DISABLE_TELEMETRY": "true", "WANDB_ERROR_REPORTING": "false"}
"""Environment variables that keep loggers from reporting to their makers."""
LIBRARIES = {
    "WandbLogger": ("wandb",),
    "MLFlowLogger": ("mlflow",),
    "TensorBoardLogger": ("tensorboard", "tensorboardX"),
}
"""What loggers need, one of each."""
PRECISIONS = ("None", "32-true", "32", "bf16-mixed", "bf16", "64-true", "64")
"""Precisions of the trainer that keep weights which learn in 32 bits or more, and do not scale their gradients."""


def check_trainer(node: Mapping[str, Any]) -> None:
    """Refuse settings of the trainer that the recipe makes itself: the `PipelineError` says where to set them instead.

    Args:
        node: The configuration's node `trainer`.
    """
    for name, instead in OWNED.items():
        if name in node:
            raise PipelineError(f"trainer.{name}={node[name]} is not for the trainer to say: {instead}.")
    check_gradient_settings(node.get("accumulate_grad_batches", 1), node.get("gradient_clip_val"))
    precision = str(node.get("precision"))
    if "16" not in precision and precision not in PRECISIONS:
        raise PipelineError(f"trainer.precision={precision} is unknown. There are 32-true, bf16-mixed and 64-true.")
    if precision not in PRECISIONS:
        raise PipelineError(
            f"trainer.precision={precision}: weights in 16 bits swallow most steps of training; float16 needs scaled "
            "gradients, which PPO's limit on their norm does not know. Set trainer.precision=bf16-mixed or 32-true; "
            "model.causal_lm.dtype=bfloat16 keeps models that are frozen in 16 bits."
        )


def surroundings_faults(
    trainer: Mapping[str, Any], callbacks: Any, loggers: Any, build: Callable[..., Any]
) -> Iterator[str]:
    """What Lightning and libraries of loggers would refuse once a step is to train; nothing is written.

    Args:
        trainer: The node, without loggers and callbacks; one of several processes is left to the step.
        callbacks: Nodes as those of `user_callbacks`.
        loggers: Nodes as those of `user_loggers`.
        build: Builds the object that a node describes, given further keyword arguments.
    """
    strategy = trainer.get("strategy", "auto")
    if isinstance(strategy, str) and strategy.endswith(("_spawn", "_notebook", "_fork")):
        yield f"trainer.strategy={strategy} starts processes of its own; torchrun starts them. Name {strategy[:3]}."
    elif trainer.get("check_val_every_n_epoch", 1) == 0:
        yield "trainer.check_val_every_n_epoch=0 divides by zero. For no validation set trainer.limit_val_batches=0."
    elif world_size() == 1:
        quiet = {"logger": False, "enable_checkpointing": False, "enable_progress_bar": False}
        yield from _said(lambda: build(trainer, enable_model_summary=False, **quiet), "trainer: ")
    yield from _said(lambda: user_callbacks(callbacks, build), "")
    for node in _each(loggers):
        yield from _said(partial(build, node, _partial_=True), "")
        names = LIBRARIES.get(str(node.get("_target_")).rpartition(".")[2], ())
        if names and not any(map(find_spec, names)):
            yield f"{node['_target_']} needs {' or '.join(names)}, which is not installed: pip install {names[0]}."


def _said(make: Callable[[], Any], where: str) -> Iterator[str]:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            make()
    except PipelineError as error:  # builders say of what its cause is said
        yield f"{where}{error.__cause__ if where else error}"


def user_loggers(nodes: Any, build: Callable[..., Any], folder: Path, tags: Sequence[str] = ()) -> list[Logger]:
    """Build the loggers that stand beside `metrics.csv`, in the first process only: the others log nothing.

    What a node leaves open is filled in: files go to `logs/` in the step's folder, a run has the names of its run and
    step, W&B and MLflow get the tags.

    Args:
        nodes: Nodes with `_target_`, in mappings by name or in lists, however deep; None is no logger.
        build: Builds the object that a node describes, given further keyword arguments.
        folder: The step's output folder.
        tags: Labels of the run.
    """
    if rank() != 0:
        return []
    for name, value in NO_TELEMETRY.items():
        os.environ.setdefault(name, value)
    loggers, tags = list[Logger](), redacted(list(tags))
    for node in _each(nodes):
        defaults = _logger_defaults(build(node, _partial_=True).func, folder.resolve(), tags)
        loggers.append(build(node, **{name: value for name, value in defaults.items() if node.get(name) is None}))
    return loggers


def user_callbacks(nodes: Any, build: Callable[..., Any]) -> list[Callback]:
    """Build the callbacks that stand beside the recipe's.

    One that watches a metric which a step does not log, such as `EarlyStopping`, does nothing there unless its node
    says `strict: true`; `rlhf_lightning.training.fit.fit_stage` says so.

    Args:
        nodes: Nodes with `_target_`, in mappings by name or in lists, however deep; None is no callback.
        build: Builds the object that a node describes, given further keyword arguments.
    """
    callbacks: list[Callback] = []
    for node in _each(nodes):
        kind = build(node, _partial_=True).func
        if not (isinstance(kind, type) and issubclass(kind, Callback)):
            raise PipelineError(f"callbacks name {node['_target_']}, which is no Callback of Lightning.")
        if issubclass(kind, tuple(OWNED_CALLBACKS)):
            instead = next(words for base, words in OWNED_CALLBACKS.items() if issubclass(kind, base))
            raise PipelineError(f"{node['_target_']} would change what the recipe says: {instead}.")
        lenient = "strict" in inspect.signature(kind).parameters and "strict" not in node
        callbacks.append(build(node, strict=False) if lenient else build(node))
    return callbacks


def _logger_defaults(kind: Any, folder: Path, tags: Sequence[str]) -> dict[str, Any]:
    logs, run = folder / "logs", "/".join(folder.parts[-2:])
    logs.mkdir(parents=True, exist_ok=True)
    if kind is WandbLogger:
        quiet = {"silent": True, "console": "off", "x_disable_meta": True}  # the command line may hold secrets
        return {"save_dir": str(logs), "name": run, "tags": list(tags), "settings": quiet}
    if kind is MLFlowLogger:
        database = {"tracking_uri": f"sqlite:///{logs}/mlflow.db", "artifact_location": str(logs / "mlflow")}
        return {**database, "run_name": run, "tags": dict.fromkeys(tags, "true")}
    return {"save_dir": str(logs)} if "save_dir" in inspect.signature(kind).parameters else {}


def _each(nodes: Any) -> Iterator[Any]:
    if isinstance(nodes, Mapping) and "_target_" not in nodes:
        nodes = list(nodes.values())
    if isinstance(nodes, (list, tuple)):
        for node in nodes:
            yield from _each(node)
    elif nodes is not None:
        yield nodes
