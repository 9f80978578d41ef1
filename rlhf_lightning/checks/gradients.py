"""Checks of what the losses pull at: policy, critic, micro-batches, pretraining text."""

from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor, nn

from rlhf_lightning.checks.plain import altered, plain_log_probs, plain_values, single_rows
from rlhf_lightning.checks.result import close
from rlhf_lightning.checks.subject import Subject
from rlhf_lightning.models.lora import trainable_parameters

OUTSIDE = (-2.0, -0.5, 0.5, 2.0)
"""Where made-up ratios and values lie, in units of the clip range."""


def _same_gradient(
    subject: Subject, models: list[nn.Module], one: Callable[[], object], other: Callable[[], object], what: str
) -> str:
    """Compare by the length of the difference: in a large model a wrong gradient is small in every place."""
    weights = [weight for model in models for weight in trainable_parameters(model)]
    seen = []
    for add in (one, other):
        for model in models:
            model.zero_grad()
        add()
        seen.append([torch.zeros_like(w) if w.grad is None else w.grad.clone() for w in weights])
    for model in models:
        model.zero_grad()
    gap = sum(float((found - expected).double().square().sum()) for found, expected in zip(*seen, strict=True)) ** 0.5
    size = sum(float(expected.double().square().sum()) for expected in seen[1]) ** 0.5
    apart = torch.tensor(gap / max(size, 1e-12))
    return close(apart, torch.zeros(()), subject.tolerance(1e-3, 0.2), f"{what}, as vectors of length {size:.2g},")


def _number(mask: Tensor) -> Tensor:
    """Number of each token that counts."""
    return mask.flatten().cumsum(0).view(mask.shape) - 1


def policy_gradient(subject: Subject) -> str:
    """The policy's gradient is that of the clipped ratio times the advantage, token by token, inside and outside."""
    module, episode = subject.episode
    number, clip = _number(episode.rollout.response_mask), module.hparams.clip_range
    ratios = (1 + clip * torch.tensor(OUTSIDE, device=number.device)[number % 4]).clamp(min=0.05)
    advantages = torch.where(number // 4 % 2 == 0, 1.0, -1.0) * (1.0 + number % 3)
    old = episode.old_log_probs - ratios.log()
    made_up = episode._replace(old_log_probs=old, advantages=advantages)
    rows = torch.arange(len(old), device=old.device)
    count = int(episode.rollout.response_mask.sum())

    def by_hand() -> None:
        for row, prompt, response in single_rows(episode.rollout):
            new = plain_log_probs(module.policy, prompt, response, module.hparams.temperature)
            total = torch.zeros((), device=new.device)
            for time, log_prob in enumerate(new):
                ratio, advantage = (log_prob - old[row, time]).exp(), float(advantages[row, time])
                cut = ratio.item() > 1 + clip if advantage > 0 else ratio.item() < 1 - clip
                total = total - (0.0 if cut else 1.0) * ratio * advantage / count
            total.backward()

    ours = partial(module.backward_policy, made_up, rows)
    return _same_gradient(subject, [module.policy], ours, by_hand, "the policy's gradient and the formula's")


def value_gradient(subject: Subject) -> str:
    """The critic's gradient is that of its squared error, token by token, but where the clip is the worse."""
    module, episode = subject.episode
    number, clip = _number(episode.rollout.response_mask), module.hparams.value_clip_range
    step = 0.2 if clip is None else clip
    old = episode.old_values - step * torch.tensor(OUTSIDE, device=number.device)[number % 4]
    returns = episode.old_values + torch.where(number // 4 % 2 == 0, 3.0, -3.0) * step
    made_up, rows = episode._replace(old_values=old, returns=returns), torch.arange(len(old), device=old.device)
    count = int(episode.rollout.response_mask.sum())

    def by_hand() -> None:
        for row, prompt, response in single_rows(episode.rollout):
            total = torch.zeros((), device=old.device)
            for time, value in enumerate(plain_values(module.value, prompt, response)):
                now, before, target = value.item(), float(old[row, time]), float(returns[row, time])
                clipped = now if clip is None else min(max(now, before - clip), before + clip)
                cut = abs(clipped - target) > abs(now - target)
                total = total + (0.0 if cut else 0.5) * (value - target) ** 2 / count
            total.backward()

    ours = partial(module.backward_value, made_up, rows)
    return _same_gradient(subject, [module.value], ours, by_hand, "the critic's gradient and the formula's")


def micro_batches(subject: Subject) -> str:
    """How a minibatch is cut up changes no gradient."""
    module, episode = subject.episode

    def cut(size: int | None) -> None:
        with altered(module.hparams, micro_batch_size=size, ptx_coef=0.5):
            module.backward_policy(episode, episode.minibatches[0])
            module.backward_text(subject.text_batch, measure=False)
            module.backward_value(episode, episode.minibatches[0])

    models, what = [module.policy, module.value], "gradients of whole and of cut minibatches"
    return _same_gradient(subject, models, lambda: cut(1), lambda: cut(None), what)


def ptx_gradient(subject: Subject) -> str:
    """PPO-ptx adds `ptx_coef` times the gradient of the pretraining loss, written out token by token."""
    module, episode = subject.episode
    batch, coef = subject.text_batch, 0.7

    def ours() -> None:
        with altered(module.hparams, ptx_coef=coef):
            module.backward_policy(episode, episode.minibatches[0])
            module.backward_text(batch, measure=True)

    def by_hand() -> None:
        module.backward_policy(episode, episode.minibatches[0])
        count = int(batch.loss_mask[:, 1:].sum())
        for ids, mask, counts in zip(*batch[:3], strict=True):
            row, counted = ids[mask][None], counts[mask]
            logits = module.policy(input_ids=row, attention_mask=torch.ones_like(row)).logits[0, :-1].float()
            log_probs = logits.log_softmax(-1).gather(1, row[0, 1:, None]).squeeze(1)
            (-coef * log_probs[counted[1:]].sum() / count).backward()

    return _same_gradient(subject, [module.policy], ours, by_hand, "the gradient and the sum of the two")
