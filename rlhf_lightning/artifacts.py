"""Run folders: what a stage leaves behind, when it counts as done, and what it was made from."""

import csv
import hashlib
import json
import os
import platform
import re
import shutil
import subprocess
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any, Literal

from rlhf_lightning.distributed import rank

STAGES = ("pretrain", "curate", "sft", "ppo_init", "collect", "judge", "reward", "ppo", "ppo_ptx", "evaluate")
"""In order; ``judge`` trains a second reward model, on other rankings, for the evaluation alone."""

REDACTED = "(redacted)"
_SECRET_NAME = (
    r"\w*(?:(?<!eos_)(?<!bos_)(?<!pad_)(?<!unk_)(?<!sep_)(?<!cls_)(?<!mask_)token"
    r"|secret|password|passwd|credentials?|(?:api|access|private|secret)_?key)"
)
"""How names of secrets end; a tokenizer's special tokens are none."""
_WELL_KNOWN = r"\b(?:(?:hf_|ghp_|github_pat_)\w{20,}|sk-(?:\w+-)*\w{20,})"
"""Keys that services hand out, by their form."""
_SHORTEST_SECRET = 8
"""Environment variables with fewer characters could stand anywhere by chance."""

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
        folder: Of the stage.
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
        differences = list(_differences(old["identity"], identity))
        if not differences:
            return "complete" if old["status"] == "complete" else "half-done"
        if not overwrite:
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
            "seed": seed,
            "git_commit": git_commit(),
            "versions": {name: version(name) for name in ("lightning", "torch", "transformers", "hydra-core")}
            | {"python": platform.python_version()},
        },
    )


def redacted(value: Any) -> Any:
    """Plain data as it may be written down: with ``(redacted)`` in place of secrets.

    Secret is what a name such as ``token``, ``password`` or ``api_key`` holds, also as ``name=value`` in a text; the
    value of an environment variable with such a name, wherever it stands; and what has the form of a service's key.

    Example:
        >>> redacted({"judge": {"api_key": "abc"}, "eos_token": "</s>", "command": "run seed=1,hub_token=abc"})
        {'judge': {'api_key': '(redacted)'}, 'eos_token': '</s>', 'command': 'run seed=1,hub_token=(redacted)'}
    """
    own = [text for name, text in os.environ.items() if len(text) >= _SHORTEST_SECRET and _is_secret(name)]
    return _redacted(value, "|".join([_WELL_KNOWN, *map(re.escape, own)]))


def _redacted(value: Any, secrets: str) -> Any:
    if isinstance(value, Mapping):
        return {
            name: REDACTED if _is_secret(str(name)) and item is not None else _redacted(item, secrets)
            for name, item in value.items()
        }
    if isinstance(value, list):
        return [_redacted(item, secrets) for item in value]
    if isinstance(value, str):
        named = re.sub(rf"(?i)\b({_SECRET_NAME})=[^\s,'\"\]}}]+", rf"\1={REDACTED}", value)
        return re.sub(secrets, REDACTED, named)
    return value


def _is_secret(name: str) -> bool:
    return re.fullmatch(_SECRET_NAME, name, re.IGNORECASE) is not None


def fingerprint(value: Any) -> str:
    """Short hash of plain data."""
    return hashlib.sha256(json.dumps(_plain(value), sort_keys=True).encode()).hexdigest()[:16]


def model_fingerprint(path: str) -> str:
    """Hash of a local model folder's files; a hub id stands for itself."""
    folder = Path(path)
    if not folder.exists():
        return path
    digest = hashlib.sha256()
    for file in sorted(folder.rglob("*")) if folder.is_dir() else [folder]:
        if file.is_file() and file.suffix != ".py":
            digest.update(file.name.encode())
            with file.open("rb") as content:
                while block := content.read(1 << 20):
                    digest.update(block)
    return digest.hexdigest()[:16]


def write_json(path: Path, value: Any) -> None:
    """Write JSON that appears when complete; where there are several processes, the first one writes."""
    if rank() != 0:
        return
    unfinished = path.with_name(path.name + ".unfinished")
    unfinished.write_text(json.dumps(value, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
    put_in_place(unfinished, path)


def write_lines(path: Path, rows: Iterable[Mapping[str, Any]]) -> None:
    """Write one JSON object per line to a file that appears when complete; what JSON does not know, as a string.

    Where there are several processes, the first one writes.
    """
    if rank() != 0:
        return
    unfinished = path.with_name(path.name + ".unfinished")
    lines = (json.dumps(row, ensure_ascii=False, default=str) + "\n" for row in rows)
    # Half a surrogate pair cannot be written; as \ud800, which JSON reads back, it can.
    unfinished.write_text("".join(lines), encoding="utf-8", errors="backslashreplace")
    put_in_place(unfinished, path)


def put_in_place(unfinished: Path, path: Path) -> None:
    """Give a file or folder that was written under another name its own: whatever happens, what has it is complete."""
    for file in (unfinished, *(unfinished.rglob("*") if unfinished.is_dir() else ())):
        sync(file)
    unfinished.replace(path)
    sync(path.parent)


def sync(path: Path) -> None:
    """Make the content of a file, or the names in a folder, last through a power cut."""
    if path.is_dir() and not hasattr(os, "O_DIRECTORY"):
        return
    handle = os.open(path, os.O_RDONLY if path.is_dir() else os.O_RDWR)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def read_metrics(path: Path) -> list[dict[str, Any]]:
    """Rows of a metrics.csv, numbers as numbers, empty cells left out, a torn last line dropped."""
    with path.open(newline="", encoding="utf-8") as file:
        rows = []
        for row in csv.DictReader(file):
            if row["step"] and None not in row.values():
                numbers = {name: float(value) for name, value in row.items() if value != "" and name != "step"}
                rows.append({"step": int(row["step"]), **numbers})
        return rows


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
