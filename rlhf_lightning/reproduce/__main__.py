"""`python -m rlhf_lightning.reproduce`: run what the claims need, measure them, write the page."""

import argparse
import signal
import sys
from collections.abc import Sequence
from pathlib import Path

from rich.console import Console
from rich.table import Table

from rlhf_lightning.reproduce.claim import Outcome
from rlhf_lightning.reproduce.claims import CLAIMS, kinds_of, outcomes
from rlhf_lightning.reproduce.measure import Results
from rlhf_lightning.reproduce.page import headline, write_reports
from rlhf_lightning.reproduce.plan import SEEDS, jobs, selected
from rlhf_lightning.reproduce.runner import cores, plan_table, run_jobs, unfinished
from rlhf_lightning.runs.signals import Ended

NUMBERS = [claim.number for claim in CLAIMS]
STYLES = {"holds": "green", "does not hold": "red", "not run": "dim", "undecidable": "dim"}


def main(arguments: Sequence[str] | None = None) -> int:
    """Entry point; returns the exit status, 1 when a job failed."""
    options = _options(arguments)
    console = Console()
    numbers = options.claims or NUMBERS
    all_jobs = jobs(options.seeds)
    chosen = selected(all_jobs, kinds_of(numbers))
    if options.plan:
        needed = {job.kind: [c.number for c in CLAIMS if job.kind in c.kinds and c.number in numbers] for job in chosen}
        console.print(plan_table(chosen, options.runs, needed, options.jobs))
        return 0
    failed = []
    if not options.only_report:
        try:
            failed = run_jobs(chosen, options.runs, console, options.jobs, options.overwrite)
        except (KeyboardInterrupt, Ended) as stop:
            name = stop.name if isinstance(stop, Ended) else "Ctrl-C"
            console.print(f"\nstopped by {name}, and so are its jobs; the same command goes on where they stopped")
            return stop.status if isinstance(stop, Ended) else 128 + signal.SIGINT
    results = Results(options.runs, options.seeds, unfinished(all_jobs, options.runs))
    measured = outcomes(results)
    page = write_reports(measured, results, options.report)
    console.print(_table(measured, numbers))
    console.print(str(page))
    if failed:
        console.print(f"[bold red]{len(failed)} jobs failed or could not be started:[/] {', '.join(failed)}")
    return 1 if failed else 0


def _options(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="scripts/reproduce",
        description="Runs what the paper's claims need, measures them and writes the report. Run again to continue.",
    )
    parser.add_argument("claims", nargs="*", type=_claim, metavar="claim", help="numbers of claims; default: all")
    parser.add_argument("--plan", action="store_true", help="show the jobs with their times and run nothing")
    parser.add_argument("--only-report", action="store_true", help="measure what is there and run nothing")
    parser.add_argument("--overwrite", action="store_true", help="make again what was made with other settings")
    parser.add_argument("--seeds", type=_seeds, default=SEEDS, help="default: 1,2,3,4,5")
    parser.add_argument("--runs", type=Path, default=Path("runs/reproduce"), help="default: runs/reproduce")
    parser.add_argument("--report", type=Path, default=Path("report"), help="folder of the report; default: report")
    parser.add_argument("--jobs", type=_count, default=cores(), help="run so many side by side; default: one per core")
    return parser.parse_args(arguments)


def _claim(text: str) -> int:
    if not text.isdigit() or int(text) not in NUMBERS:
        raise argparse.ArgumentTypeError(f"{text!r} is no claim; there are {NUMBERS[0]} to {NUMBERS[-1]}.")
    return int(text)


def _count(text: str) -> int:
    if not text.isdigit() or int(text) == 0:
        raise argparse.ArgumentTypeError(f"{text!r} is no number of jobs: it must be 1 or more.")
    return int(text)


def _seeds(text: str) -> tuple[int, ...]:
    parts = text.split(",")
    if not all(part.strip().isdigit() for part in parts):
        raise argparse.ArgumentTypeError(f"{text!r} is no list of seeds such as 1,2,3.")
    return tuple(dict.fromkeys(int(part) for part in parts))


def _table(measured: Sequence[Outcome], numbers: Sequence[int]) -> Table:
    table = Table("#", "claim", "measured", "outcome", title=headline(measured), show_lines=True)
    for outcome in measured:
        claim, checks, verdict = outcome.claim, outcome.finding.checks, outcome.verdict
        if claim.number in numbers:
            failing = [f"✗ {check.text}" for check in checks if not check.holds]
            summary = "\n".join([outcome.met, *failing[:6]]) if checks else "-"
            table.add_row(str(claim.number), claim.title, summary, f"[{STYLES[verdict]}]{verdict}[/]")
    return table


if __name__ == "__main__":
    sys.exit(main())
