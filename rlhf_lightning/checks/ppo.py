"""Checks of PPO: the first ratio, rewards, advantages, gradients, the average, what is frozen, resume."""

import copy
from typing import Any

import torch
from torch import Tensor, nn

from rlhf_lightning.checks.result import close, demand
from rlhf_lightning.checks.subject import Subject
from rlhf_lightning.stages.ppo import PPOModule


def first_ratio(subject: Subject) -> str:
    """Before the first update the policy is the one that was measured."""
    module, episode = subject.episode
    statistics = module.backward_policy(episode, episode.minibatches[0])
    module.zero_grad()
    deviation, kl, clipped = (
        float(value) for value in (statistics.ratio_deviation, statistics.approx_kl, statistics.clip_fraction)
    )
    limit = 0.0 if subject.exact else 0.1
    demand(deviation <= limit and abs(kl) <= limit, f"the ratio is off 1 by {deviation:.3g}, KL is {kl:.3g}")
    demand(clipped == 0, f"{clipped:.1%} of the tokens are clipped")
    return f"the ratio is off 1 by {deviation:.1g}, KL is {kl:.1g}, nothing is clipped"


def reference_start(subject: Subject) -> str:
    """Where the reference is the policy's start, KL starts at 0."""
    _, episode = subject.episode
    tolerance = 1e-3 if subject.exact else 0.3
    return close(episode.old_log_probs, episode.reference_log_probs, tolerance, "log-probs of policy and reference")


def score_place(subject: Subject) -> str:
    """The score of a response lands on its last token, and the KL penalty on every token."""
    module, episode = subject.episode
    found, expected = [], []
    decay = module.discount * module.gae_lambda
    for row in range(len(episode.scores)):
        length = int(episode.rollout.response_mask[row].sum())
        values = [*episode.old_values[row, :length].tolist(), 0.0]
        gains = [r - v for r, v in zip(episode.returns[row, :length].tolist(), values, strict=False)] + [0.0]
        # Generalised advantage estimation backwards: from the advantages to the rewards that they came from.
        for time in range(length):
            error = gains[time] - decay * gains[time + 1]
            found.append(error - module.discount * values[time + 1] + values[time])
        gaps = (episode.old_log_probs - episode.reference_log_probs)[row, :length].tolist()
        expected += [-float(module.kl_coef) * gap for gap in gaps]
        expected[-1] += float(episode.scores[row])
    return close(torch.tensor(found), torch.tensor(expected), 1e-3, "rewards per token")


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
    """Returns of a rollout are those of a double loop over its rewards and values."""
    module, episode = subject.episode
    found, expected = [], []
    for row in range(len(episode.scores)):
        length = int(episode.rollout.response_mask[row].sum())
        gaps = (episode.old_log_probs - episode.reference_log_probs)[row, :length]
        rewards = [-float(module.kl_coef) * gap for gap in gaps.tolist()]
        rewards[-1] += float(episode.scores[row])
        values = episode.old_values[row, :length].tolist()
        own = _advantages(rewards, values, module.discount, module.gae_lambda)
        expected += [advantage + value for advantage, value in zip(own, values, strict=True)]
        found += episode.returns[row, :length].tolist()
    return close(torch.tensor(found), torch.tensor(expected), 1e-3, "returns and those of a double loop")


def whitening(subject: Subject) -> str:
    """Advantages have mean 0 and variance 1 over the tokens that count, whatever stands on padding."""
    _, episode = subject.episode
    mask = episode.rollout.response_mask
    own = episode.advantages[mask].double()
    demand(bool((episode.advantages[~mask] == 0).all()), "advantages on padding are not 0")
    demand(abs(float(own.mean())) < 1e-3, f"their mean over the tokens is {float(own.mean()):.3g}")
    demand(abs(float(own.var()) - 1) < 1e-2, f"their variance over the tokens is {float(own.var()):.3g}")
    return f"mean {float(own.mean()):.1g}, variance {float(own.var()):.3f}"


def _gradients(model: nn.Module) -> Tensor:
    return torch.cat(
        [torch.zeros_like(p).flatten() if p.grad is None else p.grad.flatten() for p in model.parameters()]
    )


def _relative(found: Tensor, expected: Tensor, tolerance: float, what: str) -> str:
    """Compare by the length of the difference: in a large model a wrong gradient is small in every place."""
    gap = (found - expected).norm() / expected.norm().clamp(min=1e-12)
    return close(gap, torch.zeros_like(gap), tolerance, f"{what}, as vectors,")


def micro_batches(subject: Subject) -> str:
    """How a minibatch is cut up changes no gradient."""
    module = subject.ppo(ptx_coef=0.5)
    episode, seen = module.score(subject.rollout(module)), []
    for size in (None, 1):
        module.micro_batch_size = size
        module.zero_grad()
        module.backward_policy(episode, episode.minibatches[0])
        module.backward_text(subject.text_batch, measure=False)
        module.backward_value(episode, episode.minibatches[0])
        seen.append(torch.cat([_gradients(module.policy), _gradients(module.value)]))
    return _relative(seen[1], seen[0], 1e-3 if subject.exact else 0.05, "gradients of whole and of cut minibatches")


def ptx_gradient(subject: Subject) -> str:
    """PPO-ptx adds ``ptx_coef`` times the gradient of the pretraining loss, written out token by token."""
    module, batch = subject.ppo(ptx_coef=0.7), subject.text_batch
    episode = module.score(subject.rollout(module))
    module.backward_policy(episode, episode.minibatches[0])
    policy_alone = _gradients(module.policy)
    module.backward_text(batch, measure=True)
    both = _gradients(module.policy)
    module.zero_grad()
    total, count = torch.zeros((), device=subject.device), 0
    for ids, mask, counts in zip(*batch[:3], strict=True):
        row, counted = ids[mask][None], counts[mask]
        logits = module.policy(input_ids=row, attention_mask=torch.ones_like(row)).logits[0, :-1].float()
        own = logits.log_softmax(-1).gather(1, row[0, 1:, None]).squeeze(1)
        total, count = total - own[counted[1:]].sum(), count + int(counted[1:].sum())
    (module.ptx_coef * total / count).backward()
    return _relative(both, policy_alone + _gradients(module.policy), 1e-3 if subject.exact else 0.05, "the gradients")


def averaging(subject: Subject) -> str:
    """The moving average follows ``decay * average + (1 - decay) * weights``, in 32 bits."""
    module = subject.ppo(ema_decay=0.9)
    expected = [parameter.detach().double().clone() for parameter in module.policy.parameters()]
    for step in range(3):
        with torch.no_grad():
            for parameter in module.policy.parameters():
                parameter.add_(0.01 * (step + 1))
        if module.ema is not None:
            module.ema.update(module.policy)
        now = [parameter.detach().double() for parameter in module.policy.parameters()]
        expected = [0.9 * old + 0.1 * new for old, new in zip(expected, now, strict=True)]
    found = [] if module.ema is None else list(module.ema.buffers())
    demand(len(found) == len(expected), f"the average has {len(found)} of {len(expected)} weights")
    flat = [torch.cat([value.double().flatten() for value in values]) for values in (found, expected)]
    return close(flat[0], flat[1], 1e-5, "the average and its recursion")


def value_start(subject: Subject) -> str:
    """The critic starts as the reward model: before each token it says what that says of the text so far."""
    _, episode = subject.episode
    prompts, mask = episode.rollout.prompts, episode.rollout.response_mask
    found, expected = [], []
    with torch.no_grad():
        for row in range(len(mask)):
            prompt = prompts.prompt_ids[row][prompts.prompt_mask[row]]
            ids = torch.cat([prompt, episode.rollout.response_ids[row][mask[row]]])[None]
            own = subject.scalar(ids)[0, len(prompt) - 1 : -1]
            found.append(episode.old_values[row, : len(own)])
            expected.append(own.float())
    tolerance = 1e-3 if subject.exact else 0.1
    return close(torch.cat(found), torch.cat(expected), tolerance, "first values and the reward model")


def frozen(subject: Subject) -> str:
    """Reference and reward model have no gradient and do not change; policy and critic do."""
    module = subject.ppo()
    models: dict[str, Any] = {name: getattr(module, name) for name in ("reference", "reward", "policy", "value")}
    before = {name: copy.deepcopy(model.state_dict()) for name, model in models.items()}
    module.update(module.score(subject.rollout(module)))
    for name, model in models.items():
        changed = [key for key, value in model.state_dict().items() if not torch.equal(value, before[name][key])]
        if name in ("reference", "reward"):
            demand(not changed, f"an update changed {name}.{changed[0] if changed else ''}")
            grads = [key for key, p in model.named_parameters() if p.requires_grad or p.grad is not None]
            demand(not grads, f"{name}.{grads[0] if grads else ''} has a gradient")
        else:
            demand(bool(changed), f"an update did not change the {name}")
    return "an update changes policy and critic alone"


def resume(subject: Subject) -> str:
    """Two iterations, and one that is stopped and goes on in a module built anew, end with the same weights."""
    first, second, third = subject.ppo(), subject.ppo(), subject.ppo()
    for module in (first, first, second):
        _iterate(module, subject)
    checkpoint: dict[str, Any] = {"state_dict": second.state_dict()}
    second.on_save_checkpoint(checkpoint)
    with subject.folder() as folder:
        torch.save(checkpoint, folder / "last.ckpt")
        loaded = torch.load(folder / "last.ckpt", weights_only=True)
    third.on_load_checkpoint(loaded)
    third.load_state_dict(loaded["state_dict"], strict=False)
    _iterate(third, subject)
    one, two = first.state_dict(), third.state_dict()
    lost = [name for name in one if not torch.equal(one[name], two[name])]
    demand(not lost, f"{len(lost)} of {len(one)} tensors differ after a resume, such as {lost[0] if lost else ''}")
    return f"{len(one)} tensors are the same bit for bit"


def _iterate(module: PPOModule, subject: Subject) -> None:
    module.update(module.score(subject.rollout(module)))
    module.iteration += 1
