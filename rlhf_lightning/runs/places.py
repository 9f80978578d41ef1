"""The folder of a step as a place: where it really is, whether it can be written, what lies there."""

import errno
import json
import shutil
from collections.abc import Collection, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from rlhf_lightning.runs.errors import PipelineError

TORN = {"stage.json.unfinished"}
"""What a kill leaves before the first ``stage.json`` is complete."""
BEFORE_WORK = {*TORN, "stage.json", "config.yaml", "dropped.json", "cut.json", "warnings.json"}
"""Files that a step may write before its first batch; loggers write to ``logs`` before it."""
LOGS = "logs"
_REFUSED = {
    *(errno.EACCES, errno.EPERM, errno.EROFS, errno.EXDEV, errno.EBUSY),
    *(errno.EEXIST, errno.ENOTDIR, errno.ENAMETOOLONG, errno.ELOOP),
}


def real_folder(folder: Path) -> Path:
    """Where a folder is, or would be, once all links are followed.

    Raises:
        PipelineError: When a link on the way leads nowhere, or a file is in the way.
    """
    for part in (*reversed(folder.parents), folder):
        if part.is_symlink() and not part.exists():
            raise PipelineError(
                f"{part} is a link to {part.readlink()}, which does not exist. Make that folder (is its disk there?), "
                "remove the link, or name another run=<name>."
            )
        if part.exists() and not part.is_dir():
            raise PipelineError(f"{part} is a file where a folder is needed. Move it, or name another run=<name>.")
    return folder.resolve()


@contextmanager
def writable(folder: Path) -> Iterator[None]:
    """Say it in a sentence when a folder cannot be written.

    Raises:
        PipelineError: When the block is not allowed to write there, or to rename what is there.
    """
    try:
        yield
    except OSError as error:
        if error.errno not in _REFUSED:
            raise
        raise PipelineError(
            f"{folder} cannot be written: {error}. Change who may write there, name another run=<name>, or set "
            "paths.runs to a folder that can be written."
        ) from error


def holds(folder: Path, besides: Collection[str]) -> bool:
    """Whether there is a file or a link below a folder besides those with these names, or in folders with these."""
    parts = (part for part in folder.rglob("*") if part.is_symlink() or not part.is_dir())
    names = (part.relative_to(folder).as_posix() for part in parts)
    return any(name not in besides and name.partition("/")[0] not in besides for name in names)


def take_away(folder: Path) -> None:
    """Delete the folder of a step in which there is no work yet; a link to it stays."""
    for name in BEFORE_WORK:
        (folder / name).unlink(missing_ok=True)
    if not (folder / LOGS).is_symlink():
        shutil.rmtree(folder / LOGS, ignore_errors=True)
    for place in (folder / "checkpoints", folder):
        with suppress(OSError):  # a link, or something else is in there
            place.rmdir()


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
