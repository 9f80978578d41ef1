"""How a rollout is divided into minibatches, and those into the micro-batches of one backward pass."""

import sys
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from rlhf_lightning.algorithms.batch import Experience, Rollout
from rlhf_lightning.algorithms.keyed_random import keyed_uniforms
from rlhf_lightning.generation.rewards import WeightedSum
from rlhf_lightning.generation.sample import select_rows
from rlhf_lightning.generation.text_reward import TextReward
from rlhf_lightning.models.padding import length_groups
from rlhf_lightning.parallel.processes import all_gather_objects, all_reduce_mean, rank, world_size
from rlhf_lightning.parallel.sharding import sync_on_last
from rlhf_lightning.parallel.throughput import Throughput


def draw_minibatches(
    rows: int, count: int, key: Sequence[int], *, first: bool = False
) -> list[Int[Tensor, " minibatch"]]:
    """A random partition of the rows of all processes that depends on the key only.

    Args:
        rows: Episodes of this process.
        count: Number of minibatches; where there are fewer rows, as in a last batch, each row is one.
        key: Key of the random numbers.
        first: Whether these are the rows of a first batch, which is as large as any.

    Returns:
        The rows of this process in each minibatch. It has every n-th row of all of them, see
        `rlhf_lightning.data.loader.ResumableBatches`.

    Raises:
        ValueError: When a first batch has fewer rows than minibatches.
    """
    total = sum(all_gather_objects(rows))
    if first and total < count:
        raise ValueError(f"a rollout of {total} episodes cannot be split into num_minibatches={count}.")
    order = keyed_uniforms(key, torch.arange(total), 1).squeeze(1).argsort()
    return [part[part % world_size() == rank()] // world_size() for part in order.tensor_split(min(count, total))]


def micro_batches(
    rollout: Rollout, rows: Int[Tensor, " minibatch"], max_rows: int | None
) -> list[Int[Tensor, " micro"]]:
    """Episodes of similar length go through the models together; the gradients add up to the minibatch's."""
    return [rows[group] for group in length_groups(rollout.lengths[rows], sys.maxsize, max_rows)]


def read_rows(
    rollout: Rollout, rows: Int[Tensor, " chosen"], throughput: Throughput, *models: Any, backward: bool = False
) -> Rollout:
    """Those rows, counted as read by each of the models that reads tokens of the policy."""
    part = select_rows(rollout, rows)
    for model in models:
        if isinstance(model, nn.Module) and not isinstance(model, (TextReward, WeightedSum)):
            throughput.count(model, part.lengths.sum(), len(rows) * part.lengths.max(), backward=backward)
    return part


def read_micro_batches(
    experience: Experience,
    rows: Int[Tensor, " minibatch"],
    max_rows: int | None,
    throughput: Throughput,
    model: nn.Module,
) -> Iterator[tuple[Experience, Float[Tensor, ""]]]:
    """The micro-batches of a minibatch for backward passes of a model; its gradient is exchanged in the last one.

    Each has its episodes, cut to their longest, and what the loss is divided by: the mean number of tokens that a
    process has of the minibatch. A process without a row reads one that counts for nothing.
    """
    rollout, scores, *tokens, _ = experience
    num_tokens = all_reduce_mean(rollout.response_mask[rows].sum())
    if not len(rows):
        rows, num_tokens = rows.new_zeros(1), num_tokens * float("inf")
    for micro in sync_on_last(model, micro_batches(rollout, rows, max_rows)):
        part = read_rows(rollout, micro, throughput, model, backward=True)
        width = part.response_ids.shape[1]
        cut = [values[micro, :width] for values in tokens]
        yield Experience._make([part, scores[micro], *cut, []]), num_tokens
