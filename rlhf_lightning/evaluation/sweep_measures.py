"""What the jobs of sweeps measured, read from their run folders: a row per number, and means over seeds."""

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from rlhf_lightning.evaluation.estimates import Values, pooled_interval
from rlhf_lightning.evaluation.intervals import Interval, mean_interval, outcome_interval, wins
from rlhf_lightning.evaluation.tables import EVALUATE, REWARD
from rlhf_lightning.runs.errors import PipelineError
from rlhf_lightning.runs.files import read_json
from rlhf_lightning.runs.folders import is_complete, read_stage
from rlhf_lightning.runs.jobs import COMPLETE, FAILED, UNFINISHED, Job
from rlhf_lightning.runs.rounds import ROUND

SEED = "seed"
TRIAL = "trainer.limit_train_batches"
_RENAMED = {"scores": "score", "lengths": "length", "rewards": REWARD, "metadata/likert": "likert"}
_PER_BATCH = ("validation/", "rollout/")
"""How the metrics of a step begin that say how well it did; others say how fast, or steer."""
_SHARES = ("win_rate", "validation/accuracy", "metadata/", "probes/", "preferences/")
"""Measures of wins and flags."""


@dataclass(frozen=True)
class Measured:
    """What one job, in one of its rounds, measured.

    Args:
        job: The job.
        settings: What it was told, and the round where it has several, by setting.
        values: A number per prompt, None where there is none, or one for all, by policy or step and measure.
        made: The steps that it made itself; what it shares with other jobs is the same in each.
        made_of: What its steps, and those that it read, were told and made from, by setting; seeds are left out.
    """

    job: Job
    settings: dict[str, str]
    values: dict[tuple[str, str], Values]
    made: frozenset[str]
    made_of: dict[str, str]


@dataclass(frozen=True)
class Pooled:
    """A measure of a policy over the jobs that differ in their seeds alone.

    Args:
        settings: What these jobs have in common, by setting, of what differs in the sweep.
        policy: The policy, or the step.
        measure: What was measured.
        interval: Mean over seeds of equal weight, with its 95 % interval over seeds and prompts.
        seeds: Number of jobs.
        made: Whether each job made the policy itself.
    """

    settings: dict[str, str]
    policy: str
    measure: str
    interval: Interval
    seeds: int
    made: bool


def measured(jobs: Sequence[Job]) -> tuple[list[Job], list[Measured]]:
    """The jobs, of which one whose files cannot be read has failed, and what those that came to their end measured."""
    known, found = list[Job](), list[Measured]()
    for each in jobs:
        try:
            found += _of_job(each)
            known.append(each)
        except (PipelineError, LookupError, OSError, TypeError, ValueError) as error:
            known.append(replace(each, state=FAILED, said=f"what it left cannot be read: {error}"))
    return known, _told_apart(found)


def _told_apart(found: Sequence[Measured]) -> list[Measured]:
    """Jobs that were told the same, and made under other settings or from other data, differ in these too."""
    groups: dict[tuple[Any, ...], list[Measured]] = {}
    for each in found:
        told = sorted((name, value) for name, value in each.settings.items() if name != SEED)
        groups.setdefault((each.job.run, each.job.study, *told), []).append(each)
    names: dict[tuple[str, str], dict[str, None]] = {}
    for (run, study, *_), jobs in groups.items():
        leaves: dict[str, set[str]] = {}
        for name, value in (leaf for each in jobs for leaf in each.made_of.items()):
            leaves.setdefault(name, set()).add(value)
        names.setdefault((run, study), {}).update((name, None) for name, own in leaves.items() if len(own) > 1)
    return [
        replace(each, settings=each.settings | {name: each.made_of[name] for name in own if name in each.made_of})
        for each in found
        for own in [names[each.job.run, each.job.study]]
    ]


def _of_job(job: Job) -> Iterator[Measured]:
    done = job.state == COMPLETE or (job.reached and not _begun_anew(job.folder))
    for number in range(1, job.rounds + 1) if done else ():
        folder = job.folder / f"{ROUND}{number}" if number > 1 else job.folder
        steps = [path.parent for path in sorted(folder.glob("*/stage.json")) if is_complete(path.parent)]
        values = {key: value for step in steps for key, value in _values(step)}
        settings = job.overrides | ({"round": str(number)} if job.rounds > 1 else {})
        records = {step.name: read_stage(step) for step in steps}
        if seeds := [str(record["seed"]) for record in records.values() if "seed" in record]:
            settings[SEED] = seeds[0]  # also where it was left at its default
        root = job.folder.parents[job.run.count("/")]
        for step in [path.parent for run in job.upstream for path in sorted((root / run).glob("*/stage.json"))]:
            if step.name not in records and is_complete(step):
                records[step.name] = read_stage(step)
        yield Measured(job, settings, values, frozenset(step.name for step in steps), _made_of(records))


def _made_of(records: Mapping[str, Mapping[str, Any]]) -> dict[str, str]:
    found = dict[str, str]()
    for step, record in records.items():
        identity = record.get("identity") or {}
        found |= dict(_leaves(identity.get("config") or {}))
        if identity.get("data"):
            found[f"data of {step}"] = str(identity["data"])
    return found


def _leaves(node: Mapping[str, Any], path: str = "") -> Iterator[tuple[str, str]]:
    for name, value in node.items():
        if isinstance(value, Mapping):
            yield from _leaves(value, f"{path}{name}.")
        elif name != SEED:
            yield f"{path}{name}", value if isinstance(value, str) else json.dumps(value)


def _begun_anew(folder: Path) -> bool:
    found = [path for pattern in ("*", f"{ROUND}*/*") for path in folder.glob(f"{pattern}/stage.json")]
    return not all(is_complete(path.parent) for path in found)


def trial_note(found: Sequence[Measured]) -> str:
    """What to say where jobs, or what they build on, learned from a few batches alone; "" where they did not."""
    limits = {each.made_of.get(TRIAL, "") for each in found}
    few = sorted(limit for limit in limits if limit.isdecimal())
    return f"{TRIAL}={', '.join(few)}: trials, whose figures say that the steps run, and no more." if few else ""


def varied(found: Sequence[Measured]) -> list[str]:
    """The settings that differ between jobs, the seed last."""
    names = dict.fromkeys(name for each in found for name in each.settings)
    return sorted(
        (name for name in names if len({each.settings.get(name) for each in found}) > 1), key=lambda name: name == SEED
    )


def pooled(found: Sequence[Measured]) -> list[Pooled]:
    """Means over seeds, in the order of the jobs."""
    means = []
    for settings, jobs in _over_seeds(found).items():
        for policy, measure in dict.fromkeys(key for job in jobs for key in job.values):
            own = {job.settings.get(SEED): job.values.get((policy, measure)) for job in jobs}  # a seed counts once
            seeds = [values for values in own.values() if values is not None]
            shares = measure.startswith(_SHARES)
            interval = pooled_interval(seeds, shares=shares) if len(seeds) > 1 else _interval(measure, known(seeds[0]))
            made = all(policy.partition("/")[0] in job.made for job in jobs)
            means.append(Pooled(dict(settings), policy, measure, interval, len(seeds), made))
    return means


def differences(found: Sequence[Measured], base: Mapping[str, str]) -> list[Pooled]:
    """What other settings measured beyond those of a base, means over the seeds of both, prompt by prompt.

    What seeds and prompts have in common drops out, so that these intervals tell settings apart.

    Args:
        found: What the jobs measured.
        base: The settings that are the base, where others differ.
    """
    groups, means = _over_seeds(found), list[Pooled]()
    for settings, jobs in groups.items():
        other = groups.get(tuple((name, base.get(name, value)) for name, value in settings), [])
        of_base = {each.settings.get(SEED): each for each in other}
        pairs = [(job, of_base[job.settings.get(SEED)]) for job in jobs if job.settings.get(SEED) in of_base]
        for key in dict.fromkeys(key for job, _ in pairs for key in job.values) if other is not jobs else ():
            both = [(job.values[key], own.values[key]) for job, own in pairs if key in job.values and key in own.values]
            seeds = [_difference(*each) for each in both if len(each[0]) == len(each[1])]
            if seeds := [values for values in seeds if known(values)]:
                made = all(key[0].partition("/")[0] in job.made for job, _ in pairs)
                means.append(Pooled(dict(settings), *key, pooled_interval(seeds), len(seeds), made))
    return means


def _difference(first: Values, second: Values) -> Values:
    return [None if a is None or b is None else a - b for a, b in zip(first, second, strict=True)]


def _over_seeds(found: Sequence[Measured]) -> dict[tuple[tuple[str, str], ...], list[Measured]]:
    """The jobs that differ in their seeds alone, by their settings."""
    names = [name for name in varied(found) if name != SEED]
    groups: dict[tuple[tuple[str, str], ...], list[Measured]] = {}
    for each in found:
        groups.setdefault(tuple((name, each.settings.get(name, "")) for name in names), []).append(each)
    return groups


def known(values: Values) -> list[float]:
    """The values that there are."""
    return [value for value in values if value is not None]


def rows(jobs: Sequence[Job], found: Sequence[Measured]) -> list[dict[str, Any]]:
    """The table: a row per number of each job, and one with the reason for each job that did not come to its end.

    Args:
        jobs: The jobs, in order.
        found: What they measured.
    """
    others = [job for job in jobs if not any(each.job is job for each in found)]
    names = varied([*found, *(Measured(job, job.overrides, {}, frozenset(), {}) for job in others)])
    table: list[dict[str, Any]] = []
    for job in jobs:
        head = {"job": job.folder.name, "run": job.run, "study": job.study, "state": job.state}
        own = [each for each in found if each.job is job]
        if job.state != COMPLETE or not own:
            said = job.said or UNFINISHED
            table.append(_row(head | {"said": said}, {name: job.overrides.get(name) for name in names}, {}))
        for each in own:
            settings = {name: each.settings.get(name) for name in names}
            for (policy, measure), numbers in each.values.items():
                values = known(numbers)
                interval = _interval(measure, values) if len(values) > 1 else {"value": values[0]}
                figures = {"policy": policy, "measure": measure, **interval, "count": len(values)}
                table.append(_row(head | {"said": ""}, settings, figures))
    return table


def _row(head: Mapping[str, Any], settings: Mapping[str, Any], figures: Mapping[str, Any]) -> dict[str, Any]:
    lacking = dict.fromkeys(("policy", "measure", "value", "low", "high", "count"))
    return {**head, **{name: number_of(value) for name, value in settings.items()}, **lacking, **figures}


def number_of(text: str | None) -> float | str | None:
    """The value of a setting: a number where it is one."""
    for kind in (int, float):
        try:
            return None if text is None else kind(text)
        except ValueError:
            pass
    return text


def _interval(measure: str, values: Sequence[float]) -> Interval:
    if len(values) == 1:
        return {"value": values[0], "low": values[0], "high": values[0]}
    return (outcome_interval if measure.startswith(_SHARES) else mean_interval)(values)


def _values(step: Path) -> Iterator[tuple[tuple[str, str], Values]]:
    """What a finished step measured, by policy or step and measure."""
    metrics = read_stage(step)["metrics"]
    if step.name == EVALUATE:
        samples = read_json(step / "samples.json")
        against = samples[metrics["baseline"]]
        for policy in [name for name in samples if name != "prompts"]:
            yield from (((policy, name), values) for name, values in _of_policy(samples[policy], against))
    for policy, figures in (metrics.get("policies") or {}).items():
        if step.name != EVALUATE:
            for task, own in figures.items():
                for name, interval in {own["metric"]: own, **own["further"]}.items():
                    yield (policy, f"{step.name}/{task}/{name}"), [float(interval["value"])]
        elif figures.get("pretrain_loss") is not None:
            yield (policy, "pretrain_loss"), [float(figures["pretrain_loss"])]
    for name, value in metrics.items():
        if name.startswith(_PER_BATCH) and isinstance(value, int | float):
            yield (step.name, name), [float(value)]


def _of_policy(samples: Mapping[str, Any], baseline: Mapping[str, Any]) -> Iterator[tuple[str, Values]]:
    for name, values in _lists(samples):
        if known(values):
            yield _RENAMED.get(name, name), [None if value is None else float(value) for value in values]
    if samples is not baseline:
        yield "win_rate", wins(samples["scores"], baseline["scores"])
        for judge, scores in (samples.get("judges") or {}).items():
            yield f"preferences/{judge}", wins(scores, baseline["judges"][judge])


def _lists(node: Mapping[str, Any], path: str = "") -> Iterator[tuple[str, list[float | None]]]:
    """The lists of numbers in a node, by their path."""
    for name, child in node.items():
        if isinstance(child, Mapping):
            yield from _lists(child, f"{path}{name}/")
        elif isinstance(child, list) and child and all(isinstance(value, int | float | None) for value in child):
            yield f"{path}{name}", child
