"""Jobs of a sweep: each says in its run folder what it is and how it ended, whoever launched it and wherever it ran."""

from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import yaml

from rlhf_lightning.runs.errors import PipelineError
from rlhf_lightning.runs.files import read_json, write_json
from rlhf_lightning.runs.secrets import redacted

JOB = "job.json"
BEGUN, COMPLETE, FAILED, WAITS = "begun", "complete", "failed", "waits"
"""How far a job is; one that was killed stays begun."""
ELSEWHERE = ".jobs"
"""Below the folder of all runs: the records of failed jobs whose own folder cannot be written to, or is none."""
SHARED = ".shared-"
"""In the name of a folder with steps that jobs share."""
UNFINISHED = "It did not come to its end: it still runs, or was stopped. The same sweep goes on with it."


@dataclass(frozen=True)
class Job:
    """One job of a sweep.

    Args:
        sweep: The multirun that launched it last; jobs of one command share it.
        number: Its place in that multirun.
        run: The name of the run that the sweep is of; the job's folder begins with it.
        study: The option of group `sweep` or `hparams_search`, "" for a sweep that was written on the command line.
        name: What people know it by: its overrides, or its number.
        overrides: What it was told, by setting.
        rounds: Number of rounds that it has.
        state: How far it is: one of `BEGUN`, `COMPLETE`, `FAILED`, `WAITS`.
        said: Why it did not come to its end.
        stages: The steps that it was to make.
        reached: Whether it came to its end once, with these steps and rounds; a later start that goes wrong takes none
            of what it measured.
        upstream: The runs whose steps it reads, those that it shares with other jobs among them.
        folder: Its run folder.
    """

    sweep: str
    number: int
    run: str
    study: str
    name: str
    overrides: dict[str, str] = field(default_factory=dict)
    rounds: int = 1
    state: str = BEGUN
    said: str = ""
    stages: list[str] = field(default_factory=list)
    reached: bool = False
    upstream: list[str] = field(default_factory=list)
    folder: Path = Path()

    def write(self) -> None:
        """Keep it in its folder, without secrets."""
        self.folder.mkdir(parents=True, exist_ok=True)
        record = {name: value for name, value in asdict(self).items() if name != "folder"}
        write_json(self.folder / JOB, redacted(record))


def read_job(path: Path) -> Job:
    """What a job wrote; where that cannot be read, a failed job that says so."""
    try:
        job = Job(**read_json(path), folder=path.parent)
        for name, value in asdict(Job("", 0, "", "", "")).items():
            if not isinstance(own := getattr(job, name), type(value)):
                raise TypeError(f"its {name} is {own!r}")
        return job
    except (OSError, TypeError, ValueError) as error:
        said = f"{path} is no record of a job ({error}). Move it away, or run the job again."
        return Job("", 0, path.parent.name, "", path.parent.name, state=FAILED, said=said, folder=path.parent)


def jobs_below(root: Path) -> list[Job]:
    """The jobs whose folders lie in a folder of runs, or one level below, by the names of the folders."""
    return [read_job(path) for pattern in ("*", "*/*") for path in sorted(root.glob(f"{pattern}/{JOB}"))]


def jobs_of(places: Iterable[Path]) -> list[Job]:
    """The jobs that somebody names.

    Args:
        places: Run folders of jobs, folders of runs, and files `multirun.yaml`, which Hydra writes of a sweep: its jobs
            are those of its run and its study beside it.

    Raises:
        PipelineError: When there are none in one of them, or two folders hold the same job.
    """
    found: dict[Path, Job] = {}
    for place in places:
        jobs = [*_jobs_at(place)]
        if not jobs and SHARED not in place.name:  # what jobs share lies between them
            raise PipelineError(
                f"{place}: there is no job of a sweep. Name the folder of all runs, run folders of jobs (which hold "
                f"{JOB}), or the multirun.yaml of a sweep."
            )
        found |= {job.folder.resolve(): job for job in jobs}
    same: dict[tuple[Any, ...], Job] = {}
    for job in found.values():
        known = job.sweep and job.folder.parent.name != ELSEWHERE  # there a job says what it cannot say in its folder
        told = (job.run, job.study, job.name, *sorted(job.overrides.items())) if known else (job.folder,)
        if (other := same.setdefault(told, job)) is not job:
            raise PipelineError(
                f"{other.folder} and {job.folder} are the same job ({job.name}), which would count twice. Name one."
            )
    if not found:
        raise PipelineError("there are only steps that jobs share, and no job. Name the folder of all runs.")
    return sorted(found.values(), key=lambda job: (job.run, job.study, job.number, job.name))


def _jobs_at(place: Path) -> Iterator[Job]:
    if place.is_file():
        try:
            sweep: Any = yaml.safe_load(place.read_bytes())
            run, choices = str(sweep["run"]), sweep["hydra"]["runtime"]["choices"]
        except (yaml.YAMLError, TypeError, KeyError) as error:
            raise PipelineError(f"{place} is no multirun.yaml of a sweep. Name one, or a folder of runs.") from error
        study = study_of(choices)
        yield from (job for job in jobs_below(place.parent) if (job.run, job.study) == (run, study))
    elif (place / JOB).is_file():
        yield read_job(place / JOB)
    else:
        yield from jobs_below(place)


def study_of(choices: Any) -> str:
    """The study among the options that Hydra chose, by group."""
    return str(choices.get("sweep") or choices.get("hparams_search") or "").removeprefix("null").removeprefix("None")
