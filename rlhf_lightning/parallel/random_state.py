"""The random states of a process: saved with a checkpoint, put back on resume."""

import random
from typing import Any

import numpy as np
import torch


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
