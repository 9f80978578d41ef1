"""What is kept beside a step's identity: which rows it read, and what computed it."""

from collections.abc import Collection, Mapping
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch

from rlhf_lightning.data.rows.files import file_book
from rlhf_lightning.data.sources import DataSource, FileData
from rlhf_lightning.models.matmul import onednn_is_faster
from rlhf_lightning.parallel.processes import world_size
from rlhf_lightning.recipe.curated import CuratedData
from rlhf_lightning.runs.files import write_json
from rlhf_lightning.runs.folders import read_stage
from rlhf_lightning.runs.identity import by_content, processor, record_files


def provenance(
    config: Mapping[str, Any],
    data: DataSource,
    curated: CuratedData | None,
    device: torch.device,
    kinds: Collection[str],
) -> dict[str, Any]:
    """What `begin_stage` keeps of a step, so that a message can say what is another now.

    Args:
        config: The resolved configuration.
        data: The data option.
        curated: What step curate left, where that is read.
        device: The device that samples and trains.
        kinds: Kinds of the records that the step reads; () stands for all.

    Returns:
        ``records``: under ``files`` the books of each file by kind and split, under ``source`` the settings of a source
        without files. ``environment``: see that function.
    """
    records: dict[str, Any] = {}
    if curated is not None:
        files = record_files(curated.folder)
        records["files"] = {file.stem: [{**file_book(file, curated.folder), "options": {}}] for file in files}
    elif isinstance(data, FileData):
        records["files"] = data.books(kinds)
    else:
        records["source"] = by_content(config["data"]["source"])
    return {"records": records, "environment": environment(config, device)}


def environment(config: Mapping[str, Any], device: torch.device) -> dict[str, Any]:
    """What changes the last bit of a result and is no setting of the step, as plain types.

    Args:
        config: The resolved configuration.
        device: The device that samples and trains.
    """
    gpu = device.type == "cuda"
    return {
        "device": torch.cuda.get_device_name(device) if gpu else processor(),
        "threads": torch.get_num_threads(),
        "processes": world_size(),
        "vector instructions": torch.backends.cpu.get_cpu_capability(),
        "matrix products": "oneDNN" if onednn_is_faster() else "torch",
        "precision of products": torch.get_float32_matmul_precision(),
        "precision": config["trainer"].get("precision"),
        "attention": config["model"]["causal_lm"].get("attention"),
        "deterministic": torch.are_deterministic_algorithms_enabled(),
        **{name: version(name) for name in ("torch", "transformers")},
    }


def go_on_in(folder: Path, now: Mapping[str, Any], trains: bool = True) -> str | None:
    """Note that a half-done step goes on in another environment; returns what to say of it.

    ``stage.json`` keeps the one that the step began in as ``environment``, the others as ``went_on_in``.

    Args:
        folder: The step's folder.
        now: What `environment` finds.
        trains: Whether the step trains; what the others write is the same with any number of processes.
    """
    stage = read_stage(folder)
    known = [stage.get("environment", {}), *stage.get("went_on_in", [])]
    before = known[-1]
    tells = [name for name in now if name in before and (trains or name != "processes")]
    others = [name for name in tells if before[name] != now[name]]
    if not others:
        return None
    write_json(folder / "stage.json", {**stage, "went_on_in": [*known[1:], dict(now)]})
    named = ", ".join(f"{name} {now[name]} ({before[name]} before)" for name in others)
    return f"goes on with {named}: the result may differ in the last bits from that of an unbroken run"
