"""Where records come from: JSONL files (also .gz), ``datasets`` data sets, hub ids, and lists in memory."""

import gzip
import hashlib
import json
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol, TypeAlias

from datasets import Dataset, load_dataset, load_from_disk

from rlhf_lightning.data.records import Comparison, Demonstration, Prompt, Record, RecordError, Text, record_from_row

Source: TypeAlias = str | Path | Mapping[str, Any] | Dataset | Sequence[Record]
"""A path, a hub id, ``{"path": ..., "columns": ..., "split": ...}``, a data set, or records."""

RECORD_TYPES: dict[str, type[Record]] = {
    "demonstrations": Demonstration,
    "comparisons": Comparison,
    "judge_comparisons": Comparison,
    "prompts": Prompt,
    "text": Text,
}
"""What a data source may hold, by name; ``judge_comparisons`` train the reward model that judges the evaluation."""


class DataSource(Protocol):
    """What the pipeline asks of a data option."""

    def records(self, name: str, split: str) -> list[Any] | None:
        """Records of that name (see ``RECORD_TYPES``) and split; None where the source has none."""

    def fingerprint(self) -> str:
        """Changes when the data changes."""


class FileData:
    """Records in files, one entry per kind and split.

    Args:
        root: Folder that relative paths start from.
        files: ``{kind: {split: source or list of sources}}`` with the kinds of ``RECORD_TYPES`` and the splits
            ``train``, ``validation``, ``test``; see :func:`read_records` for what a source may be.
        on_error: ``stop`` at malformed rows, or ``skip`` and count them in ``malformed``.

    Raises:
        ValueError: When a kind is unknown or a file does not exist.
    """

    def __init__(self, root: str, files: Mapping[str, Mapping[str, Any]], on_error: str = "stop") -> None:
        if on_error not in ("stop", "skip"):
            raise ValueError(f"on_error must be stop or skip, got {on_error!r}.")
        self.root, self.on_error = Path(root), on_error
        self.malformed: dict[str, list[str]] = {}
        self.files: dict[str, dict[str, list[Any]]] = {}
        for name, splits in files.items():
            if name not in RECORD_TYPES:
                raise ValueError(f"data.files.{name} is unknown; the kinds are {', '.join(RECORD_TYPES)}.")
            self.files[name] = {}
            for split, sources in splits.items():
                listed = sources if isinstance(sources, list) else [sources]
                self.files[name][split] = [self._rooted(source, f"{name}.{split}") for source in listed if source]

    def records(self, name: str, split: str) -> list[Record] | None:
        """Records of that kind and split; None where no file is given."""
        sources = self.files.get(name, {}).get(split)
        if not sources:
            return None
        records: list[Record] = []
        for source in sources:
            problems: list[str] | None = None if self.on_error == "stop" else []
            records += read_records(source, RECORD_TYPES[name], problems)
            if problems:
                self.malformed[source["path"] if isinstance(source, Mapping) else source] = problems
        return records

    def fingerprint(self) -> str:
        """Hash of the sources and of the bytes of every local file."""
        digest = hashlib.sha256(json.dumps(self.files, sort_keys=True, default=str).encode())
        for splits in self.files.values():
            for source in (source for sources in splits.values() for source in sources):
                path = Path(source["path"] if isinstance(source, Mapping) else source)
                for file in sorted(path.rglob("*")) if path.is_dir() else [path]:
                    if file.is_file():
                        digest.update(file.read_bytes())
        return digest.hexdigest()[:16]

    def _rooted(self, source: Any, where: str) -> Any:
        path = str(source["path"] if isinstance(source, Mapping) else source)
        local = self.root / path
        looks_like_file = path.endswith((".jsonl", ".gz", ".json")) or path.startswith((".", "/"))
        if not local.exists() and looks_like_file:
            raise ValueError(
                f"data.files.{where}: {local} does not exist. Set data.root to the folder that holds it (now "
                f"{self.root}), or the entry to null."
            )
        rooted = str(local) if local.exists() else path
        return {**source, "path": rooted} if isinstance(source, Mapping) else rooted


def read_records(source: Source, kind: type[Any], skipped: list[str] | None = None) -> list[Any]:
    r"""Read and check all records of a source.

    Args:
        source: A JSONL file (also ``.gz``), a folder that ``datasets.save_to_disk`` wrote, a hub id, a data set in
            memory, records themselves, or a mapping with ``path``, optionally ``columns`` (record field -> column
            name, a template such as ``"{instruction}\n{input}"``, a list of columns, or ``{"column": ...,
            "values": {old: new}}``), ``set`` (record field -> constant) and
            ``split`` (of a hub data set).
        kind: The record to build.
        skipped: Where to note malformed rows and go on; None stops at them.

    Raises:
        RecordError: Names file, line, field and remedy of the first malformed row, and how many there are.
    """
    if isinstance(source, (str, Path)):
        source = {"path": str(source)}
    if isinstance(source, Mapping):
        columns, constants = source.get("columns") or {}, source.get("set") or {}
        rows = _rows(str(source["path"]), source.get("split", "train"))
    elif isinstance(source, Dataset):
        columns, constants, rows = {}, {}, ((f"row {n}", row) for n, row in enumerate(source))
    else:
        return list(_checked(source, kind))
    records: list[Any] = []
    problems: list[str] = []
    for place, row in rows:
        try:
            records.append(_record(kind, _parsed(row) if isinstance(row, str) else row, columns, constants))
        except RecordError as error:
            problems.append(f"{place}: {error}")
    if skipped is not None:
        skipped += problems
    elif problems:
        more = f" ({len(problems)} malformed rows in all)" if len(problems) > 1 else ""
        raise RecordError(problems[0] + more)
    if not records:
        raise RecordError(f"{source} holds no {kind.kind}; there is nothing to train on.")
    return records


def _checked(records: Iterable[Any], kind: type[Any]) -> Iterator[Any]:
    for number, record in enumerate(records):
        if not isinstance(record, kind):
            raise RecordError(f"record {number} is a {type(record).__name__}, a {kind.__name__} is needed.")
        yield record


def _record(kind: type[Any], row: Any, columns: Mapping[str, Any], constants: Mapping[str, Any]) -> Record:
    if not isinstance(row, Mapping):
        raise RecordError(f"a row must be a JSON object, got {type(row).__name__}.")
    mapped = {**row, **{field: _column(row, column) for field, column in columns.items()}, **constants}
    return record_from_row(kind, mapped)


def _column(row: Mapping[str, Any], column: Any) -> Any:
    """The value that a mapping names: a column, a template, a list of columns, or a column with a table of values."""
    if isinstance(column, Sequence) and not isinstance(column, str):
        return [_column(row, name) for name in column]
    if isinstance(column, Mapping):
        value = _column(row, column["column"])
        if isinstance(value, (list, dict)) or value not in column["values"]:
            raise RecordError(
                f"column '{column['column']}' holds {value!r}, for which 'values' has no entry; it has "
                f"{', '.join(map(repr, column['values']))}."
            )
        return column["values"][value]
    names = re.findall(r"\{(\w+)\}", column) or [column]
    for name in names:
        if name not in row:
            raise RecordError(f"column '{name}' is missing; the row has {', '.join(row)}. Mend 'columns'.")
    if names == [column]:
        return row[column]
    return re.sub(r"\{(\w+)\}", lambda match: "" if row[match[1]] is None else str(row[match[1]]), column).strip()


def _rows(path: str, split: str) -> Iterator[tuple[str, Any]]:
    """Each row with its place; the rows of a file as the lines they are."""
    local = Path(path)
    if local.is_dir():
        folder = load_from_disk(path)
        table = folder if isinstance(folder, Dataset) else folder[split]
        yield from ((f"{path}, row {number}", row) for number, row in enumerate(table))
    elif local.exists():
        with (
            gzip.open(local, "rt", encoding="utf-8") if local.suffix == ".gz" else local.open(encoding="utf-8") as lines
        ):
            for number, line in enumerate(lines, 1):
                if line.strip():
                    yield f"{path}, line {number}", line
    else:
        table = load_dataset(path, split=split)
        yield from ((f"{path} ({split}), row {number}", row) for number, row in enumerate(table))


def _parsed(line: str) -> Any:
    try:
        return json.loads(line)
    except json.JSONDecodeError as error:
        raise RecordError(f"no JSON ({error}). Each line must hold one JSON object.") from error
