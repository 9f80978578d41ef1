"""Whose a row is, and which split that makes it."""

from collections.abc import Iterable, Mapping
from typing import Any

from rlhf_lightning.arguments import Fraction, checked
from rlhf_lightning.curation.keys import PREFIX_CHARACTERS, key_of, normalised, plain_text
from rlhf_lightning.data.records import RecordError

USER = "user"
SPLITS = ("train", "validation", "test")
"""From the one that is trained on to the one that is held out most."""


class GroupSplits:
    """Deals rows out to splits by whose they are, never one by one (InstructGPT, section 3.2: "based on user ID").

    Args:
        column: Field or label that names who a row comes from: ``user`` [3.2] or ``organisation`` [A.2]. Rows without
            one go by the beginning of their prompt, so that no prompt is in two splits.
        shares: Share of each split among the groups that are given for training; they add up to 1. None leaves all
            there. Groups with a row that is given for validation or test stay there, with all of their rows.
        seed: Another seed deals the groups out anew.

    Raises:
        ValueError: When the shares are of other splits or do not add up to 1.
    """

    @checked
    def __init__(self, column: str = USER, shares: Mapping[str, Fraction] | None = None, seed: int = 0) -> None:
        self.column, self.seed = column, seed
        self.shares = dict(shares or {"train": 1.0})
        if not set(self.shares) <= set(SPLITS) or abs(sum(self.shares.values()) - 1) > 1e-6:
            raise ValueError(f"shares must be of {', '.join(SPLITS)} and add up to 1, got {self.shares}.")
        self._held_out: dict[int, str] = {}

    def group(self, record: Any) -> str | None:
        """The user, organisation, ... of a record: a field of it, or else one of its labels; None without either."""
        value = getattr(record, self.column, None)
        if value is None and record.labels is not None:
            value = record.labels.get(self.column)
        # A blank cell of a table is nobody, not one user of all rows that lack theirs.
        return None if value is None or not str(value).strip() else str(value)

    def check_column(self, records: Iterable[Any]) -> None:
        """Raise `RecordError` where a column other than the usual one is in no row: each prompt would be a group."""
        if self.column != USER and all(self.group(record) is None for record in records):
            raise RecordError(
                f"curate.curator.splits.column is {self.column!r}, which is in no row, as a field or as a label. "
                f"Mend the name, or name the column to read it from: 'columns: {{labels: {{{self.column}: "
                f"{self.column}}}}}' in the source."
            )

    def hold_out(self, records: Mapping[str, Mapping[str, Iterable[Any]]]) -> None:
        """Take from records, by kind and split, which groups are held out; of two splits the one held out more."""
        self._held_out = {
            self._key(record): split
            for split in SPLITS[1:]
            for given in records.values()
            for record in given.get(split, ())
        }

    def split(self, record: Any) -> str:
        """The split of the record's group: a hash of the group alone, where it is not held out already."""
        key = self._key(record)
        if key in self._held_out:
            return self._held_out[key]
        place, end = key_of(str(key), f"split {self.seed}") / 2**64, 0.0
        for split, share in self.shares.items():
            end += share
            if place < end:
                return split
        return max(self.shares, key=lambda split: self.shares[split])

    def _key(self, record: Any) -> int:
        group = self.group(record)
        if group is not None:
            return key_of(group, "group")
        return key_of(normalised(plain_text(record.prompt))[:PREFIX_CHARACTERS], "prompt")
