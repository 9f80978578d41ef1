"""Run folders: what a stage leaves behind, when it counts as done, and what it was made from."""

import platform
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any, Literal

from rlhf_lightning.parallel.processes import rank
from rlhf_lightning.runs.digests import damage, known_digests, recorded
from rlhf_lightning.runs.errors import PipelineError as PipelineError
from rlhf_lightning.runs.files import write_json
from rlhf_lightning.runs.identity import (
    differences,
    fingerprint,
    git_commit,
    listed,
    model_fingerprint,
    plain,
    records_fingerprint,
)
from rlhf_lightning.runs.places import BEFORE_WORK, LOGS, TORN, holds, real_folder, take_away, writable
from rlhf_lightning.runs.places import is_complete as is_complete
from rlhf_lightning.runs.places import read_stage as read_stage
from rlhf_lightning.runs.rounds import ROUND, rounds_to
from rlhf_lightning.runs.secrets import redacted
from rlhf_lightning.runs.trash import move_back, move_to_trash

Progress = Literal["fresh", "half-done", "complete"]


@dataclass(frozen=True)
class Runs:
    """Where the artifacts of a run are, and those of the runs it builds on.

    Args:
        root: Folder of all runs.
        run: Name of this run.
        upstream: Names of the runs that have what this one does not make, looked through in order.
        hidden: Steps that are not read from this run itself.

    A run that is called `<run>/round-3` reads what it does not make from the rounds before it, and then from upstream.

    Raises:
        PipelineError: When a name leads out of the folder of all runs.
    """

    root: Path
    run: str
    upstream: tuple[str, ...] = ()
    hidden: frozenset[str] = frozenset()

    def __post_init__(self) -> None:
        """Stay below the folder of all runs."""
        for name in (self.run, *self.upstream):
            parts = Path(name).parts
            if not parts or Path(name).is_absolute() or any(part.startswith(".") for part in parts):
                raise PipelineError(
                    f"run and upstream must be names of folders below paths.runs ({self.root}), got {name!r}. Set "
                    "paths.runs to write elsewhere."
                )
        within = self.root / self.run
        step = next((each for each in (within, *within.parents) if (each / "stage.json").exists()), None)
        if step is not None:
            raise PipelineError(f"run={self.run} lies within {step}, which is a step of another run. Name another one.")

    def of_round(self, number: int) -> "Runs":
        """Those of a later round of this run, which reads the rounds before it first."""
        return replace(self, run=f"{self.run}/{ROUND}{number}") if number > 1 else self

    def before(self, stage: str, order: Iterable[str]) -> "Runs":
        """These as a step sees them: what does not come before it in the recipe is that of an earlier round.

        Args:
            stage: The step.
            order: The steps in the order of the recipe; one that is not among them sees all.
        """
        steps = [*order]
        return replace(self, hidden=frozenset(steps[steps.index(stage) :] if stage in steps else ()))

    def folder(self, stage: str) -> Path:
        """Where this run puts a stage."""
        return self.root / self.run / stage

    def find(self, stage: str, torn: bool = False) -> Path | None:
        """The finished stage, in this run or else upstream; with `torn` also one whose stage.json cannot tell."""
        return next(self._finished(stage, torn), None)

    def of_rounds(self, stage: str) -> list[Path]:
        """The finished stage in every round so far, the first one first; the last one is what `find` finds."""
        found: list[Path] = []
        for folder in self._finished(stage):
            found.insert(0, folder)
            run = folder.parent.relative_to(self.root).as_posix()
            if ROUND not in run or len(rounds_to(run)) == 1:
                break
        return found

    def _finished(self, stage: str, torn: bool = False) -> Iterator[Path]:
        """Where it is complete, from the newest round on."""
        runs = (rounds_to(run) if ROUND in run else [run] for run in (self.run, *self.upstream))
        for name in (each for rounds in runs for each in rounds):
            folder = self.root / name / stage
            try:
                if not (name == self.run and stage in self.hidden) and is_complete(folder):
                    yield folder
            except PipelineError:
                if not torn:
                    raise
                yield folder

    def read(self, stage: str) -> Path | None:
        """The same, for what reads its files: they have the sizes that they had when it was complete.

        Raises:
            PipelineError: When one is missing or has another.
        """
        folder = self.find(stage)
        if folder is not None:
            check_files(folder)
        return folder


def check_files(folder: Path, contents: bool = False, of: Path | None = None) -> None:
    """Make sure that a finished stage still has what it was complete with.

    Args:
        folder: The step's folder.
        contents: Whether what is in the files is looked at too (`damage`); otherwise their sizes alone.
        of: The folder of the model that is read, of a step that has some; None looks at all files.

    Raises:
        PipelineError: When a file is missing or another one, with its name and what to do.
    """
    if found := damage(folder, read_stage(folder).get("files", {}), contents, of):
        raise PipelineError(
            f"{found}, so later steps would not read what stage {folder.name} made. Put the file back, or make the "
            f"stage again: run={folder.parent.name} stages=[{folder.name}] overwrite=true."
        )


def step_fingerprint(folder: Path, model: str, code: bool) -> str:
    """`model_fingerprint` of a finished step's model, or of its records where it left none, by what its record says.

    The files are compared with the record (`check_files`) before anything is made of them.
    """
    stage = read_stage(folder)
    known = known_digests(folder, stage.get("files", {}))
    if Path(model).exists():
        return model_fingerprint(model, code, known)
    return records_fingerprint(folder, known) or str(stage["fingerprint"])


def other_settings(folder: Path, group: str, now: Any) -> str:
    """How the settings of a group that a finished step was made with differ from these; "" where they do not."""
    stage = read_stage(folder)
    old = {**stage, "identity": {"config": {group: redacted(stage["identity"].get("config", {}).get(group))}}}
    new = {"identity": {"config": {group: redacted(plain(now))}}, "environment": {}}
    found = list(differences(old, new))
    return listed(old, new, found) if found else ""


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
            if holds(folder, TORN)
            else None
        )
    complete = old.get("status") == "complete"
    old, new = ({**each, "identity": redacted(each["identity"])} for each in (old, new))
    others = list(differences(old, new)) if complete or holds(folder, {*BEFORE_WORK, LOGS}) else []
    return (
        f"{folder} is {'complete' if complete else 'half-done'} with other settings:\n"
        f"  {listed(old, new, others)}\n"
        "Use overwrite=true to make it again, or another run=<name> to keep both."
        if others
        else None
    )


def begin_stage(
    folder: Path,
    identity: Mapping[str, Any],
    overwrite: bool,
    about: Callable[[], Mapping[str, Any]] = dict,
    verify: Callable[[], None] | None = None,
) -> Progress:
    """Compare what a stage would be made from with what its folder was made from, and claim the folder.

    Nothing is deleted: what is replaced is moved to the trash of the run.

    Args:
        folder: The step's folder.
        identity: Stage, parents, data and resolved config, as plain types; kept without secrets.
        overwrite: Whether a stage made from something else, or whose files are damaged, is replaced.
        about: Finds what is written beside the identity and makes no stage another one: ``records``, ``environment``;
            asked where one is begun or refused.
        verify: Refuses parents that are not as they were; asked before a stage is begun or gone on with.

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
    identity, complete = redacted(plain(identity)), old.get("status") == "complete"
    then = {**old, "identity": redacted(old.get("identity", {}))}
    same = bool(old) and not any(True for _ in differences(then, {"identity": identity}))
    if same and complete and not (overwrite and damage(folder, old.get("files", {}), contents=True)):
        check_files(folder)
        return "complete"
    now = {**(redacted(plain(about())) if complete or not same else {}), "identity": identity}
    if not same and not overwrite and (refused := claim_fault(folder, old, now)):
        raise PipelineError(refused)
    if verify is not None:
        verify()
    if same and not complete:
        return "half-done"
    with writable(folder):
        _claim(folder, old, {"status": "half-done", "fingerprint": fingerprint(identity), **now})
    return "fresh"


def _claim(folder: Path, old: Mapping[str, Any], stage: Mapping[str, Any]) -> None:
    """Move away what must not be resumed from, and write ``stage.json``; without that all is as it was."""
    replaced = old.get("replaced")
    if old and old.get("status") != "complete" and not holds(folder, BEFORE_WORK):
        take_away(folder)
    elif holds(folder, TORN):
        replaced = move_to_trash(folder).name
    try:
        folder.mkdir(parents=True, exist_ok=True)
        write_json(folder / "stage.json", {**stage, **({"replaced": replaced} if replaced else {})})
        (folder / "checkpoints").mkdir(exist_ok=True)
    except BaseException:
        if replaced:
            take_away(folder)
            move_back(replaced, folder)
        raise


@contextmanager
def unless_begun(folder: Path) -> Iterator[None]:
    """Take a step's folder away when the block fails before there is any work in it; rank 0 does.

    What it replaced is in its place again.
    """
    ours = not holds(folder, BEFORE_WORK)
    try:
        yield
    except BaseException:
        if rank() == 0 and ours and not holds(folder, {*BEFORE_WORK, LOGS}):
            replaced = read_stage(folder).get("replaced")
            take_away(folder)
            if replaced:
                move_back(replaced, folder)
        raise


def complete_stage(folder: Path, metrics: Mapping[str, Any], seconds: float, seed: int) -> None:
    """Write the final ``stage.json``; from here on the stage counts as done.

    ``seconds`` are those of the last start; an interrupted stage took longer.
    """
    final = {
        **read_stage(folder),
        "status": "complete",
        "files": recorded(folder),
        "metrics": dict(metrics),
        "seconds": round(seconds, 2),
        "date": datetime.now(UTC).date().isoformat(),
        "seed": seed,
        "git_commit": git_commit(),
        "versions": {name: version(name) for name in ("lightning", "torch", "transformers", "hydra-core")}
        | {"python": platform.python_version()},
    }
    write_json(folder / "stage.json", final)
