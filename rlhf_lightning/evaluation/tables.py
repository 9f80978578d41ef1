"""The tables that close a run and a sweep."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from rich.table import Table
from rich.text import Text

from rlhf_lightning.artifacts import is_complete, read_stage
from rlhf_lightning.evaluation.intervals import mean_interval, pooled_interval, wins
from rlhf_lightning.evaluation.plots import label


def closing_table(results: Mapping[str, Any]) -> Table:
    """Policies in rows; score, win rate, KL, length and pretraining loss in columns.

    Args:
        results: Metrics of stage evaluate: ``policies``, ``baseline``, ``prompts``.
    """
    table = Table(title=f"{results['prompts']} held-out prompts, win rate against {results['baseline']}")
    judges = list(next(iter(results["policies"].values())).get("judges", {}))
    names = ("policy", "score", "win rate", *(f"win rate by\n{judge.replace('_', ' ')}" for judge in judges))
    for name in (*names, "reward\nmodel", "KL", "length", "pretrain\nloss"):
        table.add_column(name, justify="left" if name == "policy" else "right")
    for name, own in results["policies"].items():
        loss, baseline = own["pretrain_loss"], name == results["baseline"]
        table.add_row(
            label(name),
            _interval(own["score"], "{:.3f}"),
            "-" if baseline else _interval(own["win_rate"], "{:.1%}"),
            *("-" if baseline else _interval(own["judges"][judge], "{:.1%}") for judge in judges),
            f"{own['reward']['value']:.2f}" if own["reward"] else "-",
            "-" if own["kl"] is None else f"{own['kl']:.2f}",
            f"{own['length']:.1f}",
            "-" if loss is None else f"{loss:.3f}",
        )
    return table


def sample_table(samples: Mapping[str, Any], count: int = 5) -> Table:
    """The first prompts with the responses of all policies side by side.

    Args:
        samples: Of samples.json: ``prompts`` and one entry per policy.
        count: How many prompts; they are the first ones, not chosen ones.
    """
    table = Table(title=f"The first {count} held-out prompts, one sample each", show_lines=True, expand=True)
    policies = [name for name in samples if name != "prompts"]
    for name in ("prompt", *map(label, policies)):
        table.add_column(name, ratio=1)
    for index, prompt in enumerate(samples["prompts"][:count]):
        texts = [prompt, *(samples[name]["responses"][index] for name in policies)]
        table.add_row(*map(Text, texts))  # as they are: [/INST] is no markup
    return table


def sweep_table(jobs: Mapping[str, Path]) -> Table:
    """One row per job and policy, then every policy pooled over the seeds.

    Args:
        jobs: Overrides of each job, and its run folder.
    """
    table = Table(title=f"{len(jobs)} jobs; pooled over seeds: 95 % interval over seeds and prompts")
    for name in ("job", "policy", "score", "win rate", "KL", "length"):
        table.add_column(name, justify="left" if name in ("job", "policy") else "right")
    pooled: dict[tuple[str, str], dict[str, list[list[float]]]] = {}
    for job, folder in jobs.items():
        for policy, columns in _job_columns(folder).items():
            for column, values in columns.items():
                rest = ",".join(part for part in job.split(",") if not part.startswith("seed="))
                pooled.setdefault((rest, policy), {}).setdefault(column, []).append(values)
            table.add_row(job, policy, *_cells({name: [values] for name, values in columns.items()}))
    table.add_section()
    for (rest, policy), groups in pooled.items():
        if len(groups["score"]) > 1:
            table.add_row(f"pooled {rest}", policy, *_cells(groups))
    return table


def _job_columns(folder: Path) -> dict[str, dict[str, list[float]]]:
    """Per policy and column the values of a job: over prompts where it evaluated, else the last iteration's mean."""
    if is_complete(folder / "evaluate"):
        samples = json.loads((folder / "evaluate" / "samples.json").read_text(encoding="utf-8"))
        baseline = samples[read_stage(folder / "evaluate")["metrics"]["baseline"]]["scores"]
        return {
            name: {
                "score": own["scores"],
                "win rate": wins(own["scores"], baseline),
                **({"KL": own["kl"]} if own["kl"] else {}),
                "length": own["lengths"],
            }
            for name, own in samples.items()
            if name != "prompts"
        }
    columns = {}
    for stage in ("ppo", "ppo_ptx"):
        metrics = read_stage(folder / stage).get("metrics")
        if metrics:
            names = {"score": "rollout/score", "KL": "rollout/kl", "length": "rollout/length"}
            columns[stage] = {column: [metrics[name]] for column, name in names.items()}
    return columns


def _cells(groups: Mapping[str, list[list[float]]]) -> list[str]:
    forms = {"score": "{:.3f}", "win rate": "{:.1%}", "KL": "{:.2f}", "length": "{:.1f}"}
    cells = []
    for column, form in forms.items():
        values = groups.get(column)
        if values is None:
            cells.append("-")
        elif all(len(group) == 1 for group in values):
            cells.append(form.format(sum(group[0] for group in values) / len(values)))
        else:
            interval: Mapping[str, Any] = mean_interval(values[0]) if len(values) == 1 else pooled_interval(values)
            cells.append(_interval(interval, form))
    return cells


def _interval(interval: Mapping[str, Any], form: str) -> str:
    value, low, high = (form.format(interval[name]) for name in ("value", "low", "high"))
    return f"{value}\n[dim]{low} .. {high}[/]"
