"""Which model folder is meant by a folder that somebody names: a model, an adapter, a step of a run."""

import re
from pathlib import Path
from typing import Any

from rlhf_lightning.runs.folders import read_stage
from rlhf_lightning.runs.hub import model_source

CONFIGS = ("config.json", "adapter_config.json")
_WITHIN = ("model_ema", "model", "adapter")
"""What a step leaves, the first that is there."""
_VARIANT = re.compile(r"raw|best|(epoch|batch)-\d+")


def exported_model(path: str) -> str:
    """The model that is meant: of a step's folder its averaged weights, else its model, else its adapter.

    Anything else stands for itself: a model's folder, a shipped model, a hub id.

    Raises:
        FileNotFoundError: When nothing is there, or no model in it, with what could be named instead.
    """
    folder = Path(model_source(path))
    if not folder.exists() or any((folder / name).exists() for name in CONFIGS):
        return str(folder) if folder.exists() else path
    if not folder.is_dir():
        raise FileNotFoundError(f"{path} is a file; name the folder of a model.")
    record = read_stage(folder)
    if record and record.get("status") != "complete":
        raise FileNotFoundError(f"{path} is a step that is not complete; run the same command again to finish it.")
    for name in _WITHIN:
        if any((folder / name / config).exists() for config in CONFIGS):
            return str(folder / name)
    found = [part.name for part in sorted(folder.iterdir()) if any((part / name).is_dir() for name in _WITHIN)]
    hint = f"name one of its steps: {', '.join(found)}" if found else "name the folder that save_pretrained wrote"
    raise FileNotFoundError(f"{path} holds no model; {hint}.")


def kept_weights(folder: Path, variant: str) -> Path:
    """Where a step has its weights: the averaged or the last ones, or `raw`, `best`, `epoch-3`, `batch-400`."""
    if variant.startswith(("epoch-", "batch-")):
        return folder / "epochs" / variant.removeprefix("epoch-")
    if variant == "best":
        return folder / "model_best"
    averaged = folder / "model_ema"
    return averaged if averaged.exists() and variant != "raw" else folder / "model"


def of_other_run(runs: Path, name: str) -> str:
    """The model of a finished step: `<run>/<step>`, or `<run>/<step>/epoch-3`, or the path of either.

    Any other name stands for itself.

    Args:
        runs: The folder of all runs.
        name: The name.

    Raises:
        FileNotFoundError: When the step of that run is not complete, or has no such model.
    """
    run, _, variant = name.rpartition("/")
    named = [(name, ""), *([(run, variant)] if _VARIANT.fullmatch(variant) else [])]
    for step, kept in ((place, kept) for other, kept in named for place in (runs / other, Path(other))):
        if record := read_stage(step):
            model = kept_weights(step, kept)
            if record.get("status") == "complete" and model.is_dir():
                return str(model)
            lacks = f"holds no {kept or 'model'}" if record.get("status") == "complete" else "is not complete"
            raise FileNotFoundError(f"{name}: step {step} {lacks}. Name another, or make it first.")
    return name


def data_settings(model: str) -> dict[str, Any]:
    """Settings of the data that the step which exported a model learned from; empty where no step did."""
    folder = Path(model)
    found: Any = next(filter(None, map(read_stage, (folder.parent, folder.parent.parent))), {})
    for name in ("identity", "config", "data"):
        found = found.get(name) if isinstance(found, dict) else None
    return found if isinstance(found, dict) else {}
