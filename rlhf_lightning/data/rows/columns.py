"""What a source's ``columns`` say: which column of a row becomes which field of a record."""

import math
import re
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

from rlhf_lightning.data.records import RecordError, short

_STEP = re.compile(r"\[[^\]]*\]|[^.\[\]]+")
_PLACE = re.compile(r"\{([^{}]+)\}")
_FORMS = (({"column", "values"}, "column"), ({"rank", "best"}, "rank"), ({"role", "content"}, "content"))
"""Mappings that stand for one value, and where they name its columns."""
_PATH = re.compile(r"[^.\[\]]+(\.[^.\[\]]+|\[(\*|:?-?\d+)\])*")


def column_value(row: Mapping[str, Any], column: Any) -> Any:
    r"""The value that one entry of ``columns`` stands for.

    ============================================ ======================================================================
    ``answer``                                   that column
    ``info.title``, ``messages[-1].content``     inside a column: by name, by place
    ``messages[:-1]``, ``answers[*].text``       all but the last; of every element
    ``"{instruction}\n{input}"``                 a template, without spaces at its ends; null is written as nothing
    ``[first, second]``                          a list
    ``[{role: user, content: "{question}"}]``    messages, of a column or a template each; none of an empty system text
    ``{column: label, values: {a: 1, b: 2}}``    a table of values
    ``{rank: answers[*].score, best: highest}``  ranks from scores (or ``lowest``: from places), equal ones tied
    ``null``                                     nothing: hides a column of the field's name
    ============================================ ======================================================================

    Examples:
        >>> row = {"answers": [{"text": "a", "score": 0.5}, {"text": "b", "score": 2}, {"text": "c", "score": 0.5}]}
        >>> column_value(row, "answers[*].text")
        ['a', 'b', 'c']
        >>> column_value(row, {"rank": "answers[*].score", "best": "highest"})
        [2, 1, 2]

    Raises:
        RecordError: Names the column that the row lacks, or the value that cannot be mapped.
    """
    if column is None:
        return None
    if isinstance(column, str):
        if column in row or "{" not in column:
            return _path_value(row, column)
        return _PLACE.sub(partial(_template_value, row), column).strip()
    if isinstance(column, Sequence):
        values = [column_value(row, name) for name in column]
        return [value for value, name in zip(values, column, strict=True) if value is not None or not _is_message(name)]
    if _is_message(column):
        return _message(row, column)
    if isinstance(column, Mapping) and column.keys() == {"column", "values"}:
        return _table_value(column_value(row, column["column"]), column)
    if isinstance(column, Mapping) and column.keys() == {"rank", "best"} and column["best"] in ("highest", "lowest"):
        scores = column_value(row, column["rank"])
        try:
            return dense_ranks(scores, highest_is_best=column["best"] == "highest")
        except RecordError as error:
            raise RecordError(f"column '{column['rank']}' {error}") from error
    raise RecordError(_no_column(column))


def check_column(column: Any) -> None:
    """Refuse what stands for no value of any row.

    Raises:
        RecordError: Says what stands for one.
    """
    if isinstance(column, str):
        rest = _PLACE.sub("", column)
        if rest.count("{") != rest.count("}"):
            raise RecordError(f"the template {short(column)} has a brace that is not closed. Mend 'columns'.")
    elif isinstance(column, Sequence):
        for name in column:
            check_column(name)
    elif isinstance(column, Mapping):
        place = next((name for keys, name in _FORMS if column.keys() == keys), None)
        table = isinstance(column.get("values", {}), Mapping)
        if place is None or not table or column.get("best", "highest") not in ("highest", "lowest"):
            raise RecordError(_no_column(column))
        check_column(column[place])
    elif column is not None:
        raise RecordError(_no_column(column))


def _no_column(column: Any) -> str:
    return (
        f"'columns' holds {short(column)}, which is no name, template, list, message, {{column: ..., values: ...}} or "
        "{rank: ..., best: highest or lowest}. Mend 'columns'."
    )


def columns_of(column: Any) -> set[str]:
    """The columns of a row that an entry of ``columns`` reads.

    Examples:
        >>> columns_of({"rank": "answers[*].score", "best": "highest"}) >= {"answers"}
        True
    """
    if isinstance(column, str):
        paths = _PLACE.findall(column) if "{" in column else [column]
        return {column, *paths, *(step for path in paths for step in _STEP.findall(path)[:1])}
    if isinstance(column, Mapping):
        named = [column[name] for keys, name in _FORMS if column.keys() == keys]
        return columns_of(named or list(column.values()))
    return set().union(*map(columns_of, column)) if isinstance(column, Sequence) else set()


def _is_message(column: Any) -> bool:
    return isinstance(column, Mapping) and column.keys() == {"role", "content"}


def _message(row: Mapping[str, Any], column: Mapping[str, Any]) -> dict[str, Any] | None:
    """A message; None of a system message without a text."""
    if column["role"] not in ("system", "user", "assistant"):
        raise RecordError(
            f"'columns' holds a message of the role {short(column['role'])}; it must be system, user or assistant. "
            "Mend 'columns'."
        )
    content = column_value(row, column["content"])
    if column["role"] == "system" and (content is None or (isinstance(content, str) and not content.strip())):
        return None
    return {"role": column["role"], "content": content}


def label_values(row: Mapping[str, Any], columns: Mapping[str, Any]) -> dict[str, str | bool | None]:
    """The labels of a row whose ``columns`` name one column for each.

    ``true`` and ``false`` become truth values, however a file writes them; a blank cell is nothing, a number its text.

    Examples:
        >>> row = {"task": "chat", "vague": "False", "team": 7, "tone": " "}
        >>> label_values(row, {"use_case": "task", "ambiguous": "vague", "organisation": "team", "tone": "tone"})
        {'use_case': 'chat', 'ambiguous': False, 'organisation': '7', 'tone': None}
    """
    labels = {name: column_value(row, column) for name, column in columns.items()}
    for name, value in labels.items():
        if isinstance(value, str):
            labels[name] = {"true": True, "false": False, "": None}.get(value.strip().lower(), value)
        elif isinstance(value, (int, float)) and not isinstance(value, bool):
            labels[name] = str(value)
    return labels


def dense_ranks(scores: Any, *, highest_is_best: bool) -> list[int]:
    """Ranks from 1 (best) without gaps; equal scores are ties.

    Args:
        scores: Numbers, or strings that hold one.
        highest_is_best: Whether the highest score has rank 1; otherwise the lowest has.

    Raises:
        RecordError: When a score is no finite number.
    """
    if not isinstance(scores, list):
        raise RecordError(f"holds {short(scores)}, which is no list of scores. Mend 'columns'.")
    numbers = [_number(score) for score in scores]
    order = {number: rank for rank, number in enumerate(sorted(set(numbers), reverse=highest_is_best), 1)}
    return [order[number] for number in numbers]


def _number(score: Any) -> float:
    try:
        number = float(score) if isinstance(score, (int, float, str)) and not isinstance(score, bool) else math.nan
    except (ValueError, OverflowError):
        number = math.nan
    if not math.isfinite(number):
        raise RecordError(f"holds the score {short(score)}, which is no finite number. Mend it or leave the row out.")
    return number


def _template_value(row: Mapping[str, Any], match: re.Match[str]) -> str:
    value = _path_value(row, match[1])
    if isinstance(value, (list, Mapping)):
        raise RecordError(f"column '{match[1]}' holds {short(value)}, which a template cannot write. Mend 'columns'.")
    return "" if value is None else str(value)


def _table_value(value: Any, column: Mapping[str, Any]) -> Any:
    table = column["values"]
    # Cells of a CSV file are strings: "1" finds the entry 1.
    written = {str(key): key for key in table}
    if isinstance(value, (list, dict)) or (value not in table and str(value) not in written):
        raise RecordError(
            f"column '{column['column']}' holds {short(value)}, for which 'values' has no entry; it has "
            f"{', '.join(map(repr, table))}. Add the entry or leave the row out."
        )
    return table[value] if value in table else table[written[str(value)]]


def _path_value(row: Mapping[str, Any], path: str) -> Any:
    if path in row:
        return row[path]
    if not _PATH.fullmatch(path):
        raise RecordError(f"column '{path}' is no path such as a.b, a[-1].b or a[*].b. Mend 'columns'.")
    return _follow(row, _STEP.findall(path), path)


def _follow(value: Any, steps: Sequence[str], path: str) -> Any:
    for number, step in enumerate(steps):
        if not step.startswith("["):
            if not isinstance(value, Mapping) or step not in value:
                whole = "the row" if number == 0 else f"what '{step}' is looked up in"
                has = f"has {', '.join(map(str, value))}" if isinstance(value, Mapping) else f"is {short(value)}"
                raise RecordError(f"column '{path}' is missing; {whole} {has}. Mend 'columns'.")
            value = value[step]
        elif not isinstance(value, list):
            raise RecordError(f"column '{path}' needs a list where it has {step}, got {short(value)}. Mend 'columns'.")
        elif step == "[*]":
            return [_follow(item, steps[number + 1 :], path) for item in value]
        elif step.startswith("[:"):
            value = value[: int(step[2:-1])]
        elif -len(value) <= int(step[1:-1]) < len(value):
            value = value[int(step[1:-1])]
        else:
            raise RecordError(f"column '{path}' is missing; the list has {len(value)} elements. Mend 'columns'.")
    return value
