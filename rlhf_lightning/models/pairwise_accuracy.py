"""Accuracy of a reward model on rankings: over all pairs that are not ties, and per group of prompts."""

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from torchmetrics import Metric

from rlhf_lightning.algorithms.batch import ComparisonBatch
from rlhf_lightning.algorithms.losses import ranking_loss
from rlhf_lightning.parallel.processes import all_gather_objects


class GroupedAccuracy:
    """`PairwiseAccuracy` by name, over all prompts and over those of each group, in all processes."""

    def __init__(self) -> None:
        self.metrics: dict[str, PairwiseAccuracy] = {}

    def update(self, scores: Float[Tensor, "prompts K"], batch: ComparisonBatch, suffix: str = "") -> None:
        """Add the pairs of a batch, to the names with that suffix."""
        for group in {"", *batch.groups}:
            rows = torch.tensor([group in ("", other) for other in batch.groups], device=scores.device)
            name = (f"accuracy/{group}" if group else "accuracy") + suffix
            metric = self.metrics.setdefault(name, PairwiseAccuracy().to(scores.device))
            metric.update(scores[rows], batch.ranks[rows], batch.mask[rows])

    def figures(self, device: torch.device) -> dict[str, Float[Tensor, ""]]:
        """`accuracy` over all, and `accuracy/<group>`."""
        found = {}
        # A process may not have met every group, and all of them must ask for the same sums.
        for name in sorted({name for names in all_gather_objects(list(self.metrics)) for name in names}):
            metric = self.metrics.setdefault(name, PairwiseAccuracy().to(device))
            nothing = torch.zeros(0, 2, device=device)
            metric.update(nothing, nothing.long(), nothing.bool())
            found[name] = metric.compute()
        return found


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
