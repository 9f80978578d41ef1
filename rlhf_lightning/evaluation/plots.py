"""Figures of the report, as SVG text that stands inside a page: no fonts, scripts or addresses from outside."""

import io
import math
import re
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import matplotlib
from markupsafe import Markup, escape
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from rlhf_lightning.evaluation.intervals import Interval

Series = Sequence[tuple[int, float]]
"""Step and value."""

SPARE_COLOURS = ("#8d6fd1", "#b5568f", "#c0952b", "#4fa3b8")

# Matplotlib knows colours, not the page's light and dark: these stand for the page's variables and are put in later.
INK, MUTED, GRID = "#010203", "#040506", "#070809"
VARIABLES = {INK: "var(--ink)", MUTED: "var(--muted)", GRID: "var(--grid)"}

STYLE: dict[Any, Any] = {
    "svg.fonttype": "none",
    "text.parse_math": False,
    "font.family": "DejaVu Sans",
    "font.size": 9,
    "text.color": INK,
    "axes.labelcolor": MUTED,
    "axes.edgecolor": GRID,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": GRID,
    "grid.linewidth": 0.6,
    "xtick.color": MUTED,
    "ytick.color": MUTED,
    "legend.frameon": False,
    "legend.fontsize": 8,
    "lines.linewidth": 1.4,
}


@dataclass(frozen=True)
class Curve:
    """A plot over the steps of a stage.

    Args:
        title: The plot's title.
        unit: The unit of the vertical axis.
        columns: Columns of metrics.csv, by the name in the legend; the first takes the colour of the step.
        constant: Whether it is worth showing when it never changes.
    """

    title: str
    unit: str
    columns: Mapping[str, str]
    constant: bool = True


MOST_POINTS = 300


@dataclass(frozen=True)
class Legend:
    """What steps and policies are called, and their colours, the same in every table and figure.

    Args:
        labels: Names as people say them, by the names of the configuration; others stand for themselves.
        colours: Colours as ``#rrggbb`` by the same names; others get a spare one.
    """

    labels: Mapping[str, str]
    colours: Mapping[str, str]

    def label(self, name: str) -> str:
        """A step or policy as people call it."""
        return self.labels.get(name, name)

    def colour(self, name: str) -> str:
        """The colour of a step or policy."""
        return self.colours.get(name) or SPARE_COLOURS[sum(name.encode()) % len(SPARE_COLOURS)]


def number(value: Any, size: float | None = None) -> str:
    """Three significant digits, with those of a larger ``size`` where numbers stand together.

    Examples:
        >>> number(28.9375), number(0.0312), number(1150.4), number(8.05e-6), number(-0.0004, size=0.5)
        ('28.9', '0.0312', '1150', '8.05e-6', '0.000')
    """
    if not isinstance(value, int | float) or not math.isfinite(value):
        return "-"
    size = float(f"{abs(size or value):.2e}")
    if size == 0:
        return "0"
    exponent = math.floor(math.log10(size))
    if not -5 < exponent < 9:
        digits, power = f"{value:.2e}".split("e")
        text = f"{digits}e{int(power)}"
    else:
        text = f"{value:.{max(0, 2 - exponent)}f}"
    return text.replace("-", "\N{MINUS SIGN}", 1) if value < 0 and text.strip("-0.") else text.lstrip("-")


def curve_plot(stage: str, unit: str, curve: Curve, columns: Mapping[str, Series], legend: Legend) -> Markup | None:
    """One plot of a stage, or None when there is nothing to show.

    Args:
        stage: The step's name.
        unit: What a step of the curve is: a batch or an iteration.
        curve: What to show.
        columns: Columns of metrics.csv, by name.
        legend: Names and colours.
    """
    present = {name: columns[column] for name, column in curve.columns.items() if columns.get(column)}
    if not present or not (curve.constant or any(len({v for _, v in series}) > 1 for series in present.values())):
        return None
    with matplotlib.rc_context(STYLE):
        figure, axes = figure_of(3.5, 2.2)
        for place, (name, series) in enumerate(present.items()):
            steps, values = zip(*thinned(series), strict=True)
            hue, marker = (legend.colour(stage), MUTED, SPARE_COLOURS[0])[place % 3], "o" if len(steps) < 20 else ""
            # What comes first in the legend lies on top.
            axes.plot(steps, values, color=hue, marker=marker, markersize=3, label=name, zorder=3 - 0.1 * place)
        axes.set_xlabel(unit)
        axes.set_ylabel(curve.unit)
        axes.xaxis.set_major_locator(MaxNLocator(5, integer=True))
        axes.yaxis.set_major_locator(MaxNLocator(5))
        if len(present) > 1:
            axes.legend(labelcolor=INK)
        last = ", ".join(f"{name} {number(series[-1][1])} at the last step" for name, series in present.items())
        description = f"{legend.label(stage)}: {curve.title} in {curve.unit} over the steps; {last}."
        return svg_of(figure, f"{stage} {curve.title}", description)


def win_rate_chart(rates: Mapping[str, Interval], baseline: str, legend: Legend) -> Markup:
    """Bars with intervals and a line at 50 %.

    Args:
        rates: By policy, as shares, without the baseline.
        baseline: Whom the policies are compared with.
        legend: Names and colours.
    """
    with matplotlib.rc_context(STYLE):
        figure, axes = figure_of(4.6, 0.95 + 0.45 * len(rates))
        for place, (name, rate) in enumerate(rates.items()):
            value, low, high = 100 * rate["value"], 100 * rate["low"], 100 * rate["high"]
            axes.barh(place, value, height=0.55, color=legend.colour(name), alpha=0.85)
            axes.plot([low, high], [place, place], color=INK, marker="|", markersize=7, linewidth=1.4)
            axes.text(117, place, f"{value:.1f} %", va="center", ha="right", color=INK)
        axes.axvline(50, color=INK, linestyle="--", linewidth=1)
        axes.set_xlim(0, 118)
        axes.set_xticks([0, 25, 50, 75, 100])
        axes.set_yticks(range(len(rates)), [legend.label(name) for name in rates], color=INK)
        axes.invert_yaxis()
        axes.grid(False, axis="y")
        axes.set_xlabel(f"% of prompts won against {legend.label(baseline)}")
        numbers = {
            legend.label(name): [number(100 * rate[key]) for key in ("value", "low", "high")]
            for name, rate in rates.items()
        }
        shown = "; ".join(f"{name} {value} % ({low} .. {high})" for name, (value, low, high) in numbers.items())
        return svg_of(figure, "win rates", f"Win rates against {legend.label(baseline)} with 95 % intervals: {shown}.")


def score_chart(scores: Mapping[str, Interval], kls: Mapping[str, Interval], reference: str, legend: Legend) -> Markup:
    """The judge's score over the distance from the reference, one point per policy.

    Args:
        scores: By policy.
        kls: By policy, in nats per response.
        reference: Where the KL is measured from.
        legend: Names and colours.
    """
    with matplotlib.rc_context(STYLE):
        figure, axes = figure_of(4.6, 2.9)
        for name in scores:
            score, kl = scores[name], kls[name]
            hue, title = legend.colour(name), legend.label(name)
            axes.plot([kl["low"], kl["high"]], [score["value"]] * 2, color=hue, linewidth=1.2)
            axes.plot([kl["value"]] * 2, [score["low"], score["high"]], color=hue, linewidth=1.2)
            axes.plot(kl["value"], score["value"], "o", color=hue, markersize=6, label=title)
        # Names beside the points would cover one another where policies are close.
        figure.legend(loc="outside upper center", ncols=4, labelcolor=INK, handletextpad=0.2)
        axes.set_xlabel(f"KL to {legend.label(reference)}, nats per response")
        axes.set_ylabel("score by the judge")
        points = {legend.label(name): (number(scores[name]["value"]), number(kls[name]["value"])) for name in scores}
        shown = "; ".join(f"{name} {score} at {kl} nats" for name, (score, kl) in points.items())
        return svg_of(figure, "score over KL", f"Score by the judge over KL to {legend.label(reference)}: {shown}.")


def figure_of(width: float, height: float) -> tuple[Figure, Axes]:
    """An empty figure of so many inches, with one set of axes."""
    figure = Figure(figsize=(width, height), layout="constrained")
    return figure, figure.add_subplot()


def thinned(series: Series, most: int = MOST_POINTS) -> Series:
    """At most so many points, each the mean of as many neighbours."""
    size = math.ceil(len(series) / most)
    groups = [series[start : start + size] for start in range(0, len(series), size)]
    return [(group[-1][0], sum(value for _, value in group) / len(group)) for group in groups]


def svg_of(figure: Figure, name: str, description: str) -> Markup:
    """The figure as an element of an HTML page, the same bytes each time."""
    buffer = io.StringIO()
    # Without a salt the ids inside are random; with one per figure they are also unique in the page.
    with matplotlib.rc_context({"svg.hashsalt": name}), warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Glyph .* missing from font")  # the browser has others
        figure.savefig(buffer, format="svg", transparent=True)
    text = buffer.getvalue()
    text = text[text.index("<svg") :]
    # The metadata has the date; the style element would hold for the whole page.
    text = re.sub(r"<metadata>.*?</metadata>|<style.*?</style>", "", text, flags=re.DOTALL)
    # Without the namespaces of a file of its own, which an HTML page does not need; group ids repeat between figures.
    text = re.sub(r"<g id=\"[^\"]*\"", "<g", text).replace("xlink:href", "href")
    text = re.sub(r"(font-family: |font: [^;\"']*)'?DejaVu[^;\"]*", r"\1system-ui, sans-serif", text)
    for stand_in, variable in VARIABLES.items():
        text = text.replace(stand_in, variable)
    view = re.search(r'viewBox="[^"]*"', text)
    head = f'<svg role="img" aria-label="{escape(description)}" {view.group() if view else ""}>'
    return Markup(head + text[text.index(">") + 1 :].strip())
