"""What a claim is, and what measuring it gives."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace

from rlhf_lightning.evaluation.estimates import LEVEL, Estimate, holm
from rlhf_lightning.evaluation.intervals import Interval
from rlhf_lightning.reproduce.measure import MissingError, Ratio, Results, Source, UndefinedError, combined, difference

RULES = (
    "A check is a test: that a number lies above another (two-sided), or, where the paper says about the same, "
    "that it lies within a margin (two one-sided tests). Seeds and prompts are clusters, of which each counts "
    "once, in one error of both. Holm's correction holds all checks of a finding together at 5 %, and a finding "
    "holds when each of its checks does. Beside a check of a direction stands the difference that would be seen "
    "in 80 of 100 cases: where it fails below that, it says little."
)


@dataclass(frozen=True)
class Row:
    """One number of a claim.

    Args:
        measure: The name of what was measured.
        who: The policy or setting, as legends name it.
        interval: Its value, with both ends equal where there is no interval.
        at: The place on the axis: a size, a coefficient, a task.
        percent: Whether it is a share that people read in percent.
        main: Whether it stands in the table of all claims.
    """

    measure: str
    who: str
    interval: Interval
    at: str = ""
    percent: bool = False
    main: bool = False

    @property
    def label(self) -> str:
        """All of it as one line."""
        return " · ".join(part for part in (self.measure, self.at, self.who) if part)


@dataclass(frozen=True)
class Check:
    """One condition of a claim, as a test.

    Args:
        condition: The condition in words.
        measured: The number in words.
        p_value: That of the test, which is small where the condition is met.
        opposite: That of the opposite, which is small where the paper's finding is reversed here.
        detectable: The difference that the test would show in 80 of 100 cases, in words.
        corrected: The p-value corrected for the claim's other tests.
    """

    condition: str
    measured: str
    p_value: float
    opposite: float = 1.0
    detectable: str = ""
    corrected: float = 1.0

    @property
    def holds(self) -> bool:
        """Whether the condition was met."""
        return self.corrected < LEVEL

    @property
    def reversed(self) -> bool:
        """Whether the opposite was shown."""
        return self.opposite < LEVEL

    @property
    def text(self) -> str:
        """All of it in one line."""
        p_value = "p < .001" if self.corrected < 0.001 else f"p = {self.corrected:.3f}"
        power = f"; would show {self.detectable}" if self.detectable else ""
        return f"{self.condition}: {self.measured}, {p_value}{power}{'; reversed' * self.reversed}"


@dataclass
class Finding:
    """What was measured for a claim; what has not run is missing from it.

    Args:
        results: What the jobs left behind.
        rows: The numbers.
        tests: The conditions on them, each by itself.
        missing: What the numbers and checks that could not be made lack.
    """

    results: Results
    rows: list[Row] = field(default_factory=list)
    tests: list[tuple[Check, Estimate | None, bool]] = field(default_factory=list)
    missing: list[str] = field(default_factory=list)

    @property
    def checks(self) -> list[Check]:
        """The conditions together: by Holm's correction, with the power that it leaves."""
        corrected, opposite = (
            holm([getattr(check, name) for check, *_ in self.tests]) for name in ("p_value", "opposite")
        )
        level = LEVEL / max(1, len(self.tests))
        return [
            replace(
                check,
                corrected=p,
                opposite=against,
                detectable=_number(found.detectable(level), percent) if found else "",
            )
            for p, against, (check, found, percent) in zip(corrected, opposite, self.tests, strict=True)
        ]

    def row(
        self, measure: str, who: str, of: Source | Ratio, at: str = "", *, percent: bool = False, main: bool = False
    ) -> Interval | None:
        """Add a number if it can be measured; returns it."""
        try:
            interval = self.results.pooled(of)
        except MissingError as reason:
            self.missing.append(str(reason))
            return None
        except UndefinedError:
            return None
        self.rows.append(Row(measure, who, interval, at, percent, main))
        return interval

    def above(self, text: str, higher: Source, lower: Source, least: float = 0.0, percent: bool = True) -> None:
        """Check that the difference lies above a number."""
        self.more(text, difference(higher, lower), least, percent)

    def below(self, text: str, lower: Source, higher: Source, percent: bool = True) -> None:
        """Check that the difference lies below 0."""
        self._test(text, difference(lower, higher), lambda found: (found.below(), found.above()), percent)

    def more(self, text: str, of: Source, than: float = 0.0, percent: bool = True) -> None:
        """Check that a number lies above another one."""
        self._test(text, of, lambda found: (found.above(than), found.below(than)), percent)

    def alike(self, text: str, first: Source, second: Source, margin: float, percent: bool = True) -> None:
        """Check that two numbers differ by less than a margin."""
        self._test(
            text,
            difference(first, second),
            lambda found: (found.within(margin), min(found.above(margin), found.below(-margin))),
            percent,
        )

    def between(self, text: str, ratio: Ratio, low: float, high: float) -> None:
        """Check that the ratio of two means, of which that below is positive, lies between two numbers."""
        above, below = ratio
        try:
            shown = written(self.results.pooled(ratio))
            sides = [
                self.results.estimate(combined(lambda a, b: a - low * b, above, below)).above(),
                self.results.estimate(combined(lambda a, b: high * b - a, above, below)).above(),
            ]
        except MissingError as reason:
            self.missing.append(str(reason))
        except UndefinedError as reason:
            self.tests.append((Check(text, str(reason), 1.0), None, False))
        else:
            self.tests.append((Check(text, shown, max(sides)), None, False))

    def some(self, text: str, arms: Mapping[str, Sequence[Source]]) -> None:
        """Check that in some arm every number lies above 0, with as many arms to choose from.

        Args:
            text: The condition in words.
            arms: By name of an arm, its numbers.
        """
        try:
            found = {
                name: max(self.results.estimate(number).above() for number in numbers) for name, numbers in arms.items()
            }
        except MissingError as reason:
            self.missing.append(str(reason))
            return
        best = min(found, key=lambda name: found[name])
        self.tests.append((Check(text, best, min(1.0, len(arms) * found[best])), None, False))

    def _test(self, text: str, of: Source, p_values: Callable[[Estimate], tuple[float, float]], percent: bool) -> None:
        try:
            found = self.results.estimate(of)
        except MissingError as reason:
            self.missing.append(str(reason))
        else:
            self.tests.append((Check(text, _measured(found, percent), *p_values(found)), found, percent))


def written(interval: Interval, percent: bool = False) -> str:
    """A number with its interval.

    >>> written({"value": 0.643, "low": 0.61, "high": 0.67}, percent=True)
    '64.3 % (61.0 .. 67.0)'
    >>> written({"value": 0.5, "low": 0.5, "high": 0.5})
    '0.500'
    """
    value, low, high = (interval[key] * (100 if percent else 1) for key in ("value", "low", "high"))
    digits, unit = (1, " %") if percent else (3, "")
    ends = "" if low == high else f" ({low:.{digits}f} .. {high:.{digits}f})"
    return f"{value:.{digits}f}{unit}{ends}"


def _measured(found: Estimate, percent: bool) -> str:
    """An estimate with its interval over seeds, and that over prompts beside it."""
    parts = [_number(found.value, percent)]
    for error, cause in ((found.seeds, "seeds"), (found.prompts, "prompts")):
        interval = found.interval(error)
        if interval is not None:
            low, high = (_number(interval[end], percent, unit=False) for end in ("low", "high"))
            parts.append(f"{low} .. {high} over {cause}")
    return f"{parts[0]} ({'; '.join(parts[1:])})" if len(parts) > 1 else parts[0]


def _number(value: float, percent: bool, unit: bool = True) -> str:
    return f"{100 * value:.1f}{' points' * unit}" if percent else f"{value:.3f}"
