"""The maths of RLHF as pure functions: log-probabilities, masked means, KL estimates, advantages.

Tensors in, tensors out: nothing here moves devices, logs, or knows about models. Masks are boolean, and True means
"counts". Token sequences are rows; responses are padded on the right.
"""

from collections.abc import Callable

import torch
from jaxtyping import Bool, Float, Int, Num
from torch import Tensor


def token_log_probs(logits: Float[Tensor, "*batch vocab"], tokens: Int[Tensor, "*batch"]) -> Float[Tensor, "*batch"]:
    """Log-probability of each token under its logits, in nats.

    `log p(token) = logits[token] - logsumexp(logits)`, computed in 32 bits at least.

    Args:
        logits: Unnormalised log-probabilities of the next token.
        tokens: The token that came, one per row of logits.

    Returns:
        One log-probability per token.

    Examples:
        >>> token_log_probs(torch.tensor([[0.0, 0.0]]), torch.tensor([1])).exp()
        tensor([0.5000])
    """
    if logits.dtype in (torch.float16, torch.bfloat16):
        logits = logits.float()
    # The fused kernel of cross-entropy needs one buffer the size of the logits, and none of them twice.
    flat = torch.nn.functional.cross_entropy(logits.reshape(-1, logits.shape[-1]), tokens.reshape(-1), reduction="none")
    return -flat.view(tokens.shape)


def masked_mean(
    values: Float[Tensor, "*shape"], mask: Bool[Tensor, "*shape"], count: Num[Tensor, ""] | int | None = None
) -> Float[Tensor, ""]:
    """Mean of the values that count: `sum(values * mask) / count`.

    Args:
        values: Any shape.
        mask: Same shape; True counts.
        count: Divisor, when these values are a part of a larger batch whose mean is wanted; default: the
            number of values that count here. An empty mask gives 0.

    Examples:
        >>> masked_mean(torch.tensor([1.0, 2.0, 9.0]), torch.tensor([True, True, False]))
        tensor(1.5000)
    """
    if count is None:
        count = mask.sum().clamp(min=1)
    return torch.where(mask, values, 0.0).sum() / count


def whiten(
    values: Float[Tensor, "*shape"],
    mask: Bool[Tensor, "*shape"],
    total: Callable[[Tensor], Tensor] = lambda part: part,
) -> Float[Tensor, "*shape"]:
    """Shift and scale the values that count to mean 0 and variance 1; the others become 0.

    `(values - mean) / sqrt(variance + 1e-8)` with the unbiased variance over the mask. A single value, which has no
    variance, becomes 0 too.

    Args:
        values: Any shape; the statistics run over the whole tensor, so pass the whole rollout batch at once.
        mask: Same shape; True counts.
        total: Sums a number over all parts of the batch, where these values are one of them.

    Examples:
        >>> whiten(torch.tensor([1.0, 3.0, 7.0]), torch.tensor([True, True, False]))
        tensor([-0.7071,  0.7071,  0.0000])
    """
    count = total(mask.sum())
    mean = total(masked_mean(values, mask, count.clamp(min=1)))
    variance = total(masked_mean((values - mean) ** 2, mask, (count - 1).clamp(min=1)))
    return torch.where(mask, (values - mean) * (variance + 1e-8).rsqrt(), 0.0)


def kl_k1(log_probs: Float[Tensor, "*shape"], reference_log_probs: Float[Tensor, "*shape"]) -> Float[Tensor, "*shape"]:
    """Per-token estimate of KL(policy, reference) from samples of the policy: `log pi - log pi_ref`.

    Unbiased and signed: single tokens may be negative, and clamping them would bias the penalty.

    Source: InstructGPT, equation 2; the name is from J. Schulman, "Approximating KL divergence" (2020).

    Examples:
        >>> kl_k1(torch.tensor([-1.0]), torch.tensor([-1.5]))
        tensor([0.5000])
    """
    return log_probs - reference_log_probs


def kl_k3(log_probs: Float[Tensor, "*shape"], reference_log_probs: Float[Tensor, "*shape"]) -> Float[Tensor, "*shape"]:
    """Per-token estimate of KL(policy, reference) that is never negative: `r - 1 - log r` with `r = pi_ref / pi`.

    Unbiased like k1, with less variance; used for logging, not in the reward.

    Source: J. Schulman, "Approximating KL divergence" (2020).

    Examples:
        >>> kl_k3(torch.tensor([0.0]), torch.tensor([0.0]))
        tensor([0.])
    """
    log_ratio = reference_log_probs - log_probs
    return torch.expm1(log_ratio) - log_ratio


def kl_penalized_rewards(
    scores: Float[Tensor, " rows"],
    kl: Float[Tensor, "rows time"],
    mask: Bool[Tensor, "rows time"],
    kl_coef: Float[Tensor, ""] | float,
) -> Float[Tensor, "rows time"]:
    """Reward of each token: the KL penalty everywhere, the score added at the last token of the response.

    `reward_t = -kl_coef * kl_t + [t is last] * score`

    Source: InstructGPT, equation 2 and appendix C.4.

    Args:
        scores: Score of each whole response, by the reward model.
        kl: Per-token estimate, signed (see `kl_k1`).
        mask: Response tokens; padding on the right.
        kl_coef: beta of the paper, per nat.

    Examples:
        >>> kl = torch.tensor([[0.5, 1.0, 0.0]])
        >>> kl_penalized_rewards(torch.tensor([2.0]), kl, torch.tensor([[True, True, False]]), 0.1)
        tensor([[-0.0500,  1.9000,  0.0000]])
    """
    rewards = torch.where(mask, -kl_coef * kl, 0.0)
    last = mask.long().sum(-1, keepdim=True) - 1
    position = torch.arange(mask.shape[1], device=mask.device)
    return rewards + (position == last) * scores.unsqueeze(-1)


def gae(
    rewards: Float[Tensor, "rows time"],
    values: Float[Tensor, "rows time"],
    mask: Bool[Tensor, "rows time"],
    discount: float = 1.0,
    gae_lambda: float = 0.95,
) -> tuple[Float[Tensor, "rows time"], Float[Tensor, "rows time"]]:
    """Generalized advantage estimates and returns of responses that end at the end of their mask.

    `delta_t = r_t + discount * V_{t+1} - V_t` with `V = 0` after the last token, and
    `A_t = delta_t + discount * gae_lambda * A_{t+1}`; `returns = A + V`.

    Source: Schulman et al. 2016 (arXiv 1506.02438), equation 16; InstructGPT, appendix C.4 (no discount).

    Args:
        rewards: Reward of each response token.
        values: Value estimate before each response token.
        mask: Response tokens; padding on the right.
        discount: In [0, 1]; the paper uses 1.
        gae_lambda: In [0, 1]; 1 is Monte Carlo minus the baseline, 0 one-step temporal difference.

    Returns:
        Advantages (not whitened) and returns; both 0 outside the mask.

    Examples:
        >>> mask = torch.tensor([[True, True]])
        >>> gae(torch.tensor([[0.0, 1.0]]), torch.tensor([[0.5, 0.5]]), mask, 1.0, 0.5)
        (tensor([[0.2500, 0.5000]]), tensor([[0.7500, 1.0000]]))
    """
    rewards, values = torch.where(mask, rewards, 0.0), torch.where(mask, values, 0.0)
    advantages = torch.zeros_like(values)
    next_advantage = next_value = torch.zeros_like(values[:, 0])
    for t in reversed(range(values.shape[1])):
        delta = rewards[:, t] + discount * next_value - values[:, t]
        next_advantage = torch.where(mask[:, t], delta + discount * gae_lambda * next_advantage, 0.0)
        next_value = values[:, t]
        advantages[:, t] = next_advantage
    return advantages, advantages + values
