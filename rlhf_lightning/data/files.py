"""Rows of files and data sets, each with its place; what cannot be read is a row with a problem."""

import csv
import gzip
import io
import json
import re
import zlib
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import pyarrow as pa
import pyarrow.parquet as pq
from datasets import Dataset, load_dataset, load_from_disk
from datasets.exceptions import DatasetsError

from rlhf_lightning.data.records import RecordError

MAX_ROW_BYTES = 8_000_000
"""Longest row, in bytes of UTF-8; a longer one is a file whose line ends got lost, and would fill the memory."""

SPLIT_WORDS = {
    "train": "train",
    "training": "train",
    "validation": "validation",
    "valid": "validation",
    "val": "validation",
    "dev": "validation",
    "test": "test",
    "testing": "test",
    "eval": "test",
    "evaluation": "test",
}
"""Words in the names of files and folders that say which split a file holds; as ``datasets`` reads them."""

SUFFIXES = (".jsonl", ".json", ".csv", ".parquet", ".arrow")
"""What a folder is searched for, the first three also with ``.gz``; a file named by itself with another is JSONL."""

_BATCH = 1000
_TOO_LONG = f"the row is longer than {MAX_ROW_BYTES:,} bytes. Mend its line ends, split it, or leave it out."
_BROKEN = (OSError, EOFError, zlib.error, csv.Error, pa.ArrowException)


class SourceRow(NamedTuple):
    """A row, where it is, and what is wrong with it (None: nothing so far)."""

    place: str
    value: Any
    problem: str | None = None


def read_rows(path: str, split: str, load: Mapping[str, Any] | None = None) -> Iterator[SourceRow]:
    """The rows of a file, a folder or a data set of the hub, without holding more than a few in memory.

    Lines are counted from 1, rows of lists and tables from 0.

    Args:
        path: See :func:`files_of`; a folder that ``save_to_disk`` wrote; or, where nothing is there, an id of the hub.
        split: Which files of a folder, which part of a data set.
        load: Further arguments of ``datasets.load_dataset`` for an id of the hub.

    Raises:
        RecordError: When a data set or folder as a whole cannot be read.
    """
    local = Path(path)
    if is_saved_data_set(local) or not local.exists():
        yield from _guarded(path, table_rows(_data_set(path, split, load or {}), f"{path} ({split}), "))
        return
    files = files_of(local, split)
    if not files:
        raise RecordError(f"{path} holds no {', '.join(SUFFIXES)} file of the split {split}. Name the files after it.")
    for file in files:
        yield from _guarded(str(file), _READERS.get(_suffix(file), _json_lines)(file))


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


def table_rows(table: Dataset, name: str = "") -> Iterator[SourceRow]:
    """The rows of a ``datasets`` data set."""
    return _batch_rows(table.with_format("arrow").iter(_BATCH), name)


def _suffix(file: Path) -> str:
    return Path(file.stem).suffix if file.suffix == ".gz" else file.suffix


def _splits(path: Path) -> dict[Path, str | None]:
    """The data files of a folder, or the file itself, and the split that each name says."""
    if not path.is_dir():
        return {path: _split_of(path.name)}
    found = (file for file in path.rglob("*") if file.is_file() and not file.name.startswith("dataset_info"))
    files = sorted(file for file in found if _suffix(file) in SUFFIXES)
    return {file: _split_of(str(file.relative_to(path))) for file in files}


def _split_of(name: str) -> str | None:
    words = re.split("[^a-z]+", name.lower())
    return next((SPLIT_WORDS[word] for word in reversed(words) if word in SPLIT_WORDS), None)


def _data_set(path: str, split: str, load: Mapping[str, Any]) -> Dataset:
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


def _guarded(name: str, rows: Iterator[SourceRow]) -> Iterator[SourceRow]:
    """The rows; a file that breaks off ends with a row that says so."""
    place = None
    try:
        for row in rows:
            place = row.place
            yield row
    except _BROKEN as error:
        what = "the file cannot be read" if place is None else "the file cannot be read beyond this place"
        reason = str(error) or type(error).__name__
        yield SourceRow(place or name, None, f"{what} ({reason}). Fetch or write it again.")


def _opened(file: Path) -> Any:
    return gzip.open(file, "rb") if file.suffix == ".gz" else file.open("rb")


def _json_lines(file: Path) -> Iterator[SourceRow]:
    with _opened(file) as stream:
        number = 0
        while line := stream.readline(MAX_ROW_BYTES + 1):
            number += 1
            place = f"{file}, line {number}"
            if len(line) > MAX_ROW_BYTES:
                yield SourceRow(place, _shown(line[:1000]), _TOO_LONG)
                while not line.endswith(b"\n") and (line := stream.readline(MAX_ROW_BYTES)):
                    pass
            elif line.strip():
                yield _json_row(place, line)


def _json_row(place: str, line: bytes) -> SourceRow:
    try:
        return SourceRow(place, json.loads(line.decode("utf-8-sig")))
    except UnicodeDecodeError as error:
        reason = f"broken UTF-8 ({error.reason} at byte {error.start}). Save the file as UTF-8."
    except (ValueError, RecursionError) as error:
        if line.endswith(b"\n"):
            reason = f"no JSON ({error}). Each line must hold one JSON object."
        else:
            reason = f"the last line is cut off ({error}). Write the file again, or take the line out."
    return SourceRow(place, _shown(line), reason)


def _shown(line: bytes) -> str:
    return line.decode(errors="backslashreplace").rstrip("\n")


def _json(file: Path) -> Iterator[SourceRow]:
    """A list of rows, which is read whole; or lines, as in a JSONL file."""
    with _opened(file) as stream:
        if not stream.read(1000).lstrip(b"\xef\xbb\xbf \t\r\n").startswith(b"["):
            yield from _json_lines(file)
            return
        stream.seek(0)
        whole = stream.read()
    try:
        rows = json.loads(whole.decode("utf-8-sig"))
    except (ValueError, RecursionError) as error:
        reason = f"no JSON list ({error}). Write the file again: one list of objects, or one object per line."
        yield SourceRow(str(file), None, reason)
        return
    for number, row in enumerate(rows):
        yield _sized(f"{file}, row {number}", row)


def _csv(file: Path) -> Iterator[SourceRow]:
    # Broken UTF-8 becomes half a surrogate pair, which the record that it belongs to refuses.
    with io.TextIOWrapper(_opened(file), encoding="utf-8-sig", errors="surrogateescape", newline="") as text:
        usual = csv.field_size_limit(MAX_ROW_BYTES)
        try:
            reader = csv.reader(text, strict=True)
            header = next((cells for cells in reader if cells), [])
            if len(set(header)) < len(header):
                yield SourceRow(f"{file}, line 1", header, f"the header names a column twice ({', '.join(header)}).")
                return
            for cells in (cells for cells in reader if cells):
                place = f"{file}, line {reader.line_num}"
                if len(cells) == len(header):
                    yield _sized(place, dict(zip(header, cells, strict=True)))
                else:
                    reason = f"the line has {len(cells)} cells, the header {len(header)}. Quote cells that hold commas."
                    yield SourceRow(place, cells, reason)
        finally:
            csv.field_size_limit(usual)


def _parquet(file: Path) -> Iterator[SourceRow]:
    with pq.ParquetFile(file) as table:
        yield from _batch_rows(table.iter_batches(_BATCH), f"{file}, ")


def _arrow(file: Path) -> Iterator[SourceRow]:
    yield from table_rows(Dataset.from_file(str(file)), f"{file}, ")


def _batch_rows(batches: Iterable[Any], name: str) -> Iterator[SourceRow]:
    start = 0
    for batch in batches:
        yield from _slice_rows(batch, start, name)
        start += batch.num_rows


def _slice_rows(batch: Any, start: int, name: str) -> Iterator[SourceRow]:
    try:
        values = batch.to_pylist()
    except UnicodeDecodeError as error:
        if batch.num_rows == 1:
            yield SourceRow(f"{name}row {start}", None, f"broken UTF-8 ({error.reason}). Save the text as UTF-8.")
        else:
            for number in range(batch.num_rows):
                yield from _slice_rows(batch.slice(number, 1), start + number, name)
        return
    for number, value in enumerate(values, start):
        yield _sized(f"{name}row {number}", value)


def _sized(place: str, value: Any) -> SourceRow:
    return SourceRow(place, value) if _size(value) <= MAX_ROW_BYTES else SourceRow(place, None, _TOO_LONG)


def _size(value: Any) -> int:
    if isinstance(value, (str, bytes)):
        return len(value)
    if isinstance(value, Mapping):
        return sum(map(_size, value.values()))
    return sum(map(_size, value)) if isinstance(value, list) else 0


_READERS = {".json": _json, ".csv": _csv, ".parquet": _parquet, ".arrow": _arrow}
