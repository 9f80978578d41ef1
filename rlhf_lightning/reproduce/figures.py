"""The paper's figures from a claim's rows: lines over sizes and coefficients, bars over measures and tasks."""

import textwrap
from collections.abc import Mapping, Sequence

import matplotlib
from markupsafe import Markup
from matplotlib.axes import Axes

from rlhf_lightning.evaluation.plots import INK, MUTED, SPARE_COLOURS, STYLE, figure_of, svg_of
from rlhf_lightning.reproduce.claim import Outcome
from rlhf_lightning.reproduce.finding import Row, written
from rlhf_lightning.reproduce.plan import LEGEND, SIZES

AXES = {
    "ptx-coefficient": "ptx coefficient",
    "kl-no-repair": "KL coefficient",
    "kl-start": "KL coefficient",
    "kl-best": "KL coefficient",
    "sft-epochs": "epoch of SFT",
}
"""What numbers on the horizontal axis are, where the title does not say it ("over iterations")."""


def figures(outcome: Outcome) -> list[dict[str, Markup | str]]:
    """One figure per measure that was taken in several places, with its title."""
    measures: dict[str, list[Row]] = {}
    for row in outcome.finding.rows:
        measures.setdefault(row.measure, []).append(row)
    number = outcome.claim.number
    drawn: list[dict[str, Markup | str]] = []
    for measure, rows in measures.items():
        if any(row.at for row in rows):
            axis = "" if " over " in measure else AXES.get(outcome.claim.name, "")
            drawn.append({"title": measure, "svg": _plot(f"claim {number} {measure}", axis, rows)})
    return drawn


def _plot(name: str, axis: str, rows: Sequence[Row]) -> Markup:
    places = list(dict.fromkeys(row.at for row in rows if row.at))
    numeric = all(place.replace(".", "", 1).isdigit() for place in places)
    if numeric:
        places.sort(key=float)
    series: dict[str, list[Row]] = {}
    for row in rows:
        series.setdefault(row.who, []).append(row)
    hues = _hues(list(series))
    with matplotlib.rc_context(STYLE):
        figure, axes = figure_of(4.6, 2.9)
        (_lines if numeric or set(places) <= set(SIZES) else _bars)(axes, places, series, hues)
        for row in (row for row in rows if not row.at):
            level, label = _scaled(row)[0], f"{row.who} (dashed)"
            axes.axhline(level, color=hues[row.who], linestyle="--", linewidth=1.1, label=label)
        ticks = [place if numeric else textwrap.fill(place, 14) for place in places]
        axes.set_xticks(range(len(places)), ticks, color=MUTED)
        axes.set_xlabel(axis)
        axes.set_ylabel("%" if rows[0].percent else "")
        axes.grid(False, axis="x")
        handles, labels = axes.get_legend_handles_labels()
        unique = dict(zip(labels, handles, strict=True))
        if len(unique) > 1:
            figure.legend(
                unique.values(), unique.keys(), loc="outside upper center", ncols=3, labelcolor=INK, handletextpad=0.4
            )
        shown = "; ".join(f"{row.at} {row.who} {written(row.interval, row.percent)}".strip() for row in rows)
        return svg_of(figure, name, f"{name}: {shown}.")


def _lines(axes: Axes, places: Sequence[str], series: Mapping[str, Sequence[Row]], hues: Mapping[str, str]) -> None:
    """One line per series with a bar for each interval, a little beside one another."""
    for number, (who, rows) in enumerate(series.items()):
        shift = 0.06 * (number - (len(series) - 1) / 2)
        placed = sorted((row for row in rows if row.at), key=lambda row: places.index(row.at))
        if placed:
            x = [places.index(row.at) + shift for row in placed]
            axes.plot(x, [_scaled(row)[0] for row in placed], color=hues[who], marker="o", markersize=4, label=who)
            for at, row in zip(x, placed, strict=True):
                axes.plot([at, at], _scaled(row)[1:], color=hues[who], linewidth=1.1)


def _bars(axes: Axes, places: Sequence[str], series: Mapping[str, Sequence[Row]], hues: Mapping[str, str]) -> None:
    """Bars of all series side by side at every place."""
    width = 0.8 / len(series)
    for number, (who, rows) in enumerate(series.items()):
        for row in (row for row in rows if row.at):
            x = places.index(row.at) + width * (number - (len(series) - 1) / 2)
            value, *ends = _scaled(row)
            axes.bar(x, value, width=0.9 * width, color=hues[who], alpha=0.85, label=who)
            axes.plot([x, x], ends, color=INK, linewidth=1)


def _scaled(row: Row) -> tuple[float, float, float]:
    factor = 100.0 if row.percent else 1.0
    return factor * row.interval["value"], factor * row.interval["low"], factor * row.interval["high"]


def _hues(names: Sequence[str]) -> dict[str, str]:
    """The colour that a policy has in every figure; spare ones for the rest."""
    policies = {label: policy for policy, label in LEGEND.labels.items()}
    return {
        name: LEGEND.colour(policies[name]) if name in policies else SPARE_COLOURS[number % len(SPARE_COLOURS)]
        for number, name in enumerate(names)
    }
