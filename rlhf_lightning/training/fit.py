"""One training stage with Lightning: trainer, metrics file, checkpoint, resume."""

import warnings
from collections.abc import Callable, Sequence
from pathlib import Path

import lightning as L
from lightning.pytorch.strategies import ModelParallelStrategy

from rlhf_lightning.data.datamodule import RLHFDataModule
from rlhf_lightning.parallel.processes import on_rank_zero
from rlhf_lightning.runs.folders import PipelineError
from rlhf_lightning.training.checkpoint import BatchCheckpoint, check_shardable, newest_whole
from rlhf_lightning.training.metrics_file import MetricsFile, last_figures

QUIET = (
    ".*does not have many workers.*",  # batches are a few rows of ids; worker processes would cost more than they save
    ".*in eval mode at the start of training.*",  # dropout is off on purpose
    ".*isinstance.treespec, LeafSpec.*",  # Lightning 2.6.6 with torch 2.13
    ".*smaller than the logging interval.*",  # short runs
)
"""Warnings that tell the user of a stage nothing."""


def fit_stage(
    module: L.LightningModule,
    data: RLHFDataModule,
    folder: Path,
    make_trainer: Callable[..., L.Trainer],
    callbacks: Sequence[L.Callback],
    say: Callable[[str], None],
    *,
    epochs: int,
    checkpoint_every: int,
    log_every: int,
) -> dict[str, float]:
    """Train a module, from its last checkpoint where there is one.

    Args:
        module: Of the stage.
        data: Of the stage.
        folder: Gets ``metrics.csv`` and ``checkpoints/``.
        make_trainer: Builds the trainer from further keyword arguments.
        callbacks: Besides the checkpoint.
        say: Told of checkpoints that cannot be used, and where a run that was ended goes on.
        epochs: Passes over the data, or over its ``num_batches``.
        checkpoint_every: Batches (PPO iterations) between two checkpoints.
        log_every: Batches between two rows of metrics.csv.

    Returns:
        The last value of every metric.

    Raises:
        PipelineError: When the trainer would add up gradients of several batches.
    """
    checkpoint = BatchCheckpoint(folder / "checkpoints", checkpoint_every, say)
    trainer = make_trainer(
        max_epochs=epochs,
        logger=MetricsFile(folder / "metrics.csv"),
        callbacks=[*callbacks, checkpoint],
        log_every_n_steps=log_every,
        enable_progress_bar=False,
        enable_model_summary=False,
        enable_checkpointing=False,
        num_sanity_val_steps=0,
        default_root_dir=folder,
        **({} if data.validation else {"limit_val_batches": 0}),
    )
    if trainer.accumulate_grad_batches != 1:
        raise PipelineError(
            f"trainer.accumulate_grad_batches={trainer.accumulate_grad_batches} is not the gradient of one large "
            "batch: each part would count alike, however many tokens or pairs it has, and a checkpoint between two "
            "parts would lose a gradient. Set it to 1. Where a batch does not fit into memory, use "
            "module.activation_checkpointing=true, trainer=ddp or fsdp, a smaller data.batch_size, or in ppo "
            "module.micro_batch_size."
        )
    resume = newest_whole(folder / "checkpoints", module, say)
    if resume is not None and isinstance(trainer.strategy, ModelParallelStrategy):
        check_shardable(resume)
    with warnings.catch_warnings():
        for message in QUIET:
            warnings.filterwarnings("ignore", message)
        trainer.fit(module, datamodule=data, ckpt_path=resume, weights_only=True)
    return on_rank_zero(lambda: last_figures(folder / "metrics.csv"))
