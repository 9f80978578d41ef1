"""`rlhf-sweep`: the jobs of sweeps, from their run folders, as one table and a picture per study."""

import argparse
import csv
import re
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pyarrow
from pyarrow import parquet
from rich.console import Console
from rich.text import Text

from rlhf_lightning.cli.sweep import print_jobs
from rlhf_lightning.evaluation.plots import Legend
from rlhf_lightning.evaluation.sweep_figures import LABELS, mean_rows, picture
from rlhf_lightning.evaluation.sweep_measures import (
    SEED,
    Measured,
    Pooled,
    differences,
    measured,
    number_of,
    pooled,
    rows,
    trial_note,
    varied,
)
from rlhf_lightning.evaluation.tables import markdown_table
from rlhf_lightning.recipe.legend import legend_of
from rlhf_lightning.recipe.pipeline import RECIPE
from rlhf_lightning.runs.errors import PipelineError
from rlhf_lightning.runs.files import replacing
from rlhf_lightning.runs.folders import read_stage
from rlhf_lightning.runs.jobs import FAILED, Job, jobs_of
from rlhf_lightning.runs.terminal import harmless

TABLE = "sweep"
_PLACE = r"(<!-- came out: {} -->\n).*?(<!-- end -->)"
"""Where a page has what came out of a study."""


def main(arguments: Sequence[str] | None = None) -> None:
    """Entry point of `rlhf-sweep`."""
    parser = argparse.ArgumentParser(
        "rlhf-sweep", description="Write the table and the pictures of sweeps, from the run folders of their jobs."
    )
    parser.add_argument("places", nargs="+", type=Path, metavar="PLACE", help="folders of runs, or multirun.yaml")
    parser.add_argument("--report", type=Path, default=Path("report"), metavar="DIR", help="default: report")
    parser.add_argument("--into", type=Path, metavar="PAGE", help="also write what came out into the places of a page")
    parser.add_argument("--against", metavar="SETTING=VALUE", help="also write how other values differ from this one")
    options = parser.parse_args(arguments)
    console = Console()
    try:
        if options.into and not options.into.is_file():
            raise PipelineError(f"--into {options.into}: there is no such page.")
        if options.report.exists() and not options.report.is_dir():
            raise PipelineError(f"--report {options.report}: this is no folder. Name one, or what is to become one.")
        jobs = jobs_of(options.places)
        print_jobs(jobs, console)
        for path in write_report(jobs, options.report, options.into, options.against):
            console.print(str(path), soft_wrap=True, highlight=False)
    except (PipelineError, OSError, ValueError) as error:
        Console(stderr=True, soft_wrap=True, highlight=False).print(Text(harmless(f"rlhf-sweep: {error}")))
        sys.exit(1)


def write_report(jobs: Sequence[Job], folder: Path, page: Path | None = None, against: str | None = None) -> list[Path]:
    """Write the table of all jobs, and the picture of each study.

    Args:
        jobs: The jobs.
        folder: Where the files go.
        page: A page that gets the means of each study for which it has a place; None for none.
        against: A setting and its value, from which others of the same study differ; None for none.

    Returns:
        What was written: `sweep.parquet`, `sweep.csv`, and `<run>-<study>.svg` and `.md`.

    Raises:
        PipelineError: When the page has no place for a study, after all has been written; or when no study varies the
            setting, or none has that value.
    """
    folder.mkdir(parents=True, exist_ok=True)
    legend, written_to = legend_of(RECIPE), []
    studies: dict[tuple[str, str], list[Job]] = {}
    for job in jobs:
        studies.setdefault((job.run, job.study), []).append(job)
    table, texts = list[dict[str, Any]](), dict[str, list[str]]()
    names = set[str]()
    results = {key: measured(given) for key, given in studies.items()}
    bases = _bases([found for _, found in results.values()], against)
    for place, ((run, study), (own, found)) in enumerate(results.items()):
        means = pooled(found)
        table += rows(own, found)
        name = re.sub("[^A-Za-z0-9_.-]", "_", f"{run}-{study}" if study else run)
        while name in names:  # of another run or study
            name += "_"
        names.add(name)
        if drawn := picture(name, means, legend):
            written_to.append(folder / f"{name}.svg")
            with replacing(written_to[-1]) as file:
                file.write(drawn)
        torn = [job for job in jobs if job.state == FAILED and not job.sweep and job.folder.name.startswith(f"{run}.")]
        lost = len(torn) * (sum(other == run for other, _ in studies) == 1)  # else nobody knows of which study
        text = came_out(own, found, means, legend, lost, bases[place])
        texts.setdefault(study, []).append(text)
        written_to.append(folder / f"{name}.md")
        with replacing(written_to[-1]) as file:
            file.write(text)
    written_to = [*_write_table(table, folder), *written_to]
    filled = {study: _filled(page, study, "\n".join(own)) for study, own in texts.items() if page and study}
    if page and not filled:
        raise PipelineError(f"{page} stays as it is: no job is of a study (sweep=...), whose name a place has.")
    if homeless := [study for study, there in filled.items() if not there]:
        raise PipelineError(
            f"{page} has no place for {', '.join(homeless)}, and stays as it is there; {folder} has the tables. "
            f"A place is two lines, <!-- came out: {homeless[0]} --> and <!-- end -->."
        )
    return written_to


def came_out(
    jobs: Sequence[Job],
    found: Sequence[Measured],
    means: Sequence[Pooled],
    legend: Legend,
    lost: int = 0,
    base: Mapping[str, str] | None = None,
) -> str:
    """What came out of a study, in Markdown.

    Args:
        jobs: All its jobs.
        found: What they measured.
        means: The same over seeds.
        legend: Names of the policies.
        lost: Further jobs, whose records cannot be read.
        base: The setting and value from which others differ; None or empty for none.
    """
    seeds = sorted({each.settings.get(SEED, "1") for each in found})
    stages = [read_stage(path.parent) for each in found for path in each.job.folder.glob("*/stage.json")]
    commits = sorted({str(each.get("git_commit") or "")[:9] for each in stages} - {""})
    dates = sorted({str(each.get("date") or "") for each in stages} - {""})
    devices = sorted({str(each.get("environment", {}).get("device") or "") for each in stages} - {""})
    done, most = len({each.job.folder for each in found}), max((each.seeds for each in means), default=0)
    heads, lines = mean_rows(means, legend)
    head = f"{done} of {len(jobs) + lost} jobs came to their end; run `{jobs[0].run}`, seeds {', '.join(seeds)}"
    where = " and ".join(devices) or "unknown device"
    when = f"commit {', '.join(commits) or 'unknown'}, {dates[-1] if dates else 'no date'}, {where}"
    over = "means over seeds with 95 % intervals over seeds and prompts"
    over = over if most > 1 else "one seed, with 95 % intervals over prompts"
    trials = f" **{note}**" if (note := trial_note(found)) else ""
    text = f"{head}; {when}; {over}.{trials}\n\n{markdown_table(heads, lines, 2)}\n"
    if base:
        heads, lines = mean_rows([each for each in differences(found, base) if each.measure in LABELS], legend)
        told = ", ".join(f"`{name}={value}`" for name, value in base.items())
        text += f"\nDifferences from {told}, over the same seeds and prompts:\n\n{markdown_table(heads, lines, 2)}\n"
    return text


def _bases(found: Sequence[Sequence[Measured]], against: str | None) -> list[dict[str, str]]:
    """For each study the setting that others are compared with, as its jobs have it; empty where it does not vary."""
    name, _, value = (against or "").partition("=")
    bases, there = list[dict[str, str]](), dict[str, None]()
    for each in found:
        own = [one for one in varied(each) if one != SEED]
        whole = next((one for one in own if f".{one}".endswith(f".{name}")), None)
        values = {number_of(job.settings.get(whole)): job.settings.get(whole, "") for job in each} if whole else {}
        there |= dict.fromkeys(f"{one}={job.settings.get(one, '')}" for one in own for job in each)
        bases.append({whole: values[number_of(value)]} if whole and number_of(value) in values else {})
    if against and not any(bases):
        raise PipelineError(f"--against {against}: no study has that. They have {', '.join(there) or 'one setting'}.")
    return bases


def _filled(page: Path, study: str, text: str) -> bool:
    """Put a text into the place of a study, where the page has one."""
    place = re.compile(_PLACE.format(re.escape(study)), re.DOTALL)
    old = page.read_text(encoding="utf-8")
    new, places = place.subn(lambda found: f"{found[1]}\n{text}\n{found[2]}", old)
    if places:
        with replacing(page) as file:
            file.write(new)
    return places > 0


def _write_table(table: Sequence[dict[str, Any]], folder: Path) -> list[Path]:
    names = dict.fromkeys(name for row in table for name in row)
    whole: list[dict[str, Any]] = [{} for _ in table]
    for name in names:
        values = [row.get(name) for row in table]
        # A column has one type: a setting that is a number in one study and a text in another is a text.
        kind = next((kind for kind in (str, float) if any(isinstance(value, kind) for value in values)), None)
        for row, value in zip(whole, values, strict=True):
            row[name] = value if value is None or kind is None else kind(value)
    paths = [folder / f"{TABLE}.parquet", folder / f"{TABLE}.csv"]
    with replacing(paths[0], "wb") as file:
        parquet.write_table(pyarrow.Table.from_pylist(whole), file)
    with replacing(paths[1], newline="") as file:
        writer = csv.DictWriter(file, [*names])
        writer.writeheader()
        writer.writerows(whole)
    return paths
