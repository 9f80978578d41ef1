"""What a claim is, and what measuring it gives."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Literal

from rlhf_lightning.evaluation.intervals import Interval
from rlhf_lightning.reproduce.measure import MissingError, Ratio, Results, Source, UndefinedError, difference

Verdict = Literal["holds", "does not hold", "not run"]

LEAST_SEEDS = 3
RULES = (
    "A direction (higher, lower) holds when the 95 % interval of the difference excludes no difference. It is "
    "bootstrapped over seeds and prompts; for a loss it is Student's over the seeds. Three seeds are few: where they "
    "differ more than their prompts let expect, a bootstrapped interval covers less than 95 %. A threshold is met by "
    "the measured value, whatever its interval. A claim holds when each of its checks does."
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
    """One condition of a claim.

    Args:
        condition: The condition in words.
        measured: The number in words.
        holds: Whether the condition was met.
    """

    condition: str
    measured: str
    holds: bool

    @property
    def text(self) -> str:
        """Both in one line."""
        return f"{self.condition}: {self.measured}"


@dataclass
class Finding:
    """What was measured for a claim; what has not run is missing from it.

    Args:
        results: What the jobs left behind.
        rows: The numbers.
        checks: The conditions on them.
        missing: What the numbers and checks that could not be made lack.
    """

    results: Results
    rows: list[Row] = field(default_factory=list)
    checks: list[Check] = field(default_factory=list)
    missing: list[str] = field(default_factory=list)

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
        """Check that the interval of the difference lies above a number."""
        self.check(text, difference(higher, lower), lambda interval: interval["low"] > least, percent)

    def below(self, text: str, lower: Source, higher: Source, percent: bool = True) -> None:
        """Check that the interval of the difference lies below 0."""
        self.check(text, difference(lower, higher), lambda interval: interval["high"] < 0, percent)

    def check(self, text: str, of: Source | Ratio, condition: Callable[[Interval], bool], percent: bool = True) -> None:
        """Check a condition on a number."""
        try:
            interval = self.results.pooled(of)
        except MissingError as reason:
            self.missing.append(str(reason))
        except UndefinedError as reason:
            self.checks.append(Check(text, str(reason), False))
        else:
            self.checks.append(Check(text, written(interval, percent), bool(condition(interval))))


@dataclass(frozen=True)
class Claim:
    """One finding of the paper, and how it is tried.

    Args:
        kinds: The kinds of jobs that it needs.
        fill: The function that measures it, as far as the jobs have run.
        number: Its number in the list of the project.
        title: The claim in a few words.
        source: Section or figure of the paper.
        paper: The paper's finding.
        rule: The outcome that it needs here, written down before the runs.
        note: Our best explanation of why it does not hold, found after the runs.
        failed: The conditions that were not met when the note was written; where others are not, it is not shown.
    """

    kinds: tuple[str, ...]
    fill: Callable[[Finding, Results], None]
    number: int
    title: str
    source: str
    paper: str
    rule: str
    note: str = ""
    failed: Sequence[str] = ()

    def measure(self, results: Results) -> Finding:
        """What some results say about it."""
        finding = Finding(results)
        self.fill(finding, results)
        return finding


@dataclass(frozen=True)
class Outcome:
    """A claim and what came out.

    Args:
        claim: The claim.
        finding: The numbers and checks.
        unfinished: Names of the jobs that it still needs.
        seeds: The seeds that were measured.
    """

    claim: Claim
    finding: Finding
    unfinished: Sequence[str]
    seeds: Sequence[int]

    @property
    def summary(self) -> str:
        """The main numbers in one line, by what was measured."""
        measures: dict[str, list[str]] = {}
        for row in self.finding.rows:
            if row.main:
                place = f"{row.at} {row.who}".strip()
                measures.setdefault(row.measure, []).append(f"{place} {written(row.interval, row.percent)}")
        return "; ".join(f"{measure}: {', '.join(numbers)}" for measure, numbers in measures.items())

    @property
    def met(self) -> str:
        """How many checks were met."""
        checks = self.finding.checks
        return f"{sum(check.holds for check in checks)} of {len(checks)} checks"

    @property
    def verdict(self) -> Verdict:
        """`not run` as long as a job, a number or a seed is missing, whatever the rest says."""
        if len(self.seeds) < LEAST_SEEDS or self.unfinished or self.finding.missing or not self.finding.checks:
            return "not run"
        return "holds" if all(check.holds for check in self.finding.checks) else "does not hold"

    @property
    def note(self) -> str | None:
        """Our explanation of a claim that does not hold, where it is about the very checks that were not met."""
        failed = {check.condition for check in self.finding.checks if not check.holds}
        return self.claim.note if self.verdict == "does not hold" and failed == set(self.claim.failed) else None


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
