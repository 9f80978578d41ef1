"""The trash of a run: what was replaced is moved there and never deleted."""

from collections.abc import Iterable
from datetime import datetime
from pathlib import Path

from rich.filesize import decimal

TRASH = ".trash"


def move_to_trash(folder: Path) -> Path:
    """Move a folder to ``.trash/<name>.<date and time>`` beside it; returns where it is now.

    Of a link the link stays: what is in the folder that it points at moves to the trash beside that one, which is on
    the same disk.

    Args:
        folder: A folder that exists, or a link to one.
    """
    real = folder.resolve()
    target = real.parent / TRASH / f"{folder.name}.{datetime.now():%Y-%m-%d_%H-%M-%S}"
    number = 1
    while target.exists():
        number += 1
        target = target.with_name(f"{target.name.partition('~')[0]}~{number}")
    if not folder.is_symlink():
        target.parent.mkdir(parents=True, exist_ok=True)
        return real.rename(target)
    target.mkdir(parents=True)
    for part in list(real.iterdir()):
        part.rename(target / part.name)
    return target


def move_back(name: str, folder: Path) -> None:
    """Undo `move_to_trash`, where what it moved is still there.

    Args:
        name: The name that it got in the trash.
        folder: The folder that it was, which does not exist, or is a link or empty.
    """
    trashed = folder.resolve().parent / TRASH / name
    if not folder.exists() and trashed.is_dir():
        trashed.rename(folder)
    elif trashed.is_dir():
        for part in list(trashed.iterdir()):
            part.rename(folder / part.name)
        trashed.rmdir()


def trash_sentence(run_folder: Path, steps: Iterable[str]) -> str | None:
    """How many replaced steps lie in the trash of a run and what they take; None where there are none.

    Args:
        run_folder: The run's folder.
        steps: Names of its steps, which may be links to other disks with a trash there.
    """
    own = run_folder.resolve() / TRASH
    found = set(own.glob("*"))
    for step in steps:
        found |= set(((run_folder / step).resolve().parent / TRASH).glob(f"{step}.*"))
    if not found:
        return None
    size = sum(file.lstat().st_size for part in found for file in [part, *part.rglob("*")] if not file.is_dir())
    places = ", ".join(sorted({TRASH if part.parent == own else str(part.parent) for part in found}))
    count = f"{len(found)} replaced step{'s' if len(found) > 1 else ''}"
    return f"{count} in {places}, {decimal(size)}; delete it when you no longer need them."
