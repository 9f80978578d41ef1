"""Rounds side by side, as the report shows them: what the policies of each won, and how good its reward model was."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from rlhf_lightning.evaluation.interval_plots import line_plot
from rlhf_lightning.evaluation.intervals import Interval
from rlhf_lightning.evaluation.plots import Legend
from rlhf_lightning.evaluation.report_parts import Head, Part, Section, policy_colours
from rlhf_lightning.evaluation.tables import (
    EVALUATE,
    JUDGE,
    NOT_MEASURED,
    REWARD,
    TRAINED,
    cell,
    measured,
    split_tables,
)
from rlhf_lightning.runs.folders import PipelineError, read_stage
from rlhf_lightning.runs.rounds import later_rounds

_MEASURES = (
    ("score", "Score", "by the judge", 1.0),
    ("win_rate", "Win rate", "% against the baseline", 100.0),
    ("kl", "KL", "nats per response", 1.0),
)
_REWARD = (
    ("accuracy", "Accuracy", "% of validation pairs"),
    ("agreement", "Agreement with the judge", "% of test pairs without ties"),
)


class Round(NamedTuple):
    """What a round left for the comparison."""

    evaluation: Mapping[str, Any]
    """Metrics of step evaluate."""
    asked: Mapping[str, str]
    """What each policy was by content."""
    reward: Mapping[str, Any]
    """Record of step reward."""
    made: frozenset[str]
    """The steps that it has made anew; of the first round all."""


def rounds_in(run_folder: Path, first: Mapping[str, Mapping[str, Any]]) -> dict[int, Round]:
    """The rounds of a run that are evaluated, by number; empty where there is only one.

    Args:
        run_folder: The run's folder.
        first: Records of the steps of the first round, by step.
    """
    found = {1: _round(first)}
    for number, folder in later_rounds(run_folder).items():
        records = {path.parent.name: _record(path.parent) for path in folder.glob("*/stage.json")}
        found[number] = _round({step: own for step, own in records.items() if own.get("status") == "complete"})
    evaluated = {number: each for number, each in found.items() if each.evaluation.get("policies")}
    return evaluated if any(number > 1 for number in evaluated) else {}


def _round(records: Mapping[str, Mapping[str, Any]]) -> Round:
    evaluation = records.get(EVALUATE, {})
    asked = evaluation.get("identity", {}).get("parents", {})
    return Round(evaluation.get("metrics", {}), asked, records.get(REWARD, {}), frozenset(records))


def _record(folder: Path) -> dict[str, Any]:
    try:
        return read_stage(folder)
    except PipelineError:  # torn; the report of the round says so
        return {}


def newest(round_: Round) -> str | None:
    """The last policy that the round trained; None where it evaluated none."""
    trained = [name for name in round_.evaluation["policies"] if name in round_.made]
    return trained[-1] if trained else None


def round_section(rounds: Mapping[int, Round], legend: Legend) -> Section | None:
    """Score, win rate and KL of each round's policies; accuracy and agreement of its reward model.

    Args:
        rounds: What `rounds_in` found.
        legend: Names and colours of the policies.
    """
    parts = [part for part in (_policies(rounds, legend), _rewards(rounds)) if part is not None] if rounds else []
    trained = any((each.evaluation.get(JUDGE) or {}).get(TRAINED) for each in rounds.values())
    note = (
        "Every round ranks responses of the newest policy too, trains a reward model on all rankings so far, and then "
        "the policies. All are measured on the same test prompts against the same baseline; 95 % intervals over "
        "prompts, for one training run. Each later round has a report of its own: round-2/report, and so on."
    )
    note += " The judge is the reward model of the round, another one in each." if trained else ""
    baselines = {each.asked.get(each.evaluation["baseline"]) for each in rounds.values()}
    note += " The baseline is another model in some rounds, so that win rates cannot be compared." * (
        len(baselines) > 1
    )
    return Section("rounds", "Rounds", note, parts) if parts else None


def _policies(rounds: Mapping[int, Round], legend: Legend) -> Part | None:
    later = frozenset[str]().union(*(each.made for number, each in rounds.items() if number > 1))
    rows, lines = [], dict[str, dict[str, list[tuple[float, Interval]]]]()
    for number, each in rounds.items():
        for name, own in each.evaluation["policies"].items():
            if name.partition("/")[0] not in each.made & later:
                continue
            found = {key: measured(own, key) for key, *_ in _MEASURES}
            cells = [cell(found[key], scale) for key, _, _, scale in _MEASURES]
            rows.append([str(number), legend.label(name), *cells, str(each.evaluation["prompts"])])
            for key, _, _, scale in _MEASURES:
                if (interval := found[key]) is not None:
                    lines.setdefault(key, {}).setdefault(name, []).append((number, _scaled(interval, scale)))
    figures = []
    for key, title, unit, _ in _MEASURES:
        if key in lines:
            named = {legend.label(name): points for name, points in lines[key].items()}
            svg = line_plot(f"{title} over rounds", named, policy_colours([*lines[key]], legend), "round", unit)
            figures.append((title, svg))
    heads = [Head("Round"), Head("Policy", text=True), *(Head(title, unit) for _, title, unit, _ in _MEASURES)]
    return Part("Policies of each round", "", [*heads, Head("Prompts")], rows, figures) if rows else None


def _rewards(rounds: Mapping[int, Round]) -> Part | None:
    rows, lines = [], dict[str, list[tuple[float, Interval]]]()
    for number, each in rounds.items():
        validation = split_tables(each.reward).get("validation", {}).get("all", {})
        agreement: Mapping[str, Any] = next(
            (own for own in each.evaluation.get("judge_agreement") or () if {*own["judges"]} == {JUDGE, REWARD}), {}
        )
        found = {"accuracy": validation.get("accuracy"), "agreement": agreement.get("decided")}
        sizes = [str(own) if own else NOT_MEASURED for own in (validation.get("prompts"), validation.get("pairs"))]
        rows.append([str(number), *(cell(found[key], 100.0) for key, *_ in _REWARD), *sizes])
        for key, own in found.items():
            if own is not None:
                lines.setdefault(key, []).append((number, _scaled(own, 100.0)))
    figures = [
        (title, line_plot(f"{title} over rounds", {title: lines[key]}, {}, "round", unit))
        for key, title, unit in _REWARD
        if key in lines
    ]
    heads = [Head("Round"), *(Head(title, unit) for _, title, unit in _REWARD)]
    note = (
        "Of the reward model of each round: how often it orders a pair of the validation rankings so far as their "
        "labelers did, and how often it and the judge prefer the same of two policies' responses to a test prompt."
    )
    counts = [Head("Rankings", "validation"), Head("Pairs", "validation")]
    return Part("Reward model of each round", note, [*heads, *counts], rows, figures) if lines else None


def _scaled(interval: Interval, scale: float) -> Interval:
    return {"value": scale * interval["value"], "low": scale * interval["low"], "high": scale * interval["high"]}
