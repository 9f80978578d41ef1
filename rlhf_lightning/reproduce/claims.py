"""The twelve claims in order: their text from `claims.toml`, the jobs that each needs, what measures it."""

import tomllib
from collections.abc import Iterable
from pathlib import Path

from rlhf_lightning.reproduce import claims_models, claims_sweeps, claims_training, plan
from rlhf_lightning.reproduce.finding import Claim, Outcome
from rlhf_lightning.reproduce.measure import Results

_TRIED = {
    1: (plan.SIZES, claims_models.order_of_methods),
    2: ((plan.SIZES[0], plan.SIZES[-1]), claims_models.small_over_large),
    3: (plan.SIZES, claims_models.metadata),
    4: (plan.SIZES, claims_models.truthfulness),
    5: (plan.SIZES, claims_models.rudeness),
    6: (plan.SIZES, claims_models.alignment_tax),
    7: ((plan.SMALL, *plan.PTX_COEF.kinds, *plan.BASE_KL.kinds), claims_sweeps.tax_repairs),
    8: ((plan.SMALL, *plan.PTX_KL.kinds, *(plan.weak_kind(*arm) for arm in plan.WEAK_ARMS)), claims_sweeps.best_kl),
    9: (("whole", "pairs"), claims_training.rankings_as_one),
    10: (plan.TEAMS, claims_training.held_out_teams),
    11: ((plan.SMALL, "epochs"), claims_training.overfitting),
    12: (
        (plan.SMALL, *(kind for sweep in (plan.INIT_SHARE, *plan.SETTINGS) for kind in sweep.kinds)),
        claims_sweeps.settings,
    ),
}
"""By number of the claim, the kinds of jobs and the function."""

_TEXTS = tomllib.loads(Path(__file__).with_suffix(".toml").read_text(encoding="utf-8"))["claim"]
CLAIMS = tuple(Claim(*_TRIED[text["number"]], **text) for text in _TEXTS)


def kinds_of(numbers: Iterable[int]) -> set[str]:
    """The kinds of jobs that some claims need."""
    wanted = set(numbers)
    return {kind for claim in CLAIMS if claim.number in wanted for kind in claim.kinds}


def outcomes(results: Results) -> list[Outcome]:
    """Measure every claim with what is there."""
    measured = []
    for claim in CLAIMS:
        needed = [plan.job_name(kind, seed) for kind in claim.kinds for seed in results.seeds]
        lacking = [name for name in needed if name in results.unfinished]
        measured.append(Outcome(claim, claim.measure(results), lacking, results.seeds))
    return measured
