"""What a process holds besides its tensors."""

import os
from collections.abc import Sequence
from functools import cache
from pathlib import Path

import torch

from rlhf_lightning.training.memory import Phase

LATER = 64 * 2**20
"""Bytes of libraries that are loaded with the first step."""
HOLES = 0.35
"""Share of activations and gradients that the C library keeps between blocks in use: they come and go in other orders.
Measured on SmolLM2 (docs/growth.md)."""
COMING_AND_GOING = ("activations", "gradients", "logits")


@cache
def process_bytes() -> int:
    """Resident bytes of this process, its libraries among them; 0 where the system does not say."""
    sizes = Path("/proc/self/statm")
    return int(sizes.read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE") if sizes.exists() else 0


def in_process(phases: Sequence[Phase], device: torch.device) -> list[Phase]:
    """The phases as the system sees the process: on a CPU with Python, its libraries and what the allocator holds.

    Args:
        phases: The tensors of each phase.
        device: Where they are; a GPU's memory has nothing else of ours.
    """
    if device.type != "cpu":
        return list(phases)
    found = []
    for phase in phases:
        holes = int(HOLES * sum(phase.parts.get(name, 0) for name in COMING_AND_GOING))
        found.append(Phase(phase.name, {**phase.parts, "process": process_bytes() + LATER, "allocator": holes}))
    return found
