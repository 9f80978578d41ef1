"""The rows of one file, in each of the formats that people use; what cannot be read is a row with a problem."""

import csv
import gzip
import io
import json
import zlib
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import pyarrow as pa
import pyarrow.parquet as pq
from datasets import Dataset

MAX_ROW_BYTES = 8_000_000
"""Longest row, in bytes of UTF-8; a longer one is a file whose line ends got lost, and would fill the memory."""

SUFFIXES = (".jsonl", ".json", ".csv", ".parquet", ".arrow")
"""What a folder is searched for, the first three also with ``.gz``; a file named by itself with another is JSONL."""

MAX_CELL = 16 * MAX_ROW_BYTES
"""Where a cell of a CSV file is longer, its closing quote is lost, and with it the rest of the file."""
MAX_LIST_BYTES = 1_000_000_000
"""Longest JSON list, in bytes: it is read whole."""
MAX_DEPTH = 200
"""How deep lists and objects of a row may lie in one another."""
_BATCH = 1000
_TOO_LONG = f"the row is longer than {MAX_ROW_BYTES:,} bytes. Mend its line ends, split it, or leave it out."
_TOO_DEEP = f"the row is nested deeper than {MAX_DEPTH} lists and objects. Mend it or leave it out."
_BROKEN = (OSError, EOFError, zlib.error, csv.Error, pa.ArrowException)
_DISGUISES = {
    b"\x1f\x8b": "the file is packed by gzip, which its name does not say. Rename it: add .gz.",
    b"PK\x03\x04": "the file is a ZIP archive. Unpack it, and name the file in it.",
    b"PAR1": "the file is parquet, which its name does not say. Rename it to end in .parquet.",
    b"\xff\xfe": "the file is UTF-16. Save it as UTF-8.",
    b"\xfe\xff": "the file is UTF-16. Save it as UTF-8.",
}
"""How files begin that are something else, and what to do."""


class SourceRow(NamedTuple):
    """A row, where it is, and what is wrong with it.

    Args:
        place: File and line, or file and number.
        value: What the row holds.
        problem: A sentence; None where nothing is wrong so far.
        unread: Whether this stands for the rest of a file that cannot be read, not for one row.
    """

    place: str
    value: Any
    problem: str | None = None
    unread: bool = False


def file_rows(file: Path) -> Iterator[SourceRow]:
    """The rows of a file, by the format that its name says; one that breaks off ends with a row that says so."""
    return guarded(str(file), _read(file))


def _read(file: Path) -> Iterator[SourceRow]:
    reader = _READERS.get(suffix_of(file), _json_lines)
    if reader not in (_parquet, _arrow):
        with _opened(file) as stream:
            start = stream.read(4)
        for sign, sentence in _DISGUISES.items():
            if start.startswith(sign):
                yield SourceRow(f"{file}, line 1", None, sentence, unread=True)
                return
    yield from reader(file)


def suffix_of(file: Path) -> str:
    """The format, without ``.gz``."""
    return Path(file.stem).suffix if file.suffix == ".gz" else file.suffix


def guarded(name: str, rows: Iterator[SourceRow]) -> Iterator[SourceRow]:
    """The rows; a file that breaks off ends with a row that says so."""
    place = None
    try:
        for row in rows:
            place = row.place
            yield row
    except _BROKEN as error:
        what = "the file cannot be read" if place is None else "the file cannot be read beyond this place"
        reason = str(error) or type(error).__name__
        yield SourceRow(place or name, None, f"{what} ({reason}). Fetch or write it again.", unread=True)


def table_rows(table: Dataset, name: str = "") -> Iterator[SourceRow]:
    """The rows of a ``datasets`` data set."""
    return _batch_rows(table.with_format("arrow").iter(_BATCH), name)


def _opened(file: Path) -> Any:
    return gzip.open(file, "rb") if file.suffix == ".gz" else file.open("rb")


def _json_lines(file: Path) -> Iterator[SourceRow]:
    with _opened(file) as stream:
        number, first = 0, True
        while line := stream.readline(MAX_ROW_BYTES + 1):
            number += 1
            place = f"{file}, line {number}"
            if len(line) > MAX_ROW_BYTES:
                row = SourceRow(place, _shown(line[:1000]), _TOO_LONG)
                while not line.endswith(b"\n") and (line := stream.readline(MAX_ROW_BYTES)):
                    pass
            elif line.strip():
                row = _json_row(place, line, first)
            else:
                continue
            yield row
            if row.unread:
                return
            first = False


def _json_row(place: str, line: bytes, first: bool) -> SourceRow:
    shown = _shown(line)
    try:
        value = json.loads(line.decode("utf-8-sig"))
        return SourceRow(place, shown, _TOO_DEEP) if _too_deep(value) else SourceRow(place, value)
    except RecursionError:
        return SourceRow(place, shown, _TOO_DEEP)
    except UnicodeDecodeError as error:
        reason = f"broken UTF-8 ({error.reason} at byte {error.start}). Save the file as UTF-8."
    except ValueError as error:
        begins = shown.lstrip("\ufeff \t\r")[:1] in ("{", "[")
        if not line.endswith(b"\n"):
            reason = f"the last line is cut off ({error}). Write the file again, or take the line out."
        elif first and begins and getattr(error, "pos", 0) >= len(shown.rstrip()):
            reason = "the JSON goes on in the next line. Write each object on a line of its own: jq -c ."
            return SourceRow(place, shown, reason, unread=True)
        elif first and not begins and "\t" in shown.strip():
            reason = "no JSON, but cells with tabs between them. Save the table with commas and name it .csv."
            return SourceRow(place, shown, reason, unread=True)
        else:
            reason = (
                f"no JSON ({error}). Each line must hold one JSON object; name a file of another format after it "
                f"({', '.join(SUFFIXES[1:])})."
            )
    return SourceRow(place, shown, reason)


def _shown(line: bytes) -> str:
    return line.decode(errors="backslashreplace").rstrip("\n")


def _json(file: Path) -> Iterator[SourceRow]:
    """A list of rows, which is read whole; or lines, as in a JSONL file."""
    with _opened(file) as stream:
        if not stream.read(1000).lstrip(b"\xef\xbb\xbf \t\r\n").startswith(b"["):
            yield from _json_lines(file)
            return
        stream.seek(0)
        whole = stream.read(MAX_LIST_BYTES + 1)
    try:
        if len(whole) > MAX_LIST_BYTES:
            raise ValueError(f"it is longer than {MAX_LIST_BYTES:,} bytes")
        rows = json.loads(whole.decode("utf-8-sig"))
    except (ValueError, RecursionError) as error:
        why = "it is nested too deep" if isinstance(error, RecursionError) else error
        reason = f"no JSON list ({why}). Write the file again: one list of objects, or one object per line."
        yield SourceRow(str(file), None, reason, unread=True)
        return
    for number, row in enumerate(rows):
        yield _sized(f"{file}, row {number}", row)


def _csv(file: Path) -> Iterator[SourceRow]:
    # Broken UTF-8 becomes half a surrogate pair, which the record that it belongs to refuses.
    with io.TextIOWrapper(_opened(file), encoding="utf-8-sig", errors="surrogateescape", newline="") as text:
        reader = csv.reader(_lines(text), strict=True)
        rows = _cells(reader)
        header = next(rows, [])
        if (problem := _header_problem(header)) is not None:
            yield SourceRow(f"{file}, line 1", header, problem, unread=True)
            return
        for cells in rows:
            place = f"{file}, line {reader.line_num}"
            if len(cells) == len(header):
                yield _sized(place, dict(zip(header, cells, strict=True)))
            else:
                reason = f"the line has {len(cells)} cells, the header {len(header)}. Quote cells that hold commas."
                yield SourceRow(place, cells, reason)


def _lines(text: io.TextIOBase) -> Iterator[str]:
    while line := text.readline(MAX_CELL + 1):
        if len(line) > MAX_CELL:
            raise csv.Error(f"the line after it is longer than {MAX_CELL:,} characters")
        yield line


def _cells(reader: Iterator[list[str]]) -> Iterator[list[str]]:
    """The rows that are not blank, whatever the limit is that the rest of the program lives with."""
    while True:
        usual = csv.field_size_limit(MAX_CELL)
        try:
            cells = next(reader, None)
        finally:
            csv.field_size_limit(usual)
        if cells is None:
            return
        if cells:
            yield cells


def _header_problem(header: list[str]) -> str | None:
    if len(set(header)) < len(header):
        return f"the header names a column twice ({', '.join(header)}). Rename one of them."
    separator = next((name for sign, name in (("\t", "tabs"), (";", "semicolons")) if sign in "".join(header)), None)
    if len(header) == 1 and separator is not None:
        return f"the cells have {separator} between them. Save the table with commas."
    return None


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
    if _too_deep(value):
        return SourceRow(place, None, _TOO_DEEP)
    return SourceRow(place, value) if _size(value) <= MAX_ROW_BYTES else SourceRow(place, None, _TOO_LONG)


def _too_deep(value: Any) -> bool:
    """Layer by layer, because a function that calls itself is what nesting breaks."""
    layer = [value]
    for _ in range(MAX_DEPTH + 1):
        layer = [part for each in layer if isinstance(each, (list, dict)) for part in _parts(each)]
        if not layer:
            return False
    return True


def _parts(value: Any) -> Iterable[Any]:
    return value.values() if isinstance(value, dict) else value


def _size(value: Any) -> int:
    if isinstance(value, (str, bytes)):
        return len(value)
    if isinstance(value, Mapping):
        return sum(map(_size, value.values()))
    return sum(map(_size, value)) if isinstance(value, list) else 0


_READERS = {".json": _json, ".csv": _csv, ".parquet": _parquet, ".arrow": _arrow}
