"""PPO-ptx: the gradient of the pretraining loss, added to that of PPO (InstructGPT, section 3.5, equation 2)."""

import sys
from collections.abc import Callable

import torch
from jaxtyping import Float
from torch import Tensor, nn

from rlhf_lightning.algorithms.batch import LMBatch
from rlhf_lightning.algorithms.losses import lm_loss
from rlhf_lightning.models.log_probs import causal_log_probs
from rlhf_lightning.models.padding import length_groups
from rlhf_lightning.parallel.processes import all_reduce_mean
from rlhf_lightning.parallel.sharding import call_unsharded, sync_on_last

GRADIENT_FIGURES = ("update/ppo_grad_norm", "update/ptx_grad_norm", "update/grad_cosine")
"""Norm of PPO's gradient, norm of what the text adds to it, and the cosine between the two: gamma is judged by them."""


def text_part(batch: LMBatch | None, number: int, count: int) -> LMBatch:
    """One of `count` equal parts: the text of one minibatch.

    Raises:
        ValueError: When there is no text, or less than a row per minibatch.
    """
    if batch is None:
        raise ValueError(
            "ptx_coef is not 0, but the batch has no 'pretrain'. Give the data module 'text' and a text_batch_size."
        )
    if len(batch.mask) < count:
        raise ValueError(
            f"{len(batch.mask)} rows of text cannot be divided between num_minibatches={count}; raise text_batch_size."
        )
    return LMBatch(*(field.tensor_split(count)[number] for field in batch))


def backward_pretrain(
    policy: nn.Module,
    batch: LMBatch,
    coef: float,
    micro_batch_size: int | None,
    backward: Callable[[Tensor], None],
) -> Float[Tensor, ""]:
    """Add `coef` times the gradient of the pretraining loss to the policy's gradient.

    Args:
        policy: A causal language model.
        batch: Rows of pretraining text.
        coef: Weight of the loss, gamma of equation 2.
        micro_batch_size: Rows per backward pass; None takes all of similar length at once.
        backward: Function that adds a loss's gradient: `loss.backward()`, or Lightning's `manual_backward`.

    Returns:
        The loss, in nats per token, without `coef`: the part of this process, whose mean is that of all text.
    """
    num_tokens = all_reduce_mean(batch.loss_mask[:, 1:].sum())
    total = torch.zeros((), device=batch.mask.device)
    for rows in sync_on_last(policy, length_groups(batch.mask.sum(1), sys.maxsize, micro_batch_size)):
        ids, mask, loss_mask = (field[rows] for field in batch)
        width = int(mask.sum(1).max())
        log_probs = call_unsharded(causal_log_probs, policy, ids[:, :width], mask[:, :width], loss_mask[:, :width])
        loss, _ = lm_loss(log_probs, loss_mask[:, 1:width], num_tokens)
        backward(coef * loss)
        total += loss.detach()
    return total
