"""The reward model: all K responses of a prompt in one pass, the ranking loss over all their pairs."""

from collections.abc import Callable
from typing import TypeAlias

import torch
from jaxtyping import Bool, Float, Int
from lightning.pytorch.utilities import rank_zero_warn
from torch import Tensor
from torchmetrics import Metric

from rlhf_lightning.batch import ComparisonBatch
from rlhf_lightning.losses import RankingStatistics, ranking_loss
from rlhf_lightning.models import ScalarHeadModel
from rlhf_lightning.prefix import cached_scores, separate_scores, tree_scores
from rlhf_lightning.stages.base import OptimizerFactory, SchedulerFactory, StageModule

Scores: TypeAlias = Callable[[ScalarHeadModel, ComparisonBatch], Tensor]
"""From a model and a batch to ``prompts x K`` scores."""


class RewardModule(StageModule):
    """Trains a reward model on K-wise rankings; one prompt with its K responses is one batch element.

    Source: InstructGPT, section 3.5, equation 1 and appendix C.2.

    Args:
        model: Backbone and scalar head. Dropout stays off.
        optimizer: Factory of the optimizer.
        scheduler: Factory of its schedule, or None.
        shared_prefix: Read each prompt once for all its responses (:mod:`rlhf_lightning.prefix`). Checked against
            separate rows on the first batch; a model that does not support it falls back to them with a warning.
    """

    def __init__(
        self,
        model: ScalarHeadModel,
        optimizer: OptimizerFactory,
        scheduler: SchedulerFactory | None = None,
        *,
        shared_prefix: bool = True,
    ) -> None:
        super().__init__(optimizer, scheduler)
        self.model = model.eval()
        self.accuracy: dict[str, PairwiseAccuracy] = {}
        self.prefix_pass: Scores | None = None if shared_prefix else separate_scores

    def scores(self, batch: ComparisonBatch) -> Float[Tensor, "prompts K"]:
        """Score of every response, at its last token; 0 where a prompt has fewer than K."""
        if self.prefix_pass is None and batch.ranks.shape[1] > 1:
            self.prefix_pass = self._fastest(batch)
        return (self.prefix_pass or separate_scores)(self.model, batch)

    def loss(self, batch: ComparisonBatch) -> tuple[Float[Tensor, ""], RankingStatistics]:
        """Ranking loss over all pairs of each prompt that are not ties."""
        return ranking_loss(self.scores(batch), batch.ranks, batch.mask)

    def training_step(self, batch: ComparisonBatch, batch_idx: int) -> Float[Tensor, ""]:
        """One optimizer step."""
        loss, statistics = self.loss(batch)
        self.log("train/loss", loss, prog_bar=True, batch_size=len(batch.ranks))
        self.log("train/accuracy", statistics.accuracy, prog_bar=True, batch_size=len(batch.ranks))
        return loss

    def on_validation_epoch_start(self) -> None:
        """Start counting anew."""
        self.accuracy = {}

    def validation_step(self, batch: ComparisonBatch, batch_idx: int) -> None:
        """Loss, and accuracy over all pairs and per group."""
        scores = self.scores(batch)
        loss, _ = ranking_loss(scores, batch.ranks, batch.mask)
        self.log("validation/loss", loss, prog_bar=True, batch_size=len(batch.ranks))
        for group in {"", *batch.groups}:
            rows = torch.tensor([group in ("", own) for own in batch.groups], device=scores.device)
            metric = self.accuracy.setdefault(group, PairwiseAccuracy().to(scores.device))
            metric.update(scores[rows], batch.ranks[rows], batch.mask[rows])

    def on_validation_epoch_end(self) -> None:
        """Log the accuracies."""
        for group, metric in self.accuracy.items():
            self.log(f"validation/accuracy{'/' if group else ''}{group}", metric.compute(), prog_bar=not group)

    @torch.no_grad()
    def _fastest(self, batch: ComparisonBatch) -> Scores:
        """The first shared pass that gives the scores of separate rows on two prompts of the batch."""
        prompt_ids, prompt_mask, response_ids, response_mask, ranks, groups = batch
        two = ComparisonBatch(
            prompt_ids[:2], prompt_mask[:2], response_ids[:2], response_mask[:2], ranks[:2], groups[:2]
        )
        reasons = []
        for scores in (cached_scores, tree_scores):
            fault = self._fault(scores, two)
            if fault is None:
                return scores
            reasons.append(fault)
        rank_zero_warn(
            f"{type(self.model.backbone).__name__} does not support a shared prefix ({'; '.join(reasons)}); each "
            "response is scored in a row of its own, which is slower and gives the same result."
        )
        return separate_scores

    def _fault(self, scores: Scores, batch: ComparisonBatch) -> str | None:
        # What one response says must not touch the scores of its neighbours, in any precision.
        other = batch.response_ids.clone()
        other[:, 0] = batch.prompt_ids[:, -1:]
        try:
            own = scores(self.model, batch)
            leak = (scores(self.model, batch._replace(response_ids=other)) - own)[:, 1:].abs().max()
            difference = (own - separate_scores(self.model, batch)).abs().max()
        except (AttributeError, ValueError, RuntimeError, TypeError) as error:
            return f"{scores.__name__}: {error}"
        weight = self.model.head.weight
        exact = weight.dtype in (torch.float32, torch.float64) and not torch.is_autocast_enabled(weight.device.type)
        if bool(leak < 1e-6) and bool(difference < (1e-3 if exact else 0.1)):
            return None
        return f"{scores.__name__}: scores differ by {difference:.2g}, responses reach their neighbours by {leak:.2g}"


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
