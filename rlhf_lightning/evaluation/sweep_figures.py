"""The picture of a study: each measure over the setting that was swept, with means and intervals over seeds."""

from collections.abc import Callable, Sequence
from typing import Any

import matplotlib
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from rlhf_lightning.evaluation.plots import INK, MUTED, SPARE_COLOURS, STYLE, Legend, number, svg_of
from rlhf_lightning.evaluation.sweep_measures import Pooled
from rlhf_lightning.evaluation.tables import REWARD

LABELS = {
    "likert": "Likert score, 1 to 7",
    "win_rate": "win rate against the baseline",
    "score": "score by the judge",
    REWARD: "score by the reward model",
    "pretrain_loss": "loss on pretraining text",
    "kl": "KL, nats per response",
    "validation/loss": "validation loss",
    "validation/accuracy": "validation accuracy",
}
"""The measures that are drawn, in order; after them come further judges, by `_JUDGES`, and the tasks, by `_TASKS`."""
_JUDGES = {"likert": "Likert score by", "preferences": "win rate by"}
_ALONE = {
    "rollout/score": "score of episodes",
    "rollout/kl": "KL of episodes",
    "rollout/length": "tokens of episodes",
}
"""What is shown where nothing else was measured."""
_TASKS = ("probes/", "benchmarks/")
_SCORED = ("accuracy", "f1", "exact_match", "bleu", "rouge", "acc")
_COLUMNS, _MARKERS = 3, "osD^vP"
_WIDE = 25
"""Characters of all values below a panel; more of them stand at a slant."""
_VARIABLES = (
    "svg{--ink:#23262b;--muted:#666c75;--grid:#e2e4e8;background:#fff}"
    "@media(prefers-color-scheme:dark){svg{--ink:#e4e6e9;--muted:#9aa1ab;--grid:#343941;background:#17191c}}"
)
"""What the page of a report says for its figures."""


def shown(means: Sequence[Pooled]) -> list[str]:
    """The measures of a study that are worth a panel: those of the policies and steps that its jobs made."""
    there = sorted({each.measure for each in means if each.made})
    judged = [name for name in there if name.partition("/")[0] in _JUDGES and "/" in name]
    tasks = [name for name in there if name.startswith(_TASKS) and name.rpartition("/")[2].startswith(_SCORED)]
    found = [*(name for name in LABELS if name in there), *judged, *tasks]
    return found or [name for name in _ALONE if name in there]


def measure_label(name: str) -> str:
    """A measure as people call it."""
    kind, _, rest = name.partition("/")
    if kind in _JUDGES and rest:
        return f"{_JUDGES[kind]} {rest.replace('_', ' ')}"
    return LABELS.get(name) or _ALONE.get(name) or rest.replace("/", " ")


def across(means: Sequence[Pooled]) -> tuple[str, list[str]]:
    """The setting on the horizontal axis, that of most values, and these; "" where jobs differ in their seeds alone."""
    values: dict[str, list[str]] = {}
    for each in means:
        for name, value in each.settings.items():
            if value not in values.setdefault(name, []):
                values[name].append(value)
    name = max(values, key=lambda name: (all(map(_is_number, values[name])), len(values[name])), default="")
    places = values.get(name, [""])
    return name, sorted(places, key=float) if all(map(_is_number, places)) else places


def picture(name: str, means: Sequence[Pooled], legend: Legend) -> str | None:
    """A study as an SVG file, a panel per measure; None where nothing was measured.

    A line is a policy, or a step, that the jobs made, and of each further setting a value. A dashed line is a policy
    that they share. The horizontal axis has equal distances, so that 0 has its place beside a geometric series.

    Args:
        name: What the study is called.
        means: What was measured.
        legend: Names and colours of policies and steps.
    """
    measures, (setting, places) = shown(means), across(means)
    if not measures:
        return None
    rows, columns = -(-len(measures) // _COLUMNS), min(_COLUMNS, len(measures))
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(3.2 * columns, 2.4 * rows + 0.5), layout="constrained")
        grid = figure.subplots(rows, columns, squeeze=False)
        told = []
        for place, axes in enumerate(grid.flat):
            if place >= len(measures):
                axes.set_visible(False)
                continue
            own = [each for each in means if each.measure == measures[place]]
            told.append(_panel(axes, own, setting, places, legend))
            axes.set_ylabel(measure_label(measures[place]))
        drawn = (pair for axes in grid.flat for pair in zip(*axes.get_legend_handles_labels(), strict=True))
        handles = {label: handle for handle, label in drawn}
        figure.legend(handles.values(), handles.keys(), loc="outside upper left", ncols=4, labelcolor=INK)
        description = f"{name}, means over seeds with 95 % intervals. {' '.join(told)}"
        element = str(svg_of(figure, f"sweep {name}", description))
    return element.replace("<svg ", '<svg xmlns="http://www.w3.org/2000/svg" ', 1).replace(
        ">", f"><style>{_VARIABLES}</style>", 1
    )


def _panel(axes: Axes, means: Sequence[Pooled], setting: str, places: Sequence[str], legend: Legend) -> str:
    """Draw a measure; returns its numbers."""
    lines: dict[str, list[Pooled]] = {}
    for each in means:
        rest = [f"{key.rpartition('.')[2]}={value}" for key, value in each.settings.items() if key != setting]
        label = ", ".join([legend.label(each.policy), *rest]) if each.made else f"{legend.label(each.policy)} (shared)"
        lines.setdefault(label, []).append(each)
    # What was not made by the jobs is one line, unless they measured it differently.
    drawn = [label for label, own in lines.items() if own[0].made or len({each.interval["value"] for each in own}) > 1]
    for label, own in lines.items():
        if label not in drawn:
            axes.axhline(own[0].interval["value"], color=legend.colour(own[0].policy), linestyle="--", label=label)
            continue
        order = drawn.index(label)
        same = [each for each in drawn if lines[each][0].policy == own[0].policy]
        hue = legend.colour(own[0].policy) if label == same[0] else SPARE_COLOURS[order % len(SPARE_COLOURS)]
        own.sort(key=lambda each: places.index(each.settings.get(setting, "")))
        xs = [places.index(each.settings.get(setting, "")) + 0.08 * (order - (len(drawn) - 1) / 2) for each in own]
        values = [each.interval["value"] for each in own]
        axes.plot(xs, values, color=hue, marker=_MARKERS[order % len(_MARKERS)], markersize=4, label=label)
        for x, each in zip(xs, own, strict=True):
            axes.plot([x, x], [each.interval["low"], each.interval["high"]], color=hue, linewidth=1)
    slant: dict[str, Any] = {"rotation": 30, "ha": "right"} if sum(map(len, places)) > _WIDE else {}
    axes.set_xticks(range(len(places)), places, color=MUTED, **slant)
    axes.set_xlim(-0.5, len(places) - 0.5)
    axes.set_xlabel(setting)
    axes.yaxis.set_major_locator(MaxNLocator(5))
    numbers = (
        f"{label} {each.settings.get(setting, '')} {written(each)}".strip() for label in drawn for each in lines[label]
    )
    return f"{means[0].measure}: {'; '.join(numbers)}."


def written(mean: Pooled) -> str:
    """A mean with its interval, as people read it."""
    value, low, high = (mean.interval[end] for end in ("value", "low", "high"))
    size = max(abs(value), abs(low), abs(high))
    return (
        number(value, size) if low == high else f"{number(value, size)} ({number(low, size)} .. {number(high, size)})"
    )


def mean_rows(
    means: Sequence[Pooled], legend: Legend, text: Callable[[Pooled], str] = written
) -> tuple[list[str], list[list[str]]]:
    """What came out of a study: the heads of a table, and its rows, one per measure and policy that the jobs made.

    A mean over fewer seeds than others says how many. There are many measures and few values of a setting, so these
    are the columns.

    Args:
        means: What was measured.
        legend: Names of policies and steps.
        text: How a mean is written.
    """
    measures, (setting, places) = shown(means), across(means)
    names = [setting, *(name for name in (means[0].settings if means else {}) if name != setting)] if setting else []
    cells: dict[tuple[str, str], dict[tuple[str, ...], str]] = {}
    most = max((each.seeds for each in means), default=0)
    for each in means:
        if each.made and each.measure in measures:
            values = tuple(each.settings.get(name, "") for name in names)
            cells.setdefault((each.measure, legend.label(each.policy)), {})[values] = text(each) + (
                f" (n = {each.seeds})" if each.seeds < most else ""
            )
    columns = sorted({values for own in cells.values() for values in own}, key=lambda each: _order(each, places))
    by = f" by {', '.join(name.rpartition('.')[2] for name in names)}" if names else ""
    rows = sorted(cells.items(), key=lambda item: measures.index(item[0][0]))
    heads = [", ".join(values) or "mean" for values in columns]
    brief = [", ".join(map(_brief, values)) or "mean" for values in columns]
    return [f"measure{by}", "policy", *(brief if len({*brief}) == len({*heads}) else heads)], [
        [measure_label(measure), policy, *(own.get(values, "") for values in columns)]
        for (measure, policy), own in rows
    ]


def mean_alone(mean: Pooled) -> str:
    """A mean without its interval, as a narrow table has it."""
    return number(mean.interval["value"], abs(mean.interval["value"]))


def _order(values: Sequence[str], places: Sequence[str]) -> tuple[int, Sequence[str]]:
    return (places.index(values[0]) if values else 0), values[1:]


def _brief(value: str) -> str:
    """A number that somebody chose as it is; one that a sweeper drew with few digits."""
    return f"{float(value):.4g}" if len(value) > 8 and _is_number(value) else value


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True
