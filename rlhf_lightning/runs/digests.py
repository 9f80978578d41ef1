"""What the files of a finished step held when it was complete, and whether they still do."""

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from rlhf_lightning.runs.identity import file_digest

NOT_READ = ("stage.json", "config.yaml", "metrics.csv", "README.md")
"""Files that no later step reads; people edit cards, and open tables in programs that write them anew."""
NOT_KEPT = ("checkpoints", "logs")
"""Folders that no later step reads, and that may go."""


def recorded(folder: Path) -> dict[str, dict[str, Any]]:
    """Size and SHA-256 of every file of a step that later steps may read, by its name within the folder."""
    return {str(file.relative_to(folder).as_posix()): _facts(file) for file in _files(folder)}


def damage(folder: Path, record: Mapping[str, Mapping[str, Any]], contents: bool) -> str | None:
    """What is no longer as it was, the first file of all; None where everything is.

    Files that are not in the record are no damage: people add some.

    Args:
        folder: The step's folder, wherever it is by now.
        record: What `recorded` found; an empty one of a step that was made before there were records.
        contents: Whether what is in the files is looked at too, once per process; otherwise their sizes alone.
    """
    for name, then in record.items():
        file = folder / name
        if not file.is_file():
            return f"{file} is missing"
        size = file.stat().st_size
        if size != then["size"]:
            return f"{file} has {size} bytes, and had {then['size']} when the step was complete"
        if contents and _facts(file)["sha256"] != then["sha256"]:
            return f"{file} holds something else than when the step was complete (its SHA-256 differs)"
    return None


def _files(folder: Path) -> Iterator[Path]:
    for file in sorted(folder.rglob("*")):
        places = file.relative_to(folder).parts
        passing = any(place in NOT_KEPT or place.endswith(".unfinished") for place in places)
        if file.is_file() and file.name not in NOT_READ and not passing:
            yield file


def _facts(file: Path) -> dict[str, Any]:
    return {"size": file.stat().st_size, "sha256": file_digest(file)}
