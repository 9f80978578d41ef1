"""One step's training with Lightning: trainer, loggers, checkpoint, resume."""

import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import lightning as L
from lightning.pytorch.callbacks import Checkpoint
from lightning.pytorch.loggers import Logger, WandbLogger
from lightning.pytorch.strategies import ModelParallelStrategy

from rlhf_lightning.arguments import Count
from rlhf_lightning.data.datamodule import RLHFDataModule
from rlhf_lightning.parallel.processes import on_rank_zero
from rlhf_lightning.runs.files import write_json
from rlhf_lightning.runs.folders import PipelineError
from rlhf_lightning.runs.secrets import redacted
from rlhf_lightning.training.callbacks import LearningRates
from rlhf_lightning.training.checkpoint import BatchCheckpoint, check_shardable, newest_whole
from rlhf_lightning.training.metrics_file import MetricsFile, batches_done, last_figures

QUIET = (
    ".*isinstance.treespec, LeafSpec.*",  # Lightning 2.6.6 with torch 2.13
    ".*smaller than the logging interval.*",  # short runs
)
"""Warnings that tell the user of a step nothing."""


def fit_stage(
    module: L.LightningModule,
    data: RLHFDataModule,
    folder: Path,
    make_trainer: Callable[..., L.Trainer],
    callbacks: Sequence[L.Callback],
    say: Callable[[str], None],
    *,
    epochs: Count,
    checkpoint_every: Count,
    log_every: Count,
    loggers: Sequence[Logger] = (),
    hyperparameters: Mapping[str, Any] | None = None,
    tags: Sequence[str] = (),
) -> dict[str, float]:
    """Train a module, from its last checkpoint where there is one.

    Args:
        module: The step's module.
        data: The step's records.
        folder: The step's output folder; gets `metrics.csv`, `checkpoints/` and `examples.json`.
        make_trainer: Builds the trainer from further keyword arguments.
        callbacks: Callbacks besides those for checkpoints and learning rates.
        say: Function that tells the user which checkpoints cannot be used, and what ended before its time.
        epochs: Passes over the data, or over its `num_batches`.
        checkpoint_every: Batches (PPO iterations) between two checkpoints.
        log_every: Batches between two rows of metrics.csv.
        loggers: Loggers besides metrics.csv.
        hyperparameters: Settings of the run that these loggers show, without the secrets among them.
        tags: Labels of the run that they show.

    Returns:
        The last value of every metric.

    Raises:
        PipelineError: When not one batch was trained, in this start or an earlier one.
    """
    trainer = make_trainer(
        max_epochs=epochs,
        logger=[MetricsFile(folder / "metrics.csv"), *loggers],
        callbacks=[LearningRates(), *callbacks, BatchCheckpoint(folder / "checkpoints", checkpoint_every, say)],
        log_every_n_steps=log_every,
        enable_progress_bar=False,
        enable_model_summary=False,
        enable_checkpointing=any(isinstance(callback, Checkpoint) for callback in callbacks),
        num_sanity_val_steps=0,
        default_root_dir=folder,
    )
    resume = newest_whole(folder / "checkpoints", module, say)
    if resume is not None and isinstance(trainer.strategy, ModelParallelStrategy):
        check_shardable(resume)
    with _told(loggers, {**(hyperparameters or {}), "tags": list(tags)}), warnings.catch_warnings():
        for message in QUIET:
            warnings.filterwarnings("ignore", message)
        trainer.fit(module, datamodule=data, ckpt_path=resume, weights_only=True)
    _look_how_it_ended(trainer, callbacks, say)
    write_json(folder / "examples.json", {name: len(rows) for name, rows in data.examples.items()})
    figures = on_rank_zero(lambda: last_figures(folder / "metrics.csv"))
    watch = getattr(module, "throughput", None)  # it also knows the batches after the last row of metrics.csv
    return figures if watch is None else {**figures, "time/total_flops": watch.total}


@contextmanager
def _told(loggers: Sequence[Logger], hyperparameters: Mapping[str, Any]) -> Iterator[None]:
    """Loggers know the settings before the block, and their runs end after it."""
    try:
        for logger in loggers:
            logger.log_hyperparams(redacted(hyperparameters))
        yield
    finally:
        for logger in loggers:
            if isinstance(logger, WandbLogger):
                logger.experiment.finish()  # or the next step's logger would go on in this run


def _look_how_it_ended(trainer: L.Trainer, callbacks: Sequence[L.Callback], say: Callable[[str], None]) -> None:
    if not batches_done(trainer):
        raise PipelineError(
            "not one batch was trained, so there is no model of this step. See trainer.max_time, "
            "trainer.limit_train_batches, and the callbacks that end a training."
        )
    if trainer.should_stop:
        say(f"ended after {batches_done(trainer)} batches, before its time, as a callback or trainer.max_time wanted")
    for callback in callbacks:
        monitor = getattr(callback, "monitor", None)
        if monitor is not None and monitor not in trainer.callback_metrics:
            say(f"{type(callback).__name__} did nothing: it watches {monitor}, which this step does not log")
