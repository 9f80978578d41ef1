"""Few-shot prompts of labelers: one instruction with K queries and responses makes K demonstrations."""

import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from rlhf_lightning.data.records import Demonstration, RecordError


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
        source: Of the demonstrations.
        labels: Of the demonstrations.

    Raises:
        RecordError: When there is no pair, or something is empty.

    Source: InstructGPT, appendix A.1.

    Example:
        >>> examples = few_shot_examples("Name the opposite.", [("hot", "cold"), ("up", "down")])
        >>> examples[0].prompt
        'Name the opposite.\n\nup\ndown\n\nhot'
        >>> examples[0].response
        'cold'
    """
    if not pairs:
        raise RecordError("field 'pairs' is empty; a few-shot prompt needs at least one query with its response.")
    made = []
    for number, (query, response) in enumerate(pairs):
        context = [f"{asked}\n{answer}" for other, (asked, answer) in enumerate(pairs) if other != number]
        prompt = "\n\n".join([instruction, *context, query])
        made.append(Demonstration(prompt, response, user, source, labels))
    return made


def read_few_shot(path: Path) -> Iterator[list[Demonstration]]:
    """The demonstrations of each row of a JSONL file.

    Args:
        path: Rows of ``{"instruction": ..., "pairs": [{"query": ..., "response": ...}, ...]}``, optionally with
            ``user``, ``source`` and ``labels``.

    Raises:
        RecordError: Names file, line, field and remedy of a malformed row.
    """
    with path.open(encoding="utf-8") as lines:
        for number, line in enumerate(lines, 1):
            if line.strip():
                try:
                    yield _examples(json.loads(line))
                except ValueError as error:
                    raise RecordError(f"{path}, line {number}: {error}") from error


def _examples(row: Any) -> list[Demonstration]:
    if not isinstance(row, dict) or not isinstance(row.get("instruction"), str):
        raise RecordError("a few-shot row must be a JSON object with a string 'instruction' and a list 'pairs'.")
    given: Any = row.get("pairs")
    well_formed = isinstance(given, list) and all(
        isinstance(pair, dict) and isinstance(pair.get("query"), str) and isinstance(pair.get("response"), str)
        for pair in given
    )
    if not well_formed:
        raise RecordError("field 'pairs' must be a list of {'query': ..., 'response': ...} with strings.")
    pairs = [(pair["query"], pair["response"]) for pair in given]
    return few_shot_examples(row["instruction"], pairs, row.get("user"), row.get("source"), row.get("labels"))
