"""What every stage shares: optimizers by factory, exact random state, frozen models outside checkpoints."""

import random
from collections.abc import Callable, Iterable, Mapping
from typing import Any, TypeAlias

import lightning as L
import numpy as np
import torch
from lightning.pytorch.plugins.precision import MixedPrecision
from lightning.pytorch.utilities.types import OptimizerLRScheduler
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler

from rlhf_lightning.models.lora import has_adapters
from rlhf_lightning.modules.non_finite import non_finite_error
from rlhf_lightning.parallel.processes import all_gather_objects, rank
from rlhf_lightning.parallel.sharding import full_tensor, is_sharded, shard
from rlhf_lightning.parallel.throughput import Throughput

OptimizerFactory: TypeAlias = Callable[[Iterable[nn.Parameter]], Optimizer]
"""From parameters to an optimizer, for instance ``functools.partial(torch.optim.AdamW, lr=1e-5)``."""
SchedulerFactory: TypeAlias = Callable[[Optimizer, int], LRScheduler]
"""From an optimizer and the number of steps to a schedule, see :mod:`rlhf_lightning.algorithms.schedules`."""

_REMEDY = "Start anew, or build the model that it was made with."


class StageModule(L.LightningModule):
    """A LightningModule that resumes exactly and says how fast it is.

    Checkpoints carry every random state, which is put back right before the first batch, and leave out the modules
    named in ``frozen`` and all weights that do not learn: they are loaded from their own folders anyway.

    Args:
        optimizer: Factory of the optimizer.
        scheduler: Factory of its schedule, stepped once per optimizer step; None keeps the learning rate.
    """

    frozen: tuple[str, ...] = ()

    def __init__(self, optimizer: OptimizerFactory, scheduler: SchedulerFactory | None) -> None:
        super().__init__()
        self.optimizer_factory, self.scheduler_factory = optimizer, scheduler
        self.strict_loading = False  # on_load_checkpoint is stricter
        self.throughput = Throughput()
        self._random_states: list[dict[str, Any]] = []
        self._batch: Any = None
        self._noted: dict[str, list[Tensor]] = {}

    def configure_model(self) -> None:
        """Share the weights of every model out over the processes, where the strategy is ``ModelParallelStrategy``.

        Raises:
            ValueError: When a model has adapters, whose body belongs to two models.
        """
        if self.device_mesh is None:
            return
        for name, model in self.named_children():
            if has_adapters(model):
                raise ValueError(
                    f"{name} has adapters, which cannot be shared out; set lora.rank=0 or use trainer=ddp."
                )
            if any(True for _ in model.parameters()) and not is_sharded(model):
                shard(model, self.device_mesh["data_parallel"])

    def configure_optimizers(self) -> OptimizerLRScheduler:
        """Build optimizer and schedule over the parameters that learn."""
        optimizer = self.optimizer_factory([p for p in self.parameters() if p.requires_grad])
        if self.scheduler_factory is None:
            return optimizer
        scheduler = self.scheduler_factory(optimizer, int(self.trainer.estimated_stepping_batches))
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": scheduler, "interval": "step"}}

    def configure_gradient_clipping(
        self,
        optimizer: Optimizer,
        gradient_clip_val: int | float | None = None,
        gradient_clip_algorithm: str | None = None,
    ) -> None:
        """Clip as the trainer says; in bf16-mixed also with a fused optimizer.

        Lightning refuses it under mixed precision, because fused kernels divide by the scale of the loss themselves;
        without a gradient scaler there is none.
        """
        plugin = self.trainer.precision_plugin
        if type(plugin) is not MixedPrecision or plugin.scaler is not None or not gradient_clip_val:
            self.clip_gradients(optimizer, gradient_clip_val, gradient_clip_algorithm)
        elif gradient_clip_algorithm == "value":
            plugin.clip_grad_by_value(optimizer, gradient_clip_val)
        else:
            plugin.clip_grad_by_norm(optimizer, gradient_clip_val)

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Drop what does not learn, add the random states of every process."""
        checkpoint["state_dict"] = self._kept(checkpoint["state_dict"])
        checkpoint["random_states"] = all_gather_objects(_random_state())

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Keep the random states until training starts.

        Raises:
            RuntimeError: When the checkpoint is not of this model.
        """
        if "state_dict" in checkpoint:  # a strategy that shares weights out has taken them already
            self._check_weights(checkpoint["state_dict"])
        self._random_states = checkpoint.get("random_states", [])

    def _check_weights(self, saved: Mapping[str, Any]) -> None:
        own = self._kept(self.state_dict())
        if saved.keys() != own.keys():
            raise RuntimeError(
                f"the checkpoint is of another model: it lacks {sorted(own.keys() - saved.keys())[:4] or 'nothing'} "
                f"and has {sorted(saved.keys() - own.keys())[:4] or 'nothing'} besides. {_REMEDY}"
            )
        for name, value in own.items():
            if saved[name].shape != value.shape:
                raise RuntimeError(
                    f"the checkpoint is of another model: its {name} has shape {tuple(saved[name].shape)}, not "
                    f"{tuple(value.shape)}. {_REMEDY}"
                )

    def _kept(self, state: Mapping[str, Any]) -> dict[str, Any]:
        prefixes = tuple(f"{name}." for name in self.frozen)
        still = {name for name, p in self.named_parameters(remove_duplicate=False) if not p.requires_grad}
        return {name: value for name, value in state.items() if name not in still and not name.startswith(prefixes)}

    def on_train_start(self) -> None:
        """Put the random states back after everything that may have drawn from them.

        Processes that have none draw apart from the first one, or dropout would be the same in all of them.
        """
        if self._random_states:
            _restore_random_state(self._random_states[rank() if rank() < len(self._random_states) else 0])
        if rank() >= max(len(self._random_states), 1):
            _branch_off(rank())
        self._random_states = []
        self.throughput = Throughput()

    def check_finite(self, **values: Tensor) -> None:
        """Stop at a number that is none, with the batch saved; a run that went on would train on nothing.

        Args:
            values: What to look at, by name.

        Raises:
            NonFiniteError: Naming the first that is not finite, and the likely cause.
        """
        for name, value in values.items():
            whole = full_tensor(value)
            if not bool(whole.isfinite().all()):
                raise non_finite_error(name, whole, self._batch, self._trainer)

    def note(self, name: str, value: Tensor) -> None:
        """Keep a figure of one of the minibatches of a step."""
        self._noted.setdefault(name, []).append(value.detach())

    def log_noted(self, *shown: str) -> None:
        """Log the mean of every figure that was kept, those among ``shown`` beside the progress bar too."""
        for name, values in self._noted.items():
            self.log(name, torch.stack(values).mean(), prog_bar=name in shown, sync_dist=True)
        self._noted = {}

    def on_before_optimizer_step(self, optimizer: Optimizer) -> None:
        """Look at the gradient before it can spoil the weights."""
        if self.automatic_optimization:
            gradients = [p.grad for group in optimizer.param_groups for p in group["params"] if p.grad is not None]
            self.check_finite(gradient=nn.utils.get_total_norm(gradients))

    def on_train_batch_start(self, batch: Any, batch_idx: int) -> None:
        """Start the watch; where the optimizer is stepped by hand, the phases are the module's own."""
        self._batch = batch
        if self.automatic_optimization:
            self.throughput.start("step")

    def on_train_batch_end(self, outputs: Any, batch: Any, batch_idx: int) -> None:
        """Log seconds, tokens per second and padding."""
        if self.automatic_optimization:
            self.throughput.stop()
        self.log_dict(self.throughput.figures(), prog_bar=True)


def check_positive(**values: int | float) -> None:
    """Refuse arguments that are not above 0, by their names.

    Raises:
        ValueError: Naming the first of them.
    """
    for name, value in values.items():
        if not value > 0:
            raise ValueError(f"{name} must be above 0, got {value}.")


def _random_state() -> dict[str, Any]:
    """Plain types and tensors only, so that checkpoints load with ``weights_only``."""
    numpy_state: Any = np.random.get_state(legacy=False)
    state = numpy_state["state"]
    return {
        "python": random.getstate(),
        "numpy": {
            **numpy_state,
            "state": {"key": torch.from_numpy(state["key"].astype(np.int64)), "pos": state["pos"]},
        },
        "torch": torch.get_rng_state(),
        "cuda": torch.cuda.get_rng_state_all() if torch.cuda.is_available() else [],
    }


def _branch_off(number: int) -> None:
    """Random states that follow from the ones at hand and a number."""
    seed = (int(torch.randint(2**31, ())) + number) % 2**32
    random.seed(seed)
    np.random.seed(seed)
    torch.manual_seed(seed)


def _restore_random_state(state: dict[str, Any]) -> None:
    random.setstate(state["python"])
    numpy_state = state["numpy"]
    key = numpy_state["state"]["key"].numpy().astype(np.uint32)
    np.random.set_state({**numpy_state, "state": {"key": key, "pos": numpy_state["state"]["pos"]}})
    torch.set_rng_state(state["torch"])
    if state["cuda"] and torch.cuda.is_available():
        torch.cuda.set_rng_state_all(state["cuda"])
