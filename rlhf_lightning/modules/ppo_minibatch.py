"""How a rollout is divided into minibatches."""

from collections.abc import Sequence

import torch
from jaxtyping import Int
from torch import Tensor

from rlhf_lightning.algorithms.keyed_random import keyed_uniforms
from rlhf_lightning.parallel.processes import all_gather_objects, rank, world_size


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
