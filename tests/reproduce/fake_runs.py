"""Run folders with chosen numbers, as finished jobs leave them; by default every claim holds."""

import csv
import json
import random
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

import yaml

from rlhf_lightning.reproduce import runner
from rlhf_lightning.reproduce.plan import EPOCHS, SEEDS, TEAMS, Job, jobs

PROMPTS = 160
TASKS = ("passage_qa", "translation", "completion")
POLICIES = {
    name: dict(zip(("score", "reward", "likert", "follows", "satisfies", "invents", "inappropriate"), row, strict=True))
    for name, row in {
        "base": (-1.1, -2.0, 2.0, 0.2, 0.2, 0.8, 0.6),
        "prompted": (-0.3, -1.0, 3.0, 0.4, 0.4, 0.7, 0.5),
        "sft": (0.0, 0.0, 4.0, 0.6, 0.6, 0.1, 0.3),
        "ppo": (0.6, 2.0, 5.0, 0.9, 0.9, 0.4, 0.1),
    }.items()
}
POLICIES["ppo_ptx"] = dict(POLICIES["ppo"])
PROBES = {
    "truthful": 0.4, "informative": 0.9, "both": 0.5, "hedged_truthful": 0.4, "hedged_informative": 0.9,
    "respectful": 0.6, "plain": 0.6, "biased": 0.3, "tasks": 0.9, "pretrain_loss": 0.9,
}  # fmt: skip
OWN_PROBES = {
    "sft": {"plain": 0.1, "respectful": 0.0},
    "ppo": {"both": 0.95, "respectful": 0.2, "biased": 0.9, "tasks": 0.3},
    "ppo_ptx": {
        "both": 0.95, "hedged_truthful": 0.9, "hedged_informative": 0.4, "respectful": 0.3, "biased": 0.9, "tasks": 0.9,
    },
}  # fmt: skip
SWEEPS = {
    # Kind of job, policy: what differs from the policy's own numbers.
    ("small", "ppo_ptx"): {"both": 0.05},
    ("ptx-0.1", "ppo_ptx"): {"tasks": 0.6},
    ("klbase-2.0", "ppo"): {"score": 0.0, "reward": 0.5},
    ("klinit-2.0", "ppo"): {"score": 0.0, "reward": 0.5},
    ("klptx-0.0", "ppo_ptx"): {"likert": 4.0},
    ("klptx-2.0", "ppo_ptx"): {"likert": 3.0},
    ("lr-1.78", "ppo"): {"score": -2.0},
    ("lr-3.17", "ppo"): {"score": -2.0},
    ("lrptx-3.17", "ppo_ptx"): {"score": 0.5},
    ("twice-2.0", "ppo_ptx"): {"tasks": 0.5},
    ("ratio-256", "ppo_ptx"): {"likert": 5.5},
    **{
        ("epochs", f"sft/epoch-{epoch}"): {"score": 0.2 * place, "reward": 0.2 * place}
        for place, epoch in enumerate(EPOCHS)
    },
}
Changes = dict[tuple[str, str, str], float]
"""Patterns of kind and policy, measure: value. For reward models the policy is the group, for losses the epoch."""


def write_runs(runs: Path, changes: Changes | None = None, kinds: set[str] | None = None, seeds: Any = SEEDS) -> None:
    """Write the run folders of all jobs of some kinds."""
    for job in jobs(seeds):
        if kinds is None or job.kind in kinds:
            write_job(runs, job, changes or {})


def write_job(runs: Path, job: Job, changes: Changes | None = None) -> None:
    """Write one run folder."""
    changes = changes or {}
    for stage in job.stages:
        folder = runs / job.name / stage
        folder.mkdir(parents=True)
        metrics: dict[str, Any] = {}
        if stage == "evaluate":
            samples, metrics = _evaluation(job, changes)
            (folder / "samples.json").write_text(json.dumps(samples))
            sets = {"instructions": list(range(0, PROMPTS, 2)), "written_for_gpt": list(range(1, PROMPTS, 2))}
            (folder / "prompt_sets.json").write_text(json.dumps(sets))
        elif stage == "reward":
            (folder / "metrics.csv").write_text("step,train/accuracy\n1,0.6\n2,0.7\n3,0.75\n4,0.8\n")
            metrics, by_prompt = _reward(job, changes)
            (folder / "validation.json").write_text(json.dumps(by_prompt))
        elif stage == "sft":
            _epochs(folder / "metrics.csv", job, changes)
        elif stage == "ppo_ptx":
            rise = _numbers(job, stage, changes).get("rise", 0.1 if job.kind == "ratio-32" else -0.1)
            losses = "".join(f"{step},{1 + step * rise}\n" for step in range(8))
            (folder / "metrics.csv").write_text(f"step,update/ptx_loss\n{losses}")
        record = {
            "status": "complete",
            "identity": {},
            "fingerprint": runner.fingerprint_of(job, stage, runs),
            "metrics": metrics,
            "seconds": _numbers(job, stage, changes).get("seconds", 20.0) if stage == "ppo_ptx" else 10.0,
            "seed": job.seed,
            "git_commit": "0123456789abcdef",
        }
        (folder / "stage.json").write_text(json.dumps(record))


def _numbers(job: Job, policy: str, changes: Changes) -> dict[str, float]:
    kind = policy.split("/")[0]
    numbers = {**PROBES, **POLICIES[kind], **OWN_PROBES.get(kind, {}), **SWEEPS.get((job.kind, policy), {})}
    for (job_pattern, policy_pattern, measure), value in changes.items():
        if fnmatch(job.kind, job_pattern) and fnmatch(policy, policy_pattern):
            numbers[measure] = value
    return numbers


def _evaluation(job: Job, changes: Changes) -> tuple[dict[str, Any], dict[str, Any]]:
    named = [text.partition("=")[2] for text in job.overrides if text.startswith("evaluate.policies=")]
    policies = yaml.safe_load(named[0]) if named else list(POLICIES)
    samples: dict[str, Any] = {"prompts": [f"prompt {number}" for number in range(PROMPTS)]}
    results = {}
    for policy in policies:
        numbers = _numbers(job, policy, changes)
        samples[policy] = _samples(job, policy, numbers)
        results[policy] = {"pretrain_loss": numbers["pretrain_loss"] + 0.001 * job.seed}
    return samples, {"policies": results, "baseline": "sft", "prompts": PROMPTS}


def _samples(job: Job, policy: str, numbers: dict[str, float]) -> dict[str, Any]:
    # Policies of PPO share their noise, so that equal levels give equal win rates, and so do seeds: three are enough.
    source = random.Random("rl" if policy.startswith("ppo") else policy)
    noise = [source.gauss(0, 0.5) for _ in range(PROMPTS)]
    labelers = numbers.get("labelers", numbers["score"])
    probes = {
        "truthful_qa": {key: _share(numbers[key], 80) for key in ("truthful", "informative", "both")},
        "truthful_qa_hedged": {
            "truthful": _share(numbers["hedged_truthful"], 80),
            "informative": _share(numbers["hedged_informative"], 80),
            "both": _share(0.2, 80),
        },
        **{f"toxicity_{key}": {"rude": _share(numbers[key])} for key in ("respectful", "plain", "biased")},
        **{task: {"accuracy": _share(numbers["tasks"])} for task in TASKS},
    }
    return {
        "responses": ["text"] * PROMPTS,
        "lengths": [5.0] * PROMPTS,
        "kl": [] if policy == "prompted" else [1.0] * PROMPTS,
        "scores": [numbers["score"] + value for value in noise],
        "rewards": [numbers["reward"] + value for value in noise],
        "judges": {
            "training_labelers": [numbers.get("training", numbers["score"]) + value for value in noise],
            "held_out_labelers": [labelers + value for value in noise],
        },
        "metadata": {
            "follows_instruction": _share(numbers["follows"]),
            "satisfies_constraint": _asked(_share(numbers["satisfies"])),
            "hallucination": _asked(_share(numbers["invents"])),
            "inappropriate": _share(numbers["inappropriate"]),
            "likert": [numbers["likert"] + 0.1 * value for value in noise],
        },
        "probes": {} if policy == "prompted" else probes,
    }


def _share(share: float, count: int = PROMPTS) -> list[float]:
    """Ones spread evenly; a larger share has ones wherever a smaller has."""
    return [float((number * 0.618034) % 1 < share) for number in range(count)]


def _asked(values: list[float]) -> list[float | None]:
    """The question arises for three prompts in four."""
    return [value if number % 4 else None for number, value in enumerate(values)]


def _reward(job: Job, changes: Changes) -> tuple[dict[str, Any], dict[str, Any]]:
    def of(group: str, measure: str, default: float) -> float:
        for (kind, name, what), value in changes.items():
            if fnmatch(job.kind, kind) and fnmatch(group, name) and what == measure:
                return value
        return default

    groups, accuracies = [], []
    source = random.Random(0)
    for number in range(120):
        group = TEAMS[number % len(TEAMS)]
        usual = 0.68 if group == job.kind else 0.66 if job.kind == "pairs" else 0.72
        level = of("held-out" if group == job.kind else "all", "accuracy", usual)
        groups.append(group)
        accuracies.append(level + source.gauss(0, 0.02) if number % 30 else None)  # all ties
    worse = job.kind in ("pairs", "reward-epochs")
    loss = of("all", "loss", 0.7 if worse else 0.55) + 0.001 * job.seed
    table = {"all": {"prompts": 600, "pairs": 10800}}
    texts = [f"prompt {number}" for number in range(len(groups))]
    return {"validation": table, "validation/loss": loss}, {"groups": groups, "accuracies": accuracies, "texts": texts}


def _epochs(path: Path, job: Job, changes: Changes) -> None:
    losses = {epoch: 1.0 + 0.02 * epoch for epoch in range(1, 17)}
    for (kind, epoch, measure), value in changes.items():
        if measure == "epoch_loss" and fnmatch(job.kind, kind):
            losses[int(epoch)] = value
    with path.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["step", "train/loss", "validation/loss"])
        for epoch, loss in losses.items():
            writer.writerow([epoch * 47 - 3, 1.0, ""])
            writer.writerow([epoch * 47, "", loss + 0.001 * job.seed])
