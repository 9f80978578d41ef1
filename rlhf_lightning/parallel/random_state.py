"""The random states of every process: saved with a checkpoint, put back on resume."""

import random
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

from rlhf_lightning.parallel.processes import all_gather_objects, rank


def random_states() -> list[dict[str, Any]]:
    """Those of all processes, in order."""
    return all_gather_objects(random_state())


def restore_random_states(states: Sequence[dict[str, Any]]) -> None:
    """Put back what `random_states` gave, also where there are now fewer or more processes.

    Processes that have none draw apart from the first one, or dropout would be the same in all of them.

    Args:
        states: The random state of each process that there was, or none.
    """
    if states:
        restore_random_state(states[rank() if rank() < len(states) else 0])
    if rank() >= max(len(states), 1):
        seed_from_state(rank())


def random_state() -> dict[str, Any]:
    """Plain types and tensors only, so that checkpoints load with `weights_only`."""
    numpy_state: Any = np.random.get_state(legacy=False)
    state = numpy_state["state"]
    return {
        "python": random.getstate(),
        "numpy": {
            **numpy_state,
            "state": {"key": torch.from_numpy(state["key"].astype(np.int64)), "pos": state["pos"]},
        },
        "torch": torch.get_rng_state(),
        "cuda": torch.cuda.get_rng_state_all() if torch.cuda.is_available() else [],
    }


def seed_from_state(number: int) -> None:
    """Seed all of them from the present state and a number, such as the rank: each process then draws its own."""
    seed = (int(torch.randint(2**31, ())) + number) % 2**32
    random.seed(seed)
    np.random.seed(seed)
    torch.manual_seed(seed)


def restore_random_state(state: dict[str, Any]) -> None:
    """Put back what `random_state` gave."""
    random.setstate(state["python"])
    numpy_state = state["numpy"]
    key = numpy_state["state"]["key"].numpy().astype(np.uint32)
    np.random.set_state({**numpy_state, "state": {"key": key, "pos": numpy_state["state"]["pos"]}})
    torch.set_rng_state(state["torch"])
    if state["cuda"] and torch.cuda.is_available():
        torch.cuda.set_rng_state_all(state["cuda"])
