"""``stage.json``, the record of a step."""

import json
from pathlib import Path
from typing import Any

from rlhf_lightning.runs.errors import PipelineError


def read_stage(folder: Path) -> dict[str, Any]:
    """``stage.json`` of a stage folder; empty when there is none.

    Raises:
        PipelineError: When it is torn.
    """
    path = folder / "stage.json"
    if path.exists() and not path.is_file():
        raise PipelineError(f"{path} is no regular file, and would hold the record of a step. Move it away.")
    try:
        stage: Any = json.loads(path.read_bytes())
    except (FileNotFoundError, NotADirectoryError):
        return {}
    except ValueError:
        stage = None
    if not _is_record(stage):
        raise PipelineError(
            f"{path} is torn ({path.stat().st_size} bytes), as after a power cut or on a full disk, so what {folder} "
            "was made from is not known. Name the stage in stages with overwrite=true to make it again, or put the "
            "file back."
        )
    record: dict[str, Any] = stage
    return record


def _is_record(stage: Any) -> bool:
    """Whether the parts that are read are there and mappings."""
    identity = stage.get("identity") if isinstance(stage, dict) else None
    return isinstance(identity, dict) and all(
        isinstance(part, dict) for part in (identity.get("config", {}), stage.get("files", {}))
    )


def is_complete(folder: Path) -> bool:
    """Whether the stage ran to its end."""
    return read_stage(folder).get("status") == "complete"
