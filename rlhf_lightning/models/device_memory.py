"""How much memory there is."""

import os
from pathlib import Path

import torch


def available_memory(device: torch.device) -> int | None:
    """Bytes of the device, or of the machine or container for a CPU; None where the system does not say."""
    if device.type == "cuda":
        return int(torch.cuda.get_device_properties(device).total_memory) if torch.cuda.is_available() else None
    if "SC_PHYS_PAGES" not in getattr(os, "sysconf_names", {}):
        return None
    physical = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    limit = Path("/sys/fs/cgroup/memory.max")
    words = limit.read_text(encoding="utf-8").strip() if limit.exists() else ""
    return min(physical, int(words)) if words.isdigit() else physical
