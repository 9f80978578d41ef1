"""How good a policy is: score and win rate by a judge, KL to the reference, length, pretraining loss."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn

from rlhf_lightning.data.collate import collate_lm, collate_prompts
from rlhf_lightning.data.tokens import LMExample, PromptExample, Tokenization
from rlhf_lightning.evaluation.intervals import mean_interval, wins
from rlhf_lightning.functional import position_ids, token_log_probs
from rlhf_lightning.generation import response_logits, sample_responses
from rlhf_lightning.losses import lm_loss
from rlhf_lightning.models import causal_logits

Judge = Callable[[Sequence[str], Sequence[str]], Sequence[float]]
"""From prompts and responses to scores; higher is better."""


@dataclass
class PolicySamples:
    """One response per prompt and what was measured on it; lists run over the prompts."""

    responses: list[str] = field(default_factory=list)
    lengths: list[float] = field(default_factory=list)
    kl: list[float] = field(default_factory=list)
    scores: list[float] = field(default_factory=list)
    rewards: list[float] = field(default_factory=list)
    """By the reward model that trained the policy, for comparison with the judge."""


@torch.no_grad()
def sample_policy(
    model: nn.Module,
    reference: nn.Module,
    tokenization: Tokenization,
    prompts: Sequence[PromptExample],
    *,
    temperature: float = 1.0,
    batch_size: int = 128,
    seed: int = 0,
    progress: Callable[[int], None] | None = None,
) -> PolicySamples:
    """Sample one response per prompt.

    Args:
        model: The policy.
        reference: Where the KL is measured from.
        tokenization: Of both.
        prompts: Held-out prompts.
        temperature: 1 for preferences (InstructGPT, appendix F).
        batch_size: Prompts per batch.
        seed: Of sampling.
        progress: Called with the number of prompts done.

    Returns:
        Responses, lengths in tokens (EOS included) and KL in nats per response (k1, signed, from the samples).
    """
    device = next(model.parameters()).device
    tokenizer = tokenization.tokenizer
    pad: int = tokenizer.pad_token_id  # type: ignore[assignment]
    eos: int = tokenizer.eos_token_id  # type: ignore[assignment]
    samples = PolicySamples()
    for start in range(0, len(prompts), batch_size):
        batch = collate_prompts(prompts[start : start + batch_size], pad)
        batch = batch._replace(
            prompt_ids=batch.prompt_ids.to(device), prompt_mask=batch.prompt_mask.to(device), index=batch.index.to(device)
        )
        rollout = sample_responses(
            model,
            batch,
            max_new_tokens=tokenization.max_response_tokens,
            eos_token_id=eos,
            pad_token_id=pad,
            temperature=temperature,
            key=(seed,),
        )
        own, other = (token_log_probs(response_logits(m, rollout), rollout.response_ids) for m in (model, reference))
        samples.kl += torch.where(rollout.response_mask, own - other, 0.0).sum(1).tolist()
        samples.lengths += rollout.response_mask.sum(1).float().tolist()
        samples.responses += tokenization.texts_of(rollout.response_ids, rollout.response_mask)
        if progress is not None:
            progress(start + len(batch.texts))
    return samples


@torch.no_grad()
def pretraining_loss(model: nn.Module, examples: Sequence[LMExample], pad_token_id: int, batch_size: int = 32) -> float:
    """Mean negative log-likelihood of held-out text, in nats per token."""
    device = next(model.parameters()).device
    total, count = 0.0, 0
    for start in range(0, len(examples), batch_size):
        ids, mask, loss_mask = (x.to(device) for x in collate_lm(examples[start : start + batch_size], pad_token_id))
        logits = causal_logits(model, ids, mask, position_ids(mask))
        loss, statistics = lm_loss(logits[:, :-1], ids[:, 1:], loss_mask[:, 1:])
        total += float(loss) * int(statistics.num_tokens)
        count += int(statistics.num_tokens)
    return total / max(count, 1)


def policy_results(
    samples: Mapping[str, PolicySamples], baseline: str, pretrain_losses: Mapping[str, float]
) -> dict[str, dict[str, Any]]:
    """The ``policies`` part of results.json.

    Args:
        samples: By policy, on the same prompts in the same order.
        baseline: Policy that win rates are against.
        pretrain_losses: By policy, in nats per token; may be empty.

    Returns:
        Per policy: score, reward and win_rate as value with 95 % interval over prompts; kl (nats per response) and
        length (tokens) as means, their intervals under ``intervals``; pretrain_loss.
    """
    results: dict[str, dict[str, Any]] = {}
    for name, own in samples.items():
        kl, length = mean_interval(own.kl), mean_interval(own.lengths)
        results[name] = {
            "score": mean_interval(own.scores),
            "win_rate": mean_interval(wins(own.scores, samples[baseline].scores)),
            "reward": mean_interval(own.rewards) if own.rewards else None,
            "kl": kl["value"],
            "length": length["value"],
            "pretrain_loss": pretrain_losses.get(name),
            "intervals": {"kl": [kl["low"], kl["high"]], "length": [length["low"], length["high"]]},
        }
    return results
