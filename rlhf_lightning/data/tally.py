"""How many records were left out and how many lost their end, by set, reason and source."""

from collections import Counter, defaultdict
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

DROPPED, CUT = "dropped", "cut"
"""What is counted: records that were left out, and those that stayed without their end."""
_SOURCES = 5
"""The most sources that a line names."""
Counts = dict[str, dict[str, int | dict[str, int]]]
"""By set and reason; by source too, where the records of several were counted."""


@dataclass
class Tally:
    """Counts of what happened to records.

    Args:
        part: The set whose records come next, such as ``train``.
    """

    part: str = ""
    _places: dict[str, Counter[tuple[str, str, str]]] = field(default_factory=lambda: defaultdict(Counter), init=False)

    def count(self, what: str, reason: str, source: str | None = None) -> None:
        """Count one more: what is `DROPPED` or `CUT`."""
        self._places[what][self.part, reason, source or ""] += 1

    def total(self, what: str, part: str | None = None) -> Counter[str]:
        """How many of a set, or of all sets, by reason."""
        reasons: Counter[str] = Counter()
        for (own, reason, _), count in self._places[what].items():
            if part in (None, own):
                reasons[reason] += count
        return reasons

    def by_set(self, what: str) -> Counts:
        """The counts of every set.

        Examples:
            >>> tally = Tally("train")
            >>> for source in ("forum", "forum", "users"):
            ...     tally.count(CUT, "too long", source)
            >>> tally.by_set(CUT)
            {'train': {'too long': {'forum': 2, 'users': 1}}}
        """
        sets: Counts = {}
        for part in dict.fromkeys(own for own, _, _ in self._places[what]):
            for reason, total in self.total(what, part).items():
                sources = {s: n for (own, why, s), n in self._places[what].items() if (own, why) == (part, reason)}
                several = {source or "without a source": count for source, count in sources.items()}
                sets.setdefault(part, {})[reason] = several if len(several) > 1 else total
        return sets


class Tallied:
    """Has a tally."""

    tally: Tally

    @property
    def dropped(self) -> Counter[str]:
        """Records left out so far, by reason."""
        return self.tally.total(DROPPED)

    @property
    def cut(self) -> Counter[str]:
        """Responses that lost their end at the limit, and rankings in which that made ties; they are not left out."""
        return self.tally.total(CUT)


def flat(counts: Mapping[str, Any], place: str = "") -> dict[str, int]:
    """The counts on one level.

    Args:
        counts: By set, reason and source.
        place: What each name begins with.

    Examples:
        >>> flat({"train": {"too long": {"forum": 2, "users": 1}, "tied": 4}})
        {'train: too long: forum': 2, 'train: too long: users': 1, 'train: tied': 4}
    """
    found: dict[str, int] = {}
    for name, count in counts.items():
        found |= flat(count, f"{place}{name}: ") if isinstance(count, Mapping) else {f"{place}{name}": count}
    return found


def sentence(counts: Counts) -> str:
    """The counts on one line.

    Examples:
        >>> sentence({"train": {"too long": {"forum": 2, "users": 1}, "tied": 4}, "test": {"tied": 1}})
        'train: too long 3 (forum 2, users 1), tied 4; test: tied 1'
    """
    return "; ".join(
        f"{part}: {', '.join(f'{reason} {_shown(count)}' for reason, count in reasons.items())}"
        for part, reasons in counts.items()
    )


def _shown(count: int | dict[str, int]) -> str:
    if isinstance(count, int):
        return str(count)
    most = Counter(count).most_common(_SOURCES)
    rest = [f"{len(count) - _SOURCES} more"] if len(count) > _SOURCES else []
    return f"{sum(count.values())} ({', '.join([*(f'{source} {number}' for source, number in most), *rest])})"
