"""A finding of the paper as it is tried here, and its verdict."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import date
from typing import Literal

from rlhf_lightning.reproduce.finding import Finding, written
from rlhf_lightning.reproduce.measure import Results

Verdict = Literal["holds", "does not hold", "not run", "undecidable"]
LEAST_SEEDS = 5
Fill = Callable[[Finding, Results], None]
"""Measures a claim, as far as the jobs have run."""


@dataclass(frozen=True)
class Claim:
    """One finding of the paper, and how it is tried.

    Args:
        kinds: The kinds of jobs that it needs.
        fill: The function that measures it; None where nothing is measured.
        number: Its number in the list of the project.
        name: Its name in `claims.toml`.
        title: The claim in a few words.
        source: Section or figure of the paper.
        paper: The paper's finding.
        rule: The outcome that it needs here, written down before the runs.
        written: The day on which the rule was.
        undecidable: Why there is no rule.
        note: Our best explanation of why it does not hold, found after the runs.
        failed: The conditions that were not met when the note was written; where others are not, it is not shown.
    """

    kinds: tuple[str, ...]
    fill: Fill | None
    number: int
    name: str
    title: str
    source: str
    paper: str
    rule: str = ""
    written: date | None = None
    undecidable: str = ""
    note: str = ""
    failed: Sequence[str] = ()

    def measure(self, results: Results) -> Finding:
        """What some results say about it."""
        finding = Finding(results)
        if self.fill is not None:
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
        if self.claim.undecidable:
            return "undecidable"
        if len(self.seeds) < LEAST_SEEDS or self.unfinished or self.finding.missing or not self.finding.checks:
            return "not run"
        return "holds" if all(check.holds for check in self.finding.checks) else "does not hold"

    @property
    def note(self) -> str | None:
        """Our explanation of a claim that does not hold, where it is about the very checks that were not met."""
        failed = {check.condition for check in self.finding.checks if not check.holds}
        return self.claim.note if self.verdict == "does not hold" and failed == set(self.claim.failed) else None
