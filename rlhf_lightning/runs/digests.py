"""What the files of a finished step held when it was complete, and whether they still do."""

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from rlhf_lightning.runs.hub import ADAPTER_CONFIG
from rlhf_lightning.runs.identity import file_digest, record_files

_BASE = "base"
MODELS = ("model", "model_ema", "model_best", "adapter", _BASE, "epochs")
"""Folders of a step that later steps read; besides them they read its records alone."""
_CARD = "README.md"
"""In a model's folder; people edit it."""


def recorded(folder: Path) -> dict[str, dict[str, Any]]:
    """Size and SHA-256 of every file of a step that later steps may read, by its name within the folder."""
    return {str(file.relative_to(folder).as_posix()): _facts(file) for file in _files(folder)}


def damage(folder: Path, record: Mapping[str, Mapping[str, Any]], contents: bool, of: Path | None = None) -> str | None:
    """What is no longer as it was, the first file of all; None where everything is.

    Files that are not in the record are no damage: people add some.

    Args:
        folder: The step's folder, wherever it is by now.
        record: What `recorded` found; an empty one of a step that was made before there were records.
        contents: Whether what is in the files is looked at too, once per process; otherwise their sizes alone.
        of: The one model whose files are looked at, with what it belongs to where it is an adapter, and records.
    """
    read = [] if of is None else [of, *([folder / _BASE] if (of / ADAPTER_CONFIG).is_file() else [])]
    for name, then in record.items():
        file = folder / name
        if read and "/" in name and not any(file.is_relative_to(part) for part in read):
            continue
        if not file.is_file():
            return f"{file} is missing"
        size = file.stat().st_size
        if size != then["size"]:
            return f"{file} has {size} bytes, and had {then['size']} when the step was complete"
        if contents and _facts(file)["sha256"] != then["sha256"]:
            return f"{file} holds something else than when the step was complete (its SHA-256 differs)"
    return None


def known_digests(folder: Path, record: Mapping[str, Mapping[str, Any]]) -> dict[Path, str]:
    """The SHA-256 that the files of a step had, of those that have the size that they had; nothing is read.

    Args:
        folder: The step's folder.
        record: As for `damage`, which a step is compared by before anything is made of it.
    """
    files = {(folder / name).resolve(): then for name, then in record.items()}
    return {
        file: str(then["sha256"])
        for file, then in files.items()
        if file.is_file() and file.stat().st_size == then["size"]
    }


def _files(folder: Path) -> Iterator[Path]:
    yield from record_files(folder)
    for model in MODELS:
        for file in sorted((folder / model).rglob("*")):
            unfinished = any(part.endswith(".unfinished") for part in file.relative_to(folder).parts)
            if file.is_file() and file.name != _CARD and not unfinished:
                yield file


def _facts(file: Path) -> dict[str, Any]:
    return {"size": file.stat().st_size, "sha256": file_digest(file)}
