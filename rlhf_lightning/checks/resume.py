"""Check of resume: the real trainer, checkpoint and data module, ended in the middle and started again."""

import gc
import logging
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import lightning as L
import torch
from torch import Tensor

from rlhf_lightning.checks.plain import tensor_sum
from rlhf_lightning.checks.result import demand
from rlhf_lightning.checks.subject import Subject
from rlhf_lightning.data.datamodule import TASK_OF, RLHFDataModule
from rlhf_lightning.data.records import Prompt
from rlhf_lightning.generation.sampling_batches import Sampler
from rlhf_lightning.modules.ppo import PPOModule
from rlhf_lightning.training.checkpoint import LATEST
from rlhf_lightning.training.fit import fit_stage

ITERATIONS = 2
PROMPTS = 4
"""Of an iteration."""


class _EndedError(Exception):
    """What ends the first of two runs."""


def resume(subject: Subject) -> str:
    """A training that is ended after an iteration and started again leaves the checkpoint of one that was not."""
    subject.episode  # noqa: B018 - there is nothing to resume where no rollout could be made
    subject.forget()
    with TemporaryDirectory() as name:
        whole, ended = Path(name, "whole"), Path(name, "ended")
        _train(subject, whole)
        expected = _sums(whole)
        _train(subject, ended, ends_after=1)
        demand((ended / "checkpoints" / LATEST).exists(), "the run that was ended left no checkpoint")
        _train(subject, ended)
        found = _sums(ended)
    lost = [name for name, value in expected.items() if found.get(name) != value]
    demand(not lost, f"{len(lost)} of {len(expected)} entries differ after a resume, such as {lost[0] if lost else ''}")
    return f"{len(expected)} entries of the checkpoint (models, optimizers, data) are the same bit for bit"


def _train(subject: Subject, folder: Path, ends_after: int | None = None) -> None:
    """Train, to the end or so far, and give the memory back: trainer and module hold each other."""
    gc.collect()
    lightning = logging.getLogger("lightning.pytorch")
    level = lightning.level
    lightning.setLevel(logging.WARNING)
    try:
        _fit(subject, folder, ends_after)
    except _EndedError:
        pass
    finally:
        lightning.setLevel(level)
    gc.collect()


def _fit(subject: Subject, folder: Path, ends_after: int | None) -> None:
    """PPO with momentum and a schedule, and with the pretraining gradient where there is text."""
    tokens, text = subject.tokens, subject.texts[:4]
    lengths = tokens.prompt_lengths([prompt.prompt for prompt in subject.prompts])
    shortest = sorted(range(len(lengths)), key=lambda place: lengths[place])[: PROMPTS * ITERATIONS]
    data = RLHFDataModule(
        TASK_OF[Prompt],
        subject.tokenizer,
        [subject.prompts[place] for place in shortest],
        text=text or None,
        batch_size=PROMPTS,
        num_batches=ITERATIONS,
        text_batch_size=2 if text else 0,
        block_size=subject.block_size,
        max_prompt_tokens=tokens.max_prompt_tokens,
        max_response_tokens=tokens.max_response_tokens,
        prompt_template=tokens.prompt_template,
        format=tokens.format,
    )
    module = subject.ppo(
        partial(torch.optim.SGD, lr=1e-3, momentum=0.9),  # half of Adam's state to write
        max_new_tokens=min(4, subject.max_new_tokens),
        scheduler=partial(torch.optim.lr_scheduler.ExponentialLR, gamma=0.5),
        **({"ptx_coef": 0.5} if text else {}),
    )
    if ends_after is not None:
        module.sampler = _ending(module, module.sampler, ends_after)
    make_trainer = partial(L.Trainer, accelerator="cpu" if subject.device.type == "cpu" else "gpu", devices=1)
    said: list[str] = []
    folder.mkdir(exist_ok=True)
    every = ITERATIONS if ends_after is None else 1
    fit_stage(module, data, folder, make_trainer, [], said.append, epochs=1, checkpoint_every=every, log_every=1)


def _ending(module: PPOModule, sampler: Sampler, iteration: int) -> Sampler:
    def sample(*arguments: Any) -> Any:
        if module.iteration >= iteration:
            raise _EndedError
        return sampler(*arguments)

    return sample


def _sums(folder: Path) -> dict[str, Any]:
    """A checksum of every tensor of the last checkpoint, and every number: a copy of large models would not fit."""
    path = folder / "checkpoints" / LATEST
    checkpoint = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
    parts = {name: checkpoint[name] for name in ("state_dict", "optimizer_states", "lr_schedulers")}
    return _flat({**parts, "data": checkpoint.get("RLHFDataModule")})


def _flat(value: Any, name: str = "") -> dict[str, Any]:
    if isinstance(value, Tensor):
        return {name: tensor_sum(value)}
    if isinstance(value, list | tuple):
        value = dict(enumerate(value))
    if isinstance(value, Mapping):
        return {key: each for part, inner in value.items() for key, each in _flat(inner, f"{name}.{part}").items()}
    return {name: value}
