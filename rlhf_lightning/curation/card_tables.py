"""Tables 1 and 6 to 11 of InstructGPT, for the user's own data. What the data do not say is named, never invented."""

from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import TypeAlias

import numpy as np

from rlhf_lightning.curation.account import ANNOTATIONS, DATASETS, Account, Numbers, Tally

Cell: TypeAlias = str | int | float | None
Tallies: TypeAlias = Mapping[tuple[str, str], Tally]
"""By data set and split."""

LENGTHS = ["rows", "mean", "std", "min", "25 %", "50 %", "75 %", "max"]
"""Columns of a table of lengths in tokens."""


@dataclass(frozen=True)
class Table:
    """One table.

    Args:
        number: Number of the table in the paper.
        title: What it shows.
        columns: Headings.
        rows: Cells; None where there is nothing to say.
        lacks: How many of how many rows lack a field that the table needs, by field.
    """

    number: int
    title: str
    columns: list[str]
    rows: list[list[Cell]]
    lacks: Mapping[str, tuple[int, int]] = field(default_factory=dict)

    @property
    def missing(self) -> list[str]:
        """What is not there, in sentences."""
        absent = [f"`{name}`" for name, (lacking, total) in self.lacks.items() if lacking == total]
        fields = f"field{'s' * (len(absent) > 1)} {', '.join(absent)}"
        return [f"table {self.number} needs the {fields}: not in these records"] * bool(absent) + [
            f"table {self.number}: {lacking} of {total} rows lack the field `{name}`"
            for name, (lacking, total) in self.lacks.items()
            if 0 < lacking < total
        ]


def card_tables(account: Account) -> list[Table]:
    """Tables 1 and 6 to 11 over the rows that stayed."""
    tallies = {(name, split): tally for name in DATASETS.values() for split, tally in account.splits(name)}
    return [
        _use_cases(tallies),
        _sizes(tallies),
        _annotations(tallies),
        _per_group(tallies, account.owners.column),
        _lengths(tallies),
        _lengths_by_use_case(account, tallies),
        _lengths_by_source(account, tallies),
    ]


def _use_cases(tallies: Tallies) -> Table:
    counts: dict[str, Counter[str]] = {}
    for (name, _), tally in tallies.items():
        counts[name] = counts.get(name, Counter()) + tally.use_cases
    total = sum(counts.values(), Counter[str]())
    columns = ["use case", *(column for name in counts for column in (name, f"{name}, %"))]
    rows: list[list[Cell]] = []
    for case in sorted(total, key=lambda case: (-total[case], case)):
        shares = ((own[case], 100 * own[case] / max(1, own.total())) for own in counts.values())
        rows.append([case, *(cell for pair in shares for cell in pair)])
    lacks = {"use_case": _lacking(tallies, lambda tally: tally.use_cases.total())}
    return Table(1, "Use cases of the prompts", columns, rows, lacks)


def _sizes(tallies: Tallies) -> Table:
    rows: list[list[Cell]] = []
    for (name, split), tally in tallies.items():
        rows += [[name, split, source, count] for source, count in tally.sources.most_common()]
        if unknown := tally.rows - tally.sources.total():
            rows.append([name, split, "not given", unknown])
    lacks = {"source": _lacking(tallies, lambda tally: tally.sources.total())}
    return Table(6, "Sizes of the data sets, in prompts", ["data", "split", "source", "rows"], rows, lacks)


def _annotations(tallies: Tallies) -> Table:
    lacks = {question: _lacking(tallies, partial(_answers, question)) for question in ANNOTATIONS}
    answered = [question for question in ANNOTATIONS if lacks[question][0] < lacks[question][1]]
    rows: list[list[Cell]] = [
        [question.replace("_", " "), *(_percent_yes(tally, question) for tally in tallies.values())]
        for question in answered
    ]
    columns = ["annotation", *(f"{name} {split} %" for name, split in tallies)]
    return Table(7, "Annotations of the prompts", columns, rows, lacks)


def _per_group(tallies: Tallies, column: str) -> Table:
    rows: list[list[Cell]] = []
    for (name, split), tally in tallies.items():
        if tally.groups:
            _, counts = np.unique(np.asarray(tally.groups), return_counts=True)
            rows.append([name, split, len(counts), float(counts.mean()), int(counts.max())])
    lacks = {column: _lacking(tallies, lambda tally: len(tally.groups))}
    columns = ["data", "split", f"{column}s", f"prompts per {column}", "most"]
    return Table(8, f"Prompts per {column}", columns, rows, lacks)


def _lengths(tallies: Tallies) -> Table:
    rows = [[name, split, *_summary(tally.prompt_tokens)] for (name, split), tally in tallies.items()]
    return Table(9, "Lengths of the prompts by data set, in tokens", ["data", "split", *LENGTHS], rows)


def _lengths_by_use_case(account: Account, tallies: Tallies) -> Table:
    cases = sorted(account.tokens_by_use_case.items(), key=lambda item: -len(item[1]))
    rows = [[case, *_summary(lengths)] for case, lengths in cases]
    lacks = {"use_case": _lacking(tallies, lambda tally: tally.use_cases.total())}
    return Table(10, "Lengths of the prompts by use case, in tokens", ["use case", *LENGTHS], rows, lacks)


def _lengths_by_source(account: Account, tallies: Tallies) -> Table:
    rows: list[list[Cell]] = []
    for source, (prompts, responses) in account.tokens_by_source.items():
        rows.append([source, "prompt", *_summary(prompts)])
        rows.append([source, "demonstration", *_summary(responses)])
    own = {key: tally for key, tally in tallies.items() if key[0] == DATASETS["demonstrations"]}
    lacks = {"source": _lacking(own, lambda tally: tally.sources.total())} if own else {"response": (0, 0)}
    title = "Lengths of demonstrations and their prompts by source, in tokens"
    return Table(11, title, ["source", "length of", *LENGTHS], rows, lacks)


def _summary(lengths: Numbers) -> list[Cell]:
    values = np.asarray(lengths, np.float64)
    quartiles = np.quantile(values, (0, 0.25, 0.5, 0.75, 1))
    return [len(values), float(values.mean()), float(values.std()), *(float(value) for value in quartiles)]


def _answers(question: str, tally: Tally) -> int:
    return tally.annotations[question, True] + tally.annotations[question, False]


def _percent_yes(tally: Tally, question: str) -> float | None:
    answers = _answers(question, tally)
    return 100 * tally.annotations[question, True] / answers if answers else None


def _lacking(tallies: Tallies, present: Callable[[Tally], int]) -> tuple[int, int]:
    total = sum(tally.rows for tally in tallies.values())
    return total - sum(present(tally) for tally in tallies.values()), total
