"""Checks of updates: what moves, what is averaged, what is frozen."""

from functools import partial
from typing import Any

import torch
from torch import Tensor

from rlhf_lightning.checks.plain import plain_log_probs, single_rows, tensor_sum
from rlhf_lightning.checks.result import close, demand
from rlhf_lightning.checks.subject import Subject
from rlhf_lightning.generation.rewards import response_scores
from rlhf_lightning.generation.sample import response_log_probs
from rlhf_lightning.models.lora import adapters_disabled, trainable_parameters
from rlhf_lightning.modules.ppo import PPOModule

SMALL_STEP = 1e-6
"""Of Adam: a tenth of the smallest learning rates of the paper moves a weight of .1 in 32 bits, and none in 16."""


def master_weights(subject: Subject) -> str:
    """A small step of the optimizer moves the weights that learn: they have 32 bits."""
    _, episode = subject.episode
    module = subject.ppo(partial(torch.optim.Adam, lr=SMALL_STEP))
    weights = trainable_parameters(module.policy)
    before = [weight.detach().clone() for weight in weights]
    optimizers = module.build_optimizers()
    module.update(episode, None, optimizers)
    moved = asked = 0
    for weight, old in zip(weights, before, strict=True):
        # A gradient near Adam's epsilon makes a smaller step than the others.
        learned = optimizers[0].state[weight]["exp_avg"].abs() > 1e-7
        asked += int(learned.sum())
        moved += int((learned & (weight.detach() != old)).sum())
    kinds = ", ".join(sorted({str(weight.dtype).removeprefix("torch.") for weight in weights}))
    share = moved / max(asked, 1)
    demand(share > 0.99, f"steps of {SMALL_STEP:g} moved {share:.1%} of the weights that had a gradient ({kinds})")
    return f"steps of {SMALL_STEP:g} moved {share:.1%} of the weights that had a gradient ({kinds})"


def averaging(subject: Subject) -> str:
    """The moving average follows decay * average + (1 - decay) * weights once per optimizer step, in 32 bits."""
    _, episode = subject.episode
    module = subject.ppo(ema_decay=0.9)
    weights = trainable_parameters(module.policy)
    expected = [weight.detach().float().clone() for weight in weights]
    steps = 0

    def follow(*_: Any) -> None:
        nonlocal steps
        steps += 1
        with torch.no_grad():
            for place, weight in enumerate(weights):
                weight.add_(1e-3)  # far enough to tell one update from two
                expected[place] = 0.9 * expected[place] + 0.1 * weight.float()

    optimizers = module.build_optimizers()
    optimizers[0].register_step_post_hook(follow)
    module.update(episode, None, optimizers)
    found = [] if module.ema is None else list(module.ema.buffers())
    demand(len(found) == len(expected), f"the average has {len(found)} of {len(expected)} weights")
    gaps = torch.stack([(average - other).abs().max() for average, other in zip(found, expected, strict=True)])
    return close(gaps, torch.zeros_like(gaps), 2e-5, f"the average and its recursion over {steps} steps")


def frozen(subject: Subject) -> str:
    """Reference and reward model have no gradient and do not change; policy and critic do."""
    first, episode = subject.episode
    _reference_stays(first, subject)
    module = subject.ppo()
    learned = {id(weight) for model in (module.policy, module.value) for weight in trainable_parameters(model)}
    still: dict[str, Any] = {"reference": module.reference, "reward": module.reward}
    models = {**still, "policy": module.policy, "value": module.value}
    kept = {
        name: {key: weight for key, weight in model.named_parameters() if id(weight) not in learned}
        for name, model in still.items()
    }
    before, said = {name: _sums(model.state_dict()) for name, model in models.items()}, _said(module, subject)
    module.update(episode, None, module.build_optimizers())
    after = {name: _sums(model.state_dict()) for name, model in models.items()}
    for name, weights in kept.items():
        changed = [key for key in weights if before[name][key] != after[name][key]]
        demand(not changed, f"an update changed {name}.{changed[0] if changed else ''}")
        grads = [key for key, weight in weights.items() if weight.requires_grad or weight.grad is not None]
        demand(not grads, f"{name}.{grads[0] if grads else ''} has a gradient")
    for name, earlier, later in zip(still, said, _said(module, subject), strict=True):
        demand(torch.equal(earlier, later), f"after an update the {name} says something else of the same responses")
    for name in ("policy", "value"):
        demand(before[name] != after[name], f"an update did not change the {name}")
    return "an update changes policy and critic alone"


@torch.no_grad()
def _reference_stays(module: PPOModule, subject: Subject) -> None:
    """What was scored with a policy that had moved is the reference's own."""
    moved = subject.moved
    with adapters_disabled(module.reference):
        expected = [
            plain_log_probs(module.reference, prompt, response, module.hparams.temperature)
            for _, prompt, response in single_rows(moved.rollout)
        ]
    found = moved.reference_log_probs[moved.rollout.response_mask]
    what = "log-probs of the reference beside a policy that has moved, and its own"
    close(found, torch.cat(expected), subject.tolerance(1e-3, 0.3), what)


@torch.no_grad()
def _said(module: PPOModule, subject: Subject) -> tuple[Tensor, Tensor]:
    rollout = subject.episode[1].rollout
    with adapters_disabled(module.reference, module.reward):
        log_probs = response_log_probs(module.reference, rollout, module.hparams.temperature)
        return log_probs, response_scores(module.reward, rollout, subject.tokenizer)


def _sums(state: dict[str, Tensor]) -> dict[str, int]:
    return {name: tensor_sum(value) for name, value in state.items()}
