"""Every run that the twelve claims need: policies of three sizes, and sweeps that build on the small ones.

As in the paper one reward model of the middle size serves the policies of every size (section 3.5 and appendix C.2).
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

SIZES = ("small", "medium", "large")
SEEDS = (1, 2, 3)
RECIPE = ("sft", "collect", "reward", "ppo", "ppo_ptx", "evaluate")
JUDGED = "medium"
"""The size whose responses are ranked and whose reward model all policies are trained with."""

PTX_COEFS = (0.1, 2.0)
"""Besides 0, which is stage ppo of the full run, and the default."""
DEFAULT_PTX_COEF = 0.5
BASE_KL_COEFS = (0.05, 0.2, 2.0)
PTX_KL_COEFS = (0.0, 0.01, 0.2, 2.0)
"""Besides the default."""
DEFAULT_KL_COEF = 0.05
TEAMS = tuple(f"team-{number}" for number in range(5))
EPOCHS = (1, 2, 4, 8, 16)
INIT_SHARES = (0.0, 0.1, 0.5)
TEXT_ROWS = (16, 32, 128)
"""Besides the default."""
DEFAULT_TEXT_ROWS = 64
BATCHES = (64, 256)
DEFAULT_BATCH = 128
EPISODES = 6400
MINIBATCHES = (1, 8)
DEFAULT_MINIBATCHES = 4

WEAK_RANKINGS = 100
"""What a reward model has that is soon over-optimised."""
WEAK_ITERATIONS = (25, 50, 100)
WEAK_KL_COEFS = (0.0, DEFAULT_KL_COEF)

FEW_RANKINGS = 6000
"""What the comparison of whole rankings with shuffled pairs has: every pair costs a pass of its own there."""
PROMPTS_PER_STEP = 16
PAIRS_PER_STEP = 284
"""About as many pairs as the default's 16 whole rankings hold: 19.3 per prompt for K uniform on 4..9, less the ties and
the responses that occur twice. The page shows how many there were."""

STAGE_SECONDS: Mapping[str, Mapping[str, float]] = {
    "small": {"sft": 10, "ppo_init": 10, "reward": 110, "ppo": 70, "ppo_ptx": 85, "evaluate": 25},
    "medium": {"sft": 14, "collect": 240, "reward": 250, "ppo": 72, "ppo_ptx": 120, "evaluate": 37},
    "large": {"sft": 30, "ppo": 125, "ppo_ptx": 235, "evaluate": 72},
}
"""By size and stage, measured on one core of an AMD EPYC (eb7331d); where a stage has run, its own time is shown."""
FEWER_POLICIES = 0.3
"""What the evaluation of a sweep takes, of that of a full run."""


@dataclass(frozen=True)
class Job:
    """One call of ``rlhf``.

    Args:
        kind: What it varies, the same for all seeds.
        seed: Of the run.
        overrides: Of the configuration, without ``paths.runs``.
        stages: What it makes.
        upstream: Names of the jobs that must be complete before.
        seconds: Of each stage, estimated for one core.
    """

    kind: str
    seed: int
    overrides: tuple[str, ...]
    stages: tuple[str, ...]
    upstream: tuple[str, ...]
    seconds: Mapping[str, float]

    @property
    def name(self) -> str:
        """Of the job, and of its run folder."""
        return job_name(self.kind, self.seed)


def job_name(kind: str, seed: int) -> str:
    """Of the job of a kind with a seed."""
    return f"{kind}-s{seed}"


def jobs(seeds: Sequence[int] = SEEDS) -> list[Job]:
    """All jobs, each after those that it builds on; what most claims need comes first."""
    makers = (_full, _ptx_coefs, _base_kl_coefs, _ptx_kl_coefs, _weak, _pairs, _teams, _epochs, _inits, _batches)
    return [job for make in makers for seed in seeds for job in make(seed)]


def selected(all_jobs: Sequence[Job], kinds: Iterable[str]) -> list[Job]:
    """The jobs of some kinds and those that they build on, in the order given."""
    wanted = set(kinds)
    names = {job.name for job in all_jobs if job.kind in wanted}
    for job in reversed(all_jobs):
        if job.name in names:
            names.update(job.upstream)
    return [job for job in all_jobs if job.name in names]


def _full(seed: int) -> list[Job]:
    first = _job(JUDGED, seed, RECIPE, "evaluate=full", "collect.prompts.validation=600", size=JUDGED)
    stages = tuple(stage for stage in RECIPE if stage not in ("collect", "reward"))
    others = [size for size in SIZES if size != JUDGED]
    return [first, *(_job(size, seed, stages, "evaluate=full", size=size, upstream=(first.name,)) for size in others)]


def _ptx_coefs(seed: int) -> list[Job]:
    policies = "evaluate.policies=[base,sft,ppo_ptx]"
    return [
        _sweep(
            f"ptx-{coef}",
            seed,
            ("ppo_ptx", "evaluate"),
            *("evaluate=full", f"ppo_ptx.module.ptx_coef={coef}", policies),
        )
        for coef in PTX_COEFS
    ]


def _base_kl_coefs(seed: int) -> list[Job]:
    policies = "evaluate.policies=[base,sft,ppo]"
    return [
        _sweep(
            f"klbase-{coef}",
            seed,
            ("ppo", "evaluate"),
            *("evaluate=full", "ppo.reference=base", f"ppo.module.kl_coef={coef}", policies),
        )
        for coef in BASE_KL_COEFS
    ]


def _ptx_kl_coefs(seed: int) -> list[Job]:
    return [_ptx_sweep(f"klptx-{coef}", seed, f"ppo_ptx.module.kl_coef={coef}") for coef in PTX_KL_COEFS]


def _weak(seed: int) -> list[Job]:
    """PPO against a reward model of few rankings; all use that of the first."""
    arms = [(coef, count) for coef in WEAK_KL_COEFS for count in WEAK_ITERATIONS]
    first = weak_kind(*arms[0])
    made = []
    for coef, count in arms:
        kind = weak_kind(coef, count)
        options = [f"ppo.module.kl_coef={coef}", f"ppo.data.num_batches={count}", "evaluate.policies=[sft,ppo]"]
        stages: tuple[str, ...] = ("ppo", "evaluate")
        upstream: tuple[str, ...] = (job_name("small", seed), job_name(JUDGED, seed))
        if kind == first:
            options, stages = [f"reward.data.max_train={WEAK_RANKINGS}", *options], ("reward", *stages)
        else:
            upstream = (job_name(first, seed), *upstream)
        factors = {"reward": 0.05, "ppo": count * DEFAULT_BATCH / EPISODES, "evaluate": FEWER_POLICIES}
        made.append(_job(kind, seed, stages, *options, upstream=upstream, factors=factors))
    return made


def weak_kind(kl_coef: float, iterations: int) -> str:
    """Of the job of PPO against a reward model of few rankings."""
    return f"weak-{kl_coef}-{iterations}"


def _pairs(seed: int) -> list[Job]:
    few = f"reward.data.max_train={FEW_RANKINGS}"
    options = (few, "reward.data.as_pairs=true", f"reward.data.batch_size={PAIRS_PER_STEP}")
    return [
        _sweep("whole", seed, ("reward",), few, factors={"reward": 0.6}),
        # Every pair reads its prompt again.
        _sweep("pairs", seed, ("reward",), *options, factors={"reward": 2.2}),
    ]


def _teams(seed: int) -> list[Job]:
    return [_sweep(team, seed, ("reward",), f"reward.data.leave_out=[{team}]") for team in TEAMS]


def _epochs(seed: int) -> list[Job]:
    policies = ",".join(f"sft/epoch-{epoch}" for epoch in EPOCHS)
    options = (
        f"sft.fit.epochs={EPOCHS[-1]}",
        "sft.keep_epochs=true",
        f"evaluate.policies=[base,{policies}]",
        f"evaluate.baseline=sft/epoch-{EPOCHS[0]}",
        "evaluate.reference=base",
    )
    return [_sweep("epochs", seed, ("sft", "evaluate"), *options, factors={"sft": EPOCHS[-1] / 3, "evaluate": 1.0})]


def _inits(seed: int) -> list[Job]:
    return [
        _ptx_sweep(
            f"init-{share}",
            seed,
            *(f"ppo_init.data.text_share={share}", "ppo_ptx.init=ppo_init"),
            stages=("ppo_init", "ppo_ptx", "evaluate"),
        )
        for share in INIT_SHARES
    ]


def _batches(seed: int) -> list[Job]:
    ratios = [_ptx_sweep(f"ratio-{rows}", seed, f"ppo_ptx.data.text_batch_size={rows}") for rows in TEXT_ROWS]
    batches = [
        _ptx_sweep(
            f"batch-{size}",
            seed,
            f"ppo_ptx.data.batch_size={size}",
            f"ppo_ptx.data.num_batches={EPISODES // size}",
            # The same text rows per episode as with the default batch, or two things would change at once.
            f"ppo_ptx.data.text_batch_size={size * DEFAULT_TEXT_ROWS // DEFAULT_BATCH}",
        )
        for size in BATCHES
    ]
    minibatches = [
        _ptx_sweep(f"minibatches-{count}", seed, f"ppo_ptx.module.num_minibatches={count}") for count in MINIBATCHES
    ]
    return [*ratios, *batches, *minibatches]


def _ptx_sweep(kind: str, seed: int, *options: str, stages: tuple[str, ...] = ("ppo_ptx", "evaluate")) -> Job:
    # What the small run measured of the other policies holds here too: same prompts, same models.
    return _sweep(kind, seed, stages, *options, "evaluate.policies=[sft,ppo_ptx]")


def _sweep(
    kind: str, seed: int, stages: tuple[str, ...], *options: str, factors: Mapping[str, float] | None = None
) -> Job:
    """A job on the small policies of that seed, and on the reward model and rankings of the middle size."""
    factors = {"evaluate": FEWER_POLICIES, **(factors or {})}
    return _job(
        kind, seed, stages, *options, upstream=(job_name("small", seed), job_name(JUDGED, seed)), factors=factors
    )


def _job(
    kind: str,
    seed: int,
    stages: tuple[str, ...],
    *options: str,
    size: str = "small",
    upstream: tuple[str, ...] = (),
    factors: Mapping[str, float] | None = None,
) -> Job:
    overrides = (
        "experiment=sandbox",
        f"run={job_name(kind, seed)}",
        f"seed={seed}",
        f"model.size={size}",
        f"stages=[{','.join(stages)}]",
        *([f"upstream=[{','.join(upstream)}]"] if upstream else []),
        *options,
    )
    seconds = {stage: STAGE_SECONDS[size][stage] * (factors or {}).get(stage, 1.0) for stage in stages}
    return Job(kind, seed, overrides, stages, upstream, seconds)
