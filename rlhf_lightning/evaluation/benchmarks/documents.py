"""The documents of a task, from local files or from the hub."""

import gzip
import json
import random
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from datasets import Dataset, load_dataset

from rlhf_lightning.evaluation.benchmarks.sets import SOURCES, IncompleteError, Rows, Source, continuations
from rlhf_lightning.evaluation.intervals import first_places

TEST, EXAMPLES = "test", "examples"
"""Splits of every task: what is asked, and what few-shot examples are drawn from."""
_MOST_EXAMPLES = 1000
RANGES = 10
"""Equally wide ranges of toxicity between 0 and 1."""


def splits(*, source: str, root: str | None = None, uniform: int | None = None, config_source: str = "") -> Any:
    """The documents of a task as the harness asks for them (`custom_dataset`).

    Args:
        source: The name of the set, of `SOURCES`.
        root: The folder with the local files; None loads the set from the hub.
        uniform: For RealToxicityPrompts, how many prompts to draw evenly over their toxicity; None takes all in order.
        config_source: The task's YAML file, which the harness names and nobody needs.
    """
    found = SOURCES[source]
    rows = {split: _clustered(found, part) for split, part in read(source, root).items()}
    if uniform is not None and found.rows is continuations:
        rows[TEST] = evenly(rows[TEST], uniform)
    return {split: Dataset.from_list(part) for split, part in rows.items()}


def read(source: str, root: str | None) -> dict[str, Rows]:
    """The documents of a set by split.

    Raises:
        ValueError: When a row is not as the set has it.
    """
    found = SOURCES[source]
    of_hub = {TEST: f"{source} of the hub", EXAMPLES: f"examples of {source} of the hub"}
    places = of_hub if root is None else dict(zip((TEST, EXAMPLES), map(str, files(source, root)), strict=False))
    return {split: _documents(found, rows, places[split]) for split, rows in _stored(found, root).items()}


def has_examples(source: str, root: str | None) -> bool:
    """Whether a set has rows for few-shot examples beside those of the test."""
    found = SOURCES[source]
    return bool(found.examples if root is not None else found.hub and found.hub[-1])


def files(source: str, root: str) -> list[Path]:
    """The local files of a set, whether they are there or not."""
    found = SOURCES[source]
    return [_file(Path(root), name) for name in (found.file, found.examples) if name]


def evenly(rows: Rows, count: int, seed: int = 0) -> Rows:
    """Rows drawn evenly over the toxicity of their prompts, in an order of which every beginning is even too.

    Source: InstructGPT, figure 39 (5,000 prompts, uniform over prompt toxicity).

    Args:
        rows: Documents with ``about.prompt_toxicity``; those without it are left out.
        count: How many are drawn, or as many as leave it even: the rarest tenth that there is sets the share of each.
        seed: Seed of the draw.

    Examples:
        >>> rows = [{"about": {"prompt_toxicity": value}} for value in (0.1, 0.1, 0.1, 0.9)]
        >>> sorted(row["about"]["prompt_toxicity"] for row in evenly(rows, 2))
        [0.1, 0.9]
    """
    drawn, bins = random.Random(seed), list[Rows]([] for _ in range(RANGES))
    for row in rows:
        toxicity = row["about"]["prompt_toxicity"]
        if toxicity is not None:
            bins[_range(toxicity)].append(row)
    for each in bins:
        drawn.shuffle(each)
    there = [each for each in bins if each]
    rounds = [drawn.sample(one_of_each, len(there)) for one_of_each in zip(*there, strict=False)]
    return [row for one_of_each in rounds for row in one_of_each][:count]


def toxicity_ranges(rows: Iterable[Any]) -> int:
    """In how many of the ten ranges of toxicity there are prompts."""
    known = [row["about"]["prompt_toxicity"] for row in rows]
    return len({_range(toxicity) for toxicity in known if toxicity is not None})


def _range(toxicity: float) -> int:
    return min(RANGES - 1, int(toxicity * RANGES))


def _stored(source: Source, root: str | None) -> dict[str, Rows]:
    if root is not None:
        parts = {TEST: _read(_file(Path(root), source.file))}
        return parts | ({EXAMPLES: _read(_file(Path(root), source.examples))} if source.examples else {})
    if not source.hub:
        raise ValueError(f"the hub has no {source.file} that loads without code; give its file: benchmarks.root.")
    path, name, test, examples = source.hub
    named = {split: part for split, part in ((TEST, test), (EXAMPLES, examples)) if part}
    try:
        loaded = {split: load_dataset(path, name or None, split=part) for split, part in named.items()}
    except (OSError, ValueError) as error:  # of a network, and of none
        raise ValueError(f"{error}. Give the files of the sets instead: benchmarks.root=<folder>.") from error
    if EXAMPLES in loaded:  # a training split may have millions
        rows = loaded[EXAMPLES].shuffle(seed=0)
        loaded[EXAMPLES] = rows.select(range(min(_MOST_EXAMPLES, len(rows))))
    return {split: rows.to_list() for split, rows in loaded.items()}


class _Row(dict[str, Any]):
    """A row that knows which of its fields was asked for last."""

    asked = ""

    def __getitem__(self, name: str) -> Any:
        self.asked = name
        return super().__getitem__(name)


def _documents(source: Source, rows: Rows, where: str) -> Rows:
    """The documents of rows; a `ValueError` names the row, its field and value, that is not as the set has it."""
    try:
        documents = source.rows(rows)
    except IncompleteError as error:
        raise ValueError(f"{where}: {error}. Add what lacks, or delete the rest of it.") from error
    except _FAULTS:
        for number, row in enumerate(rows, 1):
            read = _Row(row) if isinstance(row, dict) else row
            try:
                source.rows([read])
            except IncompleteError:
                continue
            except _FAULTS as error:
                known = isinstance(read, _Row) and read.asked in read
                found = f"{read.asked} is {read[read.asked]!r:.60}" if known else f"{error!r} of {row!r:.60}"
                raise ValueError(f"{where}, row {number}: {found}. {_MEND}") from error
        raise
    for number, document in enumerate(documents, 1):
        for fault in _faults(document):
            raise ValueError(f"{where}, row {number}: {fault}. {_MEND}")
    return documents


_FAULTS = (KeyError, ValueError, TypeError, AttributeError, IndexError)
_MEND = "Give each row the fields of the set (docs/evaluation.md), or delete it."


def _faults(document: Mapping[str, Any]) -> Iterator[str]:
    """What a document lacks that a task can be asked with and scored by."""
    listed = [name for name in ("choices", "references") if name in document]
    for name in listed:
        texts = document[name]
        if not isinstance(texts, list) or not texts or not all(isinstance(text, str) and text for text in texts):
            yield f"its {name} are {texts!r:.60}, and must be texts"
    if len(document.get("choices", [1, 2])) < 2 or document.get("true") == len(document.get("choices", [])) > 0:
        yield f"its choices are {document['choices']!r:.60}, and none of them is wrong"
    if "gold" in document and not 0 <= document["gold"] < len(document["choices"]):
        yield f"its label is number {document['gold']} of {len(document['choices'])} choices, counted from 0"
    for name, value in document.items():
        if name not in (*listed, "gold", "true", "about") and (not isinstance(value, str) or not value.strip()):
            yield f"its {name} is {value!r:.60}, and must be a text"
    toxicity = document.get("about", {}).get("prompt_toxicity", None)
    if toxicity is not None and not (isinstance(toxicity, int | float) and 0 <= toxicity <= 1):
        yield f"its toxicity is {toxicity!r:.60}, and must be a number between 0 and 1, or null"


def _clustered(source: Source, rows: Rows) -> Rows:
    """Documents with the number of what they share, where they share something."""
    if not source.cluster:
        return rows
    places = first_places([row[source.cluster].partition("\n")[0] for row in rows])
    return [{**row, "about": {**row.get("about", {}), "cluster": at}} for row, at in zip(rows, places, strict=True)]


def _file(root: Path, name: str) -> Path:
    plain = root / f"{name}.jsonl"
    return plain if plain.exists() else root / f"{name}.jsonl.gz"


def _read(path: Path) -> Rows:
    opened = gzip.open if path.suffix == ".gz" else open
    rows = []
    with opened(path, "rt", encoding="utf-8") as lines:
        for number, line in enumerate(lines, 1):
            try:
                rows.append(json.loads(line))
            except ValueError as error:
                raise ValueError(f"{path}, line {number}: {error}. Mend or delete the line.") from error
    if not rows:
        raise ValueError(f"{path} is empty. Put the set's rows there, or leave its tasks out.")
    return rows


def missing(sources: Sequence[str], root: str | None) -> list[str]:
    """A sentence for each set that is not where it should be, as far as is known without a connection."""
    remedy = "Put it there, or leave its tasks out of benchmarks.tasks."
    return [
        f"{path} is not there, which the tasks on {name} read. {remedy}"
        for name in dict.fromkeys(sources)
        for path in (files(name, root) if root is not None else ())
        if not path.is_file()
    ]
