"""The folder of a step as a place: where it really is, whether it can be written, what lies there."""

import errno
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from rlhf_lightning.parallel.processes import rank
from rlhf_lightning.runs.errors import PipelineError

_BEFORE_WORK = {"stage.json", "stage.json.unfinished", "config.yaml", "dropped.json", "cut.json"}
"""Files that a step may write before its first batch; loggers write to ``logs`` before it."""
_LOGS = "logs"


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
        if error.errno not in (errno.EACCES, errno.EPERM, errno.EROFS, errno.EXDEV, errno.EBUSY):
            raise
        raise PipelineError(
            f"{folder} cannot be written: {error}. Change who may write there, name another run=<name>, or set "
            "paths.runs to a folder that can be written."
        ) from error


def is_empty(folder: Path) -> bool:
    """Whether there is no file below a folder but what a kill leaves before the first ``stage.json`` is complete."""
    return _files(folder) <= {"stage.json.unfinished"}


def has_files_of_ours_alone(folder: Path) -> bool:
    """Whether a step's folder has nothing but what the pipeline itself writes before the first batch."""
    return _files(folder) <= _BEFORE_WORK


def holds_work(folder: Path) -> bool:
    """Whether a step's folder has anything but that, and but what loggers write before the first batch."""
    return any(name.partition("/")[0] != _LOGS for name in _files(folder) - _BEFORE_WORK)


def take_away(folder: Path) -> None:
    """Delete the folder of a step in which there is no work yet; a link to it stays."""
    for name in _BEFORE_WORK:
        (folder / name).unlink(missing_ok=True)
    if not (folder / _LOGS).is_symlink():
        shutil.rmtree(folder / _LOGS, ignore_errors=True)
    for place in (folder / "checkpoints", folder):
        with suppress(OSError):  # a link, or something else is in there
            place.rmdir()


@contextmanager
def unless_begun(folder: Path) -> Iterator[None]:
    """Take a step's folder away again when the block fails before there is any work in it; rank 0 does."""
    ours = has_files_of_ours_alone(folder)
    try:
        yield
    except BaseException:
        if rank() == 0 and ours and not holds_work(folder):
            take_away(folder)
        raise


def _files(folder: Path) -> set[str]:
    """Names of all files and links within a folder."""
    parts = (part for part in folder.rglob("*") if part.is_symlink() or not part.is_dir())
    return {part.relative_to(folder).as_posix() for part in parts}
