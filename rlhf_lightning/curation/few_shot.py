"""Few-shot prompts of labelers: one instruction with K queries and responses makes K demonstrations."""

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from rlhf_lightning.data.records import Demonstration, RecordError, short
from rlhf_lightning.data.rows.files import read_rows
from rlhf_lightning.data.rows.malformed import MalformedRows
from rlhf_lightning.data.rows.readers import SourceRow


def few_shot_examples(
    instruction: str,
    pairs: Sequence[tuple[str, str]],
    user: str | None = None,
    source: str | None = None,
    labels: dict[str, str | bool | None] | None = None,
) -> list[Demonstration]:
    r"""Each query with its response as a demonstration, the other K - 1 pairs as its context.

    Args:
        instruction: What the labeler asks for.
        pairs: K >= 1 queries, each with its response.
        user: The labeler.
        source: Source of the demonstrations.
        labels: Labels of the demonstrations.

    Raises:
        RecordError: When there is no pair, or something is empty.

    Source: InstructGPT, appendix A.1.

    Examples:
        >>> examples = few_shot_examples("Name the opposite.", [("hot", "cold"), ("up", "down")])
        >>> examples[0].prompt
        'Name the opposite.\n\nup\ndown\n\nhot'
        >>> examples[0].response
        'cold'
    """
    if not pairs:
        raise RecordError("field 'pairs' is empty; add at least one query with its response, or leave the row out.")
    made = []
    for number, (query, response) in enumerate(pairs):
        context = [f"{asked}\n{answer}" for other, (asked, answer) in enumerate(pairs) if other != number]
        prompt = "\n\n".join([instruction, *context, query])
        made.append(Demonstration(prompt, response, user, source, labels))
    return made


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
