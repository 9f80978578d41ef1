"""What the LightningModules share: optimizers by factory, exact random state, frozen models outside checkpoints."""

import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import lightning as L
import torch
from lightning.pytorch.trainer.states import TrainerFn, TrainerStatus
from lightning.pytorch.utilities.types import OptimizerLRScheduler
from torch import Tensor, nn
from torch.optim import Optimizer
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from rlhf_lightning.generation.held_out import HeldOut
from rlhf_lightning.models.checkpoint_state import beside_weights, complete_checkpoint, learned_state
from rlhf_lightning.models.configurable import Configurable
from rlhf_lightning.models.decoder_layers import shard_model
from rlhf_lightning.models.export import sampling_as_trained, save_model
from rlhf_lightning.models.gradients import check_gradient_settings, clip_unscaled
from rlhf_lightning.models.loading import check_rows
from rlhf_lightning.models.lora import learning_parameters
from rlhf_lightning.models.master_weights import check_learned, check_precision
from rlhf_lightning.models.micro_batches import check_parts
from rlhf_lightning.models.non_finite import non_finite_error
from rlhf_lightning.models.offload import offload
from rlhf_lightning.models.optimizers import OptimizerFactory, SchedulerFactory, check_factories, scheduled
from rlhf_lightning.parallel.processes import all_reduce_gradients, rank
from rlhf_lightning.parallel.random_state import random_states, restore_random_states
from rlhf_lightning.parallel.sharding import full_tensor
from rlhf_lightning.parallel.throughput import Throughput


class RLHFModule(HeldOut, Configurable):
    """A LightningModule that resumes exactly, says how fast it is, and runs under a Trainer, Fabric or by itself.

    Checkpoints carry every random state, which is put back right before the first batch, and leave out the modules
    named in `frozen` and all weights that do not learn: they are loaded from their own folders anyway. Outside of a
    Trainer and Fabric (`fabric.setup(module, *optimizers)`) nothing is logged.

    Args:
        optimizer: Factory of the optimizer.
        scheduler: Factory of its schedule, stepped once per optimizer step; None keeps the learning rate.
    """

    frozen: tuple[str, ...] = ()
    learner = "model"
    """The submodule that `save_pretrained` writes."""
    offloaded: tuple[nn.Module, ...] = ()
    """Frozen models that are in the CPU's memory except while they score."""

    def __init__(self, optimizer: OptimizerFactory, scheduler: SchedulerFactory | None) -> None:
        super().__init__()
        check_factories(optimizer=optimizer, **({} if scheduler is None else {"scheduler": scheduler}))
        self.optimizer_factory, self.scheduler_factory = optimizer, scheduler
        self.strict_loading = False  # on_load_checkpoint is stricter
        self.throughput = Throughput()
        self.gradient_added = False
        self._random_states: list[dict[str, Any]] = []
        self._batch: Any = None
        self._noted: dict[str, list[Tensor]] = {}

    @property
    def hparams(self) -> Any:
        """The scalars of the constructor, such as `module.hparams.activation_checkpointing`."""
        return super().hparams

    @property
    def running_trainer(self) -> L.Trainer | None:
        """The Trainer, while it runs the module; None under Fabric, before and after."""
        if self.fabric is not None:
            return None
        try:
            return self.trainer if self.trainer.state.status == TrainerStatus.RUNNING else None
        except RuntimeError:  # it never had one
            return None

    def save_pretrained(
        self, folder: str | Path, tokenizer: PreTrainedTokenizerBase | None = None, *, averaged: bool = True
    ) -> None:
        """Write the model that learned as a folder that transformers reads, adapters added to its weights.

        Args:
            folder: The folder to write; an older model there is replaced.
            tokenizer: The tokenizer that is written beside it; None is the module's own, where it has one.
            averaged: Write the moving average of the weights, where the module keeps one, as `PPOModule` does.
        """
        model, tokenizer = getattr(self, self.learner), tokenizer or getattr(self, "tokenizer", None)
        if tokenizer and "temperature" in self.hparams and isinstance(model, PreTrainedModel):  # as it was trained
            length = self.hparams.max_new_tokens
            model.generation_config = sampling_as_trained(tokenizer, self.hparams.temperature, length)
        save_model(model, Path(folder), tokenizer, getattr(self, "ema", None) if averaged else None)

    def configure_callbacks(self) -> Sequence[L.Callback]:
        """There are none; it is the hook before all others, and refuses what could not be trained rightly."""
        trainer: Any = self.trainer
        if trainer.state.fn == TrainerFn.FITTING:
            batches, clip, callbacks = trainer.accumulate_grad_batches, trainer.gradient_clip_val, trainer.callbacks
            check_gradient_settings(batches, clip, callbacks, automatic=self.automatic_optimization)
            check_precision(trainer.precision)
            if self.automatic_optimization:
                check_parts(self.hparams.get("micro_batch_size"), trainer.strategy)
            if (tokens := getattr(trainer.datamodule, "tokenization", None)) is not None:
                check_rows(tokens.tokenizer, getattr(self, self.learner))
        return []

    def configure_model(self) -> None:
        """Shard the weights of every model over the processes, where the strategy is `ModelParallelStrategy`.

        Raises:
            ValueError: When a model has adapters, whose body belongs to two models.
        """
        if self.device_mesh is None:
            return
        for name, model in self.named_children():
            shard_model(name, model, self.device_mesh["data_parallel"])
        if (average := getattr(self, "ema", None)) is not None:
            average.shard_like(getattr(self, self.learner))

    def build_optimizers(self) -> list[Optimizer]:
        """The optimizers over the parameters that learn, as Fabric takes them."""
        return [self.optimizer_factory(learning_parameters(self))]

    def configure_optimizers(self) -> OptimizerLRScheduler:
        """Build the optimizers and a schedule for each."""
        return scheduled(
            self.build_optimizers(), self.scheduler_factory, lambda: self.trainer.estimated_stepping_batches
        )

    def optimizer_zero_grad(self, epoch: int, batch_idx: int, optimizer: Optimizer) -> None:
        """Keep the gradient of the first parts of a batch, which `training_step` has added up."""
        if not self.gradient_added:
            super().optimizer_zero_grad(epoch, batch_idx, optimizer)

    def configure_gradient_clipping(
        self, optimizer: Optimizer, gradient_clip_val: float | None = None, gradient_clip_algorithm: str | None = None
    ) -> None:
        """Clip as the trainer says; in bf16-mixed also with a fused optimizer."""
        if not clip_unscaled(self.trainer.precision_plugin, optimizer, gradient_clip_val, gradient_clip_algorithm):
            self.clip_gradients(optimizer, gradient_clip_val, gradient_clip_algorithm)

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Drop what does not learn, add the random states of every process."""
        super().on_save_checkpoint(checkpoint)
        checkpoint.update(beside_weights(self))
        checkpoint["state_dict"] = learned_state(self, checkpoint["state_dict"], self.frozen)
        checkpoint["random_states"], checkpoint["total_flops"] = random_states(), self.throughput.total

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Keep the random states until training starts.

        Raises:
            RuntimeError: When the checkpoint is not of this model, or of another layout.
        """
        complete_checkpoint(checkpoint, self, self.frozen)
        self._random_states = checkpoint.get("random_states", [])
        self.throughput = Throughput(checkpoint.get("total_flops", 0.0))

    def on_fit_start(self) -> None:
        """Lightning warns of modules in eval mode; here dropout is off on purpose."""
        warnings.filterwarnings("ignore", ".*in eval mode at the start of training.*")
        offload(*self.offloaded)

    def on_train_start(self) -> None:
        """Put the random states back after everything that may have drawn from them; refuse to learn in 16 bits."""
        check_learned(self)
        if self._random_states or rank() > 0:  # the first process of a new run draws on
            restore_random_states(self._random_states)
        self._random_states = []
        self.throughput = Throughput(self.throughput.total)

    def check_finite(self, **values: Tensor) -> None:
        """Stop at NaN and infinity, with the batch saved; a run that went on would train on nothing.

        Args:
            values: The tensors to look at, by name.

        Raises:
            NonFiniteError: Naming the first that is not finite, and the likely cause.
        """
        for name, value in values.items():
            whole = full_tensor(value)
            if not bool(whole.isfinite().all()):
                raise non_finite_error(name, whole, self._batch, self.running_trainer)

    def log_figures(
        self, figures: Mapping[str, Tensor], *, prog_bar: bool = False, sync_dist: bool = False, reduce_fx: str = "mean"
    ) -> None:
        """`log_dict` under a Trainer or Fabric, and nothing outside of both."""
        if self.fabric is not None or self.running_trainer is not None:
            self.log_dict(figures, prog_bar=prog_bar, sync_dist=sync_dist, reduce_fx=reduce_fx)

    def backward_loss(self, loss: Tensor) -> None:
        """`manual_backward` under a Trainer or Fabric, and `loss.backward()` outside of both."""
        if self.fabric is not None or self.running_trainer is not None:
            self.manual_backward(loss)
        else:
            loss.backward()

    def note(self, name: str, value: Tensor) -> None:
        """Keep a figure of one of the minibatches of a step."""
        self._noted.setdefault(name, []).append(value.detach())

    def log_noted(self, *shown: str) -> None:
        """Log the mean of every figure that was kept, those among `shown` beside the progress bar too."""
        for name, values in self._noted.items():
            self.log_figures({name: torch.stack(values).mean()}, prog_bar=name in shown, sync_dist=True)
        self._noted = {}

    def step_clipped(self, optimizer: Optimizer, model: nn.Module, name: str, max_norm: float | None) -> None:
        """Step an optimizer by hand, with the mean gradient of all processes, clipped and looked at.

        Args:
            optimizer: The model's optimizer.
            model: The model that has the gradient.
            name: The model's name in figures and errors.
            max_norm: Norm that the gradient is clipped to, None for none.
        """
        all_reduce_gradients(model)
        norm = full_tensor(nn.utils.clip_grad_norm_(model.parameters(), float("inf") if max_norm is None else max_norm))
        self.check_finite(**{f"gradient of the {name}": norm})
        self.note(f"update/{name}_grad_norm", norm)
        optimizer.step()
        optimizer.zero_grad()
        # Lightning keeps one autocast around the whole iteration, and autocast keeps 16-bit copies of the weights.
        torch.clear_autocast_cache()

    def on_before_optimizer_step(self, optimizer: Optimizer) -> None:
        """Look at the gradient before it can spoil the weights."""
        if self.automatic_optimization:
            gradients = [p.grad for group in optimizer.param_groups for p in group["params"] if p.grad is not None]
            self.check_finite(gradient=nn.utils.get_total_norm(gradients))

    def on_train_batch_start(self, batch: Any, batch_idx: int) -> None:
        """Start the watch; where the optimizer is stepped by hand, the phases are the module's own."""
        self._batch = batch
        if self.automatic_optimization:
            self.zero_grad()  # Lightning keeps the gradient of the last step until the forward pass is done
            self.throughput.start("step")

    def on_train_batch_end(self, outputs: Any, batch: Any, batch_idx: int) -> None:
        """Log seconds, tokens per second and padding."""
        if self.automatic_optimization:
            self.throughput.stop()
        self.log_dict(self.throughput.figures(), prog_bar=True)
