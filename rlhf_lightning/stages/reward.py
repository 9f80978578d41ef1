"""The reward model: all K responses of a prompt in one pass, the ranking loss over all their pairs."""

import torch
from jaxtyping import Bool, Float, Int
from lightning.pytorch.utilities import rank_zero_warn
from torch import Tensor
from torchmetrics import Metric

from rlhf_lightning.batch import ComparisonBatch
from rlhf_lightning.functional import position_ids
from rlhf_lightning.losses import RankingStatistics, ranking_loss
from rlhf_lightning.models import ScalarHeadModel
from rlhf_lightning.stages.base import OptimizerFactory, SchedulerFactory, StageModule


class RewardModule(StageModule):
    """Trains a reward model on K-wise rankings; one prompt with its K responses is one batch element.

    Source: InstructGPT, section 3.5, equation 1 and appendix C.2.

    Args:
        model: Backbone and scalar head. Dropout stays off.
        optimizer: Factory of the optimizer.
        scheduler: Factory of its schedule, or None.
        shared_prefix: Run the prompt once for all its responses. Checked against separate rows on the first batch; a
            model that does not support it falls back to separate rows with a warning.
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
        self.shared_prefix = shared_prefix
        self.accuracy: dict[str, PairwiseAccuracy] = {}
        self._checked = not shared_prefix

    def scores(self, batch: ComparisonBatch) -> Float[Tensor, "prompts K"]:
        """Score of every response, at its last token; 0 where a prompt has fewer than K."""
        if not self._checked and batch.ranks.shape[1] > 1:
            self._check_shared_prefix(batch)
        score = shared_prefix_scores if self.shared_prefix else separate_scores
        return score(self.model, batch)

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
    def _check_shared_prefix(self, batch: ComparisonBatch) -> None:
        self._checked = True
        prompt_ids, prompt_mask, response_ids, response_mask, ranks, groups = batch
        two = ComparisonBatch(
            prompt_ids[:2], prompt_mask[:2], response_ids[:2], response_mask[:2], ranks[:2], groups[:2]
        )
        # What one response says must not touch the scores of its neighbours, in any precision.
        other = two.response_ids.clone()
        other[:, 0] = two.prompt_ids[:, -1:]
        try:
            scores = shared_prefix_scores(self.model, two)
            leak = (shared_prefix_scores(self.model, two._replace(response_ids=other)) - scores)[:, 1:].abs().max()
            difference = (scores - separate_scores(self.model, two)).abs().max()
        except (ValueError, RuntimeError, TypeError) as error:
            self.shared_prefix, reason = False, str(error)
        else:
            weight = self.model.head.weight
            exact = weight.dtype in (torch.float32, torch.float64) and not torch.is_autocast_enabled(weight.device.type)
            self.shared_prefix = bool(leak < 1e-6) and bool(difference < (1e-3 if exact else 0.1))
            reason = f"scores differ by {difference:.2g}, responses reach their neighbours by {leak:.2g}"
        if not self.shared_prefix:
            rank_zero_warn(
                f"{type(self.model.backbone).__name__} does not support the shared-prefix pass ({reason}); "
                "each response is scored in a row of its own, which is slower and gives the same result."
            )


def shared_prefix_scores(model: ScalarHeadModel, batch: ComparisonBatch) -> Float[Tensor, "prompts K"]:
    """Scores from one row ``[prompt | y1 | .. | yK]`` per prompt.

    Every response sees the prompt and itself, never its neighbours, and its positions go on from the prompt: the
    scores are those of K separate rows, at P + sum(len y) tokens instead of K * P + sum(len y).
    """
    prompts, count, width = batch.response_ids.shape
    # 0 is the prompt, k the k-th response.
    owner = torch.arange(1, count + 1, device=batch.ranks.device).repeat_interleave(width).expand(prompts, -1)
    segments = torch.cat([torch.zeros_like(batch.prompt_ids), owner], 1)
    input_ids = torch.cat([batch.prompt_ids, batch.response_ids.flatten(1)], 1)
    mask = torch.cat([batch.prompt_mask, batch.response_mask.flatten(1)], 1)

    order = compacting_order(mask)
    input_ids, segments, mask = (x.gather(1, order) for x in (input_ids, segments, mask))
    lengths = torch.cat([batch.prompt_mask.sum(1, keepdim=True), batch.response_mask.sum(2)], 1)
    starts = lengths.cumsum(1) - lengths
    index = torch.arange(input_ids.shape[1], device=mask.device).expand_as(input_ids)
    positions = index - starts.gather(1, segments) + lengths[:, :1] * (segments > 0)

    scores = model(input_ids, tree_mask(segments, mask), torch.where(mask, positions, 0))
    last = (starts + lengths - 1)[:, 1:].clamp(min=0)
    return torch.where(batch.mask, scores.gather(1, last), 0.0)


def separate_scores(model: ScalarHeadModel, batch: ComparisonBatch) -> Float[Tensor, "prompts K"]:
    """Scores from one row ``[prompt | y]`` per response: the plain form that the shared prefix must equal."""
    prompt, response = batch.mask.nonzero(as_tuple=True)
    input_ids = torch.cat([batch.prompt_ids[prompt], batch.response_ids[prompt, response]], 1)
    mask = torch.cat([batch.prompt_mask[prompt], batch.response_mask[prompt, response]], 1)
    order = compacting_order(mask)
    input_ids, mask = input_ids.gather(1, order), mask.gather(1, order)
    values = model(input_ids, mask, position_ids(mask))
    last = values.gather(1, mask.sum(1, keepdim=True) - 1).squeeze(1)
    return torch.zeros(batch.mask.shape, dtype=last.dtype, device=last.device).index_put((prompt, response), last)


def compacting_order(mask: Bool[Tensor, "rows time"]) -> Int[Tensor, "rows kept"]:
    """Columns in an order that moves real tokens to the left, cut to the longest row."""
    return (~mask).int().argsort(dim=1, stable=True)[:, : int(mask.sum(1).max())]


def tree_mask(segments: Int[Tensor, "rows time"], mask: Bool[Tensor, "rows time"]) -> Bool[Tensor, "rows 1 time time"]:
    """Who sees whom: earlier tokens of the prompt and of one's own response.

    Padding sees itself, because a query without any key has no softmax.
    """
    query, key = segments.unsqueeze(2), segments.unsqueeze(1)
    time = torch.arange(segments.shape[1], device=segments.device)
    causal = time.unsqueeze(1) >= time
    visible = causal & ((key == 0) | (key == query)) & mask.unsqueeze(1)
    return (visible | (time.unsqueeze(1) == time)).unsqueeze(1)


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
