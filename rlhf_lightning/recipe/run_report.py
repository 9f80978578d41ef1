"""The report of a run, once a step is complete that it tells of, and of its rounds."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from rlhf_lightning.evaluation.report import ReportedStage, write_report
from rlhf_lightning.recipe.legend import run_legend
from rlhf_lightning.recipe.stage import Stage
from rlhf_lightning.runs.folders import Runs
from rlhf_lightning.runs.lock import locked
from rlhf_lightning.runs.rounds import rounds_to


def run_report(recipe: Sequence[Stage], runs: Runs, config: Mapping[str, Any]) -> str:
    """Write it over every finished step that the run made or built on; returns the path of the page.

    After a later round that of the first one is written again, which compares all rounds.

    Args:
        recipe: The steps that there are.
        runs: Where artifacts are, of the round.
        config: The resolved configuration.
    """
    stages = [
        ReportedStage(stage.name, folder, stage.curves, stage.unit, stage.measured_on_rankings)
        for stage in recipe
        if (folder := runs.find(stage.name, torn=True)) is not None
    ]
    page = write_report(runs.root / runs.run, stages, run_legend(recipe, config))
    *later, first = rounds_to(runs.run)
    if not later:
        return str(page)
    of_first = replace(runs, run=first)
    with locked(of_first.folder("report"), wait=60):
        return f"{page}; of all rounds: {run_report(recipe, of_first, config)}"
