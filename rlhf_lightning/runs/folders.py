"""Run folders: what a stage leaves behind, when it counts as done, and what it was made from."""

import hashlib
import json
import platform
import shutil
import subprocess
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any, Literal

from rlhf_lightning.runs.files import write_json
from rlhf_lightning.runs.hub import adapter_base
from rlhf_lightning.runs.secrets import redacted

Progress = Literal["fresh", "half-done", "complete"]


class PipelineError(RuntimeError):
    """The pipeline cannot go on; the message says why and what to do."""


@dataclass(frozen=True)
class Runs:
    """Where the artifacts of a run are, and those of the runs it builds on.

    Args:
        root: Folder of all runs.
        run: Name of this run.
        upstream: Names of the runs that have what this one does not make, looked through in order.

    Raises:
        PipelineError: When a name leads out of the folder of all runs.
    """

    root: Path
    run: str
    upstream: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        """Stay below the folder of all runs."""
        for name in (self.run, *self.upstream):
            parts = Path(name).parts
            if not parts or ".." in parts or Path(name).is_absolute():
                raise PipelineError(
                    f"run and upstream must be names of folders below paths.runs ({self.root}), got {name!r}. Set "
                    "paths.runs to write elsewhere."
                )

    def folder(self, stage: str) -> Path:
        """Where this run puts a stage."""
        return self.root / self.run / stage

    def find(self, stage: str) -> Path | None:
        """The finished stage, in this run or else upstream."""
        for run in (self.run, *self.upstream):
            if is_complete(self.root / run / stage):
                return self.root / run / stage
        return None


def read_stage(folder: Path) -> dict[str, Any]:
    """``stage.json`` of a stage folder; empty when there is none.

    Raises:
        PipelineError: When it is torn.
    """
    path = folder / "stage.json"
    try:
        stage = json.loads(path.read_bytes())
    except FileNotFoundError:
        return {}
    except ValueError:
        stage = None
    if not isinstance(stage, dict):
        raise PipelineError(
            f"{path} is torn ({path.stat().st_size} bytes), as after a power cut or on a full disk, so what {folder} "
            "was made from is not known. Name the stage in stages with overwrite=true to make it again, or put the "
            "file back."
        )
    return stage


def is_complete(folder: Path) -> bool:
    """Whether the stage ran to its end."""
    return read_stage(folder).get("status") == "complete"


def begin_stage(folder: Path, identity: Mapping[str, Any], overwrite: bool) -> Progress:
    """Compare what a stage would be made from with what its folder was made from, and claim the folder.

    Args:
        folder: The step's folder.
        identity: Stage, parents, data and resolved config, as plain types; kept without secrets.
        overwrite: Whether a stage made from something else is thrown away.

    Raises:
        PipelineError: When the folder holds a stage made from something else, with the difference, or none can tell.
    """
    try:
        old = read_stage(folder)
    except PipelineError:
        if not overwrite:
            raise
        old = {}
    identity = redacted(_plain(identity))
    if old:
        differences = list(_differences(redacted(old["identity"]), identity))
        if not differences:
            return "complete" if old["status"] == "complete" else "half-done"
        if not overwrite and (old["status"] == "complete" or _has_begun(folder)):
            shown = "\n  ".join(differences[:12])
            raise PipelineError(
                f"{folder} is {'complete' if old['status'] == 'complete' else 'half-done'} with other settings:\n"
                f"  {shown}\nUse overwrite=true to make it again, or another run=<name> to keep both."
            )
    # What lies there without a stage.json that fits must not be resumed from.
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "checkpoints").mkdir(exist_ok=True)
    _write_stage(folder, {"status": "half-done", "identity": identity, "fingerprint": fingerprint(identity)})
    return "fresh"


def _has_begun(folder: Path) -> bool:
    """Whether there is anything of a half-done stage but what says how it was to be made."""
    return any(file.is_file() and file.name not in ("stage.json", "config.yaml") for file in folder.rglob("*"))


def complete_stage(folder: Path, metrics: Mapping[str, Any], seconds: float, seed: int) -> None:
    """Write the final ``stage.json``; from here on the stage counts as done.

    ``seconds`` are those of the last start; an interrupted stage took longer.
    """
    stage = read_stage(folder)
    _write_stage(
        folder,
        {
            **stage,
            "status": "complete",
            "metrics": dict(metrics),
            "seconds": round(seconds, 2),
            "date": datetime.now(UTC).date().isoformat(),
            "seed": seed,
            "git_commit": git_commit(),
            "versions": {name: version(name) for name in ("lightning", "torch", "transformers", "hydra-core")}
            | {"python": platform.python_version()},
        },
    )


def fingerprint(value: Any) -> str:
    """Short hash of plain data."""
    return hashlib.sha256(json.dumps(_plain(value), sort_keys=True).encode()).hexdigest()[:16]


def model_fingerprint(path: str) -> str:
    """Hash of a local model folder's files but its card and code, of an adapter with its model; a hub id is itself."""
    folder = Path(path)
    if not folder.exists():
        return path
    digest = hashlib.sha256()
    if (base := adapter_base(path)) is not None:
        digest.update(model_fingerprint(base).encode())
    for file in sorted(folder.rglob("*")) if folder.is_dir() else [folder]:
        if file.is_file() and file.suffix != ".py" and file.name != "README.md":
            digest.update(file.name.encode())
            with file.open("rb") as content:
                while block := content.read(1 << 20):
                    digest.update(block)
    return digest.hexdigest()[:16]


def _write_stage(folder: Path, stage: Mapping[str, Any]) -> None:
    write_json(folder / "stage.json", stage)


def _plain(value: Any) -> Any:
    return json.loads(json.dumps(value, default=str))


def _differences(old: Any, new: Any, path: str = "") -> Iterator[str]:
    if isinstance(old, dict) and isinstance(new, dict):
        for key in sorted(old.keys() | new.keys()):
            yield from _differences(old.get(key), new.get(key), f"{path}.{key}" if path else key)
    elif old != new:
        yield f"{path}: {old!r} there, {new!r} now"


def git_commit() -> str | None:
    """Commit of the working directory, where it is a checkout."""
    try:
        result = subprocess.run(["git", "rev-parse", "HEAD"], capture_output=True, text=True, timeout=5, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return result.stdout.strip() or None
