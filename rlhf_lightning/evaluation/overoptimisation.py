"""Whether a policy learns the errors of its reward: what a further judge says while the score rises."""

from collections.abc import Mapping, Sequence
from statistics import fmean
from typing import Any

from rlhf_lightning.evaluation.intervals import mean_interval
from rlhf_lightning.evaluation.tables import JUDGE

FALLS = 2
"""Validations in a row that have to say so: the best is a maximum over many, and overrated."""


class Overoptimisation:
    """Whether a policy learns what its reward likes and a judge does not; the best validation so far.

    The rule: in `FALLS` validations in a row the judge's mean is below the best one that it gave, by so much that the
    95 % interval of the difference, prompt by prompt, is below 0, while the reward's mean is above what it was then.

    Args:
        clusters: The cluster of each prompt, see `mean_interval`.
    """

    def __init__(self, clusters: Sequence[int]) -> None:
        self.clusters = clusters
        self.best: dict[str, Any] | None = None
        """By the judge, or the reward where there is none: its `iteration`, `score` and `judge` of each prompt."""
        self.fallen = 0
        """Validations in a row that the rule is true of."""
        self._last: dict[str, tuple[float, float]] = {}

    @property
    def warns(self) -> bool:
        """Whether the rule has been true of so many."""
        return self.fallen >= FALLS

    def add(self, iteration: int, found: Mapping[str, list[float]]) -> bool:
        """Take up a validation; whether it is the best so far.

        Args:
            iteration: Iterations of PPO before it.
            found: `score` of each prompt, and `judge` where there is one.
        """
        now = {"score": found["score"], JUDGE: found.get(JUDGE, found["score"])}
        if self.best is None or fmean(now[JUDGE]) > fmean(self.best[JUDGE]):
            self.best, self.fallen = {"iteration": iteration, **now}, 0
            return True
        self._last = {name: (fmean(self.best[name]), fmean(values)) for name, values in now.items()}
        lost = [new - old for new, old in zip(now[JUDGE], self.best[JUDGE], strict=True)]
        rises = self._last["score"][1] > self._last["score"][0]
        falls = rises and mean_interval(lost, self.clusters)["high"] < 0
        self.fallen = self.fallen + 1 if falls else 0
        return False

    def sentence(self, step: str) -> str:
        """What is wrong, and what to do."""
        assert self.best is not None
        (judged, judge), (scored, score) = self._last[JUDGE], self._last["score"]
        return (
            f"on the validation prompts the judge's mean fell from {judged:.3g} after iteration "
            f"{self.best['iteration']} to {judge:.3g}, more than chance explains, while the reward's rose from "
            f"{scored:.3g} to {score:.3g}: the policy learns the reward's errors. Stop here, raise "
            f"{step}.module.kl_coef, or set {step}.keep=best, which keeps the weights of the best validation."
        )
