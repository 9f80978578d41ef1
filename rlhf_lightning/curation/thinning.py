"""What is decided about a row among others: copies, likeness, and how many come from one user."""

import json
from array import array
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np

from rlhf_lightning.arguments import Count, Share, checked
from rlhf_lightning.curation.groups import GroupSplits
from rlhf_lightning.curation.keys import PREFIX_CHARACTERS, kept_per_key, key_of, normalised, plain_text, words_of
from rlhf_lightning.curation.near import near_duplicate_groups
from rlhf_lightning.curation.overlap import EvaluationOverlap
from rlhf_lightning.curation.rows import Row
from rlhf_lightning.data.records import Comparison, Demonstration, Prompt

OVERLAP = "in an evaluation prompt"
_KINDS: dict[str, type[Any]] = {kind.kind: kind for kind in (Demonstration, Comparison, Prompt)}
_HELD_OUT = {"test": 0, "validation": 1, "train": 2}


class Waiting:
    """The rows of one kind on disk, with what decides among them in memory: 33 bytes per row.

    Args:
        path: The file in which the rows wait, so that memory does not grow with their texts; it is overwritten.
        rows: The rows; they are consumed at once.
        splits: Knows whose they are.
        thinning: Says which beginnings are one, and which rows stay.
    """

    def __init__(self, path: Path, rows: Iterable[Row], splits: GroupSplits, thinning: "Thinning") -> None:
        self.whole, self.beginnings, self.groups, self.ranks = (array("Q") for _ in range(4))
        self._splits, self._thinning = splits, thinning
        self._names = [""]
        self._path = path
        with path.open("w", encoding="utf-8") as file:
            for row in rows:
                self._note(row)
                place, split, record, *lengths = row
                file.write(json.dumps((place, split, record.kind, vars(record), *lengths)) + "\n")
        self.reasons = np.zeros(len(self.ranks), np.uint8)

    def _note(self, row: Row) -> None:
        text, group = normalised(plain_text(row.record.prompt)), self._splits.group(row.record)
        self.whole.append(key_of("\0".join([text, *_answers(row.record)])))
        self.beginnings.append(key_of(text[: self._thinning.prefix_characters]))
        self.groups.append(0 if group is None else key_of(group))
        # Of copies in several splits the one that is held out stays.
        rank = key_of(repr(row.record), f"rank {self._thinning.seed}")
        self.ranks.append(_HELD_OUT[row.split] << 62 | rank >> 2)

    def __iter__(self) -> Iterator[Row]:
        """All rows in the order in which they came, read from the file each time."""
        with self._path.open(encoding="utf-8") as file:
            for line in file:
                place, split, kind, fields, *lengths = json.loads(line)
                yield Row(place, split, _KINDS[kind](**fields), *lengths)

    def rows(self) -> Iterator[tuple[Row, str]]:
        """Every row with the reason to drop it, empty where it stays."""
        for row, reason in zip(self, self.reasons, strict=True):
            yield row, self._names[reason]

    def staying(self) -> Iterator[tuple[int, Row]]:
        """The rows that stay so far, with their places."""
        return ((place, row) for place, row in enumerate(self) if not self.reasons[place])

    def keep(self, reason: str, keys: Any, most: int, among: Any = True) -> None:
        """Drop all but so many of those that share a key.

        Args:
            reason: Why they go.
            keys: What the rows may share, one key per row.
            most: Rows to keep per key.
            among: Which rows are looked at.
        """
        staying = np.flatnonzero((self.reasons == 0) & among)
        kept = kept_per_key(np.asarray(keys)[staying], np.asarray(self.ranks)[staying], most)
        self.drop(reason, staying[~kept])

    def drop(self, reason: str, places: Any) -> None:
        """Drop the rows at these places."""
        self._names.append(reason)
        self.reasons[places] = len(self._names) - 1


@checked
@dataclass(frozen=True)
class Thinning:
    """Leaves each prompt in once and no more than so many of one user (InstructGPT, section 3.2).

    Args:
        kinds: Kinds of record whose prompts count once. Demonstrations and rankings are written for prompts that were
            thinned before, and several of them for one prompt are no copies; of these only whole rows are compared.
        prefix_characters: Prompts with the same first so many characters are one.
        near_similarity: Prompts are one from this Jaccard similarity on, such as 0.8; None does not look.
        most_per_group: Most prompts of a group [3.2: 200].
        seed: Another seed keeps others.
    """

    kinds: Sequence[Literal["demonstrations", "comparisons", "judge_comparisons", "prompts"]] = ("prompts",)
    prefix_characters: Count = PREFIX_CHARACTERS
    near_similarity: Share | None = None
    most_per_group: Count = 200
    seed: int = 0

    def drop_repeats(self, kind: str, waiting: Waiting) -> None:
        """Copies of whole rows; then, of prompts, those with one beginning and those alike."""
        waiting.keep("exact duplicate", waiting.whole, 1)
        if kind not in self.kinds:
            return
        waiting.keep("same beginning", waiting.beginnings, 1)
        if self.near_similarity is not None:
            places = np.flatnonzero(waiting.reasons == 0)
            keys = np.zeros(len(waiting.reasons), np.int64)
            texts = (normalised(plain_text(row.record.prompt)) for _, row in waiting.staying())
            keys[places] = near_duplicate_groups(texts, self.near_similarity)
            waiting.keep("near-duplicate", keys, 1)

    def drop_surplus(self, kind: str, waiting: Waiting, column: str) -> None:
        """What is over the most of one group; rows without a group stay."""
        if kind in self.kinds:
            known = np.asarray(waiting.groups) != 0
            waiting.keep(f"over {self.most_per_group} of one {column}", waiting.groups, self.most_per_group, known)


def drop_overlaps(waiting: Waiting, overlap: EvaluationOverlap) -> None:
    """Training rows that share a run of words with an evaluation prompt, in their prompt or in a response."""
    if overlap:
        found = (place for place, row in waiting.staying() if row.split == "train" and _overlaps(row.record, overlap))
        waiting.drop(OVERLAP, list(found))


def _overlaps(record: Any, overlap: EvaluationOverlap) -> bool:
    answers = [getattr(record, "response", ""), *getattr(record, "completions", ())]
    return overlap(words_of(record.prompt)) or any(overlap(answer) for answer in answers if answer)


def _answers(record: Any) -> list[str]:
    """What makes a row with the same prompt another one: responses, their ranks, and who gave them."""
    names = ("response", "completions", "ranks", "labeler")
    return [normalised(str(getattr(record, name))) for name in names if hasattr(record, name)]
