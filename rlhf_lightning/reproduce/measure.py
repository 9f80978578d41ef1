"""Reads what finished jobs left behind, and pools it over seeds and prompts."""

import json
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple, TypeAlias, TypeVar

import numpy as np

from rlhf_lightning.evaluation.estimates import Estimate, estimate, pooled_interval
from rlhf_lightning.evaluation.intervals import Interval, pooled_means, wins
from rlhf_lightning.reproduce.plan import job_name
from rlhf_lightning.runs.files import read_metrics
from rlhf_lightning.runs.folders import is_complete, read_stage

T = TypeVar("T")
Values: TypeAlias = list[float | None]


@dataclass(frozen=True)
class Source:
    """From a seed to one value per prompt; None where the question does not arise.

    Args:
        values: Those of a seed, in an order of its own or of all seeds.
        keys: What each value of a seed is of; None stands for the place.
    """

    values: Callable[[int], Values]
    keys: Callable[[int], Sequence[Hashable]] | None = None

    def __call__(self, seed: int) -> Values:
        """The values of a seed."""
        return self.values(seed)


class Ratio(NamedTuple):
    """The ratio of the means of two sources, over the prompts where both have a value."""

    above: Source
    below: Source


class MissingError(Exception):
    """Something has not run, or did not record what is asked for; the message says what."""


class NotRunError(MissingError):
    """A job is not complete: its seed is left out, and the claim cannot count as tried."""


class UndefinedError(ValueError):
    """What is asked for does not exist, whatever has run: a multiple of nothing."""


class Results:
    """What the jobs of some seeds left behind.

    Args:
        runs: Folder of all runs.
        seeds: The seeds to pool.
        unfinished: Names of the jobs that are not complete, or were made from something else: they are not read.
    """

    def __init__(self, runs: Path, seeds: Sequence[int], unfinished: Sequence[str] = ()) -> None:
        self.runs, self.seeds, self.unfinished = runs, tuple(seeds), frozenset(unfinished)
        self._samples: dict[str, dict[str, Any]] = {}
        self._prompts: list[str] | None = None

    # --- what was recorded --------------------------------------------------------------------------------------------

    def of(self, kind: str, policy: str, *path: str) -> Source:
        """What `samples.json` of a job says about a policy: `scores`, or a longer path."""

        def values(seed: int) -> Values:
            samples: Any = self._read_samples(job_name(kind, seed))
            for key in (policy, *path):
                if key not in samples:
                    raise MissingError(f"{job_name(kind, seed)} did not record {'/'.join((policy, *path))}")
                samples = samples[key]
            return list(samples)

        # Probes have items of their own; what is there for each prompt is of its text.
        return Source(values, None if "probes" in path else lambda _: self._prompts or [])

    def part(self, source: Source, kind: str, prompts: str) -> Source:
        """The values of a source on a set of prompts; None elsewhere.

        Args:
            source: One value per prompt of a job.
            kind: The kind of job that names the sets.
            prompts: The name of the set.
        """

        def values(seed: int) -> Values:
            path = self._folder(job_name(kind, seed), "evaluate") / "prompt_sets.json"
            sets = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
            if prompts not in sets:
                raise MissingError(f"{job_name(kind, seed)} did not record which prompts are {prompts}")
            places = set(sets[prompts])
            return [value if place in places else None for place, value in enumerate(source(seed))]

        return Source(values, source.keys)

    def figure(self, kind: str, stage: str, *path: str) -> Source:
        """One number among the metrics of a stage."""

        def values(seed: int) -> Values:
            number: Any = read_stage(self._folder(job_name(kind, seed), stage))["metrics"]
            for key in path:
                number = number.get(key) if isinstance(number, dict) else None
            if not isinstance(number, int | float):
                raise MissingError(f"{job_name(kind, seed)}/{stage} did not record {'/'.join(path)}")
            return [float(number)]

        return Source(values)

    def accuracy(self, kind: str, group: str | None = None) -> Source:
        """Per validation ranking, of a group of labelers or all, the share of pairs a reward model orders rightly."""

        def table(seed: int) -> dict[str, Any]:
            path = self._folder(job_name(kind, seed), "reward") / "validation.json"
            if not path.exists():
                raise MissingError(f"{path} is not there")
            found: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
            return found

        def values(seed: int) -> Values:
            rows = zip(table(seed)["groups"], table(seed)["accuracies"], strict=True)
            return [accuracy if group in (None, name) else None for name, accuracy in rows]

        return Source(values, lambda seed: table(seed)["texts"])

    def epoch_loss(self, kind: str, stage: str, epoch: int) -> Source:
        """The validation loss after an epoch, counted from 1."""

        def values(seed: int) -> Values:
            path, losses = self._column(kind, seed, stage, "validation/loss")
            if len(losses) < epoch:
                raise MissingError(f"{path} has no validation loss of epoch {epoch}")
            return [losses[epoch - 1]]

        return Source(values)

    def quarter(self, kind: str, stage: str, name: str, *, last: bool = True) -> Source:
        """The mean of a figure over the last quarter, or the first, of the steps that a stage recorded."""

        def values(seed: int) -> Values:
            path, numbers = self._column(kind, seed, stage, name)
            if not numbers:
                raise MissingError(f"{path} has no {name}")
            count = (len(numbers) + 3) // 4
            return [float(np.mean(numbers[-count:] if last else numbers[:count]))]

        return Source(values)

    def seconds(self, kind: str, stage: str) -> Source:
        """How long a stage took."""

        def values(seed: int) -> Values:
            return [float(read_stage(self._folder(job_name(kind, seed), stage))["seconds"])]

        return Source(values)

    # --- pooled over the seeds ----------------------------------------------------------------------------------------

    def pooled(self, quantity: Source | Ratio) -> Interval:
        """The mean of a source, or a ratio of means."""
        if not isinstance(quantity, Ratio):
            return pooled_interval([values for values in self._by_seed(quantity) if _known(values)])
        above, below = quantity

        def pairs(seed: int) -> list[tuple[float, float]]:
            rows = zip(above(seed), below(seed), strict=True)
            return _known([(a, b) if a is not None and b is not None else None for a, b in rows])

        return pooled_ratio(self._by_seed(pairs))

    def estimate(self, source: Source) -> Estimate:
        """The mean of a source over the seeds, with what seeds and prompts add to it by chance."""
        keys = source.keys
        if keys is None:
            return estimate(self._by_seed(source))
        found = self._by_seed(lambda seed: (source(seed), keys(seed)))
        return estimate([values for values, _ in found], [own for _, own in found])

    def _by_seed(self, source: Callable[[int], T]) -> list[T]:
        parts, reason = [], NotRunError("there is no seed")
        for seed in self.seeds:
            try:
                parts.append(source(seed))
            except NotRunError as missing:
                reason = missing
        if not parts:
            raise reason
        return parts

    # --- files --------------------------------------------------------------------------------------------------------

    def _folder(self, name: str, stage: str) -> Path:
        folder = self.runs / name / stage
        if name in self.unfinished or not is_complete(folder):
            raise NotRunError(f"{name}/{stage} has not run")
        return folder

    def _column(self, kind: str, seed: int, stage: str, name: str) -> tuple[Path, list[float]]:
        path = self._folder(job_name(kind, seed), stage) / "metrics.csv"
        return path, [row[name] for row in read_metrics(path) if name in row] if path.exists() else []

    def _read_samples(self, name: str) -> dict[str, Any]:
        if name not in self._samples:
            folder = self._folder(name, "evaluate")
            samples = json.loads((folder / "samples.json").read_text(encoding="utf-8"))
            prompts = samples.pop("prompts")
            self._prompts = self._prompts or prompts
            if prompts != self._prompts:
                raise MissingError(f"{name} evaluated other prompts than the jobs before it: they cannot be compared")
            self._samples[name] = samples
        return self._samples[name]


def combined(function: Callable[..., float], *sources: Source) -> Source:
    """A function of several sources, prompt by prompt; None where one of them has None."""

    def values(seed: int) -> Values:
        rows = zip(*(source(seed) for source in sources), strict=True)
        return [None if any(value is None for value in row) else function(*row) for row in rows]

    return Source(values, sources[0].keys)


def difference(first: Source, second: Source) -> Source:
    """First minus second, prompt by prompt."""
    return combined(lambda a, b: a - b, first, second)


def won(first: Source, second: Source) -> Source:
    """1 where the first beats the second, one half where they are equal."""
    return combined(lambda a, b: wins([a], [b])[0], first, second)


def blocks(source: Source, size: int) -> Source:
    """Means over so many neighbours each: items that ask the same thing in other words count as one."""

    def values(seed: int) -> Values:
        items = _known(source(seed))
        return [float(np.mean(items[start : start + size])) for start in range(0, len(items), size)]

    return Source(values)


def joined(sources: Sequence[Source]) -> Source:
    """Each value at its place, weighted so that every source counts the same in their mean; no two have one there."""

    def values(seed: int) -> Values:
        parts = [source(seed) for source in sources]
        counts = [len(_known(part)) for part in parts]
        weights = [sum(counts) / (len(parts) * count) for count in counts]
        rows = zip(*parts, strict=True)
        return [
            next((value * weight for value, weight in zip(row, weights, strict=True) if value is not None), None)
            for row in rows
        ]

    return Source(values, sources[0].keys)


def pooled_ratio(groups: Sequence[Sequence[tuple[float, float]]], resamples: int = 2000, seed: int = 0) -> Interval:
    """Ratio of two means over groups of equal weight, with a 95 % bootstrap interval over groups and pairs in each.

    Args:
        groups: One list of (above, below) per seed.
        resamples: Number of bootstrap samples.
        seed: Seed of the bootstrap.

    Raises:
        UndefinedError: When the mean below is 0.

    >>> pooled_ratio([[(1.0, 2.0), (1.0, 2.0)], [(2.0, 4.0)]])
    {'value': 0.5, 'low': 0.5, 'high': 0.5}
    """
    above, below = np.mean([np.mean(group, 0) for group in groups], 0)
    if below == 0:
        raise UndefinedError("a multiple of nothing")
    pooled = pooled_means(groups, resamples, seed)
    with np.errstate(divide="ignore", invalid="ignore"):
        ratios = pooled[:, 0] / pooled[:, 1]
    low, high = np.percentile(ratios[np.isfinite(ratios)], [2.5, 97.5])
    return {"value": float(above / below), "low": float(low), "high": float(high)}


def _known(values: Sequence[T | None]) -> list[T]:
    known = [value for value in values if value is not None]
    if not known:
        raise MissingError("there is no value: the question arises for no prompt")
    return known
