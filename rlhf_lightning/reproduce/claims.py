"""The twelve claims in order."""

from collections.abc import Iterable

from rlhf_lightning.reproduce import claims_models, claims_sweeps, claims_training
from rlhf_lightning.reproduce.finding import Outcome
from rlhf_lightning.reproduce.measure import Results
from rlhf_lightning.reproduce.plan import job_name

CLAIMS = tuple(
    sorted((*claims_models.CLAIMS, *claims_sweeps.CLAIMS, *claims_training.CLAIMS), key=lambda claim: claim.number)
)


def kinds_of(numbers: Iterable[int]) -> set[str]:
    """The kinds of jobs that some claims need."""
    wanted = set(numbers)
    return {kind for claim in CLAIMS if claim.number in wanted for kind in claim.kinds}


def outcomes(results: Results) -> list[Outcome]:
    """Measure every claim with what is there."""
    measured = []
    for claim in CLAIMS:
        needed = [job_name(kind, seed) for kind in claim.kinds for seed in results.seeds]
        lacking = [name for name in needed if name in results.unfinished]
        measured.append(Outcome(claim, claim.measure(results), lacking, results.seeds))
    return measured
