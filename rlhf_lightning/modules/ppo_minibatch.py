"""How a rollout is divided into minibatches and micro-batches, and the backward passes of policy and critic on them."""

import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from rlhf_lightning.algorithms.batch import Experience, Rollout, length_groups
from rlhf_lightning.algorithms.keyed_random import keyed_uniforms
from rlhf_lightning.algorithms.losses import PolicyStatistics, ValueStatistics, policy_loss, value_loss
from rlhf_lightning.generation.sample import response_log_probs, select_rows
from rlhf_lightning.models.scalar_head import ScalarHeadModel
from rlhf_lightning.modules.ppo_experience import response_values
from rlhf_lightning.parallel.processes import all_reduce_mean, rank, world_size
from rlhf_lightning.parallel.sharding import call_unsharded, sync_on_last
from rlhf_lightning.parallel.throughput import Throughput


class MicroBatch(NamedTuple):
    """Episodes of one backward pass."""

    rows: Int[Tensor, " micro"]
    """Their rows in the rollout."""
    rollout: Rollout
    """Those rows, cut to their longest."""
    num_tokens: Float[Tensor, ""]
    """What the loss of the whole minibatch is divided by."""


def draw_minibatches(rows: int, count: int, key: Sequence[int]) -> list[Int[Tensor, " minibatch"]]:
    """A random partition of the rows of all processes that depends on the key only.

    Args:
        rows: Episodes of this process, as many as every other one has.
        count: Number of minibatches.
        key: Key of the random numbers.

    Returns:
        The rows of this process in each minibatch. It has every n-th row of all of them, see
        `rlhf_lightning.data.loader.ResumableBatches`.

    Raises:
        ValueError: When there are fewer rows than minibatches.
    """
    total = rows * world_size()
    if total < count:
        raise ValueError(f"a rollout of {total} episodes cannot be split into num_minibatches={count}.")
    order = keyed_uniforms(key, torch.arange(total), 1).squeeze(1).argsort()
    return [part[part % world_size() == rank()] // world_size() for part in order.tensor_split(count)]


def micro_batches(
    rollout: Rollout, rows: Int[Tensor, " minibatch"], max_rows: int | None
) -> list[Int[Tensor, " micro"]]:
    """Episodes of similar length go through the models together; the gradients add up to the minibatch's."""
    return [rows[group] for group in length_groups(rollout.lengths[rows], sys.maxsize, max_rows)]


def read_rows(
    rollout: Rollout, rows: Int[Tensor, " chosen"], throughput: Throughput, *models: Any, backward: bool = False
) -> Rollout:
    """Those rows, counted as read by each of the models that is a module."""
    part = select_rows(rollout, rows)
    for model in models:
        if isinstance(model, nn.Module):
            throughput.count(model, part.lengths.sum(), len(rows) * part.lengths.max(), backward=backward)
    return part


def read_micro_batches(
    rollout: Rollout, rows: Int[Tensor, " minibatch"], max_rows: int | None, throughput: Throughput, model: nn.Module
) -> Iterator[MicroBatch]:
    """The micro-batches of a minibatch for backward passes of a model; its gradient is exchanged in the last one.

    The loss is divided by the mean number of tokens of a process. A process without a row reads one that counts for
    nothing.
    """
    num_tokens = all_reduce_mean(rollout.response_mask[rows].sum())
    if not len(rows):
        rows, num_tokens = rows.new_zeros(1), num_tokens * float("inf")
    for micro in sync_on_last(model, micro_batches(rollout, rows, max_rows)):
        yield MicroBatch(micro, read_rows(rollout, micro, throughput, model, backward=True), num_tokens)


def backward_policy_loss(
    policy: nn.Module,
    experience: Experience,
    parts: Iterable[MicroBatch],
    temperature: float,
    clip_range: float,
    backward: Callable[[Tensor], None],
) -> tuple[Float[Tensor, ""], PolicyStatistics]:
    """Add the gradient of the policy loss on a minibatch to the policy's.

    Args:
        policy: The model that learns.
        experience: The scored rollout.
        parts: The minibatch's micro-batches.
        temperature: Temperature of sampling.
        clip_range: Half-width of the trust region around ratio 1.
        backward: Function that adds a loss's gradient.

    Returns:
        The loss of the minibatch and its statistics.
    """
    losses, weights, statistics = [], [], []
    for rows, rollout, num_tokens in parts:
        width = rollout.response_ids.shape[1]
        loss, measured = policy_loss(
            call_unsharded(response_log_probs, policy, rollout, temperature),
            experience.old_log_probs[rows, :width],
            experience.advantages[rows, :width],
            rollout.response_mask,
            clip_range,
            num_tokens,
        )
        backward(loss)
        losses.append(loss.detach())
        weights.append(rollout.response_mask.sum() / num_tokens)
        statistics.append(measured)
    weight, merged = (
        torch.stack(weights),
        PolicyStatistics(*(torch.stack(field) for field in zip(*statistics, strict=True))),
    )
    return torch.stack(losses).sum(), PolicyStatistics(
        (weight * merged.clip_fraction).sum(),
        (weight * merged.approx_kl).sum(),
        (merged.ratio_deviation * (weight > 0)).max(),
    )


def backward_value_loss(
    value: ScalarHeadModel,
    experience: Experience,
    parts: Iterable[MicroBatch],
    clip_range: float | None,
    backward: Callable[[Tensor], None],
) -> tuple[Float[Tensor, ""], ValueStatistics]:
    """Add the gradient of the value loss on a minibatch to the critic's; arguments as `backward_policy_loss`."""
    total, clip_fraction = torch.zeros(2, device=experience.returns.device)
    for rows, rollout, num_tokens in parts:
        width = rollout.response_ids.shape[1]
        loss, statistics = value_loss(
            call_unsharded(response_values, value, rollout),
            experience.old_values[rows, :width],
            experience.returns[rows, :width],
            rollout.response_mask,
            clip_range,
            num_tokens,
        )
        backward(loss)
        total += loss.detach()
        clip_fraction += statistics.clip_fraction * rollout.response_mask.sum() / num_tokens
    return total, ValueStatistics(clip_fraction)
