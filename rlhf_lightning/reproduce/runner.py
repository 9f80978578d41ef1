"""Runs jobs, each as a process of its own, a few at once; what is complete is not started again."""

import os
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from rich.console import Console
from rich.table import Table

from rlhf_lightning.cli import composed
from rlhf_lightning.recipe.pipeline import Pipeline
from rlhf_lightning.reproduce.plan import Job
from rlhf_lightning.runs.folders import PipelineError, Runs, read_stage
from rlhf_lightning.runs.identity import fingerprint
from rlhf_lightning.runs.signals import Children
from rlhf_lightning.runs.targets import builder
from rlhf_lightning.runs.terminal import harmless

TAIL = 25
"""Lines of a failed job's output that are shown."""

_composed = cache(composed)


@dataclass(frozen=True)
class State:
    """How far a job is.

    Args:
        complete: The stages that are complete and were made from what they would be made from now, with their seconds.
        stale: The stages that were made from something else, or of which that is not known.
        done: Whether all stages are complete.
        remaining: Estimated seconds that the job still needs.
    """

    complete: Mapping[str, float]
    stale: Sequence[str]
    done: bool
    remaining: float

    @property
    def word(self) -> str:
        """The state in a word or two."""
        if self.done:
            return "complete"
        if self.stale:
            return f"stale: {', '.join(self.stale)}"
        return f"{', '.join(self.complete)} complete" if self.complete else "to do"


def state_of(job: Job, runs: Path) -> State:
    """What a job has left behind so far."""
    complete, stale = {}, []
    for stage in job.stages:
        try:
            record = read_stage(runs / job.name / stage)
        except PipelineError:
            stale.append(stage)
            continue
        now = fingerprint_of(job, stage, runs) if record else None
        if record and now is not None and record.get("fingerprint") != now:
            stale.append(stage)
        elif record.get("status") == "complete" and now is not None:
            complete[stage] = float(record.get("seconds") or 0.0)
    remaining = sum(seconds for stage, seconds in job.seconds.items() if stage not in complete)
    return State(complete, stale, len(complete) == len(job.stages), remaining)


def fingerprint_of(job: Job, stage: str, runs: Path) -> str | None:
    """What a stage of a job would be made from now: settings, data and earlier stages; None while one of them lacks."""
    kept = [text for text in job.overrides if text.split("=")[0] not in ("run", "seed", "upstream", "stages")]
    config = {**_composed(tuple(kept)), "seed": job.seed}
    pipeline = Pipeline(config, builder([]), Runs(runs, job.name, job.upstream))
    try:
        return fingerprint(pipeline.step(stage).identity(pipeline.context))
    except PipelineError:
        return None


def unfinished(all_jobs: Sequence[Job], runs: Path) -> list[str]:
    """Names of the jobs that are not complete."""
    return [job.name for job in all_jobs if not state_of(job, runs).done]


def command(job: Job, runs: Path, overwrite: bool = False) -> list[str]:
    """The command that starts a job."""
    extra = ["overwrite=true"] if overwrite else []
    return [sys.executable, "-m", "rlhf_lightning", f"paths.runs={runs}", *job.overrides, *extra]


def run_jobs(jobs: Sequence[Job], runs: Path, console: Console, at_once: int = 1, overwrite: bool = False) -> list[str]:
    """Run what is not complete; a failure stops only the jobs that build on it.

    Args:
        jobs: Jobs, each after those that it builds on.
        runs: Folder of all runs.
        console: The console that progress goes to.
        at_once: Number of jobs side by side. Models this small leave a second thread little to do: two jobs of one
            thread each finish earlier than one job of two threads after the other.
        overwrite: Whether what was made from something else is made again; else its job fails.

    Returns:
        Names of the jobs that failed or could not be started.
    """
    places = {job.name: f"[bold]{number}/{len(jobs)}[/] {job.name}" for number, job in enumerate(jobs, 1)}
    waiting: list[Job] = []
    for job in jobs:
        if state_of(job, runs).done:
            console.print(f"{places[job.name]}: complete already")
        else:
            waiting.append(job)
    failed: list[str] = []
    running: dict[Future[bool], tuple[Job, float]] = {}
    with ThreadPoolExecutor(at_once) as workers, Children() as children:
        while waiting or running:
            for job in _startable(waiting, failed, [started.name for started, _ in running.values()]):
                lacking, state = [name for name in job.upstream if name in failed], state_of(job, runs)
                if lacking:
                    console.print(f"{places[job.name]}: [red]not started[/], {', '.join(lacking)} failed")
                    failed.append(job.name)
                elif state.stale and not overwrite:
                    console.print(
                        f"{places[job.name]}: [red]not started[/], {', '.join(state.stale)} in {runs / job.name} was "
                        "made with other settings or is torn; --overwrite makes it again, --runs takes another folder"
                    )
                    failed.append(job.name)
                elif len(running) < at_once:
                    console.print(f"{places[job.name]}: {', '.join(job.stages)}, about {minutes(state.remaining)}")
                    running[workers.submit(_run, children, job, runs, at_once, overwrite)] = (job, time.perf_counter())
                else:
                    break
                waiting.remove(job)
            for future in wait(running, return_when=FIRST_COMPLETED).done:
                job, start = running.pop(future)
                if future.result():
                    console.print(f"{places[job.name]}: done in {minutes(time.perf_counter() - start)}")
                else:
                    failed.append(job.name)
                    log = _log(job, runs)
                    tail = "\n".join(log.read_text(encoding="utf-8", errors="replace").splitlines()[-TAIL:])
                    console.print(f"{places[job.name]}: [bold red]failed[/], {log}:")
                    console.print(harmless(tail), style="dim", markup=False, highlight=False)
    return failed


def _startable(waiting: Sequence[Job], failed: Sequence[str], running: Sequence[str]) -> list[Job]:
    """Those that wait for nothing any more, or for nothing that could still come."""
    unsettled = {job.name for job in waiting} | set(running)
    return [job for job in waiting if not unsettled.intersection(job.upstream) or set(failed) & set(job.upstream)]


def plan_table(jobs: Sequence[Job], runs: Path, claims: Mapping[str, Sequence[int]], at_once: int = 1) -> Table:
    """The jobs with their times and how far they are.

    Args:
        jobs: Jobs in the order in which they would run.
        runs: Folder of all runs.
        claims: The claims that need each kind of job.
        at_once: Number of jobs side by side.
    """
    states = {job.name: state_of(job, runs) for job in jobs}
    left = sum(state.remaining for state in states.values())
    spent = sum(sum(state.complete.values()) for state in states.values())
    table = Table(
        title=f"{len(jobs)} jobs, {sum(state.done for state in states.values())} complete; {minutes(left / at_once)} "
        f"to go with {at_once} at once",
        caption=f"Times with ~ are estimates for one core per job, the others were measured: {minutes(spent)} of jobs.",
    )
    for name in ("job", "claims", "stages", "state", "time"):
        table.add_column(name, justify="right" if name == "time" else "left")
    for job in jobs:
        state = states[job.name]
        total = minutes(sum(state.complete.values()) + state.remaining)
        numbers = ", ".join(map(str, claims.get(job.kind, ())))
        table.add_row(job.name, numbers, ", ".join(job.stages), state.word, total if state.done else f"~{total}")
    return table


def minutes(seconds: float) -> str:
    """A time as people say it.

    >>> minutes(42), minutes(200), minutes(12_000)
    ('42 s', '3 min', '3 h 20 min')
    """
    if seconds < 100:
        return f"{seconds:.0f} s"
    whole = round(seconds / 60)
    return f"{whole} min" if whole < 60 else f"{whole // 60} h {whole % 60} min"


def cores() -> int:
    """Number of cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _run(children: Children, job: Job, runs: Path, at_once: int, overwrite: bool) -> bool:
    runs.mkdir(parents=True, exist_ok=True)
    environment = {"OMP_WAIT_POLICY": "passive", **os.environ, "HF_HUB_OFFLINE": "1"}
    if at_once > 1:
        environment.setdefault("OMP_NUM_THREADS", str(max(1, cores() // at_once)))
    with _log(job, runs).open("w", encoding="utf-8") as output:
        arguments = command(job, runs, overwrite)
        finished = children.run(arguments, stdout=output, stderr=subprocess.STDOUT, env=environment)
    return finished.returncode == 0


def _log(job: Job, runs: Path) -> Path:
    return runs / f"{job.name}.log"
