"""Checks of updates: the moving average, what is frozen, resume."""

import zlib
from functools import partial
from tempfile import TemporaryFile
from typing import Any, cast

import torch
from torch import Tensor

from rlhf_lightning.checks.plain import plain_log_probs, single_rows
from rlhf_lightning.checks.result import close, demand
from rlhf_lightning.checks.subject import Subject
from rlhf_lightning.generation.rewards import response_scores
from rlhf_lightning.generation.sample import response_log_probs
from rlhf_lightning.models.lora import adapters_disabled, trainable_parameters
from rlhf_lightning.modules.ppo import PPOModule


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


def resume(subject: Subject) -> str:
    """Two iterations, and one that is stopped and goes on in a module built anew, end with the same weights."""
    subject.episode  # noqa: B018 - there is nothing to resume where no rollout could be made
    subject.forget()
    unbroken = _Run(subject)
    unbroken.iterate(2)
    expected = _sums(unbroken.state())
    del unbroken
    stopped = _Run(subject)
    stopped.iterate(1)
    with TemporaryFile() as file:
        torch.save(stopped.checkpoint(), file)
        del stopped
        goes_on = _Run(subject)
        file.seek(0)
        goes_on.load(torch.load(file, weights_only=True))
    goes_on.iterate(1)
    found = _sums(goes_on.state())
    lost = [name for name, value in expected.items() if found.get(name) != value]
    demand(not lost, f"{len(lost)} of {len(expected)} tensors differ after a resume, such as {lost[0] if lost else ''}")
    return f"{len(expected)} tensors of models and optimizers are the same bit for bit"


class _Run:
    """PPO with Adam, a schedule and, where there is text, the pretraining gradient: what a trainer would save of it."""

    def __init__(self, subject: Subject) -> None:
        self.subject = subject
        text = {"ptx_coef": 0.5} if subject.texts else {}
        adam = partial(torch.optim.Adam, lr=1e-4, betas=(0.9, 0.95))
        self.module = subject.ppo(adam, max_new_tokens=min(4, subject.max_new_tokens), **text)
        self.optimizers = self.module.build_optimizers()
        self.schedules = [torch.optim.lr_scheduler.ExponentialLR(optimizer, 0.5) for optimizer in self.optimizers]

    def iterate(self, count: int) -> None:
        for _ in range(count):
            experience = self.module.score(self.subject.rollout(self.module))
            text = self.subject.text_batch if self.module.hparams.ptx_coef else None
            self.module.update(experience, text, self.optimizers)
            for schedule in self.schedules:
                schedule.step()
            self.module.iteration += 1

    def checkpoint(self) -> dict[str, Any]:
        checkpoint: dict[str, Any] = {
            "state_dict": self.module.state_dict(),
            "optimizer_states": [optimizer.state_dict() for optimizer in self.optimizers],
            "lr_schedulers": [schedule.state_dict() for schedule in self.schedules],
        }
        self.module.on_save_checkpoint(checkpoint)
        return checkpoint

    def load(self, checkpoint: dict[str, Any]) -> None:
        self.module.on_load_checkpoint(checkpoint)
        self.module.load_state_dict(checkpoint["state_dict"], strict=False)
        for optimizer, state in zip(self.optimizers, checkpoint["optimizer_states"], strict=True):
            optimizer.load_state_dict(state)
        for schedule, state in zip(self.schedules, checkpoint["lr_schedulers"], strict=True):
            schedule.load_state_dict(state)

    def state(self) -> dict[str, Tensor]:
        """Everything that should be the same after a resume."""
        state = dict(self.module.state_dict())
        for number, optimizer in enumerate(self.optimizers):
            for place, tensors in optimizer.state_dict()["state"].items():
                state |= {f"optimizer {number}, weight {place}, {name}": value for name, value in tensors.items()}
        return state


def _sums(state: dict[str, Tensor]) -> dict[str, int]:
    """A checksum of every tensor: a copy of large models would not fit into memory."""
    flat = ((name, value.detach().cpu().reshape(-1).contiguous()) for name, value in state.items())
    return {name: zlib.crc32(cast(Any, value.view(torch.uint8).numpy())) for name, value in flat}
