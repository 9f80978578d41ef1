"""Curation: the paper's care with data, in one pass over rows one by one and one over what they have in common."""

import json
import shutil
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Any, TextIO

from rlhf_lightning.curation.account import DATASETS, Account, KindAccount
from rlhf_lightning.curation.filters import LanguageFilter, PersonalFilter, hidden_identifiers, within_lengths
from rlhf_lightning.curation.groups import SPLITS, GroupSplits
from rlhf_lightning.curation.keys import words_of
from rlhf_lightning.curation.overlap import EvaluationOverlap
from rlhf_lightning.curation.rows import Progress, Row, chunks, watched
from rlhf_lightning.curation.thinning import OVERLAP, Thinning, Waiting, drop_overlaps
from rlhf_lightning.data.records import Demonstration, PromptText, RecordError
from rlhf_lightning.data.rows.readers import SourceRow
from rlhf_lightning.data.sources import RecordStream
from rlhf_lightning.data.tokenize import Tokenization

UNREAD = "rest of a file, unread"
"""Reason of what stands for all that follows it."""
Records = Mapping[str, Mapping[str, Iterable[Any]]]
"""By kind and split: lists, a :class:`RecordStream`, or anything else that can be read twice."""


class Curator:
    """Cleans prompts, demonstrations and rankings and deals them out to splits (InstructGPT, 3.2 and appendix A).

    A row is dropped for the first of these reasons that applies: personal data (in the training split), a prompt over
    the length limit, another language, a response of which nothing is left at its limit, a copy of a row, the same
    beginning as another prompt, likeness to one, a run of words from an evaluation prompt (in the training split, in
    any of its texts), more than so many prompts of its group. Which rows stay does not depend on the order in which
    they come. Records may come as a stream, and texts wait on disk.

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
        malformed: Mapping[str, Sequence[SourceRow]] | None = None,
        ranked: Mapping[str, int] | None = None,
        progress: Progress = lambda what, rows: None,
    ) -> Account:
        """Write ``<kind>.<split>.jsonl`` of what stays, and to ``dropped.jsonl`` place and reason of what does not.

        Args:
            records: By kind (``prompts``, ``demonstrations``, ``comparisons``, ``judge_comparisons``, ``text``) and
                split.
            tokenization: Counts tokens and knows the limits.
            folder: Gets the files.
            few_shot: The demonstrations that each few-shot prompt makes, besides those of ``records``.
            evaluation: Prompts that nothing may be trained on, besides those of the validation and test splits.
            malformed: Rows that were left out before, by kind; those of a :class:`RecordStream` it knows itself.
            ranked: See :class:`Account`.
            progress: Called now and then.

        Returns:
            The books.

        Raises:
            RecordError: When the groups' column is in no row, or a prompt cannot be written as text.
        """
        asked = {kind: given for kind, given in records.items() if kind in DATASETS}
        if few_shot:
            asked = {"demonstrations": {}, **asked}
        self.splits.check_column(
            chain(
                (record for given in asked.values() for own in given.values() for record in own),
                (record for examples in few_shot for record in examples),
            )
        )
        account = Account(self.splits, ranked)
        self.splits.hold_out(asked)
        overlap = EvaluationOverlap(self.overlap_words)
        for prompt in evaluation:
            overlap.add(words_of(prompt))
        with ExitStack() as stack:
            (work := folder / "waiting").mkdir(exist_ok=True)
            stack.callback(shutil.rmtree, work)
            dropped = stack.enter_context(_lines(folder / "dropped.jsonl"))
            waiting: dict[str, Waiting] = {}
            # All kinds wait before anything is compared: none of them may overlap with what is held out of another.
            for kind in sorted(asked, key=lambda kind: kind != "prompts"):
                books = account.kinds[kind] = KindAccount()
                _book_malformed(books, dropped, (malformed or {}).get(kind, ()))
                given = self._given(kind, asked[kind], few_shot if kind == "demonstrations" else (), books, dropped)
                passing = self._passing(_noting(given, overlap), tokenization, books, dropped)
                passing = watched(passing, f"{kind} checked", progress)
                waiting[kind] = self.thinning.waiting(work / kind, passing, self.splits)
            desk = _Desk(account, overlap, folder, dropped, progress)
            for kind in waiting:
                self._write_rest(kind, waiting[kind], desk)
            if "text" in records:
                _write_text(records["text"], desk)
        account.check()
        return account

    def _write_rest(self, kind: str, waiting: Waiting, desk: "_Desk") -> None:
        """Decide among the rows of a kind, and write those that stay."""
        self.thinning.drop_repeats(kind, waiting)
        drop_overlaps(waiting, desk.overlap)
        self.thinning.drop_surplus(kind, waiting, self.splits.column)
        with ExitStack() as stack:
            files = {split: stack.enter_context(_lines(desk.folder / f"{kind}.{split}.jsonl")) for split in SPLITS}
            for row, reason in watched(waiting.rows(), f"{kind} written", desk.progress):
                if reason:
                    _drop(desk.account.kinds[kind], desk.dropped, row.place, reason)
                else:
                    desk.account.keep(kind, row)
                    _write(files[row.split], vars(row.record))

    def _given(
        self,
        kind: str,
        given: Mapping[str, Iterable[Any]],
        few_shot: Iterable[Sequence[Demonstration]],
        books: KindAccount,
        dropped: TextIO,
    ) -> Iterator[Row]:
        """Every row that comes in, with its place and the split of its group."""
        for split, records in given.items():
            for place, record in _placed(records, f"{kind}.{split}"):
                books.raw += 1
                yield Row(place, self.splits.split(record), record)
            _book_malformed(books, dropped, _malformed(records))
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
                    clean.append(row._replace(record=hidden_identifiers(record, books)))
            for row, tokens in zip(clean, _prompt_lengths(clean, tokenization), strict=True):
                if tokens > tokenization.max_prompt_tokens:
                    _drop(books, dropped, row.place, f"prompt over {tokenization.max_prompt_tokens} tokens")
                elif self.language is not None and not self.language(row.record, books):
                    _drop(books, dropped, row.place, "another language")
                elif isinstance(fit := within_lengths(row._replace(prompt_tokens=tokens), tokenization, books), str):
                    _drop(books, dropped, row.place, fit)
                else:
                    yield fit


@dataclass(frozen=True)
class _Desk:
    """What one call of :meth:`Curator.curate` writes with."""

    account: Account
    overlap: EvaluationOverlap
    folder: Path
    dropped: TextIO
    progress: Progress


def _write_text(given: Mapping[str, Iterable[Any]], desk: _Desk) -> None:
    """Write the documents, of the training ones those that do not overlap with an evaluation prompt."""
    books = desk.account.kinds["text"] = KindAccount()
    for split, documents in given.items():
        with _lines(desk.folder / f"text.{split}.jsonl") as file:
            for place, document in watched(_placed(documents, f"text.{split}"), "text", desk.progress):
                books.raw += 1
                if split == "train" and desk.overlap(document.text):
                    _drop(books, desk.dropped, place, OVERLAP)
                else:
                    books.kept[split] += 1
                    _write(file, vars(document))
        _book_malformed(books, desk.dropped, _malformed(documents))


def _noting(rows: Iterable[Row], overlap: EvaluationOverlap) -> Iterator[Row]:
    """The same rows; the prompts of those held out are remembered before anything is dropped."""
    for row in rows:
        if row.split != "train":
            overlap.add(words_of(row.record.prompt))
        yield row


def _prompt_lengths(rows: Sequence[Row], tokenization: Tokenization) -> list[int]:
    try:
        return tokenization.prompt_lengths([row.record.prompt for row in rows])
    except ValueError as error:
        chat = next((row for row in rows if not isinstance(row.record.prompt, str)), rows[0])
        raise RecordError(f"{chat.place}: {error}") from error


def _placed(records: Iterable[Any], name: str) -> Iterator[tuple[str, Any]]:
    """The records with their places: file and line, or the number of a list."""
    if isinstance(records, RecordStream):
        return records.placed()
    return ((f"{name} {number}", record) for number, record in enumerate(records))


def _malformed(records: Iterable[Any]) -> Iterable[SourceRow]:
    return records.malformed.rows() if isinstance(records, RecordStream) else ()


def _book_malformed(books: KindAccount, dropped: TextIO, rows: Iterable[SourceRow]) -> None:
    for row in rows:
        books.raw += 1
        _drop(books, dropped, row.place, UNREAD if row.unread else "malformed")


def _lines(path: Path) -> TextIO:
    # Half a surrogate pair cannot be written; as \\ud800, which JSON reads back, it can.
    return path.open("w", encoding="utf-8", errors="backslashreplace")


def _drop(books: KindAccount, dropped: TextIO, place: str, reason: str) -> None:
    books.dropped[reason] += 1
    _write(dropped, {"place": place, "reason": reason})


def _write(file: TextIO, row: Mapping[str, Any]) -> None:
    file.write(json.dumps(row, ensure_ascii=False) + "\n")
