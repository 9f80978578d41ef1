"""Checkpoints that cannot be lost: written beside, synced, renamed, and looked at before they are used."""

import signal
import zipfile
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from types import FrameType
from typing import Any, cast

import lightning as L
import torch
from lightning.fabric.plugins.io.torch_io import TorchCheckpointIO

from rlhf_lightning.arguments import Count, checked
from rlhf_lightning.models.checkpoint_state import LayoutError
from rlhf_lightning.parallel.processes import all_reduce_sum, on_rank_zero
from rlhf_lightning.runs.files import full_disk, put_in_place, sync
from rlhf_lightning.runs.folders import PipelineError
from rlhf_lightning.runs.signals import handling
from rlhf_lightning.training.metrics_file import MetricsFile, batches_done, check_mark

LATEST, BEFORE = "last.ckpt", "previous.ckpt"


class BatchCheckpoint(L.Callback):
    """Writes `last.ckpt` every so many batches and after every epoch; the one before stays as `previous.ckpt`.

    Lightning's `global_step` counts every step of every optimizer, so the cadence comes from the batches. Lightning
    logs a batch after its last hook: a checkpoint is written at the end of the batch, takes its name when the batch
    is in `metrics.csv`, and a run that goes on from it cuts `metrics.csv` to the batches it has. After a SIGTERM
    (SIGHUP) the batch at hand is finished and saved, and the run ends with exit code 143 (129).

    Args:
        folder: The folder of the checkpoints.
        every_n_batches: Batches (PPO iterations) between two checkpoints.
        say: Function that tells the user where a run that was ended will go on.
    """

    @checked
    def __init__(self, folder: Path, every_n_batches: Count, say: Callable[[str], None] = print) -> None:
        self.path, self.every_n_batches, self.say = folder / LATEST, every_n_batches, say
        self._unfinished = self.path.with_suffix(".unfinished")
        self._nameless = False
        self._metrics: MetricsFile | None = None
        self._handling = ExitStack()
        self._came = 0
        self._ending = False

    def setup(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        """Write to where the checkpoint will be: Lightning writes to the system's temporary folder first."""
        self._metrics = next((logger for logger in trainer.loggers if isinstance(logger, MetricsFile)), None)
        if type(trainer.strategy.checkpoint_io) is TorchCheckpointIO:
            trainer.strategy.checkpoint_io = _PlainFile()

    def state_dict(self) -> dict[str, Any]:
        """What the rows of metrics.csv are known by."""
        return {"metrics": self._metrics.mark} if self._metrics is not None else {}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Make sure that metrics.csv is the one that the checkpoint was saved with."""
        if self._metrics is not None:
            check_mark(self._metrics.path, self._metrics.rows, state_dict.get("metrics", {}))

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Drop the metrics of batches that will be made again, and listen for signals."""
        if self._metrics is not None:
            self._metrics.cut(batches_done(trainer))
        self._handling.enter_context(handling(self._note))

    def on_train_batch_start(self, trainer: L.Trainer, *_: Any) -> None:
        """Give the checkpoint of the batch before its name; end here after a signal."""
        self._finish(trainer)

    def on_train_batch_end(self, trainer: L.Trainer, pl_module: L.LightningModule, *_: Any) -> None:
        """Save where it is time to; at the end of an epoch its validation comes first."""
        due = batches_done(trainer) % self.every_n_batches == 0
        if (self._ends(trainer, pl_module) or due) and not trainer.is_last_batch:
            self._save(trainer)

    def on_train_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Save after the last batch of an epoch and its validation."""
        self._ends(trainer, pl_module)
        self._save(trainer)

    def on_train_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Give the last checkpoint its name."""
        self._finish(trainer)

    def teardown(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        """Leave signals as they were; one that came after the last batch still ends the run."""
        self._handling.close()
        if self._came and not self._ending:
            self._end()

    def on_exception(self, trainer: L.Trainer, pl_module: L.LightningModule, exception: BaseException) -> None:
        """Leave signals as they were."""
        self._handling.close()

    def _ends(self, trainer: L.Trainer, module: L.LightningModule) -> bool:
        """Whether any process was told to end: all of them must save the same batch."""
        came = torch.tensor(float(bool(self._came) or trainer.received_sigterm), device=module.device)
        self._ending = self._ending or bool(all_reduce_sum(came) > 0)
        return self._ending

    def _save(self, trainer: L.Trainer) -> None:
        try:
            trainer.save_checkpoint(self._unfinished)
            if trainer.is_global_zero:
                sync(self._unfinished)
        except (OSError, RuntimeError) as error:
            self._unfinished.unlink(missing_ok=True)
            if _was_interrupted(error):
                raise KeyboardInterrupt from error
            kept = f"the one before it, {self.path}, is whole" if self.path.exists() else "there is none before it"
            raise PipelineError(
                f"the checkpoint after batch {batches_done(trainer)} could not be written to {self.path.parent} "
                f"({full_disk(error) or error}); {kept}. Make room and give the same command again."
            ) from error
        self._nameless = True

    def _finish(self, trainer: L.Trainer) -> None:
        if self._nameless and trainer.is_global_zero:
            if self._metrics is not None and self._metrics.path.exists():
                sync(self._metrics.path)
            if self.path.exists():
                self.path.replace(self.path.with_name(BEFORE))
            put_in_place(self._unfinished, self.path)
        self._nameless = False
        if self._ending:
            self._end()

    def _note(self, number: int, frame: FrameType | None) -> None:
        self._came = number  # and nothing else: what a process sends in a handler, others may miss

    def _end(self) -> None:
        number = self._came or signal.SIGTERM  # which another process got
        self.say(f"ended by {signal.Signals(number).name}; the same command goes on from {self.path}")
        raise SystemExit(128 + number)


def _was_interrupted(error: BaseException | None) -> bool:
    """Whether Ctrl-C came in the middle: torch then raises an error of its own, of a file that is too short."""
    while error is not None and not isinstance(error, KeyboardInterrupt):
        error = error.__cause__ or error.__context__
    return error is not None


class _PlainFile(TorchCheckpointIO):
    """Writes a checkpoint to its place, without a copy in memory or in another folder."""

    def save_checkpoint(self, checkpoint: dict[str, Any], path: Any, storage_options: Any | None = None) -> None:
        Path(path).parent.mkdir(parents=True, exist_ok=True)
        # Given a path, torch would not say why it cannot write.
        with Path(path).open("wb") as file:
            torch.save(checkpoint, file)


def newest_whole(folder: Path, module: L.LightningModule, say: Callable[[str], None]) -> Path | None:
    """The newest checkpoint that is complete and of this model, or None; the first process looks for all.

    Args:
        folder: The folder that `BatchCheckpoint` writes to.
        module: The module that would go on.
        say: Function that tells the user of every checkpoint that is skipped, and why.

    Raises:
        PipelineError: When the newest one that can be read has the layout of another version.
    """
    return on_rank_zero(lambda: _newest_whole(folder, module, say))


def _newest_whole(folder: Path, module: L.LightningModule, say: Callable[[str], None]) -> Path | None:
    for path in (folder / LATEST, folder / BEFORE):
        if not path.exists():
            continue
        try:
            with zipfile.ZipFile(path) as archive:
                damaged = archive.testzip()
            if damaged is not None:
                raise RuntimeError(f"its part {damaged} is damaged (the checksum differs).")
            module.on_load_checkpoint(_mapped(path))
        except LayoutError as error:  # skipped, it would be overwritten
            raise PipelineError(f"{path}: {error}") from error
        except Exception as error:  # torn files fail in many ways
            say(f"{path} is skipped: {str(error).splitlines()[0]}")
            continue
        return path
    return None


def _mapped(path: Path) -> dict[str, Any]:
    """A checkpoint whose tensors stay in the file until they are read."""
    return cast(dict[str, Any], torch.load(path, map_location="cpu", weights_only=True, mmap=True))


def check_shardable(path: Path) -> None:
    """Refuse what `ModelParallelStrategy` would put into the wrong weights.

    It numbers weights by their places in the whole module. In other checkpoints every optimizer numbers its own, from 0
    on, which is the same for a single optimizer only.

    Raises:
        RuntimeError: When several optimizers of a checkpoint have the same numbers.
    """
    numbers = [number for optimizer in _mapped(path)["optimizer_states"] for number in optimizer["state"]]
    if len(numbers) > len(set(numbers)):
        raise RuntimeError(
            f"{path} was not made with trainer=fsdp, which cannot go on from another trainer's checkpoint of PPO. Go "
            "on with trainer=ddp, cpu or gpu (the other way round works), or remove it to train the step anew."
        )
