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

PROMPTS = 40
TASKS = ("passage_qa", "translation", "completion")
POLICIES = {
    "base": {"score": -2.0, "follows": 0.2, "satisfies": 0.2, "invents": 0.6, "likert": 2.0, "reward": -2.0},
    "prompted": {"score": -0.7, "follows": 0.4, "satisfies": 0.4, "invents": 0.5, "likert": 3.0, "reward": -1.0},
    "sft": {"score": 0.0, "follows": 0.6, "satisfies": 0.6, "invents": 0.4, "likert": 4.0, "reward": 0.0},
    "ppo": {"score": 1.0, "follows": 0.9, "satisfies": 0.9, "invents": 0.2, "likert": 5.0, "reward": 2.0},
}
POLICIES["ppo_ptx"] = dict(POLICIES["ppo"])
PROBES = {
    "truthful": 0.4, "informative": 0.9, "both": 0.3, "hedged_truthful": 0.9, "hedged_informative": 0.4,
    "respectful": 0.3, "plain": 0.4, "biased": 0.4, "tasks": 0.8, "pretrain_loss": 0.9,
}  # fmt: skip
OWN_PROBES = {
    "ppo": {"both": 0.6, "respectful": 0.05, "biased": 0.8, "tasks": 0.5, "pretrain_loss": 1.1},
    "ppo_ptx": {"both": 0.6, "respectful": 0.05, "biased": 0.8, "tasks": 0.79, "pretrain_loss": 0.91},
}
SWEEPS = {
    # Kind of job, policy: what differs from the policy's own numbers.
    ("ptx-0.1", "ppo_ptx"): {"tasks": 0.6},
    ("klbase-0.05", "ppo"): {"tasks": 0.5},
    ("klbase-0.2", "ppo"): {"tasks": 0.55},
    ("klbase-2.0", "ppo"): {"tasks": 0.6, "score": 0.0, "reward": 0.5},
    ("klptx-0.0", "ppo_ptx"): {"likert": 4.0},
    ("klptx-2.0", "ppo_ptx"): {"likert": 3.0},
    ("ratio-16", "ppo_ptx"): {"pretrain_loss": 1.0},
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
        elif stage == "reward":
            (folder / "metrics.csv").write_text("step,train/accuracy\n1,0.6\n2,0.7\n3,0.75\n4,0.8\n")
            metrics, by_prompt = _reward(job, changes)
            (folder / "validation.json").write_text(json.dumps(by_prompt))
        elif stage == "sft":
            _epochs(folder / "metrics.csv", job, changes)
        record = {
            "status": "complete",
            "identity": {},
            "fingerprint": runner.fingerprint_of(job, stage, runs),
            "metrics": metrics,
            "seconds": 10.0,
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
    # Policies of PPO share their noise, so that equal levels give equal win rates.
    source = random.Random(f"{job.seed}/{'rl' if policy.startswith('ppo') else policy}")
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
        "judges": {"held_out_labelers": [labelers + value for value in noise]},
        "metadata": {
            "follows_instruction": _share(numbers["follows"]),
            "satisfies_constraint": _asked(_share(numbers["satisfies"])),
            "hallucination": _asked(_share(numbers["invents"])),
            "inappropriate": _share(0.1),
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
    source = random.Random(job.seed)
    for number in range(120):
        group = TEAMS[number % len(TEAMS)]
        usual = 0.69 if group == job.kind else 0.68 if job.kind == "pairs" else 0.72
        level = of("held-out" if group == job.kind else "all", "accuracy", usual)
        groups.append(group)
        accuracies.append(level + source.gauss(0, 0.1) if number % 30 else None)  # all ties
    loss = of("all", "loss", 0.7 if job.kind == "pairs" else 0.55) + 0.001 * job.seed
    table = {"all": {"prompts": 600, "pairs": 10800}}
    return {"validation": table, "validation/loss": loss}, {"groups": groups, "accuracies": accuracies}


def _epochs(path: Path, job: Job, changes: Changes) -> None:
    losses = {epoch: 1.0 + 0.02 * abs(epoch - 2) for epoch in range(1, 17)}
    for (kind, epoch, measure), value in changes.items():
        if measure == "epoch_loss" and fnmatch(job.kind, kind):
            losses[int(epoch)] = value
    with path.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["step", "train/loss", "validation/loss"])
        for epoch, loss in losses.items():
            writer.writerow([epoch * 47 - 3, 1.0, ""])
            writer.writerow([epoch * 47, "", loss + 0.001 * job.seed])
