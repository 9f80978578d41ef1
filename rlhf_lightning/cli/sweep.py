"""Sweeps: where each job writes, what it is called, and the table at the end."""

import os
import re
import sys
from collections.abc import Mapping, Sequence
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from hydra.experimental.callback import Callback
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf, read_write
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from rlhf_lightning.cli.configuration import keep_secrets, places
from rlhf_lightning.cli.errors import report
from rlhf_lightning.cli.sweep_checks import check_alone, check_objectives, check_study, check_values, swept_settings
from rlhf_lightning.evaluation.sweep_figures import mean_alone, mean_rows
from rlhf_lightning.evaluation.sweep_measures import measured, pooled, trial_note
from rlhf_lightning.evaluation.tables import failure_table
from rlhf_lightning.recipe.legend import legend_of
from rlhf_lightning.recipe.pipeline import RECIPE
from rlhf_lightning.recipe.rounds import ROUNDS
from rlhf_lightning.runs.errors import PipelineError
from rlhf_lightning.runs.folders import Runs
from rlhf_lightning.runs.identity import fingerprint
from rlhf_lightning.runs.jobs import (
    BEGUN,
    COMPLETE,
    ELSEWHERE,
    FAILED,
    JOB,
    UNFINISHED,
    WAITS,
    Job,
    jobs_below,
    read_job,
    study_of,
)
from rlhf_lightning.runs.places import writable
from rlhf_lightning.runs.secrets import redacted

LONGEST = 120
"""Characters of a job's name in the name of its folder."""
WAITING = 3
"""Exit status of a command that ends because people are still to do something."""
SWEEP_ID = "RLHF_SWEEP"
"""The environment variable that tells a job which multirun it is of; Hydra sets it wherever a launcher starts one."""
_FAILED_HERE: list[Job] = []
"""Jobs of the last multirun that failed in this process."""
_EXCLUDED = "hydra.job.config.override_dirname.exclude_keys"


class SweepSummary(Callback):
    """Looks a multirun over before its first job, and prints one table of its jobs at the end, from their folders."""

    def __init__(self) -> None:
        keep_secrets()
        self.id = ""

    def on_multirun_start(self, config: DictConfig, **_: Any) -> None:
        """Refuse what a sweeper could not use, and give every job a name of its own."""
        self.id = f"{datetime.now(UTC):%Y-%m-%dT%H:%M:%S}-{os.getpid()}"
        try:
            _FAILED_HERE.clear()
            check_alone(os.environ)
            check_objectives(config)
            check_study(config)
            check_values(config)
            if several := sorted(swept_settings(config) & {"sweep", "hparams_search"}):
                raise PipelineError(f"{several[0]}: a multirun is one study. Start one after the other.")
            excluded, swept = OmegaConf.select(config, _EXCLUDED), swept_settings(config)
            with read_write(config.hydra.overrides):
                config.hydra.overrides.hydra.append(f"+hydra.job.env_set.{SWEEP_ID}='{self.id}'")
                if left := [name for name in excluded if name not in swept] if swept & {*excluded} else []:
                    config.hydra.overrides.hydra.append(f"{_EXCLUDED}=[{','.join(left)}]")
        except Exception as error:  # Hydra would warn of it, and go on
            report(error)
            sys.exit(1)

    def on_job_start(self, config: DictConfig, **_: Any) -> None:
        """Keep secrets in the processes of other launchers too."""
        keep_secrets()

    def on_multirun_end(self, config: DictConfig, **_: Any) -> None:
        """Print the tables, and end with 1 where a job did not end well, or else with 3 where one waits for people."""
        try:
            jobs = [job for job in jobs_below(Path(config.paths.runs)) if job.sweep == self.id or _damaged(job, config)]
            told = {job.name for job in jobs}
            # Another process makes these, and has the record in their folder.
            jobs += [job for job in _FAILED_HERE if job.name not in told]
            jobs = print_jobs(sorted(jobs, key=lambda job: job.number), Console())
        except Exception as error:  # of which Hydra would make a warning
            report(error)
            sys.exit(1)
        states = {job.state for job in jobs}
        if states & {FAILED, BEGUN, WAITS}:
            sys.exit(WAITING if WAITS in states and FAILED not in states else 1)


def is_sweep(hydra_config: Any) -> bool:
    """Whether this is a job of a multirun."""
    return hydra_config is not None and hydra_config.hydra.mode == RunMode.MULTIRUN


def check_started(config: Mapping[str, Any], hydra_config: Any) -> None:
    """Refuse what only a multirun reads in a command that is none, with a `PipelineError`.

    Args:
        config: The resolved configuration.
        hydra_config: Hydra's own, None where there is none.
    """
    choices = {} if hydra_config is None else hydra_config.hydra.runtime.choices
    shared = f"shared=[{','.join(config['shared'])}]" if config["shared"] else ""
    if not is_sweep(hydra_config) and (what := study_of(choices) or shared):
        raise PipelineError(f"{what} is for a multirun. Start it with -m, or leave that out.")


def _damaged(job: Job, config: DictConfig) -> bool:
    """Whether a job may be of a sweep, whose record cannot be read."""
    return not job.sweep and job.state == FAILED and job.folder.name.startswith(f"{config.run}.")


def print_jobs(jobs: Sequence[Job], console: Console) -> list[Job]:
    """Print what the jobs of sweeps measured, means over seeds, and what became of the others.

    Args:
        jobs: The jobs in order.
        console: Where the tables go.

    Returns:
        The jobs, of which one whose files cannot be read has failed.
    """
    known, found = measured(jobs)
    for run, study in dict.fromkeys((each.job.run, each.job.study) for each in found):
        own = [each for each in found if (each.job.run, each.job.study) == (run, study)]
        heads, rows = mean_rows(pooled(own), legend_of(RECIPE), mean_alone)
        count = len({each.job.folder for each in own})
        title = (
            f"{f'{run}, {study}' if study else run}: {count} jobs, means over seeds (rlhf-sweep writes the intervals)"
        )
        table = Table(*map(escape, heads), title=escape(title), caption=trial_note(own) or None)
        for row in rows:
            table.add_row(*map(escape, row))
        console.print(table)
    for state, what in ((WAITS, "wait for people"), (FAILED, "failed"), (BEGUN, "were not finished")):
        if said := [(job.name, job.said or UNFINISHED) for job in known if job.state == state]:
            console.print(failure_table(said, len(known), what))
    return known


def job_name(hydra_config: Any) -> str:
    """What people know a job of a multirun by: its overrides, or its number."""
    job = hydra_config.hydra.job
    return str(redacted(job.override_dirname)) or str(job.num)


def record_job(
    config: DictConfig,
    hydra_config: Any,
    state: str,
    said: str = "",
    *,
    reached: bool = False,
    upstream: Sequence[str] = (),
) -> None:
    """Say in the run folder of a job of a multirun how far it is; nothing of a run that is none.

    A failed one whose folder cannot be written to is said beside the runs.

    Args:
        config: The composed configuration.
        hydra_config: Hydra's own.
        state: One of the states of `Job`.
        said: Why it did not come to its end.
        reached: Whether all its steps did nevertheless.
        upstream: The runs whose steps it reads, where they are known; else those of its record stay.
    """
    if not is_sweep(hydra_config) or config.plan:
        return
    own, excluded = hydra_config.hydra, OmegaConf.select(hydra_config, _EXCLUDED) or []
    told = (each.lstrip("+").partition("=") for each in own.overrides.task)
    job = Job(
        sweep=os.environ.get(SWEEP_ID, ""),
        number=own.job.num,
        run=str(config.get("run")),
        study=study_of(own.runtime.choices),
        name=job_name(hydra_config),
        overrides={name: value for name, _, value in told if name not in excluded and not name.startswith("~")},
        rounds=config[ROUNDS] if isinstance(config.get(ROUNDS), int) else 1,
        state=state,
        said=said,
        stages=[str(stage) for stage in config.get("stages") or []],
    )
    elsewhere = Path(config.paths.runs) / ELSEWHERE / fingerprint([job.run, job.name])
    try:
        runs = runs_of(places(config), hydra_config)
        job = replace(job, folder=runs.root / runs.run)
        if state == FAILED:
            _FAILED_HERE.append(job)
        before = read_job(job.folder / JOB) if (job.folder / JOB).exists() else job
        same = (before.stages, before.rounds) == (job.stages, job.rounds) and not config.get("overwrite")
        reached = reached or state == COMPLETE or (same and (before.reached or before.state == COMPLETE))
        with writable(job.folder):
            replace(job, reached=reached, upstream=[*upstream] or before.upstream).write()
        (elsewhere / JOB).unlink(missing_ok=True)
    except Exception:
        if state != FAILED:
            raise
        replace(job, folder=elsewhere).write()


def runs_of(config: Mapping[str, Any], hydra_config: Any) -> Runs:
    """Where a command writes and what it builds on.

    Jobs of a multirun must not write into one another's folders, nor into the run that they build on.

    Args:
        config: The resolved configuration.
        hydra_config: Hydra's own, None where there is none.
    """
    run_name, upstream = config["run"], config["upstream"] or []
    upstream = (upstream,) if isinstance(upstream, str) else tuple(upstream)
    if is_sweep(hydra_config):
        upstream = upstream or (run_name,)
        called = job_name(hydra_config)
        name = re.sub("[^A-Za-z0-9_.,=+-]", "_", called)
        if name != called or len(name) > LONGEST:  # two names that differ elsewhere must not become one
            name = f"{name[: LONGEST - 20]}-{fingerprint(called)[:8]}"
        run_name = f"{run_name}.{name}"
    return Runs(Path(config["paths"]["runs"]), run_name, upstream)
