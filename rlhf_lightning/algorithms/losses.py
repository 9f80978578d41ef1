"""The four losses of InstructGPT as pure functions.

Each returns the scalar to minimise first and a small tuple of detached statistics second.
"""

from typing import NamedTuple

import torch
from jaxtyping import Bool, Float, Int, Num
from torch import Tensor

from rlhf_lightning.algorithms.functional import masked_mean


class LMStatistics(NamedTuple):
    """What `lm_loss` measured."""

    num_tokens: Int[Tensor, ""]
    """Tokens that counted."""


class RankingStatistics(NamedTuple):
    """What `ranking_loss` measured."""

    num_pairs: Int[Tensor, ""]
    """Pairs that are not ties."""
    accuracy: Float[Tensor, ""]
    """Share of those pairs in which the better response has the higher score; equal scores count half."""
    margin: Float[Tensor, ""]
    """Mean over those pairs of the score of the better minus that of the worse."""
    num_prompts: Int[Tensor, ""]
    """Prompts that have such a pair."""


class PolicyStatistics(NamedTuple):
    """What `policy_loss` measured; means over the tokens that count."""

    clip_fraction: Float[Tensor, ""]
    """Share of tokens whose ratio left the trust region on the side that the clip cuts off."""
    approx_kl: Float[Tensor, ""]
    """k3 estimate of KL(old policy, policy), in nats per token."""
    ratio_deviation: Float[Tensor, ""]
    """Largest `|ratio - 1|`."""


class ValueStatistics(NamedTuple):
    """What `value_loss` measured."""

    clip_fraction: Float[Tensor, ""]
    """Share of the tokens that count where the clipped error was the larger one."""


def lm_loss(
    log_probs: Float[Tensor, "*batch"], mask: Bool[Tensor, "*batch"], num_tokens: Num[Tensor, ""] | int | None = None
) -> tuple[Float[Tensor, ""], LMStatistics]:
    """Cross-entropy of the target tokens that count, in nats per token.

    `-sum_t mask_t log p(target_t) / num_tokens`

    Source: InstructGPT, section 3.5 (SFT) and equation 2, third term (pretraining mix).

    Args:
        log_probs: Log-probs of the targets, from `rlhf_lightning.algorithms.functional.token_log_probs` or
            `rlhf_lightning.models.log_probs.causal_log_probs`.
        mask: Targets that count: response tokens with their EOS for SFT, every token for pretraining.
        num_tokens: Divisor when this is a part of a larger batch; default: the targets that count here.

    Examples:
        >>> loss, _ = lm_loss(torch.tensor([[0.5, 0.25]]).log(), torch.tensor([[True, True]]))
        >>> loss  # (log 2 + log 4) / 2
        tensor(1.0397)
    """
    return masked_mean(-log_probs, mask, num_tokens), LMStatistics(mask.sum())


def ranking_loss(
    scores: Float[Tensor, "prompts K"], ranks: Int[Tensor, "prompts K"], mask: Bool[Tensor, "prompts K"]
) -> tuple[Float[Tensor, ""], RankingStatistics]:
    """Ranking loss over all pairs of the K responses to each prompt.

    For each prompt the mean over its pairs (w better than l) of `-log sigmoid(score_w - score_l)`, which is
    `1 / C(K, 2)` of the sum when no two ranks are equal; then the mean over prompts. Ties are no pairs, and a prompt
    without any pair does not count.

    Source: InstructGPT, equation 1 and section 3.5.

    Args:
        scores: Reward of each response; column k belongs to response k of the prompt.
        ranks: 1 is best; equal numbers are ties.
        mask: Responses that exist, so that K may differ between prompts.

    Examples:
        >>> one = torch.ones(1, 2, dtype=torch.bool)
        >>> loss, _ = ranking_loss(torch.tensor([[1.0, 1.0]]), torch.tensor([[1, 2]]), one)
        >>> loss  # equal scores: log 2
        tensor(0.6931)
    """
    exists = mask[:, :, None] & mask[:, None, :]
    pairs = exists & (ranks[:, :, None] < ranks[:, None, :])
    margins = scores[:, :, None] - scores[:, None, :]
    pair_losses = torch.where(pairs, -torch.nn.functional.logsigmoid(margins), 0.0)
    pairs_per_prompt = pairs.sum((1, 2))
    prompt_losses = pair_losses.sum((1, 2)) / pairs_per_prompt.clamp(min=1)
    counts = pairs_per_prompt > 0
    loss = masked_mean(prompt_losses, counts)
    margins = margins.detach()
    correct = (margins > 0).to(margins.dtype) + 0.5 * (margins == 0)
    accuracy, margin = masked_mean(correct, pairs), masked_mean(margins, pairs)
    return loss, RankingStatistics(pairs.sum(), accuracy, margin, counts.sum())


def policy_loss(
    log_probs: Float[Tensor, "rows time"],
    old_log_probs: Float[Tensor, "rows time"],
    advantages: Float[Tensor, "rows time"],
    mask: Bool[Tensor, "rows time"],
    clip_range: float = 0.2,
    num_tokens: Num[Tensor, ""] | int | None = None,
) -> tuple[Float[Tensor, ""], PolicyStatistics]:
    """Clipped surrogate loss of PPO.

    `-mean_t min(ratio_t A_t, clip(ratio_t, 1 - clip_range, 1 + clip_range) A_t)` with `ratio = pi / pi_old`.

    Source: Schulman et al. 2017 (arXiv 1707.06347), equation 7; InstructGPT, appendix C.4.

    Args:
        log_probs: Log-probs of the response tokens under the policy that learns, with gradient.
        old_log_probs: Log-probs of the same tokens under the policy that sampled them.
        advantages: Whitened by the caller over the whole rollout batch.
        mask: Response tokens.
        clip_range: Half-width of the trust region around ratio 1, above 0.
        num_tokens: Divisor when this is a part of a larger minibatch; default: the tokens that count here.

    Examples:
        >>> one = torch.ones(1, 1, dtype=torch.bool)
        >>> zero = torch.zeros(1, 1)
        >>> loss, _ = policy_loss(torch.tensor([[1.5]]).log(), zero, torch.ones(1, 1), one, 0.2)
        >>> loss  # the ratio 1.5 is cut to 1.2
        tensor(-1.2000)
    """
    log_ratio = torch.where(mask, log_probs - old_log_probs, 0.0)
    ratio = log_ratio.exp()
    clipped = ratio.clamp(1 - clip_range, 1 + clip_range)
    loss = -masked_mean(torch.min(ratio * advantages, clipped * advantages), mask, num_tokens)
    with torch.no_grad():
        cut = (clipped * advantages < ratio * advantages).to(ratio.dtype)
        approx_kl = torch.expm1(log_ratio) - log_ratio
        deviation = (ratio - 1).abs().max()
    return loss, PolicyStatistics(masked_mean(cut, mask), masked_mean(approx_kl, mask).detach(), deviation)


def value_loss(
    values: Float[Tensor, "rows time"],
    old_values: Float[Tensor, "rows time"],
    returns: Float[Tensor, "rows time"],
    mask: Bool[Tensor, "rows time"],
    clip_range: float | None = 0.2,
    num_tokens: Num[Tensor, ""] | int | None = None,
) -> tuple[Float[Tensor, ""], ValueStatistics]:
    """Clipped squared error of the value estimates.

    `0.5 * mean_t max((V_t - R_t)^2, (clip(V_t, V_old_t - clip_range, V_old_t + clip_range) - R_t)^2)`

    Source: the clipping is from OpenAI's PPO code; InstructGPT does not say (its code base descends from it).

    Args:
        values: Estimates that learn, with gradient.
        old_values: Estimates at the time of the rollout.
        returns: Targets, from `rlhf_lightning.algorithms.functional.gae`.
        mask: Response tokens.
        clip_range: Distance that the values may move per rollout, in units of the score; None does not clip.
        num_tokens: Divisor when this is a part of a larger minibatch; default: the tokens that count here.

    Examples:
        >>> one = torch.ones(1, 1, dtype=torch.bool)
        >>> zero = torch.zeros(1, 1)
        >>> loss, _ = value_loss(torch.tensor([[1.0]]), zero, torch.tensor([[1.0]]), one, 0.2)
        >>> loss  # the value may move by 0.2 only: 0.5 * (0.2 - 1)^2
        tensor(0.3200)
    """
    error = (values - returns) ** 2
    worst = error
    if clip_range is not None:
        clipped = torch.clamp(values, old_values - clip_range, old_values + clip_range)
        worst = torch.max(error, (clipped - returns) ** 2)
    loss = 0.5 * masked_mean(worst, mask, num_tokens)
    cut = (worst > error).detach().to(error.dtype)
    return loss, ValueStatistics(masked_mean(cut, mask))
