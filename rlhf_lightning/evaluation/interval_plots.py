"""Figures of measures with their 95 % intervals: dots in rows, and lines over a measure."""

from collections.abc import Mapping, Sequence

import matplotlib
import numpy as np
from markupsafe import Markup
from matplotlib.axes import Axes
from matplotlib.axis import Axis
from matplotlib.lines import Line2D
from matplotlib.ticker import MaxNLocator

from rlhf_lightning.evaluation.intervals import Interval
from rlhf_lightning.evaluation.plots import INK, SPARE_COLOURS, STYLE, figure_of, number, svg_of

Rows = Mapping[str, Mapping[str, Interval]]
"""By the name of a row and of a series."""
Lines = Mapping[str, Sequence[tuple[float, Interval]]]
"""By the name of a line, its points."""
NONE_MARKED: Mapping[str, float] = {}
_MARKERS = "oDs^vP"
_ROOM = 46
"""Characters of a legend that have room side by side."""
_LONGEST = 22
"""Letters of a row's name, beyond which nothing of a narrow figure is left for the dots."""
_NARROW = 0.01
"""The least span of an axis beside the values on it: what differs by rounding alone shall look equal."""


def interval_plot(
    name: str, rows: Rows, colours: Mapping[str, str], unit: str, line: float | None = None, scale: float = 1.0
) -> Markup:
    """Dots with intervals, the rows below one another; each series has its marker.

    Args:
        name: What is shown, unique on the page.
        rows: What was measured.
        colours: Colours of series or, where these have none, of rows.
        unit: The unit of the axis.
        line: Where a dashed line stands, such as at no difference; None for nowhere.
        scale: What values are multiplied by, such as 100 for percentages.
    """
    series = list(dict.fromkeys(key for own in rows.values() for key in own))
    with matplotlib.rc_context(STYLE):
        figure, axes = figure_of(3.5, 0.6 + 0.22 * (len(series) > 1) + len(rows) * (0.16 + 0.1 * len(series)))
        for place, (row, own) in enumerate(rows.items()):
            for order, key in enumerate(series):
                if key in own:
                    value, low, high = (scale * own[key][end] for end in ("value", "low", "high"))
                    height = place + (order - (len(series) - 1) / 2) * 0.8 / len(series)
                    hue = colours.get(key) or colours.get(row, SPARE_COLOURS[order % len(SPARE_COLOURS)])
                    axes.plot([low, high], [height, height], color=hue, linewidth=1.2)
                    axes.plot(value, height, _MARKERS[order % 6], color=hue, markersize=4)
        if line is not None:
            axes.axvline(line, color=INK, linestyle="--", linewidth=1)
        axes.set_yticks(range(len(rows)), [shortened(row) for row in rows], color=INK)
        axes.set_ylim(len(rows) - 0.5, -0.5)
        axes.grid(False, axis="y")
        _ticks(axes.xaxis)
        axes.set_xlabel(unit)
        _legend(axes, series, colours)
        return svg_of(figure, name, f"{name}, {unit}, with 95 % intervals: {_told(rows, scale)}.")


def line_plot(
    name: str,
    lines: Lines,
    colours: Mapping[str, str],
    across: str,
    unit: str,
    marked: Mapping[str, float] = NONE_MARKED,
) -> Markup:
    """Points joined in their order, with intervals where there are some.

    Args:
        name: What is shown, unique on the page.
        lines: What was measured.
        colours: Colours of the lines.
        across: What the horizontal axis is.
        unit: What the vertical axis is.
        marked: Places of the larger points, by line.
    """
    with matplotlib.rc_context(STYLE):
        figure, axes = figure_of(3.5, 2.4)
        for order, (key, points) in enumerate(lines.items()):
            hue, marker = colours.get(key, SPARE_COLOURS[order % len(SPARE_COLOURS)]), _MARKERS[order % 6]
            places = [place for place, _ in points]
            axes.plot(places, [own["value"] for _, own in points], color=hue, marker=marker, markersize=3)
            for place, own in points:
                if place == marked.get(key):
                    axes.plot(place, own["value"], marker, color=hue, markersize=7)
                if own["low"] < own["high"]:
                    axes.plot([place, place], [own["low"], own["high"]], color=hue, linewidth=0.9)
        _ticks(axes.xaxis, whole=all(float(place).is_integer() for points in lines.values() for place, _ in points))
        _ticks(axes.yaxis)
        axes.set_xlabel(across)
        axes.set_ylabel(unit)
        _legend(axes, list(lines), colours)
        ends = {key: {"last": points[-1][1]} for key, points in lines.items()}
        return svg_of(figure, name, f"{name}, {unit} over {across}: {_told(ends, 1.0)}.")


def point(value: float) -> Interval:
    """A number that has no interval."""
    return {"value": value, "low": value, "high": value}


def shortened(text: str) -> str:
    """A name that a narrow figure has room for."""
    text = " ".join(text.split())
    return text if len(text) <= _LONGEST else f"{text[: _LONGEST - 1]}…"


def _ticks(axis: Axis, whole: bool = False) -> None:
    low, high = axis.get_view_interval()
    if high - low < (least := _NARROW * max(abs(low), abs(high))):
        middle = (low + high) / 2
        axis.set_view_interval(middle - least / 2, middle + least / 2, ignore=True)
    axis.set_major_locator(MaxNLocator(5, integer=whole))


def _legend(axes: Axes, series: Sequence[str], colours: Mapping[str, str]) -> None:
    if len(series) > 1:
        handles = [
            Line2D([], [], ls="", marker=_MARKERS[order % 6], color=colours.get(key, INK), label=shortened(key))
            for order, key in enumerate(series)
        ]
        figure = axes.get_figure(root=True)
        assert figure is not None
        columns = _columns([shortened(key) for key in series])
        figure.legend(handles=handles, loc="outside upper left", ncols=columns, labelcolor=INK, handletextpad=0.1)


def _columns(labels: Sequence[str]) -> int:
    """As many columns of a legend as fit beside each other, filled one after the other.

    Examples:
        >>> _columns(["the judge", "at equal length", "training labelers", "held out labelers"])
        2
    """
    for columns in range(min(5, len(labels)), 1, -1):
        parts = np.array_split([len(label) for label in labels], columns)  # as matplotlib divides them
        if sum(int(part.max()) + 4 for part in parts) <= _ROOM:
            return columns
    return 1


def _told(rows: Rows, scale: float) -> str:
    def interval(own: Interval) -> str:
        low, high = (number(scale * own[end]) for end in ("low", "high"))
        return f" ({low} .. {high})" if own["low"] < own["high"] else ""

    return "; ".join(
        f"{row} {key} {number(scale * own['value'])}{interval(own)}"
        for row, series in rows.items()
        for key, own in series.items()
    )
