"""Checks of PPO before its first update: ratio, KL, scores, rewards, advantages, first values."""

import statistics

import torch

from rlhf_lightning.algorithms.batch import Experience
from rlhf_lightning.checks.plain import plain_values, single_rows
from rlhf_lightning.checks.result import CheckSkippedError, close, demand
from rlhf_lightning.checks.subject import Subject


def rollout(subject: Subject) -> str:
    """A rollout is sampled and scored; the checks below look at it."""
    episode = subject.try_rollout()
    lengths = episode.rollout.response_mask.sum(1)
    return f"{len(lengths)} responses of {int(lengths.min())} to {int(lengths.max())} tokens, scored"


def first_ratio(subject: Subject) -> str:
    """Before the first update the policy is the one that was measured."""
    module, episode = subject.episode
    statistics = module.backward_policy(episode, episode.minibatches[0])
    module.zero_grad()
    deviation, kl = float(statistics.ratio_deviation), float(statistics.approx_kl)
    clipped = float(statistics.clip_fraction)
    limit = subject.tolerance(0.0, 0.1)
    demand(deviation <= limit and abs(kl) <= limit, f"the ratio is off 1 by {deviation:.3g}, KL is {kl:.3g}")
    demand(clipped == 0, f"{clipped:.1%} of the tokens are clipped")
    return f"the ratio is off 1 by {deviation:.1g}, KL is {kl:.1g}, nothing is clipped"


def reference_start(subject: Subject) -> str:
    """Where the reference is the policy's start, KL starts at 0."""
    if subject.reference is not None:
        raise CheckSkippedError("the reference is another model than the policy's start: KL is not 0 at first")
    _, episode = subject.episode
    tolerance = subject.tolerance(1e-3, 0.3)
    return close(episode.old_log_probs, episode.reference_log_probs, tolerance, "log-probs of policy and reference")


@torch.no_grad()
def score_place(subject: Subject) -> str:
    """A score is what the reward model says at the last token, where it lands; the signed KL lands on every token."""
    module, _ = subject.episode
    episode = subject.moved
    scores = [subject.scalar(torch.cat([*row[1:]])[None])[0, -1].float() for row in single_rows(episode.rollout)]
    penalties = (~episode.rollout.ended).float() * (module.hparams.missing_eos_penalty or 0.0)
    expected_scores, what = torch.stack(scores) - penalties, "scores, and the reward model's of one row"
    words = close(episode.scores, expected_scores, subject.tolerance(1e-3, 0.1), what)
    found, expected = [], []
    decay = module.hparams.discount * module.hparams.gae_lambda
    for row, rewards in enumerate(_rewards(episode)):
        length = len(rewards)
        values = [*episode.old_values[row, :length].tolist(), 0.0]
        gains = [r - v for r, v in zip(episode.returns[row, :length].tolist(), values, strict=False)] + [0.0]
        # Generalised advantage estimation backwards: from the advantages to the rewards that they came from.
        for time in range(length):
            error = gains[time] - decay * gains[time + 1]
            found.append(error - module.hparams.discount * values[time + 1] + values[time])
        expected += rewards
    close(torch.tensor(found), torch.tensor(expected), 1e-3, "rewards per token")
    return words


def _rewards(episode: Experience) -> list[list[float]]:
    """Of each response token, at a `kl_coef` of 1."""
    rewards = []
    for row, _, response in single_rows(episode.rollout):
        gaps = (episode.old_log_probs - episode.reference_log_probs)[row, : len(response)]
        rewards.append([-gap for gap in gaps.tolist()])
        rewards[-1][-1] += float(episode.scores[row])
    return rewards


def _advantages(rewards: list[float], values: list[float], discount: float, decay: float) -> list[float]:
    """The definition: a sum over all later tokens for each token."""
    errors = [
        reward + discount * (values[time + 1] if time + 1 < len(values) else 0.0) - values[time]
        for time, reward in enumerate(rewards)
    ]
    return [
        sum((discount * decay) ** (later - time) * errors[later] for later in range(time, len(errors)))
        for time in range(len(errors))
    ]


def advantages(subject: Subject) -> str:
    """Returns and advantages of a rollout are those of a double loop over its rewards and values, whitened by hand."""
    module, _ = subject.episode
    episode, expected, plain = subject.moved, [], []
    for row, rewards in enumerate(_rewards(episode)):
        values = episode.old_values[row, : len(rewards)].tolist()
        of_row = _advantages(rewards, values, module.hparams.discount, module.hparams.gae_lambda)
        expected += [advantage + value for advantage, value in zip(of_row, values, strict=True)]
        plain += of_row
    mask = episode.rollout.response_mask
    words = close(episode.returns[mask], torch.tensor(expected), 1e-3, "returns and those of a double loop")
    mean, deviation = statistics.mean(plain), statistics.stdev(plain)
    whitened = torch.tensor([(advantage - mean) / deviation for advantage in plain])
    close(episode.advantages[mask], whitened, 1e-2, "advantages and those of a double loop, whitened")
    return words


def whitening(subject: Subject) -> str:
    """Advantages have mean 0 and variance 1 over the tokens that count, whatever stands on padding."""
    _, episode = subject.episode
    mask = episode.rollout.response_mask
    counted = episode.advantages[mask].double()
    demand(bool((episode.advantages[~mask] == 0).all()), "advantages on padding are not 0")
    demand(abs(float(counted.mean())) < 1e-3, f"their mean over the tokens is {float(counted.mean()):.3g}")
    demand(abs(float(counted.var()) - 1) < 1e-2, f"their variance over the tokens is {float(counted.var()):.3g}")
    return f"mean {float(counted.mean()):.1g}, variance {float(counted.var()):.3f}"


@torch.no_grad()
def value_start(subject: Subject) -> str:
    """The critic starts as the reward model: before each token it says what that says of the text so far."""
    _, episode = subject.episode
    expected = [plain_values(subject.scalar, prompt, response) for _, prompt, response in single_rows(episode.rollout)]
    found = episode.old_values[episode.rollout.response_mask]
    return close(found, torch.cat(expected), subject.tolerance(1e-3, 0.1), "first values and the reward model")
