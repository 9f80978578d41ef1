"""Run folders: what a stage leaves behind, when it counts as done, and what it was made from."""

import json
import platform
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any, Literal

from rlhf_lightning.runs.digests import damage, recorded
from rlhf_lightning.runs.errors import PipelineError as PipelineError
from rlhf_lightning.runs.files import write_json
from rlhf_lightning.runs.identity import differences, fingerprint, git_commit, listed, plain
from rlhf_lightning.runs.places import (
    has_files_of_ours_alone,
    holds_work,
    is_empty,
    real_folder,
    take_away,
    writable,
)
from rlhf_lightning.runs.secrets import redacted
from rlhf_lightning.runs.trash import move_to_trash

Progress = Literal["fresh", "half-done", "complete"]


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

    def read(self, stage: str) -> Path | None:
        """The same, for what reads its files: they have the sizes that they had when it was complete.

        Raises:
            PipelineError: When one is missing or has another.
        """
        folder = self.find(stage)
        if folder is not None:
            check_files(folder)
        return folder

    def verify(self, stages: Iterable[str]) -> None:
        """Read the files of those of the stages that are finished: they hold what they held then.

        Raises:
            PipelineError: When one is missing or holds something else.
        """
        for stage in stages:
            if (folder := self.find(stage)) is not None:
                check_files(folder, contents=True)


def read_stage(folder: Path) -> dict[str, Any]:
    """``stage.json`` of a stage folder; empty when there is none.

    Raises:
        PipelineError: When it is torn.
    """
    path = folder / "stage.json"
    try:
        stage = json.loads(path.read_bytes())
    except (FileNotFoundError, NotADirectoryError):
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


def check_files(folder: Path, contents: bool = False) -> None:
    """Make sure that a finished stage still has what it was complete with; `damage` has the arguments.

    Raises:
        PipelineError: When a file is missing or another one, with its name and what to do.
    """
    if found := damage(folder, read_stage(folder).get("files", {}), contents):
        raise PipelineError(
            f"{found}, so later steps would not read what stage {folder.name} made. Put the file back, or make the "
            f"stage again: run={folder.parent.name} stages=[{folder.name}] overwrite=true."
        )


def claim_fault(folder: Path, old: Mapping[str, Any], new: Mapping[str, Any]) -> str | None:
    """Why a step may not begin in a folder: what was made there from something else would be lost.

    Args:
        folder: The step's folder.
        old: Its ``stage.json``; empty where there is none.
        new: The same as it would be, with an identity that has the same parts.
    """
    if not old:
        return (
            f"{folder} is not empty and has no stage.json, so nobody knows what is in it. Put stage.json back or move "
            "the folder away; overwrite=true moves it to the trash of the run, run=<name> leaves it where it is."
            if not is_empty(folder)
            else None
        )
    complete = old.get("status") == "complete"
    old, new = ({**each, "identity": redacted(each["identity"])} for each in (old, new))
    others = list(differences(old, new)) if complete or holds_work(folder) else []
    return (
        f"{folder} is {'complete' if complete else 'half-done'} with other settings:\n"
        f"  {listed(old, new, others)}\n"
        "Use overwrite=true to make it again, or another run=<name> to keep both."
        if others
        else None
    )


def begin_stage(
    folder: Path, identity: Mapping[str, Any], overwrite: bool, about: Mapping[str, Any] | None = None
) -> Progress:
    """Compare what a stage would be made from with what its folder was made from, and claim the folder.

    Nothing is deleted: what is replaced is moved to the trash of the run.

    Args:
        folder: The step's folder.
        identity: Stage, parents, data and resolved config, as plain types; kept without secrets.
        overwrite: Whether a stage made from something else, or whose files are damaged, is replaced.
        about: What is written beside the identity and makes no stage another one: ``records``, ``environment``.

    Raises:
        PipelineError: When the folder holds a stage made from something else, with the difference, or none can tell,
            or it cannot be written.
    """
    real_folder(folder)
    try:
        old = read_stage(folder)
    except PipelineError:
        if not overwrite:
            raise
        old = {}
    identity, about = redacted(plain(identity)), redacted(plain(about or {}))
    complete = old.get("status") == "complete"
    if old:
        now, old = {**about, "identity": identity}, {**old, "identity": redacted(old["identity"])}
        others = list(differences(old, now))
        if not others and not (complete and overwrite and damage(folder, old.get("files", {}), contents=True)):
            if complete:
                check_files(folder)
            return "complete" if complete else "half-done"
    if not overwrite and (refused := claim_fault(folder, old, {**about, "identity": identity})):
        raise PipelineError(refused)
    # What lies there must not be resumed from.
    with writable(folder):
        if old and not complete and has_files_of_ours_alone(folder):
            take_away(folder)
        elif not is_empty(folder):
            move_to_trash(folder)
        folder.mkdir(parents=True, exist_ok=True)
        half_done = {"status": "half-done", "identity": identity, "fingerprint": fingerprint(identity), **about}
        _write_stage(folder, half_done)
        (folder / "checkpoints").mkdir(exist_ok=True)
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
            "files": recorded(folder),
            "metrics": dict(metrics),
            "seconds": round(seconds, 2),
            "date": datetime.now(UTC).date().isoformat(),
            "seed": seed,
            "git_commit": git_commit(),
            "versions": {name: version(name) for name in ("lightning", "torch", "transformers", "hydra-core")}
            | {"python": platform.python_version()},
        },
    )


def _write_stage(folder: Path, stage: Mapping[str, Any]) -> None:
    write_json(folder / "stage.json", stage)
