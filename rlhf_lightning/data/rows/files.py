"""Rows of files, folders and data sets, each with its place."""

import re
from collections.abc import Iterator, Mapping
from functools import cache
from pathlib import Path
from typing import Any

import pyarrow as pa
from datasets import Dataset, load_dataset, load_from_disk
from datasets.data_files import SPLIT_KEYWORDS
from datasets.exceptions import DatasetsError

from rlhf_lightning.data.records import RecordError
from rlhf_lightning.data.rows.readers import SUFFIXES, SourceRow, file_rows, guarded, suffix_of, table_rows
from rlhf_lightning.runs.hub import here_or_hub_id
from rlhf_lightning.runs.identity import file_digest, once
from rlhf_lightning.runs.row_books import row_book

_SPLIT_OF_WORD = {word: str(split) for split, words in SPLIT_KEYWORDS.items() for word in words}
"""Words in the names of files and folders that say which split a file holds."""

_NOT_LINES = (".json", ".parquet", ".arrow")
"""Formats without a row per line."""


def read_rows(path: str, split: str, load: Mapping[str, Any] | None = None) -> Iterator[SourceRow]:
    """The rows of a file, a folder or a data set of the hub, without holding more than a few in memory.

    Lines are counted from 1, rows of lists and tables from 0.

    Args:
        path: A file or folder of files; a folder that ``save_to_disk`` wrote; or, where nothing is there, a hub id.
        split: Which files of a folder, which part of a data set.
        load: Further arguments of ``datasets.load_dataset`` for a hub id.

    Raises:
        RecordError: When a data set or folder as a whole cannot be read.
    """
    local = Path(path)
    if is_saved_data_set(local) or not local.exists():
        yield from guarded(path, table_rows(_data_set(path, split, load or {}), f"{path} ({split}), "))
        return
    files = files_of(local, split)
    if not files:
        raise RecordError(f"{path} holds no {', '.join(SUFFIXES)} file of the split {split}. Name the files after it.")
    for file in files:
        yield from file_rows(file)


def files_of(path: Path, split: str) -> list[Path]:
    """A file itself, or the data files below a folder that belong to a split.

    Names say which (``train-00000.parquet``, ``data/test/part.jsonl.gz``); where no name does, all of them.
    """
    splits = _splits(path)
    named = any(splits.values())
    return [file for file in splits if not named or splits[file] == split or file == path]


def holds_split(path: Path, split: str) -> bool:
    """Whether a file or folder with a whole set has that split; one whose names say nothing is train."""
    found = set(_splits(path).values()) if path.exists() else set()
    return split in found or (found == {None} and split == "train")


def is_saved_data_set(folder: Path) -> bool:
    """Whether ``save_to_disk`` wrote the folder."""
    return any((folder / name).is_file() for name in ("state.json", "dataset_dict.json"))


def _splits(path: Path) -> dict[Path, str | None]:
    """The data files of a folder, or the file itself, and the split that each name says."""
    if not path.is_dir():
        check_file(path)
        return {path: _split_of(path.name)}
    found = (file for file in path.rglob("*") if not file.is_dir() and not file.name.startswith("dataset_info"))
    files = sorted(file for file in found if suffix_of(file) in SUFFIXES)
    for file in files:
        check_file(file)
    return {file: _split_of(str(file.relative_to(path))) for file in files}


def check_file(path: Path) -> None:
    """Refuse pipes, sockets and devices: they are read once, block or never end, and files are read several times.

    Raises:
        RecordError: Says which of them the path is, or that its link leads nowhere.
    """
    kinds = {
        "pipe": path.is_fifo(),
        "socket": path.is_socket(),
        "device": path.is_char_device() or path.is_block_device(),
    }
    if kind := next((kind for kind, found in kinds.items() if found), None):
        raise RecordError(f"{path} is a {kind}, not a file. Write what it gives to a file, and name that.")
    if path.is_symlink() and not path.exists():
        raise RecordError(f"{path} is a link to {path.readlink()}, which is not there. Mend the link or take it out.")


def _split_of(name: str) -> str | None:
    words = re.split("[^a-z]+", name.lower())
    return next((_SPLIT_OF_WORD[word] for word in reversed(words) if word in _SPLIT_OF_WORD), None)


def _data_set(path: str, split: str, load: Mapping[str, Any]) -> Dataset:
    try:
        here_or_hub_id(path)
    except FileNotFoundError as error:
        raise RecordError(f"{error} Or set the entry to null.") from error
    try:
        if not is_saved_data_set(Path(path)):
            return load_dataset(path, split=split, **load)
        saved = load_from_disk(path)
        return saved if isinstance(saved, Dataset) else saved[split]
    except (DatasetsError, OSError, ValueError, RuntimeError, KeyError, TypeError, pa.ArrowException) as error:
        what = "cannot be read" if Path(path).exists() else "is no file here, and the hub does not give it"
        raise RecordError(
            f"{path} {what} (split {split}; {type(error).__name__}: {error}). Mend the path or the id, its 'split' or "
            "its 'load', or set the entry to null."
        ) from error


def file_book(file: Path, root: Path) -> dict[str, Any]:
    """What is kept of a file, so that a message can say where another one differs: see `row_book`.

    Args:
        file: The file; the rows of other formats than lines of text are not told apart.
        root: The folder that its name is told from.
    """
    inside = file.resolve().is_relative_to(root)
    name = file.resolve().relative_to(root).as_posix() if inside else file.name
    rows = {} if suffix_of(file) in _NOT_LINES or file.suffix == ".gz" else once(_rows_of, file)
    return {"file": name, "digest": file_digest(file)[:16], **rows}


@cache
def _rows_of(file: Path, *_state: int) -> dict[str, Any]:
    with file.open("rb") as lines:
        return row_book(lines)
