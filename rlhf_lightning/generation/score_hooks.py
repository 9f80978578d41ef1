"""What may stand between scores and advantages (*ours*): a length penalty, a clip, running normalisation, a scale.

A hook is a callable that maps scores and their rollout to scores. One that remembers something is an `nn.Module` with
buffers, so that a checkpoint holds it and a resumed run goes on exactly.
"""

from collections.abc import Callable
from typing import TypeAlias

import torch
from jaxtyping import Float
from torch import Tensor, nn

from rlhf_lightning.algorithms.batch import Rollout
from rlhf_lightning.algorithms.functional import whiten
from rlhf_lightning.arguments import NonNegativeInt, checked
from rlhf_lightning.parallel.processes import all_reduce_sum

ScoreHook: TypeAlias = Callable[[Tensor, Rollout], Tensor]
"""From the scores of a rollout to those that the policy learns from."""


def shaped_scores(
    scores: Float[Tensor, " rows"], rollout: Rollout, hook: ScoreHook | None, scale: float, whitened: bool
) -> Float[Tensor, " rows"]:
    """Scores as the policy learns from them: through the hook, then whitened, then scaled.

    Args:
        scores: The rewards' scores.
        rollout: The responses that they are of.
        hook: A hook, or None.
        scale: What they are multiplied by, in the end.
        whitened: Whether they are shifted and scaled to mean 0 and variance 1 over the rollout of all processes.

    Raises:
        ValueError: When the hook does not return one finite score per response.
    """
    shaped = scores if hook is None else hook(scores, rollout)
    if not isinstance(shaped, Tensor) or shaped.shape != scores.shape or not bool(shaped.isfinite().all()):
        raise ValueError(
            f"the score_hook made {shaped!r:.80} of {len(scores)} scores; it must return a tensor with one finite "
            "score for each."
        )
    if whitened:
        shaped = whiten(shaped, torch.ones_like(shaped, dtype=torch.bool), all_reduce_sum)
    return shaped if scale == 1 else shaped * scale


class LengthPenalty:
    """Subtracts a price for every token of a response beyond those that are free.

    Args:
        per_token: The price, in units of the score; a negative one rewards length.
        free_tokens: How many tokens cost nothing.
    """

    @checked
    def __init__(self, per_token: float, free_tokens: NonNegativeInt = 0) -> None:
        self.per_token, self.free_tokens = per_token, free_tokens

    def __call__(self, scores: Float[Tensor, " rows"], rollout: Rollout) -> Float[Tensor, " rows"]:
        """The scores without the price."""
        return scores - self.per_token * (rollout.response_mask.sum(1) - self.free_tokens).clamp(min=0)


class Clip:
    """Keeps scores within bounds.

    Args:
        low: The lowest score.
        high: The highest score.

    Raises:
        ValueError: When the lowest is not below the highest.
    """

    @checked
    def __init__(self, low: float, high: float) -> None:
        if not low < high:
            raise ValueError(f"low must be below high, got low={low}, high={high}.")
        self.low, self.high = low, high

    def __call__(self, scores: Float[Tensor, " rows"], rollout: Rollout) -> Float[Tensor, " rows"]:
        """The scores within the bounds."""
        return scores.clamp(self.low, self.high)


class RunningNormalization(nn.Module):
    """Shifts and scales scores by mean and standard deviation of all scores so far, these included."""

    count: Tensor
    mean: Tensor
    squares: Tensor

    def __init__(self) -> None:
        super().__init__()
        for name in ("count", "mean", "squares"):
            self.register_buffer(name, torch.zeros(()))

    def forward(self, scores: Float[Tensor, " rows"], rollout: Rollout) -> Float[Tensor, " rows"]:
        """The scores, normalised; a first one alone becomes 0."""
        count = all_reduce_sum(torch.ones_like(scores).sum())
        mean = all_reduce_sum(scores.sum()) / count
        squares, shift = all_reduce_sum((scores - mean).square().sum()), mean - self.mean
        total = self.count + count
        # Chan et al. 1979: the squares of two parts, and what lies between their means.
        self.squares = self.squares + squares + shift.square() * self.count * count / total
        self.mean, self.count = self.mean + shift * count / total, total
        return (scores - self.mean) / (self.squares / (total - 1).clamp(min=1) + 1e-8).sqrt()
