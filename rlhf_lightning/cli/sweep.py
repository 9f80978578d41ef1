"""Sweeps: where a job of a multirun writes, what it is called, and the table at the end."""

import re
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar

from hydra.core.utils import JobReturn
from hydra.experimental.callback import Callback
from hydra.types import RunMode
from omegaconf import DictConfig
from rich.console import Console

from rlhf_lightning.cli.configuration import keep_secrets, resolved
from rlhf_lightning.evaluation.tables import ROUND, failure_table, sweep_table
from rlhf_lightning.recipe.rounds import ROUNDS
from rlhf_lightning.runs.folders import Runs
from rlhf_lightning.runs.identity import fingerprint
from rlhf_lightning.runs.secrets import redacted

LONGEST = 120
"""Characters of a job's name in the name of its folder."""
WAITING = 3
"""Exit status of a command that ends because people are still to do something."""


class SweepSummary(Callback):
    """Prints one table when a multirun ends, with every policy pooled over the jobs, and what went wrong."""

    failures: ClassVar[dict[int, str]] = {}
    """What jobs said that could not go on, by their numbers."""
    waiting: ClassVar[dict[int, str]] = {}
    """What people are to do for jobs that wait for them, by their numbers."""

    def __init__(self) -> None:
        keep_secrets()  # in the processes of other launchers too
        self.jobs: dict[str, Path] = {}
        self.numbers: dict[int, str] = {}

    def on_multirun_start(self, config: DictConfig, **_: Any) -> None:
        """Forget another multirun of this process."""
        self.failures.clear()
        self.waiting.clear()

    def on_job_end(self, config: DictConfig, job_return: JobReturn, **_: Any) -> None:
        """Remember what a job of a multirun was called and where it wrote."""
        if not is_sweep(config):
            return
        name, number = job_name(config), config.hydra.job.num
        self.numbers[number] = name if name not in self.numbers.values() else f"{name} (job {number})"
        if number not in self.failures and number not in self.waiting:
            job: Any = job_return.cfg
            settings = resolved(job)
            runs, called = runs_of(settings, config), self.numbers[number]
            for round_ in range(1, settings[ROUNDS] + 1):
                own = called if settings[ROUNDS] == 1 else f"{called}{ROUND}{round_}"
                self.jobs[own] = runs.root / runs.of_round(round_).run

    def on_multirun_end(self, config: DictConfig, **_: Any) -> None:
        """Print the tables, and end with 1 where a job failed, or else with 3 where one waits for people."""
        console = Console()
        if self.jobs:
            console.print(sweep_table(self.jobs))
        for said, what in ((self.waiting, "wait for people"), (self.failures, "failed")):
            if said:
                jobs = {self.numbers.get(number, str(number)): text for number, text in said.items()}
                console.print(failure_table(jobs, len(self.numbers), what))
        if self.failures or self.waiting:
            sys.exit(1 if self.failures else WAITING)


def is_sweep(hydra_config: Any) -> bool:
    """Whether this is a job of a multirun."""
    return hydra_config is not None and hydra_config.hydra.mode == RunMode.MULTIRUN


def job_name(hydra_config: Any) -> str:
    """What people know a job of a multirun by: its overrides, or its number."""
    job = hydra_config.hydra.job
    return str(redacted(job.override_dirname)) or str(job.num)


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
