"""What PPO computes on a rollout besides gradients: checks, the adapting KL coefficient, figures."""

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from rlhf_lightning.algorithms.batch import Experience, Rollout
from rlhf_lightning.algorithms.functional import kl_k1, kl_k3, masked_mean
from rlhf_lightning.parallel.processes import all_reduce_sum, mean_over_rows


def check_sampler(rollout: Rollout, old_log_probs: Float[Tensor, "rows time"], exact: bool) -> Float[Tensor, ""]:
    """Mean difference between sampled and recomputed log-probs, in nats; see `check_sampler_gap`."""
    gap = _token_mean((rollout.log_probs - old_log_probs).abs(), rollout.response_mask)
    check_sampler_gap(gap, exact)
    return gap


def check_sampler_gap(gap: Float[Tensor, ""], exact: bool) -> None:
    """Refuse a mean difference between sampled and recomputed log-probs.

    Raises:
        RuntimeError: When it is above 0.01 for a policy that computes in 32 bits (`exact`), or else 0.1.
    """
    if not gap <= (0.01 if exact else 0.1):
        raise RuntimeError(
            f"the sampled tokens' log-probs differ from the recomputed ones by {float(gap):.3g} nats on average. "
            "Likely causes: wrong position ids under left padding, a cache that ignores the mask, dropout, or an "
            "engine whose weights are not the policy's (try generation.engine=loop)."
        )


def check_first_ratio(deviation: Float[Tensor, ""], tolerance: float) -> None:
    """Before the first update of an iteration the policy is the one that was measured: ratio 1.

    Raises:
        RuntimeError: When it is off by more than the tolerance.
    """
    if deviation > tolerance:
        raise RuntimeError(
            f"before the first update the ratio is off 1 by {float(deviation):.3g}. Likely causes: dropout is on, the "
            "model changes state in its forward pass, or its kernels are not deterministic."
        )


def adapted_kl_coef(
    kl_coef: Float[Tensor, ""], experience: Experience, target: float | None, horizon: int
) -> Float[Tensor, ""]:
    """Proportional control of the KL per response (Ziegler et al. 2019, section 2.2); without a target it stays."""
    if target is None:
        return kl_coef
    kl, episodes = mean_over_rows(response_kl(experience))
    return kl_coef * (1 + (kl / target - 1).clamp(-0.2, 0.2) * episodes / horizon)


def rollout_figures(experience: Experience) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """What is logged of a rollout, beside the progress bar too and elsewhere; KL in nats per response.

    Means are over the episodes of all processes, of which each may have another number. A policy that ends ever fewer
    responses, or writes ever longer ones, is seen at once.
    """
    mask, scores = experience.rollout.response_mask, experience.scores
    k3 = kl_k3(experience.old_log_probs, experience.reference_log_probs)
    error = _token_mean((experience.returns - experience.old_values) ** 2, mask)
    spread = _token_mean((experience.returns - _token_mean(experience.returns, mask)) ** 2, mask)
    score, episodes = mean_over_rows(scores)
    squares = all_reduce_sum((scores - score).square().sum())
    shown = {
        "rollout/score": score,
        "rollout/kl": mean_over_rows(response_kl(experience))[0],
        "rollout/length": mean_over_rows(mask.sum(1).float())[0],
        "rollout/ended": mean_over_rows(experience.rollout.ended.float())[0],
    }
    return shown, {
        "rollout/score_std": (squares / max(episodes - 1, 1)).sqrt(),
        "rollout/kl_k3": mean_over_rows(torch.where(mask, k3, 0.0).sum(1))[0],
        "rollout/explained_variance": 1 - error / spread.clamp(min=1e-8),
    }


def _token_mean(values: Float[Tensor, "rows time"], mask: Bool[Tensor, "rows time"]) -> Float[Tensor, ""]:
    """Over the tokens of all processes."""
    return all_reduce_sum(masked_mean(values, mask, all_reduce_sum(mask.sum())))


def response_kl(experience: Experience) -> Float[Tensor, " rows"]:
    """The summed k1 estimate of each response, in nats: what the penalty is made of."""
    return kl_k1(experience.old_log_probs, experience.reference_log_probs).sum(1)
