"""Curation: the paper's care with data, in one pass over rows one by one and one over what they have in common."""

import json
import shutil
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any, TextIO

from rlhf_lightning.curation.account import Account, KindAccount
from rlhf_lightning.curation.filters import LanguageFilter, PersonalFilter, within_lengths
from rlhf_lightning.curation.groups import SPLITS, GroupSplits
from rlhf_lightning.curation.keys import plain_text
from rlhf_lightning.curation.overlap import EvaluationOverlap
from rlhf_lightning.curation.rows import Progress, Row, chunks, watched
from rlhf_lightning.curation.thinning import Thinning, drop_overlaps
from rlhf_lightning.data.records import Demonstration, PromptText
from rlhf_lightning.data.tokens import Tokenization

Records = Mapping[str, Mapping[str, Iterable[Any]]]
"""By kind and split: lists, or anything else that can be read twice."""


class Curator:
    """Cleans prompts, demonstrations and rankings and deals them out to splits (InstructGPT, 3.2 and appendix A).

    A row is dropped for the first of these reasons that applies: personal data (in the training split), a prompt over
    the length limit, another language, a copy of a row, the same beginning as another prompt, likeness to one, a run of
    words from an evaluation prompt (in the training split), more than so many prompts of its group. Which rows stay
    does not depend on the order in which they come. Texts wait on disk.

    Args:
        splits: Whose a row is and which split that makes it.
        personal: What becomes of personal data.
        language: Counts languages and drops all but some; None does not look.
        thinning: Copies, likeness, and the most of one group.
        overlap_words: Length of a run of words that no training row may share with an evaluation prompt.
    """

    def __init__(
        self,
        splits: GroupSplits,
        personal: PersonalFilter,
        thinning: Thinning,
        language: LanguageFilter | None = None,
        overlap_words: int = 13,
    ) -> None:
        self.splits, self.personal, self.thinning, self.language = splits, personal, thinning, language
        self.overlap_words = overlap_words

    def curate(
        self,
        records: Records,
        tokenization: Tokenization,
        folder: Path,
        *,
        few_shot: Sequence[Sequence[Demonstration]] = (),
        evaluation: Iterable[PromptText] = (),
        malformed: Mapping[str, Sequence[str]] | None = None,
        ranked: Mapping[str, int] | None = None,
        progress: Progress = lambda what, rows: None,
    ) -> Account:
        """Write ``<kind>.<split>.jsonl`` of what stays, and to ``dropped.jsonl`` place and reason of what does not.

        Args:
            records: By kind (``prompts``, ``demonstrations``, ``comparisons``) and split.
            tokenization: Counts tokens and knows the limits.
            folder: Gets the files.
            few_shot: The demonstrations that each few-shot prompt makes, besides those of ``records``.
            evaluation: Prompts that nothing may be trained on, besides the prompts of the test split.
            malformed: Problems of the rows that the reader left out, by kind; each begins with a place and a colon.
            ranked: See :class:`Account`.
            progress: Called now and then.

        Returns:
            The books.
        """
        if few_shot:
            records = {"demonstrations": {}, **records}
        account = Account(self.splits, ranked)
        self.splits.hold_out(records)
        overlap = EvaluationOverlap(self.overlap_words)
        for prompt in evaluation:
            overlap.add(plain_text(prompt))
        with ExitStack() as stack:
            (work := folder / "waiting").mkdir(exist_ok=True)
            stack.callback(shutil.rmtree, work)
            dropped = stack.enter_context(_lines(folder / "dropped.jsonl"))
            # Prompts first: those of the test split are what the other kinds may not overlap.
            for kind in sorted(records, key=lambda kind: kind != "prompts"):
                books = account.kinds[kind] = KindAccount()
                for problem in (malformed or {}).get(kind, ()):
                    books.raw += 1
                    _drop(books, dropped, problem.partition(": ")[0], "malformed")
                given = self._given(kind, records[kind], few_shot if kind == "demonstrations" else (), books)
                passing = self._passing(given, tokenization, books, dropped)
                passing = watched(passing, f"{kind} checked", progress)
                waiting = self.thinning.waiting(work / kind, passing, self.splits)
                self.thinning.drop_repeats(kind, waiting)
                drop_overlaps(kind, waiting, overlap)
                self.thinning.drop_surplus(kind, waiting, self.splits.column)
                files = {split: stack.enter_context(_lines(folder / f"{kind}.{split}.jsonl")) for split in SPLITS}
                for row, reason in watched(waiting.rows(), f"{kind} written", progress):
                    if reason:
                        _drop(books, dropped, row.place, reason)
                    else:
                        account.keep(kind, row)
                        _write(files[row.split], vars(row.record))
        return account

    def _given(
        self,
        kind: str,
        given: Mapping[str, Iterable[Any]],
        few_shot: Iterable[Sequence[Demonstration]],
        books: KindAccount,
    ) -> Iterator[Row]:
        """Every row that comes in, with its place and the split of its group."""
        for split, records in given.items():
            for number, record in enumerate(records):
                books.raw += 1
                yield Row(f"{kind}.{split} {number}", self.splits.split(record), record)
        for number, examples in enumerate(few_shot):
            books.raw += 1
            books.added += len(examples) - 1
            split = self.splits.split(examples[0])  # each has the others in its context: together, or it leaks
            for example, record in enumerate(examples):
                yield Row(f"few_shot {number}, example {example}", split, record)

    def _passing(
        self, rows: Iterable[Row], tokenization: Tokenization, books: KindAccount, dropped: TextIO
    ) -> Iterator[Row]:
        """The rows against which nothing speaks as long as one looks at each by itself."""
        for chunk in chunks(rows):
            clean = []
            for row in chunk:
                record = self.personal(row.record, books) if row.split == "train" else row.record
                if record is None:
                    _drop(books, dropped, row.place, "personal data")
                else:
                    clean.append(row._replace(record=record))
            lengths = tokenization.prompt_lengths([row.record.prompt for row in clean])
            for row, tokens in zip(clean, lengths, strict=True):
                if tokens > tokenization.max_prompt_tokens:
                    _drop(books, dropped, row.place, f"prompt over {tokenization.max_prompt_tokens} tokens")
                elif self.language is not None and not self.language(row.record, books):
                    _drop(books, dropped, row.place, "another language")
                else:
                    yield within_lengths(row._replace(prompt_tokens=tokens), tokenization, books)


def _lines(path: Path) -> TextIO:
    # Half a surrogate pair cannot be written; as \\ud800, which JSON reads back, it can.
    return path.open("w", encoding="utf-8", errors="backslashreplace")


def _drop(books: KindAccount, dropped: TextIO, place: str, reason: str) -> None:
    books.dropped[reason] += 1
    _write(dropped, {"place": place, "reason": reason})


def _write(file: TextIO, row: Mapping[str, Any]) -> None:
    file.write(json.dumps(row, ensure_ascii=False) + "\n")
