"""The findings in order: their text from `claims.toml`, the jobs that each needs, what measures it."""

import tomllib
from collections.abc import Iterable
from pathlib import Path

from rlhf_lightning.reproduce import claims_models, claims_sweeps, claims_training, plan
from rlhf_lightning.reproduce.claim import Claim, Fill, Outcome
from rlhf_lightning.reproduce.measure import Results

_SMALL, _ENDS, _LARGEST = (plan.SMALL,), (plan.SIZES[0], plan.SIZES[-1]), (plan.SIZES[-1],)
_WEAK = tuple(plan.weak_kind(*arm) for arm in plan.WEAK_ARMS)
_TRIED: dict[str, tuple[tuple[str, ...], Fill]] = {
    "order": ((*plan.SIZES, *plan.ALIKE), claims_models.order_of_methods),
    "held-out": (plan.SIZES, claims_models.held_out_labelers),
    "for-gpt": (plan.SIZES, claims_models.written_for_gpt),
    "small-over-large": (_ENDS, claims_models.small_over_large),
    "ptx-alike": (plan.SIZES, claims_models.equally_preferred),
    "head-to-head": (_LARGEST, claims_models.head_to_head),
    "metadata": (plan.SIZES, claims_models.metadata),
    "half-inventions": (plan.SIZES, claims_models.half_the_inventions),
    "sft-inventions": (plan.SIZES, claims_models.sft_invents_least),
    "truthfulness": (plan.SIZES, claims_models.truthfulness),
    "no-comment": (plan.SIZES, claims_models.no_comment),
    "rudeness": (plan.SIZES, claims_models.rudeness),
    "sft-rudeness": (plan.SIZES, claims_models.sft_least_rude),
    "tax": (plan.SIZES, claims_models.alignment_tax),
    "tax-repaired": (plan.SIZES, claims_models.repaired_tax),
    "ptx-coefficient": ((*_SMALL, *plan.PTX_COEF.kinds), claims_sweeps.ptx_repairs),
    "kl-no-repair": ((*_SMALL, *plan.BASE_KL.kinds), claims_sweeps.kl_repairs_not),
    "kl-start": ((*_SMALL, *plan.INIT_KL.kinds), claims_sweeps.start_as_reference),
    "kl-best": ((*_SMALL, *plan.PTX_KL.kinds, *_WEAK), claims_sweeps.best_kl),
    "start": ((*_SMALL, *plan.INIT_SHARE.kinds, *plan.INIT_EPOCHS.kinds), claims_sweeps.starts),
    "rates": ((*_SMALL, *plan.PPO_RATES.kinds, *plan.PTX_RATES.kinds), claims_sweeps.learning_rates),
    "episodes": ((*_SMALL, *plan.LENGTH.kinds), claims_sweeps.twice_the_episodes),
    "text": ((*_SMALL, *plan.TEXT_ROWS.kinds), claims_sweeps.text_per_episode),
    "batches": ((*_SMALL, *plan.BATCH.kinds, *plan.MINIBATCHES.kinds), claims_sweeps.batches),
    "whole-rankings": (("whole", "pairs"), claims_training.rankings_as_one),
    "reward-rate": (("whole", "reward-slow", "reward-fast"), claims_training.reward_rates),
    "reward-epochs": (("whole", "reward-epochs"), claims_training.reward_epochs),
    "reward-start": (("whole", "reward-base"), claims_training.reward_starts),
    "teams": (plan.TEAMS, claims_training.held_out_teams),
    "sft-epochs": ((*_SMALL, "epochs"), claims_training.overfitting),
    "score-predicts": ((*_SMALL, "epochs"), claims_training.score_predicts),
}
"""By name of the finding, the kinds of jobs and the function; a finding without one cannot be decided here."""

_TEXTS = tomllib.loads(Path(__file__).with_suffix(".toml").read_text(encoding="utf-8"))


def _claim(number: int, name: str) -> Claim:
    kinds, measure = _TRIED.get(name, ((), None))
    return Claim(kinds, measure, number, name, **_TEXTS[name])


CLAIMS = tuple(_claim(number, name) for number, name in enumerate(_TEXTS, 1))


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
