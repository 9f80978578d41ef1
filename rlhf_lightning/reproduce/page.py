"""What came out: a page for people, a table for the README, numbers for programs."""

import datetime
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined

from rlhf_lightning.reproduce.claim import LEAST_SEEDS, Outcome
from rlhf_lightning.reproduce.figures import figures
from rlhf_lightning.reproduce.finding import RULES, written
from rlhf_lightning.reproduce.measure import Results
from rlhf_lightning.reproduce.runner import cores
from rlhf_lightning.runs.files import replacing, write_json
from rlhf_lightning.runs.folders import read_stage
from rlhf_lightning.runs.identity import git_commit, processor

MARKS = {"holds": "✓", "does not hold": "✗", "not run": "-", "undecidable": "?"}


def write_reports(outcomes: Sequence[Outcome], results: Results, folder: Path) -> Path:
    """Write `claims.html`, `claims.md` and `claims.json`; returns the path of the page.

    Args:
        outcomes: The outcomes of all claims.
        results: The runs that they were measured on.
        folder: The folder that gets the files.
    """
    folder.mkdir(parents=True, exist_ok=True)
    about = _about(results)
    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent),
        autoescape=lambda name: name == "claims.html",
        undefined=StrictUndefined,
        trim_blocks=True,
    )
    environment.filters["written"] = lambda row: written(row.interval, row.percent)
    content = {
        "outcomes": outcomes,
        "figures": {outcome.claim.number: figures(outcome) for outcome in outcomes},
        "headline": headline(outcomes),
        "rules": RULES,
        "marks": MARKS,
        "origin": _origin(about),
        "few_seeds": len(results.seeds) < LEAST_SEEDS,
    }
    for name in ("claims.html", "claims.md"):
        with replacing(folder / name) as file:
            file.write(environment.get_template(name).render(content))
    write_json(folder / "claims.json", {**about, "rules": RULES, "claims": [_plain(outcome) for outcome in outcomes]})
    return folder / "claims.html"


def headline(outcomes: Sequence[Outcome]) -> str:
    """How many claims hold, in a sentence."""
    count = {verdict: sum(outcome.verdict == verdict for outcome in outcomes) for verdict in MARKS}
    tried = count["holds"] + count["does not hold"]
    rest = f"; {count['not run']} have not been run to the end" if count["not run"] else ""
    undecided = f"; {count['undecidable']} cannot be decided here" if count["undecidable"] else ""
    return f"{count['holds']} of {tried} findings hold{rest}{undecided}"


def _about(results: Results) -> dict[str, Any]:
    """When, where and from which state of the code the numbers come."""
    stages = (path.parent for seed in results.seeds for path in results.runs.glob(f"*-s{seed}/*/stage.json"))
    commits = {read_stage(stage).get("git_commit") for stage in stages}
    return {
        "git_commit": git_commit(),
        "commits_of_the_runs": sorted(commit for commit in commits if commit),
        "date": datetime.datetime.now(datetime.UTC).date().isoformat(),
        "cores": cores(),
        "cpu": processor(),
        "seeds": list(results.seeds),
    }


def _origin(about: Mapping[str, Any]) -> str:
    """Where the numbers come from, in a sentence or two."""
    seeds, commits = ", ".join(map(str, about["seeds"])), [commit[:9] for commit in about["commits_of_the_runs"]]
    mixed = " The runs are of several commits: make them again to compare them." if len(commits) > 1 else ""
    return (
        f"Seeds {seeds}; commit of the runs: {' and '.join(commits) or 'none'}; "
        f"measured at commit {(about['git_commit'] or 'unknown')[:9]} on {about['date']}, "
        f"{about['cores']} cores, {about['cpu']}.{mixed}"
    )


def _plain(outcome: Outcome) -> dict[str, Any]:
    return {
        **{
            name: getattr(outcome.claim, name)
            for name in ("number", "name", "title", "source", "paper", "rule", "undecidable")
        },
        "verdict": outcome.verdict,
        "note": outcome.note,
        "written": str(outcome.claim.written or ""),
        "checks": [
            {"text": check.text, "holds": check.holds, "reversed": check.reversed, "p": check.corrected}
            for check in outcome.finding.checks
        ],
        "rows": [
            {"measure": row.measure, "who": row.who, "at": row.at, "percent": row.percent, **row.interval}
            for row in outcome.finding.rows
        ],
        "unfinished": list(outcome.unfinished),
        "missing": outcome.finding.missing,
    }
