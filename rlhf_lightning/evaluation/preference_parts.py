"""Who is preferred to whom, as the report shows it."""

from collections.abc import Mapping, Sequence
from typing import Any

from rlhf_lightning.evaluation.interval_plots import interval_plot
from rlhf_lightning.evaluation.intervals import Interval
from rlhf_lightning.evaluation.plots import Legend
from rlhf_lightning.evaluation.report_parts import Head, Part, Section, policy_colours, policy_heads
from rlhf_lightning.evaluation.table_3 import TABLE_3
from rlhf_lightning.evaluation.tables import NOT_MEASURED, cell

PERCENT = 100.0
RATES = {"win_rate": "the judge", "length_controlled": "at equal length"}
"""Win rates by the main judge, and what they are called beside those of the others."""
_SCALES = ("toxicity", "relative_toxicity", "continuity")
_UNIT = "% of prompts won against {}"


def preference_section(metrics: Mapping[str, Any], legend: Legend) -> Section | None:
    """Win rates by judge, against each other policy, on parts of the prompts; how far judges agree.

    Args:
        metrics: Those of step evaluate; what an old run does not have is left out.
        legend: Names and colours of the policies.
    """
    if not metrics.get("policies"):
        return None
    found = [
        _by_judge(metrics, legend),
        _head_to_head(metrics.get("head_to_head") or {}, legend),
        _parts("Prompt sets", "prompt set", metrics.get("prompt_sets") or {}, metrics["baseline"], legend),
        *(
            _parts(f"By {title}", title, groups, metrics["baseline"], legend, folded=True)
            for field, groups in (metrics.get("breakdown") or {}).items()
            for title in [field.replace("_", " ")]
        ),
        _people(metrics.get("people") or {}, legend),
        _agreement(metrics.get("judge_agreement") or []),
        _sampling(metrics, legend),
    ]
    parts = [part for part in found if part is not None]
    note = (
        "Percentages of prompts, 95 % intervals over prompts; a tie counts as half a win. “At equal length” is what is "
        "left of a win rate when the length of the responses is taken out."
    )
    return Section("preferences", "Preferences", note, parts) if parts else None


def _rates(own: Mapping[str, Any]) -> dict[str, Interval | None]:
    """Win rates of a policy by what they are called."""
    plain = {title: own.get(key) for key, title in RATES.items()}
    return plain | {name.replace("_", " "): rate for name, rate in (own.get("judges") or {}).items()}


def _by_judge(metrics: Mapping[str, Any], legend: Legend) -> Part | None:
    baseline = metrics["baseline"]
    found = {name: _rates(own) for name, own in metrics["policies"].items() if name != baseline}
    names = list(dict.fromkeys(name for own in found.values() for name, rate in own.items() if rate))
    if len(names) < 2:
        return None
    rows = {legend.label(name): {key: rate for key, rate in own.items() if rate} for name, own in found.items()}
    unit = _UNIT.format(legend.label(baseline))
    picture = interval_plot("Win rates by judge", rows, policy_colours(list(found), legend), unit, 50.0, PERCENT)
    heads = [Head("Policy", text=True), *(Head(name) for name in names)]
    cells = [[legend.label(name), *(cell(own.get(key), PERCENT) for key in names)] for name, own in found.items()]
    note = f"{unit}; “the judge” and “at equal length” are by the main judge, the others by each further one."
    return Part("By judge", note, heads, cells, [("", picture)])


def _head_to_head(found: Mapping[str, Mapping[str, Interval]], legend: Legend) -> Part | None:
    rows = []
    for one, own in found.items():
        cells = [
            {**cell(own[other], PERCENT), "shade": _shade(own[other]["value"])} if other in own else ""
            for other in found
        ]
        rows.append([legend.label(one), *cells])
    note = "How often the policy of the row is preferred to that of the column, in %, by the main judge."
    return Part("Head to head", note, [Head("", text=True), *policy_heads(list(found), legend)], rows) if rows else None


def _shade(rate: float) -> int:
    """Nothing for a quarter of the prompts and less, the full colour for three quarters and more."""
    return round(60 * min(1.0, max(0.0, 2 * rate - 0.5)))


def _parts(
    title: str,
    key: str,
    groups: Mapping[str, Mapping[str, Any]],
    baseline: str,
    legend: Legend,
    folded: bool = False,
) -> Part | None:
    """Win rates on parts of the prompts: those by the main judge as a figure, all in the table."""
    if not groups:
        return None
    policies = list(dict.fromkeys(name for own in groups.values() for name in own["policies"]))
    picture = {
        group: {legend.label(name): rates["win_rate"] for name, rates in own["policies"].items()}
        for group, own in groups.items()
    }
    rows = []
    for group, own in groups.items():
        rates = {name: _rates(of_policy) for name, of_policy in own["policies"].items()}
        for measure in dict.fromkeys(measure for each in rates.values() for measure in each):
            cells = [cell(rates.get(name, {}).get(measure), PERCENT) for name in policies]
            rows.append([group, str(own["prompts"]), measure, *cells])
    unit = _UNIT.format(legend.label(baseline))
    svg = interval_plot(title, picture, policy_colours(policies, legend), unit, 50.0, PERCENT)
    heads = [Head(key.capitalize(), text=True), Head("Prompts"), Head("Win rate", "by", text=True)]
    return Part(title, f"{unit}.", [*heads, *policy_heads(policies, legend)], rows, [("", svg)], folded)


def _people(found: Mapping[str, Any], legend: Legend) -> Part | None:
    """Likert scores and the fields of table 3, by people who did not know whose response it was."""
    policies = found.get("policies") or {}
    flat = {name: {**own["table_3"], **{key: own.get(key) for key in _SCALES}} for name, own in policies.items()}
    labels = {**TABLE_3, **{name: name.replace("_", " ").capitalize() for name in _SCALES}}
    rows = [
        [label, *(cell(own.get(key), 1.0 if key in ("likert", *_SCALES) else PERCENT) for own in flat.values())]
        for key, label in labels.items()
        if any(own.get(key) for own in flat.values())
    ]
    if not rows:
        return None
    agreed, unclear = found["agreement"], f", of which {found['unclear']} are unclear" if found["unclear"] else ""
    note = (
        f"{found['labelers']} labelers gave {found['answers']} answers on {found['prompts']} prompts{unclear}. Fields "
        "in % of the responses."
    )
    if agreed["agreement"]:
        shared = cell(agreed["agreement"], PERCENT)
        note += f" Two labelers order {shared['value']} % ({shared['interval']}) of {agreed['pairs']} pairs alike."
    return Part("By people", note, [Head("", text=True), *policy_heads(list(flat), legend)], rows)


def _agreement(found: Sequence[Mapping[str, Any]]) -> Part | None:
    rows = [
        [
            " and ".join(name.replace("_", " ") for name in own["judges"]),
            *(cell(own[key], PERCENT) for key in ("agreement", "decided")),
            cell(own["kappa"]),
            *(str(own[key]) for key in ("pairs", "decided_pairs")),
        ]
        for own in found
    ]
    heads = [
        Head("Judges", text=True),
        Head("Same verdict", "% of pairs"),
        Head("without ties", "% of pairs"),
        Head("Cohen's kappa"),
        Head("Pairs"),
        Head("without ties"),
    ]
    note = (
        "How far two judges agree on which of two responses is better; “judge” is the main one, “reward” the model "
        "that trained the policies. Kappa is 1 for perfect agreement and 0 for what chance would give."
    )
    return Part("Agreement of judges", note, heads, rows) if rows else None


def _sampling(metrics: Mapping[str, Any], legend: Legend) -> Part | None:
    """Temperatures, and how often a judge that compares said nothing."""
    temperatures, silent = metrics.get("temperatures") or {}, metrics.get("no_verdict") or {}
    judges = list(dict.fromkeys(judge for own in silent.values() for judge in own))
    rows = [
        [
            legend.label(name),
            f"{value:g}",
            *(str(silent[name][judge]) if judge in silent.get(name, {}) else NOT_MEASURED for judge in judges),
        ]
        for name, value in temperatures.items()
    ]
    heads = [Head("Policy", text=True), Head("Temperature")]
    heads += [Head("No verdict", f"pairs, {judge.replace('_', ' ')}") for judge in judges]
    note = "Pairs on which a judge that compares said nothing do not count." if judges else ""
    return Part("Sampling", note, heads, rows) if rows else None
