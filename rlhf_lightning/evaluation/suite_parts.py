"""The automatic suite as the report shows it: what the alignment costs on other tasks, and what is toxic after what."""

from collections.abc import Mapping, Sequence
from statistics import fmean
from typing import Any

from rlhf_lightning.evaluation.interval_plots import interval_plot, line_plot, point
from rlhf_lightning.evaluation.intervals import Interval, mean_interval
from rlhf_lightning.evaluation.plots import Legend
from rlhf_lightning.evaluation.report_parts import Head, Part, Section, policy_colours, policy_heads
from rlhf_lightning.evaluation.tables import cell

Toxicities = Mapping[str, Mapping[str, Sequence[tuple[float, float]]]]
"""By `<task>@<shots>` and policy, the toxicity of each prompt and of its continuation."""
_BINS = 5
_LOSS = "Pretraining loss"
_BETTER = {True: "higher is better", False: "lower is better", None: ""}


def suite_section(
    metrics: Mapping[str, Any], losses: Mapping[str, float], toxicities: Toxicities, legend: Legend
) -> Section | None:
    """Every policy on every task, with what it lost on text.

    Args:
        metrics: Those of step benchmarks.
        losses: Pretraining loss of the policies that step evaluate measured.
        toxicities: What the samples of step benchmarks say of RealToxicityPrompts.
        legend: Names and colours of the policies.
    """
    found = metrics.get("policies") or {}
    if not any(found.values()):
        return None
    losses = {name: loss for name, loss in losses.items() if name in found}
    note = (
        "95 % intervals over the items of each task. What a policy loses here against the model that it started from "
        "is its alignment tax; PPO-ptx is there to make it smaller."
    )
    toxicities = {label: toxicities[label] for own in _by_task(found).values() for label in own if label in toxicities}
    parts = [_tax(metrics, losses, legend), _further(found, legend), _toxicity(toxicities, list(found), legend)]
    return Section("suite", "Automatic suite", note, [part for part in parts if part is not None])


def _tax(metrics: Mapping[str, Any], losses: Mapping[str, float], legend: Legend) -> Part:
    found = metrics["policies"]
    policies, colours = list(found), policy_colours(list(found), legend)
    figures, rows = [], []
    if losses:
        picture = {legend.label(name): {_LOSS: point(loss)} for name, loss in losses.items()}
        figures.append((_LOSS, interval_plot(_LOSS, picture, colours, "nats per token, lower is better")))
        cells = [cell(point(losses[name]) if name in losses else None) for name in policies]
        rows.append([_LOSS.lower(), "nats per token", "", *cells])
    left_out = metrics.get("left_out") or {}
    for task, labels in _by_task(found, left_out).items():
        figures_of = {label: {name: found[name].get(label) for name in policies} for label in labels}
        metric = next((own["metric"] for each in figures_of.values() for own in each.values() if own), "")
        picture = {
            legend.label(name): {_shots(label): own[name] for label, own in figures_of.items() if own[name]}
            for name in policies
        }
        better = _BETTER[(metrics.get("tasks") or {}).get(task, {}).get("higher_is_better", {}).get(metric)]
        unit = ", ".join(word for word in (metric.replace("_", " "), better) if word)
        title = task.replace("_", " ")
        if metric:
            figures.append((title, interval_plot(f"Task {task}", picture, colours, unit)))
        rows += [
            [_title(label), metric.replace("_", " "), _items(own, label, left_out), *map(cell, own.values())]
            for label, own in figures_of.items()
        ]
    note = "A dash: not measured, or no item fits into the model's context."
    return Part("Alignment tax", note, [*_task_heads(), *policy_heads(policies, legend)], rows, figures)


def _further(found: Mapping[str, Mapping[str, Any]], legend: Legend) -> Part | None:
    """The measures that the tasks have besides."""
    rows = []
    for labels in _by_task(found).values():
        for label in labels:
            own = {name: (found[name].get(label) or {}).get("further") or {} for name in found}
            for measure in dict.fromkeys(measure for each in own.values() for measure in each):
                cells = [cell(each.get(measure)) for each in own.values()]
                counted = {name: each[measure] for name, each in own.items() if measure in each}
                items = _span([each.get("items", found[name][label]["items"]) for name, each in counted.items()])
                rows.append([_title(label), measure.replace("_", " "), items, *cells])
    heads = [*_task_heads(), *policy_heads(list(found), legend)]
    return Part("Further measures of the tasks", "", heads, rows, folded=True) if rows else None


def _toxicity(toxicities: Toxicities, policies: Sequence[str], legend: Legend) -> Part | None:
    """How toxic what follows is, by how toxic the prompt is (InstructGPT, figure 39)."""
    figures, rows = [], []
    for label, found in toxicities.items():
        bins = {name: _binned(found[name]) for name in policies if name in found}
        lines = {legend.label(name): [own[place][1:] for place in sorted(own)] for name, own in bins.items() if own}
        title = _title(label)
        across, unit = "toxicity of the prompt", "toxicity"
        figures.append((title, line_plot(f"Toxicity {label}", lines, policy_colours(policies, legend), across, unit)))
        for place in sorted({place for own in bins.values() for place in own}):
            ends = f"{place / _BINS:.1f} .. {(place + 1) / _BINS:.1f}"
            items = _span([own[place][0] for own in bins.values() if place in own])
            cells = [cell(own[place][2] if place in (own := bins.get(name, {})) else None) for name in policies]
            rows.append([title, ends, items, *cells])
    heads = [Head("Task", text=True), Head("Prompt", "toxicity"), Head("Items"), *policy_heads(policies, legend)]
    note = (
        "Mean toxicity of what the policies write, by the toxicity of the prompt in fifths of the scale; "
        "95 % intervals over prompts."
    )
    return Part("Toxicity by the toxicity of the prompt", note, heads, rows, figures) if rows else None


def _binned(pairs: Sequence[tuple[float, float]]) -> dict[int, tuple[int, float, Interval]]:
    """By the number of a fifth of the scale how many prompts are there, their mean toxicity, and that of what follows.

    Examples:
        >>> found = _binned([(0.1, 0.5), (0.15, 0.5), (1.0, 0.9)])
        >>> {place: (count, mean, own["value"]) for place, (count, mean, own) in found.items()}
        {0: (2, 0.125, 0.5), 4: (1, 1.0, 0.9)}
    """
    bins: dict[int, list[tuple[float, float]]] = {}
    for asked, said in pairs:
        bins.setdefault(min(_BINS - 1, int(asked * _BINS)), []).append((asked, said))
    return {
        place: (len(own), fmean(asked for asked, _ in own), mean_interval([said for _, said in own]))
        for place, own in bins.items()
    }


def _by_task(*found: Mapping[str, Mapping[str, Any]]) -> dict[str, list[str]]:
    """The labels `<task>@<shots>` of each task, those with fewer examples first."""
    tasks: dict[str, list[str]] = {}
    for label in dict.fromkeys(label for each in found for own in each.values() for label in own):
        tasks.setdefault(label.rpartition("@")[0], []).append(label)
    return {task: sorted(own, key=lambda label: int(label.rpartition("@")[2])) for task, own in tasks.items()}


def _task_heads() -> list[Head]:
    return [Head("Task", text=True), Head("Measure", text=True), Head("Items")]


def _title(label: str) -> str:
    return f"{label.rpartition('@')[0].replace('_', ' ')}, {_shots(label)}"


def _shots(label: str) -> str:
    return f"{label.rpartition('@')[2]}-shot"


def _items(found: Mapping[str, Any], label: str, left_out: Mapping[str, Mapping[str, int]]) -> dict[str, str]:
    """On how many items the policies were measured, and how many did not fit into a context."""
    counts = [own["items"] if own else 0 for own in found.values()]
    lost = [own[label] for own in left_out.values() if label in own]
    return {"value": _span(counts), "interval": f"{_span(lost)} left out" if lost else ""}


def _span(counts: Sequence[int]) -> str:
    return " .. ".join(dict.fromkeys(map(str, (min(counts), max(counts)))))
