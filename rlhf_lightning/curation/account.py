"""The books of curation: what came in, what stayed, and what became of the rest."""

import json
from array import array
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping, MutableSequence
from dataclasses import dataclass, field
from typing import IO, Any, TypeAlias

from rlhf_lightning.curation.groups import SPLITS, GroupSplits
from rlhf_lightning.curation.keys import key_of
from rlhf_lightning.curation.rows import Row
from rlhf_lightning.data.rows.readers import SourceRow

DATASETS = {"demonstrations": "SFT", "comparisons": "RM", "judge_comparisons": "judge", "prompts": "PPO"}
"""What the paper's tables call the kinds of record with a prompt; the judge is ours."""

CURATED = (*DATASETS, "text")
"""All that is curated; of text only what overlaps with an evaluation prompt is dropped."""

ANNOTATIONS = (
    "ambiguous",
    "sensitive_content",
    "identity_dependent",
    "closed_domain",
    "continuation_style",
    "requests_opinion",
    "requests_advice",
    "requests_moral_judgment",
    "safety_constraints",
    "other_constraints",
    "intent_unclear",
)
"""The questions of InstructGPT's table 7, in its order: labels that are true or false."""

Numbers: TypeAlias = MutableSequence[int]
"""An ``array``, so that each takes eight bytes."""


def _numbers() -> Numbers:
    return array("Q")


@dataclass
class Tally:
    """What the tables need to know about the rows of one data set in one split.

    Args:
        rows: How many rows.
        groups: The key of the group of each row that has one.
        prompt_tokens: Length of each row's prompt.
        sources: How many rows of each source.
        use_cases: How many rows of each use case.
        annotations: How many rows say yes, and no, to each question of table 7.
    """

    rows: int = 0
    groups: Numbers = field(default_factory=_numbers)
    prompt_tokens: Numbers = field(default_factory=_numbers)
    sources: Counter[str] = field(default_factory=Counter)
    use_cases: Counter[str] = field(default_factory=Counter)
    annotations: Counter[tuple[str, bool]] = field(default_factory=Counter)

    def add(self, row: Row, group: str | None) -> None:
        """Count a row, and whose it is."""
        self.rows += 1
        self.prompt_tokens.append(row.prompt_tokens)
        if group is not None:
            self.groups.append(key_of(group))
        if row.record.source is not None:
            self.sources[row.record.source] += 1
        labels = row.record.labels or {}
        if labels.get("use_case") is not None:
            self.use_cases[str(labels["use_case"])] += 1
        self.annotations.update((name, labels[name]) for name in ANNOTATIONS if isinstance(labels.get(name), bool))


@dataclass
class KindAccount:
    """The books of one kind of record; ``raw + added == kept + dropped``.

    Args:
        raw: Rows that came in, malformed ones included.
        added: Rows that the expansion of few-shot prompts added.
        kept: Rows that stayed, by split.
        dropped: Rows that did not, by reason.
        changed: Rows that stayed with another text, by reason.
        personal: Pieces of personal data in the training split, by type.
        languages: Rows by the language of their prompt, where it was identified.
    """

    raw: int = 0
    added: int = 0
    kept: Counter[str] = field(default_factory=Counter)
    dropped: Counter[str] = field(default_factory=Counter)
    changed: Counter[str] = field(default_factory=Counter)
    personal: Counter[str] = field(default_factory=Counter)
    languages: Counter[str] = field(default_factory=Counter)

    @property
    def balanced(self) -> bool:
        """Whether every row that came in or was added is kept or dropped, once."""
        return self.raw + self.added == self.kept.total() + self.dropped.total()

    def plain(self) -> dict[str, Any]:
        """The same as plain data, the largest counts first."""
        splits = {split: self.kept[split] for split in SPLITS}
        sums = {"raw": self.raw, "added": self.added, "kept": self.kept.total(), "splits": splits}
        counts = ("dropped", "changed", "personal", "languages")
        return {**sums, **{name: dict(getattr(self, name).most_common()) for name in counts}}


class Account:
    """The books of a curation and what its tables need.

    Args:
        splits: Knows whose a row is.
        ranked: Prompts per split that are to be ranked later, where there are no rankings yet: the first ones of the
            prompts stand for them in the tables.
        log: The file that gets place and reason of every row that is dropped.
    """

    def __init__(
        self, splits: GroupSplits, ranked: Mapping[str, int] | None = None, log: IO[str] | None = None
    ) -> None:
        self.owners, self.ranked, self.log = splits, dict(ranked or {}), log
        self.kinds: defaultdict[str, KindAccount] = defaultdict(KindAccount)
        self.tallies: defaultdict[tuple[str, str], Tally] = defaultdict(Tally)
        self.tokens_by_use_case: defaultdict[str, Numbers] = defaultdict(_numbers)
        self.tokens_by_source: defaultdict[str, tuple[Numbers, Numbers]] = defaultdict(lambda: (_numbers(), _numbers()))

    def keep(self, kind: str, row: Row) -> None:
        """Book a row that stays."""
        books = self.kinds[kind]
        books.kept[row.split] += 1
        if kind not in DATASETS:
            return
        group = self.owners.group(row.record)
        self.tallies[DATASETS[kind], row.split].add(row, group)
        if kind == "prompts" and books.kept[row.split] <= self.ranked.get(row.split, 0):
            self.tallies[DATASETS["comparisons"], row.split].add(row, group)
        use_case = (row.record.labels or {}).get("use_case")
        if use_case is not None:
            self.tokens_by_use_case[str(use_case)].append(row.prompt_tokens)
        if kind == "demonstrations":
            prompts, responses = self.tokens_by_source[row.record.source or "not given"]
            prompts.append(row.prompt_tokens)
            responses.append(row.response_tokens)

    def drop(self, kind: str, place: str, reason: str) -> None:
        """Book a row that does not stay."""
        self.kinds[kind].dropped[reason] += 1
        if self.log is not None:
            self.log.write(json.dumps({"place": place, "reason": reason}, ensure_ascii=False) + "\n")

    def leave_out(self, kind: str, rows: Iterable[SourceRow]) -> None:
        """Book malformed rows."""
        for row in rows:
            self.kinds[kind].raw += 1
            self.drop(kind, row.place, "rest of a file, unread" if row.unread else "malformed")

    def check(self) -> None:
        """Make sure that the counts of every kind add up; a `RuntimeError` is a fault of this program."""
        for kind, books in self.kinds.items():
            if not books.balanced:
                raise RuntimeError(
                    f"the books of the {kind} do not balance: {books.raw} read + {books.added} added are not "
                    f"{books.kept.total()} kept + {books.dropped.total()} dropped. Report this with data_card.json."
                )

    def splits(self, dataset: str) -> Iterator[tuple[str, Tally]]:
        """The splits of a data set that have rows."""
        return ((split, self.tallies[dataset, split]) for split in SPLITS if (dataset, split) in self.tallies)
