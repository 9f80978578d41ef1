"""Curation: the paper's care with data, in one pass over rows one by one and one over what they have in common."""

import json
import shutil
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from itertools import chain
from pathlib import Path
from typing import Any

from rlhf_lightning.arguments import Count, checked
from rlhf_lightning.curation.account import DATASETS, Account
from rlhf_lightning.curation.filters import LanguageFilter, PersonalFilter, hidden_identifiers, within_lengths
from rlhf_lightning.curation.groups import SPLITS, GroupSplits
from rlhf_lightning.curation.keys import words_of
from rlhf_lightning.curation.overlap import EvaluationOverlap
from rlhf_lightning.curation.rows import Progress, Row, watched
from rlhf_lightning.curation.thinning import OVERLAP, Thinning, Waiting, drop_overlaps
from rlhf_lightning.data.labeling import record_row
from rlhf_lightning.data.records import Demonstration, PromptText, RecordError
from rlhf_lightning.data.rows.readers import SourceRow
from rlhf_lightning.data.sources import RecordStream
from rlhf_lightning.data.tokenize import Tokenization, chunks
from rlhf_lightning.runs.files import replacing

BySplit = Mapping[str, Iterable[Any]]
"""Records of one kind by split: lists, a `RecordStream`, or anything else that can be read twice."""


@checked
@dataclass(frozen=True)
class Curator:
    """Cleans prompts, demonstrations and rankings and deals them out to splits (InstructGPT, 3.2 and appendix A).

    A row is dropped for the first of these reasons that applies: personal data (in the training split), a prompt over
    the length limit, another language, a response of which nothing is left at its limit, a copy of a row, the same
    beginning as another prompt, likeness to one, a run of words from an evaluation prompt (in the training split, in
    any of its texts), more than so many prompts of its group. Which rows stay does not depend on the order in which
    they come. Records may come as a stream, and texts wait on disk.

    Args:
        splits: Knows whose a row is and which split that makes it.
        personal: Decides what becomes of personal data.
        thinning: Drops copies, likeness, and what is over the most of one group.
        language: Counts languages and drops all but some; None does not look.
        overlap_words: Length of a run of words that no training row may share with an evaluation prompt.
    """

    splits: GroupSplits
    personal: PersonalFilter
    thinning: Thinning
    language: LanguageFilter | None = None
    overlap_words: Count = 13

    def curate(
        self,
        records: Mapping[str, BySplit],
        tokenization: Tokenization,
        folder: Path,
        *,
        few_shot: Sequence[Sequence[Demonstration]] = (),
        evaluation: Iterable[PromptText] = (),
        malformed: Mapping[str, Sequence[SourceRow]] | None = None,
        ranked: Mapping[str, int] | None = None,
        progress: Progress = lambda what, rows: None,
    ) -> Account:
        """Write ``<kind>.<split>.jsonl`` of what stays, and to ``dropped.jsonl`` place and reason of what does not.

        Args:
            records: Records by kind (``prompts``, ``demonstrations``, ``comparisons``, ``judge_comparisons``, ``text``)
                and split.
            tokenization: Counts tokens and knows the limits.
            folder: Gets the files.
            few_shot: The demonstrations that each few-shot prompt makes, besides those of ``records``.
            evaluation: Prompts that nothing may be trained on, besides those of the validation and test splits.
            malformed: Rows that were left out before, by kind; those of a `RecordStream` it knows itself.
            ranked: Prompts per split that are to be ranked later; see `Account`.
            progress: Called now and then.

        Returns:
            The books.

        Raises:
            RecordError: When the groups' column is in no row, or a prompt cannot be written as text.
        """
        asked = {kind: splits for kind, splits in records.items() if kind in DATASETS}
        if few_shot:
            asked = {"demonstrations": {}, **asked}
        sources = [source for splits in asked.values() for source in splits.values()]
        self.splits.check_column(record for source in (*sources, *few_shot) for record in source)
        self.splits.hold_out(asked)
        overlap = EvaluationOverlap(self.overlap_words, map(words_of, evaluation))
        with ExitStack() as stack:
            (work := folder / "waiting").mkdir(exist_ok=True)
            stack.callback(shutil.rmtree, work)
            account = Account(self.splits, ranked, stack.enter_context(replacing(folder / "dropped.jsonl")))
            desk = _Desk(self, account, overlap, tokenization, folder)
            waiting: dict[str, Waiting] = {}
            # All kinds wait before anything is compared: none of them may overlap with what is held out of another.
            for kind in sorted(asked, key=lambda kind: kind != "prompts"):
                account.leave_out(kind, (malformed or {}).get(kind, ()))
                rows = desk.passing(kind, asked[kind], few_shot if kind == "demonstrations" else ())
                rows = watched(rows, f"{kind} checked", progress)
                waiting[kind] = Waiting(work / kind, rows, self.splits, self.thinning)
            for kind, rest in waiting.items():
                self.thinning.drop_repeats(kind, rest)
                drop_overlaps(rest, overlap)
                self.thinning.drop_surplus(kind, rest, self.splits.column)
                desk.write(kind, SPLITS, watched(rest.rows(), f"{kind} written", progress))
            if "text" in records:
                desk.write("text", records["text"], watched(desk.documents(records["text"]), "text", progress))
        account.check()
        return account


@dataclass(frozen=True)
class _Desk:
    """One call of `Curator.curate`."""

    curator: Curator
    account: Account
    overlap: EvaluationOverlap
    tokenization: Tokenization
    folder: Path

    def passing(self, kind: str, splits: BySplit, few_shot: Iterable[Sequence[Demonstration]]) -> Iterator[Row]:
        """The rows against which nothing speaks as long as one looks at each by itself."""
        books, limit = self.account.kinds[kind], self.tokenization.max_prompt_tokens
        drop = partial(self.account.drop, kind)
        for chunk in chunks(self._dealt_out(kind, splits, few_shot)):
            clean = []
            for row in chunk:
                record = self.curator.personal(row.record, books) if row.split == "train" else row.record
                if record is None:
                    drop(row.place, "personal data")
                else:
                    clean.append(row._replace(record=hidden_identifiers(record, books)))
            for row, tokens in zip(clean, self._prompt_lengths(clean), strict=True):
                if tokens > limit:
                    drop(row.place, f"prompt over {limit} tokens")
                elif self.curator.language is not None and not self.curator.language(row.record, books):
                    drop(row.place, "another language")
                elif isinstance(fit := within_lengths(row, self.tokenization, books), str):
                    drop(row.place, fit)
                else:
                    yield fit._replace(prompt_tokens=tokens)

    def documents(self, splits: BySplit) -> Iterator[tuple[Row, str]]:
        """Every document; in the training split, with a reason to drop it where it overlaps an evaluation prompt."""
        for row in self._read("text", splits):
            yield row, OVERLAP if row.split == "train" and self.overlap(row.record.text) else ""

    def write(self, kind: str, splits: Iterable[str], rows: Iterable[tuple[Row, str]]) -> None:
        """Write the rows that have no reason to be dropped, to a file per split."""
        with ExitStack() as stack:
            files = {split: stack.enter_context(replacing(self.folder / f"{kind}.{split}.jsonl")) for split in splits}
            for row, reason in rows:
                if reason:
                    self.account.drop(kind, row.place, reason)
                else:
                    self.account.keep(kind, row)
                    files[row.split].write(json.dumps(record_row(row.record), ensure_ascii=False) + "\n")

    def _dealt_out(self, kind: str, splits: BySplit, few_shot: Iterable[Sequence[Demonstration]]) -> Iterator[Row]:
        """Every row that comes in, with the split of its group; the prompts of those held out are remembered."""
        read = (row._replace(split=self.curator.splits.split(row.record)) for row in self._read(kind, splits))
        for row in chain(read, self._expanded(kind, few_shot)):
            if row.split != "train":
                self.overlap.add(words_of(row.record.prompt))
            yield row

    def _read(self, kind: str, splits: BySplit) -> Iterator[Row]:
        """The records as rows, with their places: file and line, or the number in a list."""
        books = self.account.kinds[kind]
        for split, records in splits.items():
            if isinstance(records, RecordStream):
                placed = records.placed()
            else:
                placed = ((f"{kind}.{split} {number}", record) for number, record in enumerate(records))
            for place, record in placed:
                books.raw += 1
                yield Row(place, split, record)
            if isinstance(records, RecordStream):
                self.account.leave_out(kind, records.malformed.rows())
                for row in records.left_out:
                    books.raw += 1
                    self.account.drop(kind, row.place, str(row.problem))

    def _expanded(self, kind: str, few_shot: Iterable[Sequence[Demonstration]]) -> Iterator[Row]:
        books = self.account.kinds[kind]
        for number, examples in enumerate(few_shot):
            books.raw += 1
            books.added += len(examples) - 1
            # Each has the others in its context: they stay together, or it leaks.
            split = self.curator.splits.split(examples[0])
            for example, record in enumerate(examples):
                yield Row(f"few_shot {number}, example {example}", split, record)

    def _prompt_lengths(self, rows: Sequence[Row]) -> list[int]:
        for row in rows:
            try:
                self.tokenization.check(row.record)
            except RecordError as error:
                raise RecordError(f"{row.place}: {error}") from error
        return self.tokenization.prompt_lengths([row.record.prompt for row in rows])
