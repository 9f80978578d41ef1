"""Checkpoints that cannot be lost: written beside, synced, renamed, and looked at before they are used."""

import errno
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import lightning as L
import torch

from rlhf_lightning.callbacks import batches_done

LATEST, BEFORE = "last.ckpt", "previous.ckpt"


class BatchCheckpoint(L.Callback):
    """Writes ``last.ckpt`` every so many batches and after every epoch; the one before stays as ``previous.ckpt``.

    Lightning's ``global_step`` counts every step of every optimizer, so the cadence comes from the batches. After a
    SIGTERM the batch at hand is finished and saved before the run ends.

    Args:
        folder: Where.
        every_n_batches: Batches (PPO iterations) between two checkpoints.

    Raises:
        ValueError: When there would be less than one batch between two checkpoints.
    """

    def __init__(self, folder: Path, every_n_batches: int) -> None:
        if every_n_batches < 1:
            raise ValueError(f"checkpoint_every must be at least 1 batch, got {every_n_batches}.")
        self.path, self.every_n_batches = folder / LATEST, every_n_batches

    def on_train_batch_end(self, trainer: L.Trainer, *_: Any) -> None:
        """Save where it is time to; at the end of an epoch its validation comes first."""
        due = batches_done(trainer) % self.every_n_batches == 0 and not trainer.is_last_batch
        if due or (trainer.received_sigterm and not trainer.is_last_batch):
            self._save(trainer)

    def on_train_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Save after the last batch of an epoch and its validation."""
        self._save(trainer)

    def _save(self, trainer: L.Trainer) -> None:
        unfinished = self.path.with_suffix(".unfinished")
        try:
            trainer.save_checkpoint(unfinished)
            if not trainer.is_global_zero:
                return
            with unfinished.open("rb") as file:
                os.fsync(file.fileno())
        except (OSError, RuntimeError) as error:
            unfinished.unlink(missing_ok=True)
            kept = f"the one before it, {self.path}, is whole" if self.path.exists() else "there is none before it"
            full = getattr(error, "errno", None) in (errno.ENOSPC, errno.EDQUOT)
            raise RuntimeError(
                f"the checkpoint after batch {batches_done(trainer)} could not be written to {self.path.parent} "
                f"({'the disk is full' if full else error}); {kept}. Make room and give the same command again."
            ) from error
        if self.path.exists():
            self.path.rename(self.path.with_name(BEFORE))
        unfinished.rename(self.path)
        _sync_folder(self.path.parent)


def newest_whole(folder: Path, module: L.LightningModule, say: Callable[[str], None]) -> Path | None:
    """The newest checkpoint that is complete and of this model, or None.

    Args:
        folder: Where :class:`BatchCheckpoint` writes.
        module: What would go on.
        say: Told of every checkpoint that is skipped, and why.
    """
    for path in (folder / LATEST, folder / BEFORE):
        if not path.exists():
            continue
        try:
            # Mapped into memory, so that no tensor is read yet.
            checkpoint = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
            module.on_load_checkpoint(checkpoint)
        except Exception as error:  # torn files fail in many ways
            say(f"{path} is skipped: {str(error).splitlines()[0]}")
        else:
            return path
    return None


def check_shareable(path: Path) -> None:
    """Refuse what ``ModelParallelStrategy`` would put into the wrong weights.

    Its own checkpoints name the weights of every optimizer. Others number them, and it takes the numbers for places in
    the whole module, which is right for a single optimizer only.

    Raises:
        RuntimeError: When a checkpoint with several optimizers numbers their weights.
    """
    optimizers = torch.load(path, map_location="cpu", weights_only=True, mmap=True)["optimizer_states"]
    if len(optimizers) > 1 and any(isinstance(name, int) for optimizer in optimizers for name in optimizer["state"]):
        raise RuntimeError(
            f"{path} was not made with trainer=fsdp, which cannot go on from another trainer's checkpoint of PPO. Go "
            "on with trainer=ddp, cpu or gpu (the other way round works), or start anew with overwrite=true."
        )


def _sync_folder(folder: Path) -> None:
    """Make the renames last through a power cut."""
    if hasattr(os, "O_DIRECTORY"):
        handle = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)
