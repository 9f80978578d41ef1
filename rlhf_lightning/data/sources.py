"""Where records come from: files, folders, ``datasets`` data sets, hub ids, and lists in memory."""

import hashlib
import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol, TypeAlias

from datasets import Dataset

from rlhf_lightning.artifacts import write_lines
from rlhf_lightning.data.columns import column_value
from rlhf_lightning.data.files import (
    SUFFIXES,
    SourceRow,
    files_of,
    holds_split,
    is_saved_data_set,
    read_rows,
    table_rows,
)
from rlhf_lightning.data.formats import record_from_row
from rlhf_lightning.data.records import Comparison, Demonstration, Prompt, Record, RecordError, Text, short
from rlhf_lightning.data.shapes import shaped

Source: TypeAlias = str | Path | Mapping[str, Any] | Dataset | Sequence[Record]
"""A path, a hub id, a mapping with ``path`` (see :func:`read_records`), a data set, or records."""

RECORD_TYPES: dict[str, type[Record]] = {
    "demonstrations": Demonstration,
    "comparisons": Comparison,
    "judge_comparisons": Comparison,
    "prompts": Prompt,
    "text": Text,
}
"""What a data source may hold, by name; ``judge_comparisons`` train the reward model that judges the evaluation."""

_KEYS = ("path", "hub", "load", "split", "shape", "where", "columns", "set")
_SHOWN = 3
_HINT = "(data.on_error=quarantine puts malformed rows into a file and reads the others.)"


class DataSource(Protocol):
    """What the pipeline asks of a data option."""

    def records(self, name: str, split: str) -> list[Any] | None:
        """Records of that name (see ``RECORD_TYPES``) and split; None where the source has none."""

    def fingerprint(self) -> str:
        """Changes when the data changes."""


class FileData:
    """Records in files, one entry per kind and split.

    Args:
        root: Folder that relative paths start from; None for the working directory, and for ids of the hub.
        files: ``{kind: {split: source or list of sources}}`` with the kinds of ``RECORD_TYPES`` and the splits
            ``train``, ``validation``, ``test``; see :func:`read_records` for what a source may be. A source with
            ``hub``, an id, is read from there without ``root``, and from ``path`` below it otherwise (default: the
            folder itself); what that does not hold counts as not given.
        on_error: ``stop`` at malformed rows, or ``quarantine``: write them to a file and go on.
        quarantine: Folder for malformed rows, one JSONL file per kind and split with place, problem and row.

    Raises:
        ValueError: When a kind or a key is unknown or a file does not exist.
    """

    def __init__(
        self,
        root: str | None,
        files: Mapping[str, Mapping[str, Any]],
        on_error: str = "stop",
        quarantine: str | None = None,
    ) -> None:
        if on_error not in ("stop", "quarantine"):
            raise ValueError(f"on_error must be stop or quarantine, got {on_error!r}.")
        if on_error == "quarantine" and quarantine is None:
            raise ValueError("on_error=quarantine needs the folder that malformed rows go to: quarantine=<folder>.")
        self.root = None if root is None else Path(root)
        self.quarantine = Path(quarantine) if on_error == "quarantine" and quarantine is not None else None
        self.malformed: dict[str, list[str]] = {}
        self.files: dict[str, dict[str, list[Any]]] = {}
        absent: list[str] = []
        for name, splits in files.items():
            if name not in RECORD_TYPES:
                raise ValueError(f"data.files.{name} is unknown; the kinds are {', '.join(RECORD_TYPES)}.")
            self.files[name] = {}
            for split, sources in splits.items():
                listed = sources if isinstance(sources, list) else [sources]
                found = [self._found(source, name, split, absent) for source in listed if source]
                self.files[name][split] = [source for source in found if source]
        if absent and not any(sources for splits in self.files.values() for sources in splits.values()):
            raise ValueError(
                f"data.root={root} holds no {', '.join(SUFFIXES)} file for {', '.join(absent)}. Name the folder with "
                "the files of the set, or give data.root=null to read it from the hub."
            )

    def records(self, name: str, split: str) -> list[Record] | None:
        """Records of that kind and split; None where no file is given."""
        sources = self.files.get(name, {}).get(split)
        if not sources:
            return None
        problems: list[SourceRow] | None = None if self.quarantine is None else []
        records: list[Record] = []
        for source in sources:
            records += read_records(source, RECORD_TYPES[name], problems)
        if self.quarantine is not None and problems is not None:
            self._set_aside(self.quarantine / f"{name}.{split}.jsonl", problems)
        return records

    def fingerprint(self) -> str:
        """Hash of the sources and of the bytes of every local file."""
        digest = hashlib.sha256(json.dumps(self.files, sort_keys=True, default=str).encode())
        for splits in self.files.values():
            for source in (source for sources in splits.values() for source in sources):
                path = Path(source["path"])
                files = sorted(path.rglob("*")) if is_saved_data_set(path) else files_of(path, source["split"])
                for file in (file for file in files if file.is_file()):
                    with file.open("rb") as content:
                        while block := content.read(1 << 20):
                            digest.update(block)
        return digest.hexdigest()[:16]

    def _set_aside(self, file: Path, problems: list[SourceRow]) -> None:
        if not problems:
            file.unlink(missing_ok=True)  # of an earlier run, when the data was worse
            return
        file.parent.mkdir(parents=True, exist_ok=True)
        write_lines(file, [{"place": row.place, "problem": row.problem, "row": row.value} for row in problems])
        self.malformed[str(file)] = [f"{row.place}: {row.problem}" for row in problems]

    def _found(self, source: Any, name: str, split: str, absent: list[str]) -> dict[str, Any] | None:
        """The source with its place filled in; None, and noted, where the root does not hold it."""
        where = f"data.files.{name}.{split}"
        found: dict[str, Any] = {"split": split, **(source if isinstance(source, Mapping) else {"path": str(source)})}
        if any(key not in _KEYS for key in found) or not found.keys() & {"path", "hub"}:
            raise ValueError(
                f"{where} has the keys {', '.join(found)}; it takes {', '.join(_KEYS)}, path or hub at least."
            )
        identifier = found.pop("hub", None)
        if identifier is not None and self.root is None:
            return {**found, "path": identifier}
        path = str(found.get("path", "."))
        local = (self.root or Path()) / path
        if local.exists() if identifier is None else holds_split(local, found["split"]):
            return {**found, "path": str(local)}
        if identifier is not None:
            absent.append(f"{identifier} ({where})")
            return None
        if path.endswith((*SUFFIXES, ".gz")) or path.startswith((".", "/")):
            raise ValueError(
                f"{where}: {local} does not exist. Set data.root to the folder that holds it (now {self.root}), or the "
                "entry to null."
            )
        return found


def read_records(source: Source, kind: type[Any], problems: list[SourceRow] | None = None) -> list[Any]:
    """Read and check all records of a source.

    Args:
        source: A file (JSONL, a JSON list, CSV, parquet, arrow; the first three also ``.gz``), a folder of such files
            or one that ``save_to_disk`` wrote, a hub id, a data set in memory, records themselves, or a mapping with
            ``path`` and what of the following is needed:

            - ``split``: part of a folder (by its files' names) or data set, default ``train``;
            - ``load``: further arguments of ``datasets.load_dataset``;
            - ``shape``: how rows form records, see :func:`rlhf_lightning.data.shapes.shaped`;
            - ``where``: column -> the value, or list of values, of the rows to take; ``"*"`` for all but null;
            - ``columns``: record field -> column, see :func:`rlhf_lightning.data.columns.column_value`;
            - ``set``: record field -> its value in every row.
        kind: The record to build.
        problems: Where to put malformed rows and go on; None stops at them.

    Raises:
        RecordError: Names file, line, field, value and remedy of the first malformed rows, and how many there are.
    """
    if not isinstance(source, (str, Path, Mapping, Dataset)):
        return list(_checked(source, kind))
    options, rows = _opened(source)
    records: list[Any] = []
    malformed: list[SourceRow] = []
    places: dict[Any, str] = {}
    for row in rows:
        try:
            record = _record(row, kind, options, places)
        except RecordError as error:
            malformed.append(row._replace(problem=str(error)))
        else:
            records += [] if record is None else [record]
    if malformed and problems is None:
        raise RecordError(f"{_summary(malformed)}\n{_HINT}")
    if not records:
        name = options.get("path", "the data set")
        reason = "all its rows are malformed" if malformed else "no row of it is to be read"
        more = f"\n{_summary(malformed)}" if malformed else ""
        raise RecordError(
            f"{name} holds no {kind.kind}: {reason}. Mend it, name another, or set the entry to null.{more}"
        )
    if problems is not None:
        problems += malformed
    return records


def _opened(source: str | Path | Mapping[str, Any] | Dataset) -> tuple[Mapping[str, Any], Iterable[SourceRow]]:
    """What a source says about its rows, and the rows in their shape."""
    if isinstance(source, Dataset):
        return {}, table_rows(source)
    options: Mapping[str, Any] = source if isinstance(source, Mapping) else {"path": str(source)}
    rows = read_rows(str(options["path"]), options.get("split", "train"), options.get("load"))
    return options, shaped(rows, options.get("shape"))


def _summary(malformed: Sequence[SourceRow]) -> str:
    """The first problem as a sentence, then how many there are and the next few."""
    first, *others = [f"{row.place}: {row.problem}" for row in malformed]
    if not others:
        return first
    shown = "".join(f"\n  {other}" for other in others[: _SHOWN - 1])
    rest = "" if len(malformed) <= _SHOWN else f"\n  and {len(malformed) - _SHOWN} more"
    return f"{first}\n{len(malformed)} malformed rows in all; also{shown}{rest}"


def _checked(records: Iterable[Any], kind: type[Any]) -> Iterator[Any]:
    for number, record in enumerate(records):
        if not isinstance(record, kind):
            raise RecordError(f"record {number} is a {type(record).__name__}, a {kind.__name__} is needed.")
        yield record


def _record(row: SourceRow, kind: type[Any], options: Mapping[str, Any], places: dict[Any, str]) -> Record | None:
    """The record of a row; None where the source does not want the row."""
    if row.problem is not None:
        raise RecordError(row.problem)
    if not isinstance(row.value, Mapping):
        raise RecordError(f"a row must be a JSON object, got {short(row.value)}.")
    for column, wanted in (options.get("where") or {}).items():
        value = column_value(row.value, column)
        given = value is not None if wanted == "*" else value in (wanted if isinstance(wanted, list) else [wanted])
        if not given:
            return None
    columns = {field: column_value(row.value, column) for field, column in (options.get("columns") or {}).items()}
    fields = {**row.value, **columns, **(options.get("set") or {})}
    record = record_from_row(kind, fields)
    identifier = fields.get("id")
    if isinstance(identifier, (str, int)):
        # Files that were put together from several sets number the rows of each.
        key = (str(row.value.get("source")), identifier)
        if key in places:
            raise RecordError(
                f"field 'id' is {short(identifier)}, as at {places[key]}. Leave one of the rows out, or hide the "
                "column if it names something else: 'columns: {id: null}'."
            )
        places[key] = row.place
    return record
