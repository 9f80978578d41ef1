"""What changes the last bit of a result and is no setting: threads, device, the libraries and their kernels."""

from collections.abc import Mapping
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch

from rlhf_lightning.models.matmul import onednn_is_faster
from rlhf_lightning.parallel.processes import world_size
from rlhf_lightning.runs.files import write_json
from rlhf_lightning.runs.folders import read_stage
from rlhf_lightning.runs.identity import processor


def environment(device: torch.device, precision: Any, attention: Any) -> dict[str, Any]:
    """What a step is computed with, as plain types.

    Args:
        device: The device that samples and trains.
        precision: The trainer's precision.
        attention: The kernel that the model's attention is to use; None is the library's choice.
    """
    gpu = device.type == "cuda"
    return {
        "device": torch.cuda.get_device_name(device) if gpu else processor(),
        "threads": torch.get_num_threads(),
        "processes": world_size(),
        "vector instructions": torch.backends.cpu.get_cpu_capability(),
        "matrix products": "oneDNN" if onednn_is_faster() else "torch",
        "precision of products": torch.get_float32_matmul_precision(),
        "precision": precision,
        "attention": attention,
        "deterministic": torch.are_deterministic_algorithms_enabled(),
        **{name: version(name) for name in ("torch", "transformers")},
    }


def go_on_in(folder: Path, now: Mapping[str, Any]) -> str | None:
    """Note that a half-done step goes on in another environment; returns what to say of it.

    ``stage.json`` keeps the one that the step began in as ``environment``, the others as ``went_on_in``.

    Args:
        folder: The step's folder.
        now: What `environment` finds.
    """
    stage = read_stage(folder)
    known = [stage.get("environment", {}), *stage.get("went_on_in", [])]
    before = known[-1]
    other = [f"{name} {now[name]} ({before[name]} before)" for name in now if name in before and before[name] != now[name]]
    if not other:
        return None
    write_json(folder / "stage.json", {**stage, "went_on_in": [*known[1:], dict(now)]})
    return f"goes on with {', '.join(other)}: the result may differ in the last bits from that of an unbroken run"
