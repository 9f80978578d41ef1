"""Every run that the claims need: policies of three sizes, and sweeps that build on the small ones.

As in the paper one reward model of the middle size serves the policies of every size (section 3.5 and appendix C.2).
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass

from rlhf_lightning.recipe.legend import legend_of
from rlhf_lightning.recipe.pipeline import RECIPE as STEPS

LEGEND = legend_of(STEPS, "GPT")
"""The base model as the paper calls it, whose claims are compared."""
SIZES = ("small", "medium", "large")
SMALL = "small"
ALIKE = tuple(f"{size}-alike" for size in SIZES)
"""The same policies, GPT sampled at temperature 1 as the tuned ones are, and not at .7 [F]."""
SEEDS = (1, 2, 3, 4, 5)
RECIPE = ("sft", "ppo_init", "collect", "reward", "ppo", "ppo_ptx", "evaluate")
JUDGED = "medium"
"""The size whose responses are ranked and whose reward model all policies are trained with."""

TEAMS = tuple(f"team-{number}" for number in range(5))
EPOCHS = (1, 2, 4, 8, 16)
EPISODES = 6400
POLICY_RATE, REWARD_RATE = 1e-4, 5e-4
"""Learning rates of PPO's policy and of the reward model in the sealed world."""
DEFAULT_BATCH, DEFAULT_TEXT_ROWS = 128, 64

WEAK_RANKINGS = 100
"""What a reward model has that is soon over-optimised."""
WEAK_ITERATIONS = (25, 50, 100)
WEAK_KL_COEFS = (0.0, 0.05)

FEW_RANKINGS = 6000
"""What the comparison of whole rankings with shuffled pairs has: every pair costs a pass of its own there."""
PROMPTS_PER_STEP = 16
PAIRS_PER_STEP = 284
"""About as many pairs as the default's 16 whole rankings hold: 19.3 per prompt for K uniform on 4..9, less the ties and
the responses that occur twice. The page shows how many there were."""

STAGE_SECONDS: Mapping[str, Mapping[str, float]] = {
    "small": {"sft": 10, "ppo_init": 10, "reward": 110, "ppo": 70, "ppo_ptx": 85, "evaluate": 25},
    "medium": {"sft": 14, "ppo_init": 14, "collect": 240, "reward": 250, "ppo": 72, "ppo_ptx": 120, "evaluate": 37},
    "large": {"sft": 30, "ppo_init": 30, "ppo": 125, "ppo_ptx": 235, "evaluate": 72},
}
"""By size and stage, measured on one core of an AMD EPYC (eb7331d); where a stage has run, its own time is shown."""
FEWER_POLICIES = 0.3
"""What the evaluation of a sweep takes, of that of a full run."""


@dataclass(frozen=True)
class Job:
    """One call of `rlhf`.

    Args:
        kind: The setting that it varies, the same for all seeds.
        seed: Seed of the run.
        overrides: Overrides of the configuration, without `paths.runs`.
        stages: The stages that it makes.
        upstream: Names of the jobs that must be complete before.
        seconds: The time of each stage, estimated for one core.
    """

    kind: str
    seed: int
    overrides: tuple[str, ...]
    stages: tuple[str, ...]
    upstream: tuple[str, ...]
    seconds: Mapping[str, float]

    @property
    def name(self) -> str:
        """The name of the job, and of its run folder."""
        return job_name(self.kind, self.seed)


@dataclass(frozen=True)
class Sweep:
    """Jobs that differ from the small run of their seed in one setting.

    Args:
        name: The first part of their kinds.
        policy: The policy that they train.
        values: The values of the setting that they try.
        options: The overrides that set a value.
        default: The value that the small run has, None where no run has it.
        full: Whether they evaluate all that a full run does, and the base model too.
        before: The stages that come before the policy's.
    """

    name: str
    policy: str
    values: tuple[float, ...]
    options: Callable[[float], tuple[str, ...]]
    default: float | None = None
    full: bool = False
    before: tuple[str, ...] = ()

    @property
    def arms(self) -> dict[float, tuple[str, str]]:
        """Every value in order, the default too, with the kind of job that has it and the policy."""
        arms = {value: (f"{self.name}-{value}", self.policy) for value in self.values}
        if self.default is not None:
            arms[self.default] = (SMALL, self.policy)
        return dict(sorted(arms.items()))

    @property
    def kinds(self) -> tuple[str, ...]:
        """The kinds of its jobs."""
        return tuple(f"{self.name}-{value}" for value in self.values)

    def jobs(self, seed: int) -> list[Job]:
        """Its jobs; they evaluate nothing that the small run has: same prompts, same models."""
        stages = (*self.before, self.policy, "evaluate")
        whole = ("evaluate=full",) if self.full else ()
        policies = f"evaluate.policies=[{'base,' * self.full}sft,{self.policy}]"
        return [
            _job(kind, seed, stages, *whole, *self.options(value), policies)
            for kind, value in zip(self.kinds, self.values, strict=True)
        ]


PTX_COEF = Sweep("ptx", "ppo_ptx", (0.1, 2.0), lambda coef: (f"ppo_ptx.module.ptx_coef={coef}",), 0.5, full=True)
BASE_KL = Sweep(
    "klbase", "ppo", (0.05, 0.2, 2.0), lambda coef: ("ppo.reference=base", f"ppo.module.kl_coef={coef}"), full=True
)
INIT_KL = Sweep("klinit", "ppo", (0.2, 2.0), lambda coef: (f"ppo.module.kl_coef={coef}",), 0.05, full=True)
PTX_KL = Sweep("klptx", "ppo_ptx", (0.0, 0.01, 0.02, 0.2, 2.0), lambda coef: (f"ppo_ptx.module.kl_coef={coef}",), 0.05)
DEFAULT_SHARE = 0.1
INIT_SHARE = Sweep(
    "init",
    "ppo_ptx",
    (0.0, 0.5),
    lambda share: (f"ppo_init.data.text_share={share}",),
    DEFAULT_SHARE,
    before=("ppo_init",),
)
INIT_EPOCHS = Sweep(
    "initepochs", "ppo_ptx", (1,), lambda count: (f"ppo_init.fit.epochs={count}",), 2, before=("ppo_init",)
)
RATES = (0.317, 0.563, 1.78, 3.17)
"""The paper's scan of learning rates as multiples of 8.05e-6, in its middle; see `conf/sweep/ppo_lr.yaml`."""
PPO_RATES = Sweep("lr", "ppo", RATES, lambda factor: _rate_options("ppo", factor), 1.0)
PTX_RATES = Sweep("lrptx", "ppo_ptx", RATES, lambda factor: _rate_options("ppo_ptx", factor), 1.0)
LENGTH = Sweep("twice", "ppo_ptx", (2.0,), lambda factor: _length_options(factor), 1.0, full=True)
TEXT_ROWS = Sweep(
    "ratio", "ppo_ptx", (32, 256), lambda rows: (f"ppo_ptx.data.text_batch_size={rows}",), DEFAULT_TEXT_ROWS
)
BATCH = Sweep("batch", "ppo_ptx", (64, 256), lambda size: _batch_options(int(size)), DEFAULT_BATCH)
MINIBATCHES = Sweep("minibatches", "ppo_ptx", (1, 8), lambda count: (f"ppo_ptx.module.num_minibatches={count}",), 4)
SETTINGS = (TEXT_ROWS, BATCH, MINIBATCHES)
"""Run one after the other for each seed."""


def _rate_options(policy: str, factor: float) -> tuple[str, ...]:
    return (f"{policy}.module.optimizer.lr={factor * POLICY_RATE:.4g}",)


def _length_options(factor: float) -> tuple[str, ...]:
    return (f"ppo_ptx.data.num_batches={round(factor * EPISODES / DEFAULT_BATCH)}",)


def _batch_options(size: int) -> tuple[str, ...]:
    return (
        f"ppo_ptx.data.batch_size={size}",
        f"ppo_ptx.data.num_batches={EPISODES // size}",
        # The same text rows per episode as with the default batch, or two things would change at once.
        f"ppo_ptx.data.text_batch_size={size * DEFAULT_TEXT_ROWS // DEFAULT_BATCH}",
    )


def job_name(kind: str, seed: int) -> str:
    """The name of the job of a kind with a seed."""
    return f"{kind}-s{seed}"


def jobs(seeds: Sequence[int] = SEEDS) -> list[Job]:
    """All jobs, each after those that it builds on; what most claims need comes first."""
    coefficients = (PTX_COEF.jobs, BASE_KL.jobs, INIT_KL.jobs, PTX_KL.jobs)
    rest = (INIT_SHARE.jobs, INIT_EPOCHS.jobs, PPO_RATES.jobs, PTX_RATES.jobs, LENGTH.jobs, _batches)
    makers = (_full, *coefficients, _weak, _rankings, _teams, _epochs, *rest)
    return [job for make in makers for seed in seeds for job in make(seed)]


def selected(all_jobs: Sequence[Job], kinds: Iterable[str]) -> list[Job]:
    """The jobs of some kinds and those that they build on, in the order of all jobs."""
    wanted = set(kinds)
    names = {job.name for job in all_jobs if job.kind in wanted}
    for job in reversed(all_jobs):
        if job.name in names:
            names.update(job.upstream)
    return [job for job in all_jobs if job.name in names]


def _full(seed: int) -> list[Job]:
    whole = {"evaluate": 1.0}
    options = ("evaluate=full", "collect.prompts.validation=600")
    first = _job(JUDGED, seed, RECIPE, *options, size=JUDGED, upstream=(), factors=whole)
    stages = tuple(stage for stage in RECIPE if stage not in ("collect", "reward"))
    others = [size for size in SIZES if size != JUDGED]
    full, alike = "evaluate=full", "evaluate.temperatures=null"
    made = [first, *(_job(s, seed, stages, full, size=s, upstream=(JUDGED,), factors=whole) for s in others)]
    for size, kind in zip(SIZES, ALIKE, strict=True):
        made.append(
            _job(kind, seed, ("evaluate",), alike, size=size, upstream=(size, JUDGED), factors={"evaluate": 0.5})
        )
    return made


def _weak(seed: int) -> list[Job]:
    """PPO against a reward model of few rankings; all use that of the first."""
    made: list[Job] = []
    for coef, count in WEAK_ARMS:
        options = [f"ppo.module.kl_coef={coef}", f"ppo.data.num_batches={count}", "evaluate.policies=[sft,ppo]"]
        stages: tuple[str, ...] = ("ppo", "evaluate")
        upstream: tuple[str, ...] = (SMALL, JUDGED)
        if made:
            upstream = (made[0].kind, *upstream)
        else:
            options, stages = [f"reward.data.max_train={WEAK_RANKINGS}", *options], ("reward", *stages)
        factors = {"reward": 0.05, "ppo": count * DEFAULT_BATCH / EPISODES}
        made.append(_job(weak_kind(coef, count), seed, stages, *options, upstream=upstream, factors=factors))
    return made


WEAK_ARMS = [(coef, count) for coef in WEAK_KL_COEFS for count in WEAK_ITERATIONS]


def weak_kind(kl_coef: float, iterations: int) -> str:
    """The kind of job of PPO against a reward model of few rankings."""
    return f"weak-{kl_coef}-{iterations}"


REWARD_ARMS: Mapping[str, tuple[tuple[str, ...], float]] = {
    "whole": ((), 1.0),
    # Every pair reads its prompt again.
    "pairs": (("reward.data.as_pairs=true", f"reward.data.batch_size={PAIRS_PER_STEP}"), 3.7),
    "reward-slow": ((f"reward.module.optimizer.lr={0.5 * REWARD_RATE:g}",), 1.0),
    "reward-fast": ((f"reward.module.optimizer.lr={1.5 * REWARD_RATE:g}",), 1.0),
    "reward-epochs": (("reward.fit.epochs=4",), 4.0),
    "reward-base": (("reward.init=base",), 1.0),
}
"""Small reward models on a part of the rankings: what each does otherwise, and its time."""


def _rankings(seed: int) -> list[Job]:
    few = f"reward.data.max_train={FEW_RANKINGS}"
    return [
        _job(kind, seed, ("reward",), few, *options, factors={"reward": 0.6 * factor})
        for kind, (options, factor) in REWARD_ARMS.items()
    ]


def _teams(seed: int) -> list[Job]:
    return [_job(team, seed, ("reward",), f"reward.data.leave_out=[{team}]") for team in TEAMS]


def _epochs(seed: int) -> list[Job]:
    policies = ",".join(f"sft/epoch-{epoch}" for epoch in EPOCHS)
    options = (
        f"sft.fit.epochs={EPOCHS[-1]}",
        "sft.keep_epochs=true",
        f"evaluate.policies=[base,{policies}]",
        f"evaluate.baseline=sft/epoch-{EPOCHS[0]}",
        "evaluate.reference=base",
    )
    return [_job("epochs", seed, ("sft", "evaluate"), *options, factors={"sft": EPOCHS[-1] / 3, "evaluate": 1.0})]


def _batches(seed: int) -> list[Job]:
    return [job for sweep in SETTINGS for job in sweep.jobs(seed)]


def _job(
    kind: str,
    seed: int,
    stages: tuple[str, ...],
    *options: str,
    size: str = SMALL,
    upstream: tuple[str, ...] = (SMALL, JUDGED),
    factors: Mapping[str, float] | None = None,
) -> Job:
    """A job: by default on the small policies of its seed, and on the reward model and rankings of the middle size."""
    names = tuple(job_name(built_on, seed) for built_on in upstream)
    overrides = (
        "experiment=sandbox",
        f"run={job_name(kind, seed)}",
        f"seed={seed}",
        f"model.size={size}",
        f"stages=[{','.join(stages)}]",
        *([f"upstream=[{','.join(names)}]"] if names else []),
        *options,
    )
    times = {"evaluate": FEWER_POLICIES, **(factors or {})}
    seconds = {stage: STAGE_SECONDS[size][stage] * times.get(stage, 1.0) for stage in stages}
    return Job(kind, seed, overrides, stages, names, seconds)
