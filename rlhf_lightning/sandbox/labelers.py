"""Simulated labelers: people who mostly share the true preference, each with a taste and a hand that wavers."""

import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from rlhf_lightning.sandbox.truth import WEIGHTS, facts, utility

NOISE = 0.29
"""Makes two labelers agree on 72.6 % of the pairs that neither ties (InstructGPT, section 3.4), measured on
samples of a model tuned on the demonstrations."""
TASTE = 0.3
"""Standard deviation of the logarithm of the factor between the weights of a labeler and the true ones."""
TIE_THRESHOLD = 0.05
"""Differences smaller than this go unnoticed."""


@dataclass(frozen=True)
class Labeler:
    """One simulated labeler.

    Args:
        name: Identifies the labeler in the records.
        weights: How much each fact matters to them, in units of utility.
        noise: Standard deviation of what they add to the utility of a response, in units of utility.
        tie_threshold: Responses closer than this look the same to them, in units of utility.
        seed: Makes the noise; the same (labeler, prompt, response) always gets the same.
    """

    name: str
    weights: Mapping[str, float]
    noise: float = NOISE
    tie_threshold: float = TIE_THRESHOLD
    seed: int = 0

    def score(self, prompt: str, response: str) -> float:
        """How good the response looks to this labeler.

        Raises:
            ValueError: When the prompt does not belong to the sealed world.
        """
        wavering = random.Random(f"{self.seed}/{self.name}/{prompt}/{response}").gauss(0, self.noise)
        return utility(facts(prompt, response), self.weights) + wavering

    def rank(self, prompt: str, responses: Sequence[str]) -> list[int]:
        """Rank responses: 1 is best, equal numbers are ties, no number is left out.

        Raises:
            ValueError: When the prompt does not belong to the sealed world.
        """
        scores = [self.score(prompt, response) for response in responses]
        ranks = [0] * len(scores)
        rank, best = 0, float("inf")
        for index in sorted(range(len(scores)), key=lambda index: -scores[index]):
            # Compared with the best of the tied group, not with the neighbour: a chain of small steps is no tie.
            if best - scores[index] >= self.tie_threshold:
                rank, best = rank + 1, scores[index]
            ranks[index] = max(rank, 1)
        return ranks


def make_labelers(count: int = 20, seed: int = 0) -> list[Labeler]:
    """Labelers with tastes of their own: each weight is the true one times a log-normal factor.

    Args:
        count: How many; the first ones do not depend on it.
        seed: Another seed gives other people, for example held-out labelers.
    """
    labelers = []
    for index in range(count):
        source = random.Random(f"{seed}/labeler/{index}")
        weights = {name: weight * source.lognormvariate(0, TASTE) for name, weight in WEIGHTS.items()}
        labelers.append(Labeler(f"labeler-{seed}-{index}", weights, seed=seed))
    return labelers
