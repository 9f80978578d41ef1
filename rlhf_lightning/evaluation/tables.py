"""The tables that close a run and a sweep, and those of pages."""

from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

from rich.table import Table
from rich.text import Text

from rlhf_lightning.evaluation.intervals import Interval
from rlhf_lightning.evaluation.plots import Legend, number
from rlhf_lightning.evaluation.table_3 import TABLE_3
from rlhf_lightning.runs.files import read_json
from rlhf_lightning.runs.terminal import harmless

EVALUATE, REWARD, JUDGE = "evaluate", "reward", "judge"
"""The steps whose results the tables and the report open with, and the one that trains a judge."""
SHARES = ("win_rate", "length_controlled")
"""Measures of a policy beside the baseline, which are shown as percentages."""
TRAINED, NOT_MEASURED = "trained_policies", "not measured"
NOT_INDEPENDENT = "it is not independent of them, and overrates what they learned from its errors (over-optimisation)"


def closing_table(results: Mapping[str, Any], legend: Legend) -> Table:
    """Policies in rows; score, win rate, KL, length and pretraining loss in columns.

    Args:
        results: The metrics of step evaluate: ``policies``, ``baseline``, ``prompts``, ``judge``.
        legend: Names of the policies.
    """
    judge = results.get(JUDGE)
    title = f"{results['prompts']} held-out prompts, win rate against {legend.label(results['baseline'])}"
    table = Table(title=title, caption=judge and f"The judge: {judge_sentence(judge)}.")
    judges = list(next(iter(results["policies"].values())).get("judges", {}))
    names = ("policy", "score", "win rate", *(f"win rate by\n{judge.replace('_', ' ')}" for judge in judges))
    for name in (*names, "reward\nmodel", "KL", "length", "pretrain\nloss"):
        table.add_column(name, justify="left" if name == "policy" else "right")
    for name, own in results["policies"].items():
        loss, baseline = own["pretrain_loss"], name == results["baseline"]
        table.add_row(
            legend.label(name),
            interval_text(own["score"], "{:.3f}"),
            "-" if baseline else interval_text(own["win_rate"], "{:.1%}"),
            *("-" if baseline else interval_text(own["judges"][judge], "{:.1%}") for judge in judges),
            f"{own[REWARD]['value']:.2f}" if own[REWARD] else "-",
            "-" if own["kl"] is None else f"{own['kl']:.2f}",
            f"{own['length']:.1f}",
            "-" if loss is None else f"{loss:.3f}",
        )
    return table


def judge_of(metrics: Mapping[str, Any], options: Mapping[str, Any], parents: Collection[str]) -> Mapping[str, Any]:
    """Who judged, and whether the policies were trained on its scores.

    Args:
        metrics: Those of step evaluate.
        options: Its settings, which say it where the metrics of an old run do not.
        parents: The models that it had.
    """
    own: Mapping[str, Any] | None = metrics.get(JUDGE)
    named = options.get(JUDGE)
    if own is not None:
        return own
    if named:
        return {"name": named["_target_"] if isinstance(named, Mapping) else str(named), TRAINED: False}
    return {"name": JUDGE, TRAINED: False} if JUDGE in parents else {"name": REWARD, TRAINED: True}


def judge_sentence(judge: Mapping[str, Any]) -> str:
    """Who judged, for people."""
    if judge[TRAINED]:
        return f"what trained or chose the policies ({judge['name']}); {NOT_INDEPENDENT}"
    return "the reward model of step judge, trained on other rankings" if judge["name"] == JUDGE else judge["name"]


def sample_table(samples: Mapping[str, Any], legend: Legend, count: int = 5) -> Table:
    """The first prompts with the responses of all policies side by side.

    Args:
        samples: The content of samples.json: ``prompts`` and one entry per policy.
        legend: Names of the policies.
        count: How many prompts; they are the first ones, not chosen ones.
    """
    prompts, policies = samples["prompts"][:count], [name for name in samples if name != "prompts"]
    table = Table(title=f"The first {len(prompts)} held-out prompts, one sample each", show_lines=True, expand=True)
    for name in ("prompt", *map(legend.label, policies)):
        table.add_column(name, ratio=1)
    for index, prompt in enumerate(prompts):
        texts = [prompt, *(samples[name]["responses"][index] for name in policies)]
        table.add_row(*(Text(harmless(text)) for text in texts))  # as they are: [/INST] is no markup
    return table


def sample_view(path: Path, legend: Legend) -> Table | Text:
    """`sample_table` of a samples.json; a sentence where that is damaged."""
    try:
        return sample_table(read_json(path), legend)
    except Exception as error:  # whatever it holds
        return Text(str(error), style="red")


def failure_table(failures: Sequence[tuple[str, str]], jobs: int, what: str = "failed") -> Table:
    """One row per job of a sweep that could not go on, with what it said.

    Args:
        failures: The name of each job, and what it said.
        jobs: How many jobs the sweep had.
        what: What became of these.
    """
    table = Table("job", "what it said", title=f"{len(failures)} of {jobs} jobs {what}", show_lines=True)
    for job, said in failures:
        table.add_row(Text(job, overflow="fold"), Text(said, overflow="fold"))
    return table


def markdown_table(head: Sequence[str], rows: Sequence[Sequence[str]], text_columns: int = 1) -> str:
    """A table of Markdown.

    Args:
        head: The heads of its columns.
        rows: Its cells.
        text_columns: How many columns are text, on the left; those behind them are numbers, on the right.
    """
    lines = [head, ["---"] * text_columns + ["--:"] * (len(head) - text_columns), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def interval_text(interval: Mapping[str, Any] | None, form: str) -> str:
    """A value over its interval in a table of the console, a dash where nothing was measured."""
    if interval is None:
        return "-"
    value, low, high = (form.format(interval[name]) for name in ("value", "low", "high"))
    return f"{value}\n[dim]{low} .. {high}[/]"


COLUMNS = (
    ("score", "Score", "by the judge"),
    ("win_rate", "Win rate", "% against the baseline, by the judge"),
    ("length_controlled", "Win rate at equal length", "% against the baseline, by the judge"),
    (REWARD, "Reward", "by the reward model"),
    ("kl", "KL", "nats per response"),
    ("length", "Length", "tokens"),
    ("pretrain_loss", "Pretraining loss", "nats per token"),
)


def measured(own: Mapping[str, Any], key: str) -> Interval | None:
    """A measure of a policy with its interval; one without gets its own value as both ends."""
    value = own.get(key)
    if isinstance(value, Mapping):
        return {"value": value["value"], "low": value["low"], "high": value["high"]}
    if value is None:
        return None
    low, high = own.get("intervals", {}).get(key, (value, value))
    return {"value": value, "low": low, "high": high}


def cell(measure: Interval | None, scale: float = 1.0) -> dict[str, str]:
    """A value and its interval as text, a dash where nothing was measured."""
    if measure is None:
        return {"value": "-", "interval": ""}
    value, low, high = (scale * end for end in (measure["value"], measure["low"], measure["high"]))
    size = max(abs(value), abs(low), abs(high))
    interval = "" if low == high else f"{number(low, size)} .. {number(high, size)}"
    return {"value": number(value, size), "interval": interval}


def policy_table(results: Mapping[str, Any]) -> dict[str, Any]:
    """One row per policy, one column per measure that any of them has."""
    policies = results["policies"]
    columns = [column for column in COLUMNS if any(own.get(column[0]) is not None for own in policies.values())]
    rows = []
    for name, own in policies.items():
        cells = []
        for key, *_ in columns:
            beside_itself = key in SHARES and name == results["baseline"]
            scale = 100.0 if key in SHARES else 1.0
            cells.append({"value": "baseline", "interval": ""} if beside_itself else cell(measured(own, key), scale))
        rows.append({"name": name, "cells": cells})
    return {"columns": columns, "rows": rows}


BY_JUDGES = "judges"
MEASURES = {
    BY_JUDGES: "Win rate by other judges",
    "likert": "Likert score, 1 to 7",
    "table_3": "Metadata of table 3",
    "metadata": "Metadata",
    "probes": "Automatic measures",
}


def measure_table(results: Mapping[str, Any], key: str) -> dict[str, Any] | None:
    """Further judges, metadata or automatic measures: one row each, a column per policy.

    Of table 3 every field has a row, which says where it is not measured, if any is.
    """
    policies = results["policies"]
    found: dict[str, dict[str, Interval]] = {}
    for name, own in policies.items():
        for measure, value in (own.get(key) or {}).items():
            nested = {measure: value} if value is None or "value" in value else value
            for part, interval in nested.items():
                if interval is not None:
                    found.setdefault(measure if part == measure else f"{measure}: {part}", {})[name] = interval
    if key == "table_3" and found:
        found = {label: found.get(name, {}) for name, label in TABLE_3.items()}
    nowhere = [{"value": NOT_MEASURED, "interval": ""} for _ in policies]
    rows = [
        (measure.replace("_", " "), [cell(own.get(name)) for name in policies] if own else nowhere)
        for measure, own in found.items()
    ]
    return {"title": MEASURES[key], "policies": list(policies), "rows": rows} if rows else None


def split_tables(record: Mapping[str, Any]) -> dict[str, Any]:
    """The accuracy tables that a reward model's stage recorded, by split."""
    return {split: table for split, table in record.get("metrics", {}).items() if isinstance(table, Mapping)}


def accuracy_rows(record: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Accuracy and "longer wins", of the texts as the model reads them and of the whole, per split and group."""
    rows = []
    for split, groups in split_tables(record).items():
        for group, own in groups.items():
            cells = [cell(measured(own, key), 100.0) for key in ("accuracy", "longer_read_wins", "longer_wins")]
            counts = [own.get("prompts"), own.get("pairs")]
            rows.append({"split": split, "group": group, "cells": cells, "counts": counts})
    return rows
