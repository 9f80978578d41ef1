"""Which episodes models read together: the micro-batches of one pass, packed or padded, counted as they are read."""

import sys
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from rlhf_lightning.algorithms.batch import Experience, Rollout
from rlhf_lightning.generation.rewards import FORWARD_TOKENS, WeightedSum
from rlhf_lightning.generation.sample import joined, select_rows
from rlhf_lightning.generation.text_reward import TextReward
from rlhf_lightning.models.cast_weights import cast_weights
from rlhf_lightning.models.packed_values import packable
from rlhf_lightning.models.packing import VerifiedPacking
from rlhf_lightning.models.padding import SIMILAR, length_groups, padded_size
from rlhf_lightning.parallel.processes import all_reduce_mean
from rlhf_lightning.parallel.sharding import sync_on_last
from rlhf_lightning.parallel.throughput import Throughput


def micro_batches(
    rollout: Rollout, rows: Int[Tensor, " minibatch"], max_rows: int | None, packing: VerifiedPacking
) -> list[Int[Tensor, " micro"]]:
    """Episodes of similar length go through the models together; the gradients add up to the minibatch's.

    Where rows are packed, lengths that differ are no reason for a further pass.
    """
    similar = 0.0 if packing.packs else SIMILAR
    return [rows[group] for group in length_groups(rollout.lengths[rows], sys.maxsize, max_rows, similar)]


def micro_batches_of(
    rollout: Rollout,
    minibatches: Iterable[Int[Tensor, " _minibatch"]],
    max_rows: int | None,
    model: nn.Module,
    packing: VerifiedPacking,
) -> list[Int[Tensor, " micro"]]:
    """The micro-batches of all minibatches.

    Whether the model's rows may be packed is found out on the longest episodes before these are divided.
    """
    packing.suits(packable(model), *joined(rollout)[:2])
    return [rows for minibatch in minibatches for rows in micro_batches(rollout, minibatch, max_rows, packing)]


def read_rows(
    rollout: Rollout,
    rows: Int[Tensor, " chosen"],
    throughput: Throughput,
    model: nn.Module,
    packing: VerifiedPacking,
    *,
    backward: bool = False,
) -> Rollout:
    """Those rows, counted as read by a model."""
    part = select_rows(rollout, rows)
    lengths = part.lengths
    positions = lengths.sum() if packing.packs else len(rows) * lengths.max()
    throughput.count(model, lengths.sum(), positions, lengths=lengths, backward=backward)
    return part


def count_scored(rollout: Rollout, throughput: Throughput, reward: Any) -> None:
    """Count what a reward reads of the policy's tokens; one that reads texts reads others."""
    if isinstance(reward, nn.Module) and not isinstance(reward, (TextReward, WeightedSum)):
        lengths = rollout.lengths
        throughput.count(reward, lengths.sum(), padded_size(lengths, FORWARD_TOKENS), lengths=lengths)


def read_micro_batches(
    experience: Experience,
    rows: Int[Tensor, " minibatch"],
    max_rows: int | None,
    throughput: Throughput,
    model: nn.Module,
    packing: VerifiedPacking,
) -> Iterator[tuple[Experience, Float[Tensor, ""]]]:
    """The micro-batches of a minibatch for backward passes of a model; its gradient is exchanged in the last one.

    Each has its episodes, cut to their longest, and what the loss is divided by: the mean number of tokens that a
    process has of the minibatch. A process without a row reads one that counts for nothing. What does not learn is cast
    once for all of them.
    """
    rollout, scores, *tokens, _ = experience
    num_tokens = all_reduce_mean(rollout.response_mask[rows].sum())
    if not len(rows):
        rows, num_tokens = rows.new_zeros(1), num_tokens * float("inf")
    with cast_weights(model):
        for micro in sync_on_last(model, micro_batches(rollout, rows, max_rows, packing)):
            part = read_rows(rollout, micro, throughput, model, packing, backward=True)
            width = part.response_ids.shape[1]
            cut = [values[micro, :width] for values in tokens]
            yield Experience._make([part, scores[micro], *cut, []]), num_tokens


@torch.no_grad()
def figures_in(
    groups: Iterable[Int[Tensor, " _chosen"]],
    rollout: Rollout,
    figure: Callable[..., Float[Tensor, "_chosen time"]],
    throughput: Throughput,
    model: nn.Module,
    packing: VerifiedPacking,
) -> Float[Tensor, "rows response_time"]:
    """A figure of every response token, from one group of episodes after the other; 0 on padding.

    Args:
        groups: The episodes of each pass.
        rollout: All episodes.
        figure: From a model, episodes and `packing` to their figures, such as `response_values`.
        throughput: What counts the tokens that are read.
        model: The model that reads them.
        packing: What is known of packed rows of the model.
    """
    whole = torch.zeros(rollout.response_mask.shape, device=rollout.response_mask.device)
    with cast_weights(model):
        for rows in groups:
            part = read_rows(rollout, rows, throughput, model, packing)
            whole[rows, : part.response_ids.shape[1]] = figure(model, part, packing=packing).to(whole)
    return whole
