"""The reward model: all K responses of a prompt in one pass, the ranking loss over all their pairs."""

from collections.abc import Mapping
from typing import Any

from jaxtyping import Float
from torch import Tensor, nn
from torch.optim import Optimizer

from rlhf_lightning.algorithms.batch import ComparisonBatch
from rlhf_lightning.algorithms.losses import RankingStatistics, ranking_loss
from rlhf_lightning.arguments import Count, PositiveFloat, checked
from rlhf_lightning.models.dict_batches import comparison_batch, is_filler
from rlhf_lightning.models.master_weights import widened
from rlhf_lightning.models.micro_batches import loss_in_parts, ranking_parts, together
from rlhf_lightning.models.optimizers import OptimizerFactory, SchedulerFactory, ranking_optimizer
from rlhf_lightning.models.pairwise_accuracy import GroupedAccuracy
from rlhf_lightning.models.recompute import checkpoint_activations
from rlhf_lightning.models.shared_prefix import Scores, VerifiedPasses, separate_scores, tokens_read
from rlhf_lightning.modules.base import RLHFModule
from rlhf_lightning.parallel.processes import all_reduce_sum, process_weight
from rlhf_lightning.parallel.sharding import call_unsharded


class RewardModule(RLHFModule):
    """Trains a reward model on K-wise rankings; one prompt with its K responses is one batch element.

    Source: InstructGPT, section 3.5, equation 1 and appendix C.2.

    Args:
        model: Backbone and scalar head, or any module that maps ids and mask to a number per token
            (`rlhf_lightning.models.forward`). Dropout stays off.
        optimizer: Factory of the optimizer.
        scheduler: Factory of its schedule, or None.
        shared_prefix: Read each prompt once for all its responses (`rlhf_lightning.models.shared_prefix`). Checked
            against separate rows on the first batch and on longer ones; a model that does not support it falls back to
            them with a warning.
        activation_checkpointing: Compute activations again in the backward pass instead of keeping them.
        micro_batch_size: Prompts per backward pass; None is the batch at once. The gradient is the same.
        head_lr: Learning rate of the head; None is that of all.
    """

    @checked
    def __init__(
        self,
        model: nn.Module,
        optimizer: OptimizerFactory,
        scheduler: SchedulerFactory | None = None,
        *,
        shared_prefix: bool = True,
        activation_checkpointing: bool = False,
        micro_batch_size: Count | None = None,
        head_lr: PositiveFloat | None = None,
    ) -> None:
        super().__init__(optimizer, scheduler)
        self.save_hyperparameters(ignore=["model", "optimizer", "scheduler"])
        self.model = widened(model).eval()
        self.accuracy = GroupedAccuracy()
        self.passes = VerifiedPasses() if shared_prefix else VerifiedPasses(())
        self.taken: Scores = separate_scores
        if activation_checkpointing:
            checkpoint_activations(model)

    def scores(self, batch: ComparisonBatch) -> Float[Tensor, "prompts K"]:
        """Score of every response, at its last token; 0 where a prompt has fewer than K."""
        self.taken = self.passes.fastest(self.model, batch)
        return call_unsharded(self.taken, self.model, batch)

    def loss(self, batch: ComparisonBatch) -> tuple[Float[Tensor, ""], RankingStatistics]:
        """Ranking loss over all pairs of each prompt that are not ties."""
        return ranking_loss(self.scores(batch), batch.ranks, batch.mask)

    def training_step(self, batch: ComparisonBatch | Mapping[str, Any], batch_idx: int) -> Float[Tensor, ""]:
        """One optimizer step, on a batch as `rlhf_lightning.models.dict_batches.comparison_batch` takes it."""
        batch = comparison_batch(batch)
        loss, found = loss_in_parts(self, ranking_parts(batch, self.hparams.micro_batch_size), self._counted)
        whole, statistics = together(found)
        pairs = process_weight(statistics.num_pairs)
        shown = {"train/loss": whole, "train/accuracy": statistics.accuracy * pairs}
        self.log_dict(shown, prog_bar=True, batch_size=len(batch.ranks), sync_dist=True)
        self.log("train/margin", statistics.margin * pairs, batch_size=len(batch.ranks), sync_dist=True)
        return loss

    def _counted(self, batch: ComparisonBatch) -> tuple[Float[Tensor, ""], RankingStatistics]:
        found = self.loss(batch)
        self.throughput.count(self.model, *tokens_read(self.taken, batch), backward=True)
        return found

    def build_optimizers(self) -> list[Optimizer]:
        """One optimizer, with the head in a group of its own where that has a rate of its own."""
        return [ranking_optimizer(self, self.optimizer_factory, self.hparams.head_lr)]

    def on_validation_epoch_start(self) -> None:
        """Start counting anew."""
        self.accuracy = GroupedAccuracy()

    def validation_step(
        self, batch: ComparisonBatch | Mapping[str, Any], batch_idx: int, dataloader_idx: int = 0
    ) -> None:
        """Loss, and accuracy over all pairs and per group, of each set where there are several."""
        scores = self.scores(batch := comparison_batch(batch))
        loss, statistics = ranking_loss(scores, batch.ranks, batch.mask)
        loss, prompts = loss * process_weight(statistics.num_prompts), all_reduce_sum(statistics.num_prompts)
        self.log(self.split_key("validation/loss"), loss, prog_bar=True, batch_size=int(prompts), sync_dist=True)
        self.accuracy.update(scores, batch, self.set_suffix(dataloader_idx))

    def on_validation_epoch_end(self) -> None:
        """Log the accuracies."""
        for name, value in self.accuracy.figures(self.device).items():
            key, shown = self.split_key(f"validation/{name}"), "/" not in name
            self.log(key, value, prog_bar=shown, sync_dist=True, add_dataloader_idx=False)

    def predict_step(
        self, batch: ComparisonBatch | Mapping[str, Any], batch_idx: int, dataloader_idx: int = 0
    ) -> list[list[float]]:
        """Scores of the responses of each prompt."""
        rows = zip(self.scores(batch := comparison_batch(batch)), batch.mask, strict=True)
        return [row[real].tolist() for row, real in rows if not is_filler(batch)]
