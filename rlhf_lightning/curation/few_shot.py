"""Files of the few-shot prompts that labelers wrote."""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from rlhf_lightning.data.few_shot import few_shot_examples
from rlhf_lightning.data.records import Demonstration, RecordError, short
from rlhf_lightning.data.rows.files import read_rows
from rlhf_lightning.data.rows.malformed import MalformedRows
from rlhf_lightning.data.rows.readers import SourceRow


def read_few_shot(path: Path, keep: Callable[[SourceRow], None] | None = None) -> Iterator[list[Demonstration]]:
    """The demonstrations of each row of a file.

    Args:
        path: Rows of ``{"instruction": ..., "pairs": [{"query": ..., "response": ...}, ...]}``, optionally with
            ``user``, ``source`` and ``labels``, in any of the formats of `read_records`.
        keep: Gets malformed rows; None stops at them, once all are counted.

    Raises:
        RecordError: Names file, line, field and remedy of the first malformed rows, and how many there are; or that
            there is no such file, or nothing in it.
    """
    if not path.exists():
        raise RecordError(f"{path} does not exist. Mend the path in curate.few_shot, or take it out.")
    malformed, empty = MalformedRows(), True
    for _, examples in malformed.sift(read_rows(str(path), "train"), _examples, keep):
        empty = False
        yield examples
    if empty:
        raise RecordError(f"{path} holds no few-shot prompt. Mend it, or take it out of curate.few_shot.\n{malformed}")


def _examples(given_row: SourceRow) -> list[Demonstration]:
    row = given_row.value
    if not isinstance(row, dict) or not isinstance(row.get("instruction"), str):
        raise RecordError(
            "a few-shot row must be a JSON object with a string 'instruction' and a list 'pairs', got "
            f"{short(row)}. Write it so, or leave it out."
        )
    given: Any = row.get("pairs")
    well_formed = isinstance(given, list) and all(
        isinstance(pair, dict) and isinstance(pair.get("query"), str) and isinstance(pair.get("response"), str)
        for pair in given
    )
    if not well_formed:
        raise RecordError("field 'pairs' must be a list of {'query': ..., 'response': ...} with strings. Write it so.")
    pairs = [(pair["query"], pair["response"]) for pair in given]
    return few_shot_examples(row["instruction"], pairs, row.get("user"), row.get("source"), row.get("labels"))
