"""The reward model: all K responses of a prompt in one pass, the ranking loss over all their pairs."""

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from torchmetrics import Metric

from rlhf_lightning.algorithms.batch import ComparisonBatch
from rlhf_lightning.algorithms.losses import RankingStatistics, ranking_loss
from rlhf_lightning.models.master_weights import widened
from rlhf_lightning.models.recompute import checkpoint_activations
from rlhf_lightning.models.scalar_head import ScalarHeadModel
from rlhf_lightning.models.shared_prefix import Scores, VerifiedPasses, separate_scores, tokens_read, tree_scores
from rlhf_lightning.modules.base import OptimizerFactory, RLHFModule, SchedulerFactory
from rlhf_lightning.parallel.processes import all_gather_objects, all_reduce_sum, process_weight
from rlhf_lightning.parallel.sharding import call_unsharded


class RewardModule(RLHFModule):
    """Trains a reward model on K-wise rankings; one prompt with its K responses is one batch element.

    Source: InstructGPT, section 3.5, equation 1 and appendix C.2.

    Args:
        model: Backbone and scalar head. Dropout stays off.
        optimizer: Factory of the optimizer.
        scheduler: Factory of its schedule, or None.
        shared_prefix: Read each prompt once for all its responses (`rlhf_lightning.models.shared_prefix`). Checked
            against separate rows on the first batch and on longer ones; a model that does not support it falls back to
            them with a warning.
        activation_checkpointing: Compute activations again in the backward pass instead of keeping them. The prompt is
            then shared by the tree mask only, because keys and values of a cache cannot be computed again.
    """

    def __init__(
        self,
        model: ScalarHeadModel,
        optimizer: OptimizerFactory,
        scheduler: SchedulerFactory | None = None,
        *,
        shared_prefix: bool = True,
        activation_checkpointing: bool = False,
    ) -> None:
        super().__init__(optimizer, scheduler)
        self.save_hyperparameters(ignore=["model", "optimizer", "scheduler"])
        self.model = widened(model).eval()
        self.accuracy: dict[str, PairwiseAccuracy] = {}
        self.passes = VerifiedPasses() if shared_prefix else VerifiedPasses(())
        self.taken: Scores = separate_scores
        if activation_checkpointing:
            checkpoint_activations(model)
            self.passes = VerifiedPasses((tree_scores,) if shared_prefix else ())

    def scores(self, batch: ComparisonBatch) -> Float[Tensor, "prompts K"]:
        """Score of every response, at its last token; 0 where a prompt has fewer than K."""
        self.taken = self.passes.fastest(self.model, batch)
        return call_unsharded(self.taken, self.model, batch)

    def loss(self, batch: ComparisonBatch) -> tuple[Float[Tensor, ""], RankingStatistics]:
        """Ranking loss over all pairs of each prompt that are not ties."""
        return ranking_loss(self.scores(batch), batch.ranks, batch.mask)

    def training_step(self, batch: ComparisonBatch, batch_idx: int) -> Float[Tensor, ""]:
        """One optimizer step."""
        loss, statistics = self.loss(batch)
        loss = loss * process_weight(statistics.num_prompts)
        tokens, positions = tokens_read(self.taken, batch)
        self.throughput.count(self.model, tokens, positions, backward=True)
        self.check_finite(loss=loss.detach())
        pairs = process_weight(statistics.num_pairs)
        shown = {"train/loss": loss, "train/accuracy": statistics.accuracy * pairs}
        self.log_dict(shown, prog_bar=True, batch_size=len(batch.ranks), sync_dist=True)
        self.log("train/margin", statistics.margin * pairs, batch_size=len(batch.ranks), sync_dist=True)
        return loss

    def on_validation_epoch_start(self) -> None:
        """Start counting anew."""
        self.accuracy = {}

    def validation_step(self, batch: ComparisonBatch, batch_idx: int) -> None:
        """Loss, and accuracy over all pairs and per group."""
        scores = self.scores(batch)
        loss, statistics = ranking_loss(scores, batch.ranks, batch.mask)
        loss, prompts = loss * process_weight(statistics.num_prompts), all_reduce_sum(statistics.num_prompts)
        self.log("validation/loss", loss, prog_bar=True, batch_size=int(prompts), sync_dist=True)
        for group in {"", *batch.groups}:
            rows = torch.tensor([group in ("", other) for other in batch.groups], device=scores.device)
            metric = self.accuracy.setdefault(group, PairwiseAccuracy().to(scores.device))
            metric.update(scores[rows], batch.ranks[rows], batch.mask[rows])

    def on_validation_epoch_end(self) -> None:
        """Log the accuracies."""
        # A process may not have met every group, and all of them must ask for the same sums.
        for group in sorted({group for groups in all_gather_objects(list(self.accuracy)) for group in groups}):
            metric = self.accuracy.setdefault(group, PairwiseAccuracy().to(self.device))
            nothing = torch.zeros(0, 2, device=self.device)
            metric.update(nothing, nothing.long(), nothing.bool())
            name = f"validation/accuracy{'/' if group else ''}{group}"
            self.log(name, metric.compute(), prog_bar=not group, sync_dist=True)


class PairwiseAccuracy(Metric):
    """Share of the pairs that are not ties in which the better response has the higher score."""

    full_state_update = False
    correct: Tensor
    pairs: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.add_state("correct", torch.zeros((), dtype=torch.float64), dist_reduce_fx="sum")
        self.add_state("pairs", torch.zeros((), dtype=torch.float64), dist_reduce_fx="sum")

    def update(
        self, scores: Float[Tensor, "prompts K"], ranks: Int[Tensor, "prompts K"], mask: Bool[Tensor, "prompts K"]
    ) -> None:
        """Add the pairs of these prompts; equal scores count half."""
        _, statistics = ranking_loss(scores, ranks, mask)
        self.correct += statistics.accuracy * statistics.num_pairs
        self.pairs += statistics.num_pairs

    def compute(self) -> Float[Tensor, ""]:
        """Accuracy so far, in [0, 1]."""
        return (self.correct / self.pairs.clamp(min=1)).float()
