"""From a source to records: every row becomes one, or a problem with its place."""

import json
import random
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import fields
from operator import itemgetter
from pathlib import Path
from typing import Any, TypeAlias, TypeVar

from datasets import Dataset

from rlhf_lightning.arguments import Count, Node, fault
from rlhf_lightning.data.records import Comparison, Demonstration, Prompt, Record, RecordError, Text, short
from rlhf_lightning.data.rows.columns import check_column, column_value, columns_of, label_values
from rlhf_lightning.data.rows.files import read_rows
from rlhf_lightning.data.rows.formats import record_from_row, why_left_out
from rlhf_lightning.data.rows.malformed import MalformedRows
from rlhf_lightning.data.rows.readers import SourceRow, table_rows
from rlhf_lightning.data.rows.shapes import shaped

Source: TypeAlias = str | Path | Mapping[str, Any] | Dataset | Iterable[Record] | Iterable[Mapping[str, Any]]
"""A path, a hub id, a mapping with ``path`` (see `read_records`), a data set, or records or rows in memory."""

Item = TypeVar("Item")
KEYS = ("path", "load", "split", "shape", "where", "columns", "set", "sample")
"""What a mapping may say of a source."""

_TYPES: Mapping[str, Any] = {
    **dict.fromkeys(("path", "hub", "split"), str | None),
    **dict.fromkeys(("load", "where"), Mapping[str, Any] | None),
    "sample": Count | None,
}
"""What it may say there."""

FIELDS = tuple(
    dict.fromkeys(
        [field.name for kind in (Prompt, Demonstration, Comparison, Text) for field in fields(kind)]
        + ["completion", "chosen", "rejected", "messages", "system", "tools", "weight", "id"]
    )
)
"""What ``columns`` and ``set`` may fill: fields of any record, and those of the formats that are read as records."""
_REFERENCES = ("response", "completion", "id")
"""Those that a reward function may ask for."""


def read_records(
    source: Source,
    kind: type[Any],
    keep: Callable[[SourceRow], None] | None = None,
    left_out: Callable[[SourceRow], None] | None = None,
) -> list[Any]:
    """Read and check all records of a source.

    Args:
        source: A file (JSONL, a JSON list, CSV, parquet, arrow; the first three also ``.gz``), a folder of such files
            or one that ``save_to_disk`` wrote, a hub id, a data set in memory, records themselves, rows as
            dicts (in any iterable), or a mapping with ``path`` and what of the following is needed:

            - ``split``: part of a folder (by its files' names) or data set, default ``train``;
            - ``load``: further arguments of ``datasets.load_dataset``;
            - ``shape``: how rows form records, see `rlhf_lightning.data.rows.shapes.shaped`;
            - ``where``: column -> the value, or list of values, of the rows to take; ``"*"`` for all but null;
            - ``columns``: record field -> column, see `rlhf_lightning.data.rows.columns.column_value`; for
              ``labels`` also label -> column, see `rlhf_lightning.data.rows.columns.label_values`; for ``fields`` of
              prompts likewise name -> column, instead of all columns that nothing else takes;
            - ``set``: record field -> its value in every row;
            - ``sample``: how many of its records to take, drawn at random, always the same; all where there are fewer.
        kind: The record to build.
        keep: Gets malformed rows; None stops at them, once all are counted.
        left_out: Gets the rows that hold no such record though nothing is wrong with them (KTO rows with label false
            are no demonstrations), the reason as their problem.

    Raises:
        RecordError: Names file, line, field, value and remedy of the first malformed rows, and how many there are; or
            what the mapping says that no source knows.
    """
    if isinstance(source, Mapping) and "path" not in source:
        names = ", ".join(map(str, source))
        raise RecordError(
            f"this is a {type(source).__name__} with {names}; rows are needed (a list of dicts, or a Dataset), or a "
            "mapping with path. Of a DatasetDict give a split, such as data['train']; of columns make rows."
        )
    if isinstance(source, (str, Path, Mapping, Dataset)):
        return [record for _, record in placed_records(source, kind, keep, left_out)]
    rows = list(source)
    if rows and all(isinstance(row, Mapping) for row in rows):
        return [record for _, record in placed_records(rows, kind, keep, left_out)]
    for number, record in enumerate(rows):
        if not isinstance(record, kind):
            raise RecordError(
                f"record {number} is a {type(record).__name__}, a {kind.__name__} is needed, or a dict with its fields "
                "in every row. Of a table take its rows, such as frame.to_dict('records')."
            )
    return rows


def placed_records(
    source: str | Path | Mapping[str, Any] | Dataset | Sequence[Mapping[str, Any]],
    kind: type[Any],
    keep: Callable[[SourceRow], None] | None = None,
    left_out: Callable[[SourceRow], None] | None = None,
    check: Callable[[Record], None] | None = None,
) -> Iterator[tuple[str, Any]]:
    """The same one at a time, each record with its place.

    Args:
        source: As above, as are the next three.
        kind: The record to build.
        keep: Gets malformed rows.
        left_out: Gets rows that hold no such record.
        check: Raises a `RecordError` at records that cannot be used for another reason than their form.
    """
    options, rows = _opened(source)
    places: dict[Any, str] = {}
    malformed, empty = MalformedRows(), True
    others = 0

    def make(row: SourceRow) -> Record | None:
        nonlocal others
        made = _record(row, kind, options, places)
        if isinstance(made, str):
            others += 1
            if left_out is not None:
                left_out(row._replace(problem=made))
            return None
        if made is not None:
            object.__setattr__(made, "place", row.place)  # as a frozen dataclass sets its own fields
            if check is not None:
                check(made)
        return made

    for place, record in drawn(malformed.sift(rows, make, keep), options.get("sample")):
        empty = False
        yield place, record
    if empty:
        name = options.get("path", "the data set")
        reason = "all its rows are malformed" if malformed else "no row of it is to be read"
        reason += f" ({others} rows with label false)" if others else ""
        remedy = "Mend it, name another, or set the entry to null." + (f"\n{malformed}" if malformed else "")
        raise RecordError(f"{name} holds no {kind.kind}: {reason}. {remedy}")


def drawn(items: Iterable[Item], count: int | None) -> Iterable[Item]:
    """So many of the items, each as likely, in their order; no more than these are held. None is all.

    Examples:
        >>> drawn("abc", 5)
        ['a', 'b', 'c']
    """
    if count is None:
        return items
    lot, kept = random.Random(0), dict[int, tuple[int, Item]]()
    for number, item in enumerate(items):
        place = number if number < count else lot.randrange(number + 1)
        if place < count:
            kept[place] = number, item
    return [item for _, item in sorted(kept.values(), key=itemgetter(0))]


def _opened(source: Any) -> tuple[Mapping[str, Any], Iterable[SourceRow]]:
    """What a source says of its rows, and the rows."""
    if isinstance(source, Dataset):
        return {}, table_rows(source)
    if not isinstance(source, (str, Path, Mapping)):
        return {}, (SourceRow(f"row {number}", row) for number, row in enumerate(source))
    options: Mapping[str, Any] = source if isinstance(source, Mapping) else {"path": str(source)}
    check_source(options, f"the source {options.get('path')}")
    if "path" not in options:
        raise RecordError(f"the source {short(dict(options))} has no 'path'. Add the file, folder or id to read.")
    rows = read_rows(str(options["path"]), options.get("split", "train"), options.get("load"))
    return options, shaped(rows, options.get("shape"))


def check_source(source: Mapping[str, Any], where: str, keys: Sequence[str] = KEYS) -> None:
    """Refuse what no source knows, which a slip of the pen would otherwise hide.

    Args:
        source: The mapping.
        where: What the message calls it.
        keys: The known ones.

    Raises:
        RecordError: Names the unknown key or field, and those that there are.
    """
    if unknown := [str(key) for key in source if key not in keys]:
        known = f"it takes {', '.join(keys)}"
        raise RecordError(f"{where} has the key {short(unknown[0])}; {known}. Mend the key or take it out.")
    for name, kind in _TYPES.items():
        said = None if isinstance(source.get(name), Path) else fault(source.get(name), kind, plain=True, objects=Node)
        if said is not None:
            raise RecordError(f"{where}.{name} {said}.")
    shaped((), source.get("shape"))
    for name in ("columns", "set"):
        columns = source.get(name) or {}
        if not isinstance(columns, Mapping):
            remedy = "Write it as field: value, such as prompt: question."
            raise RecordError(f"{where}: '{name}' is {short(columns)}. {remedy}")
        if unknown := [str(field) for field in columns if field not in FIELDS]:
            raise RecordError(
                f"{where}: '{name}' names {short(unknown[0])}, which no record has; the fields are "
                f"{', '.join(FIELDS)}. Mend the name, or put it below 'labels' or 'fields'."
            )
    for name, column in (source.get("columns") or {}).items():
        try:
            _check_columns(name, column)
        except RecordError as error:
            raise RecordError(f"{where}.columns.{name}: {error}") from error


def _check_columns(name: str, column: Any) -> None:
    """Refuse what names no columns, before a row is read."""
    for each in column.values() if _names_columns(name, column) else [column]:
        check_column(each)


def _names_columns(name: str, column: Any) -> bool:
    """Whether an entry of ``columns`` names a column for each label or field."""
    return name in ("labels", "fields") and isinstance(column, Mapping) and column.keys() != {"column", "values"}


def _record(row: SourceRow, kind: type[Any], options: Mapping[str, Any], places: dict[Any, str]) -> Record | str | None:
    """The record of a row; None where the source does not want the row, or the reason why it holds none."""
    if not isinstance(row.value, Mapping):
        raise RecordError(f"a row must be a JSON object, got {short(row.value)}. Mend it or leave it out.")
    for column, wanted in (options.get("where") or {}).items():
        value = column_value(row.value, column)
        if value is None if wanted == "*" else value not in (wanted if isinstance(wanted, list) else [wanted]):
            return None
    values = _values(row.value, kind, options)
    if (reason := why_left_out(kind, values)) is not None:
        return reason
    record = record_from_row(kind, values)
    identifier = values.get("id")
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


def _values(row: Mapping[str, Any], kind: type[Any], options: Mapping[str, Any]) -> dict[str, Any]:
    """The row with what the source's ``columns`` and ``set`` say."""
    columns = options.get("columns") or {}
    values = dict(row)
    for name, column in columns.items():
        if not _names_columns(name, column):
            value = column_value(row, column)
            values[name] = _as_json(value) if name == "fields" else value
        elif name == "labels":
            values[name] = label_values(row, column)
        else:
            values[name] = {field: _as_json(column_value(row, place)) for field, place in column.items()}
    values |= options.get("set") or {}
    if kind is Prompt and "fields" not in columns:
        values["fields"] = _further(values, columns)
    return values


def _further(values: Mapping[str, Any], columns: Mapping[str, Any]) -> Any:
    """The columns that no field of a prompt takes, and the fields that the row itself has."""
    own = values.get("fields")
    if own is not None and not isinstance(own, Mapping):
        return own  # which is refused
    read = {name for name, column in columns.items() if column is None} | columns_of(list(columns.values()))
    taken = read | {name for name in FIELDS if name not in _REFERENCES}
    further = {str(name): _as_json(value) for name, value in values.items() if name not in taken}
    return {**further, **(own or {})} or None


def _as_json(value: Any) -> Any:
    """The value as JSON has it: a date as text."""
    try:
        json.dumps(value)
    except (TypeError, ValueError):
        return json.loads(json.dumps(value, default=str))
    return value
