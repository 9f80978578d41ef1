"""Files that appear when they are complete, and what is read back from them."""

import csv
import errno
import json
import os
import re
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

from rlhf_lightning.parallel.processes import rank

_FULL = {
    errno.ENOSPC: "the disk is full",
    errno.EDQUOT: "the disk is full (the quota of this user is used up)",
    errno.EFBIG: "the file is larger than the disk or a limit (ulimit -f) allows",
}
"""What errors of writing mean, by number."""


@contextmanager
def replacing(path: Path, mode: str = "w", alone: bool = True, **options: Any) -> Iterator[IO[Any]]:
    """Open a file that takes its name when the block ends well: whatever happens, what has the name is complete.

    Args:
        path: The file's name in the end; until then it is ``<name>.unfinished``.
        mode: ``w`` for text in UTF-8, ``wb`` for bytes.
        alone: Whether no other process writes the file at the same time; otherwise the last one to end has its way.
        options: Further arguments of ``open``.
    """
    unfinished = path.with_name(path.name + (".unfinished" if alone else f".{os.getpid()}.unfinished"))
    # Half a surrogate pair cannot be written; as \ud800, which JSON reads back, it can.
    text = {} if "b" in mode else {"encoding": "utf-8", "errors": "backslashreplace"}
    try:
        with unfinished.open(mode, **{**text, **options}) as file:
            yield file
    except BaseException as error:
        unfinished.unlink(missing_ok=True)
        if isinstance(error, OSError) and error.filename is None:
            error.filename = str(path)
        raise
    put_in_place(unfinished, path)


def write_json(path: Path, value: Any) -> None:
    """Write JSON that appears when complete; rank 0 writes."""
    if rank() == 0:
        with replacing(path) as file:
            file.write(json.dumps(value, indent=2, ensure_ascii=False) + "\n")


def write_lines(path: Path, rows: Iterable[Mapping[str, Any]]) -> None:
    """Write one JSON object per line to a file that appears when complete; what JSON does not know, as a string.

    Rank 0 writes.
    """
    if rank() == 0:
        with replacing(path) as file:
            file.writelines(json.dumps(row, ensure_ascii=False, default=str) + "\n" for row in rows)


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


def append_line(path: Path, line: str) -> None:
    """Add a line to a file; it lasts through a power cut from here on."""
    with path.open("a", encoding="utf-8", errors="backslashreplace") as file:
        file.write(line + "\n")
        file.flush()
        os.fsync(file.fileno())


def read_json(path: Path) -> Any:
    """What a JSON file holds.

    Raises:
        ValueError: When it is damaged, with the line.
    """
    with _named(path):
        return json.loads(path.read_bytes().decode())


def read_json_lines(path: Path) -> list[Any]:
    """What each line of a file that grew line by line holds; a torn last line is left out.

    Raises:
        ValueError: When another one is damaged, with its number.
    """
    found = []
    for number, line in enumerate(path.read_bytes().splitlines(keepends=True), 1):
        if line.endswith(b"\n"):
            with _named(path, f"line {number}: "):
                found.append(json.loads(line.decode()))
    return found


def read_metrics(path: Path) -> list[dict[str, Any]]:
    """Rows of a metrics.csv, numbers as numbers, empty cells left out, a torn last line dropped.

    Raises:
        ValueError: When it is damaged, with the line.
    """
    with _named(path):
        text = path.read_bytes().decode()
    whole, _, _ = text.rpartition("\n")
    lines = csv.reader(whole.splitlines())
    with _named(path, "line 1: "):
        columns = next(lines, [])
        if "step" not in columns:
            raise ValueError("no column is called step" if whole else "it is empty")
    rows: list[dict[str, Any]] = []
    while True:
        with _named(path, f"line {lines.line_num + 1}: "):
            cells = next(lines, None)
            if cells is None:
                return rows
            row = {name: _number(cell) for name, cell in zip(columns, cells, strict=True) if cell != ""}
            if "step" in row:
                rows.append(row)


def full_disk(error: BaseException | None) -> str | None:
    """What is full, where that is why something was not written; None for any other error.

    Libraries hide the reason: torch behind a `RuntimeError` of its own, safetensors in a sentence.
    """
    while error is not None:
        found = re.search(r"\(os error (\d+)\)", str(error))
        number = int(found[1]) if found else getattr(error, "errno", None)
        if number in _FULL:
            return _FULL[number]
        error = error.__cause__ or error.__context__
    return None


@contextmanager
def naming_full_disk(step: str, folder: Path) -> Iterator[None]:
    """Say of a full disk what it kept from being written, and that nothing else is lost.

    Args:
        step: What is being made.
        folder: Where it is written to.

    Raises:
        OSError: In place of the error that hides it, with file, step and remedy.
    """
    try:
        yield
    except Exception as error:
        reason = full_disk(error)
        if reason is None or reason in str(error):  # said already
            raise
        path = getattr(error, "filename", None) or folder
        raise OSError(
            f"{step}: {reason}, {path} could not be written. What was done before is kept: make room and give the same "
            "command again."
        ) from error


def _number(text: str) -> int | float:
    """As it was written: a whole number stays one."""
    return int(text) if text.lstrip("-").isdigit() else float(text)


@contextmanager
def _named(path: Path, place: str = "") -> Iterator[None]:
    """Say which file is damaged, where, and what to do."""
    try:
        yield
    except (ValueError, KeyError, csv.Error, RecursionError) as error:
        reason = f"{type(error).__name__} {error}" if isinstance(error, KeyError) else str(error)
        raise ValueError(
            f"{path} cannot be read ({place}{reason}). Put it back from a copy, or move it away to go on without it."
        ) from error
