"""Pretraining and supervised fine-tuning."""

from collections.abc import Mapping
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from rlhf_lightning.algorithms.batch import LMBatch, PromptBatch
from rlhf_lightning.algorithms.losses import LMStatistics, lm_loss
from rlhf_lightning.arguments import Count, checked
from rlhf_lightning.generation.held_out import Sample, sampled
from rlhf_lightning.models.dict_batches import is_filler, lm_batch
from rlhf_lightning.models.log_probs import causal_log_probs
from rlhf_lightning.models.master_weights import widened
from rlhf_lightning.models.micro_batches import loss_in_parts, row_parts
from rlhf_lightning.models.optimizers import OptimizerFactory, SchedulerFactory
from rlhf_lightning.models.packing import VerifiedPacking
from rlhf_lightning.models.recompute import checkpoint_activations
from rlhf_lightning.modules.base import RLHFModule
from rlhf_lightning.parallel.processes import all_reduce_sum, process_weight
from rlhf_lightning.parallel.sharding import call_unsharded


class LanguageModelModule(RLHFModule):
    """Trains a causal language model by cross-entropy on the tokens that count.

    For demonstrations these are the response tokens and their EOS; for pretraining text, every token. Source:
    InstructGPT, section 3.5 and appendix C.1.

    Args:
        model: A transformers causal language model, or any module that maps ids and mask to logits. Its dropout is
            on in training.
        optimizer: Factory of the optimizer.
        scheduler: Factory of its schedule, or None.
        activation_checkpointing: Compute activations again in the backward pass instead of keeping them.
        micro_batch_size: Rows that are in memory at once, None for all of the batch; the gradient is the same.
        packing: Read the rows of a batch as one, without padding (`rlhf_lightning.models.packing`).
    """

    @checked
    def __init__(
        self,
        model: nn.Module,
        optimizer: OptimizerFactory,
        scheduler: SchedulerFactory | None = None,
        *,
        activation_checkpointing: bool = False,
        micro_batch_size: Count | None = None,
        packing: bool = False,
    ) -> None:
        super().__init__(optimizer, scheduler)
        self.save_hyperparameters(ignore=["model", "optimizer", "scheduler"])
        self.model = widened(model)
        self.packing = VerifiedPacking(wanted=packing)
        if activation_checkpointing:
            checkpoint_activations(model)

    def loss(self, batch: LMBatch) -> tuple[Float[Tensor, ""], LMStatistics]:
        """Mean negative log-likelihood in nats per token that counts."""
        packed = self.packing.suits(self.model, batch.input_ids, batch.mask)
        log_probs = call_unsharded(causal_log_probs, self.model, *batch, 1.0, packed)
        return lm_loss(log_probs, batch.loss_mask[:, 1:])

    def on_train_start(self) -> None:
        """Turn dropout on: Lightning leaves a model in eval mode as it was handed over."""
        super().on_train_start()
        self.model.train()

    def training_step(self, batch: LMBatch | Mapping[str, Any], batch_idx: int) -> Float[Tensor, ""]:
        """One optimizer step, on a batch as `rlhf_lightning.models.dict_batches.lm_batch` takes it."""
        batch = lm_batch(batch)
        parts = row_parts(batch, self.hparams.micro_batch_size)
        loss, found = loss_in_parts(self, parts, self.loss)
        positions, lengths = sum(self.packing.positions(part.mask) for part, _ in parts), batch.mask.sum(1)
        self.throughput.count(self.model, lengths.sum(), positions, lengths=lengths, backward=True)
        tokens = sum(statistics.num_tokens.float() for _, statistics in found)
        self.log("train/loss", loss, prog_bar=True, sync_dist=True)
        self.log("train/tokens", tokens, reduce_fx=torch.sum, sync_dist=True)
        return loss

    def validation_step(self, batch: LMBatch | Mapping[str, Any], batch_idx: int, dataloader_idx: int = 0) -> None:
        """Loss per token over the whole validation set, of each where there are several."""
        loss, statistics = self.loss(lm_batch(batch))
        loss, tokens = loss * process_weight(statistics.num_tokens), all_reduce_sum(statistics.num_tokens)
        self.log(self.split_key("validation/loss"), loss, prog_bar=True, batch_size=int(tokens), sync_dist=True)

    def predict_step(
        self, batch: Any, batch_idx: int, dataloader_idx: int = 0
    ) -> list[Sample] | Float[Tensor, " rows"]:
        """A sample per prompt of a `PromptBatch`; of any other batch the log-prob of each row's targets, in nats."""
        if isinstance(batch, PromptBatch):
            return sampled(self, batch)
        log_probs = call_unsharded(causal_log_probs, self.model, *(batch := lm_batch(batch))).sum(1)
        return log_probs[:0] if is_filler(batch) else log_probs
