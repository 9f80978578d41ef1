"""What the checks compare with: models read one row at a time, without padding; checksums."""

import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, cast

import torch
from torch import Tensor, nn

from rlhf_lightning.algorithms.batch import Rollout


def plain_log_probs(model: nn.Module, prompt: Tensor, response: Tensor, temperature: float = 1.0) -> Tensor:
    """Log-probability of each response token by the model's own forward pass on one row without padding."""
    ids = torch.cat([prompt, response]).unsqueeze(0)
    logits = model(input_ids=ids, attention_mask=torch.ones_like(ids)).logits[0, len(prompt) - 1 : -1]
    return cast(Tensor, (logits.float() / temperature).log_softmax(-1).gather(1, response.unsqueeze(1)).squeeze(1))


def plain_values(model: nn.Module, prompt: Tensor, response: Tensor) -> Tensor:
    """What a critic says before each response token, by a pass over one row without padding."""
    values: Tensor = model(torch.cat([prompt, response]).unsqueeze(0))
    return values[0, len(prompt) - 1 : -1].float()


def single_rows(rollout: Rollout) -> Iterator[tuple[int, Tensor, Tensor]]:
    """Number, prompt and response of each episode, without padding."""
    for row, mask in enumerate(rollout.response_mask):
        prompt = rollout.prompts.prompt_ids[row][rollout.prompts.prompt_mask[row]]
        yield row, prompt, rollout.response_ids[row][mask]


def tensor_sum(value: Tensor) -> int:
    """A checksum of a tensor's bytes."""
    return zlib.crc32(cast(Any, value.detach().cpu().reshape(-1).contiguous().view(torch.uint8).numpy()))


@contextmanager
def altered(holder: Any, **changes: Any) -> Iterator[None]:
    """Other values of attributes within the block, of a module or of its hyperparameters."""
    before = {name: getattr(holder, name) for name in changes}
    try:
        for name, value in changes.items():
            setattr(holder, name, value)
        yield
    finally:
        for name, value in before.items():
            setattr(holder, name, value)
