"""Figures of the report, as SVG text that stands inside a page: no fonts, scripts or addresses from outside."""

import io
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import matplotlib
from markupsafe import Markup, escape
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from rlhf_lightning.evaluation.intervals import Interval

Series = Sequence[tuple[int, float]]
"""Step and value."""

LABELS = {
    "base": "Base",
    "pretrain": "Pretraining",
    "sft": "SFT",
    "ppo_init": "PPO start",
    "collect": "Comparisons",
    "judge": "Judge",
    "reward": "Reward model",
    "ppo": "PPO",
    "ppo_ptx": "PPO-ptx",
    "evaluate": "Evaluation",
}
COLOURS = {
    "base": "#8b8f97",
    "pretrain": "#8b8f97",
    "sft": "#3f7fd6",
    "ppo_init": "#8d6fd1",
    "judge": "#b5568f",
    "reward": "#c0952b",
    "ppo": "#e0743a",
    "ppo_ptx": "#259a78",
}
SPARE_COLOURS = ("#8d6fd1", "#b5568f", "#c0952b", "#4fa3b8")

# Matplotlib knows colours, not the page's light and dark: these stand for the page's variables and are put in later.
INK, MUTED, GRID = "#010203", "#040506", "#070809"
VARIABLES = {INK: "var(--ink)", MUTED: "var(--muted)", GRID: "var(--grid)"}

STYLE = {
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
        title: What is shown.
        unit: Of the vertical axis.
        columns: Of metrics.csv, by the name in the legend; the first takes the colour of the stage.
    """

    title: str
    unit: str
    columns: Mapping[str, str]


LM_CURVES = (Curve("Loss", "nats per token", {"validation": "validation/loss", "train": "train/loss"}),)
REWARD_CURVES = (
    Curve("Loss", "nats per pair", {"validation": "validation/loss", "train": "train/loss"}),
    Curve("Accuracy", "share of pairs", {"validation": "validation/accuracy", "train": "train/accuracy"}),
)
PPO_CURVES = (
    Curve("Score of the reward model", "score", {"mean": "rollout/score"}),
    Curve("KL to the reference", "nats per response", {"k1": "rollout/kl", "k3": "rollout/kl_k3"}),
    Curve("Length", "tokens", {"mean": "rollout/length"}),
    Curve("Responses that end by themselves", "share of responses", {"share": "rollout/ended"}),
    Curve("Pretraining loss", "nats per token", {"train": "update/ptx_loss"}),
    Curve("Clipped tokens", "share of tokens", {"share": "update/clip_fraction"}),
    Curve("Change of the policy per iteration", "nats per token", {"approximate KL": "update/approx_kl"}),
    Curve("Value loss", "score squared", {"mean": "update/value_loss"}),
    Curve("Explained variance of the value", "share of variance", {"share": "rollout/explained_variance"}),
    Curve("Gradient norms", "norm", {"policy": "update/policy_grad_norm", "value": "update/value_grad_norm"}),
    Curve("Parts of the policy gradient", "norm", {"PPO": "update/ppo_grad_norm", "ptx": "update/ptx_grad_norm"}),
    Curve("Angle between the two parts", "cosine", {"cosine": "update/grad_cosine"}),
    Curve("KL coefficient", "score per nat", {"coefficient": "rollout/kl_coef"}),
    Curve(
        "Time per iteration",
        "seconds",
        {"update": "time/update_seconds", "rollout": "time/rollout_seconds", "score": "time/score_seconds"},
    ),
)
CURVES = {
    "pretrain": LM_CURVES,
    "sft": LM_CURVES,
    "ppo_init": LM_CURVES,
    "judge": REWARD_CURVES,
    "reward": REWARD_CURVES,
    "ppo": PPO_CURVES,
    "ppo_ptx": PPO_CURVES,
}
MOST_POINTS = 300


def label(name: str) -> str:
    """A stage or policy as people call it."""
    return LABELS.get(name, name)


def colour(name: str) -> str:
    """The colour of a stage or policy, the same in every figure."""
    return COLOURS.get(name) or SPARE_COLOURS[sum(name.encode()) % len(SPARE_COLOURS)]


def curve_plot(stage: str, curve: Curve, columns: Mapping[str, Series]) -> Markup | None:
    """One plot of a stage, or None when nothing of it was recorded.

    Args:
        stage: Its name gives the colour.
        curve: What to show.
        columns: Of metrics.csv, by name.
    """
    present = {name: columns[column] for name, column in curve.columns.items() if columns.get(column)}
    if not present:
        return None
    with matplotlib.rc_context(STYLE):
        figure, axes = _figure(3.5, 2.2)
        for (name, series), hue, width in zip(present.items(), (colour(stage), MUTED, "#8d6fd1"), (1.6, 1.0, 1.0)):
            steps, values = zip(*_thinned(series), strict=True)
            marker = "o" if len(steps) <= 20 else ""
            axes.plot(steps, values, color=hue, linewidth=width, marker=marker, markersize=3, label=name)
        axes.set_xlabel("iteration" if stage in ("ppo", "ppo_ptx") else "batch")
        axes.set_ylabel(curve.unit)
        axes.xaxis.set_major_locator(MaxNLocator(5, integer=True))
        axes.yaxis.set_major_locator(MaxNLocator(5))
        if len(present) > 1:
            axes.legend(labelcolor=INK)
        last = ", ".join(f"{name} {series[-1][1]:.3g} at the last step" for name, series in present.items())
        description = f"{label(stage)}: {curve.title} in {curve.unit} over the steps; {last}."
        return _svg(figure, f"{stage} {curve.title}", description)


def win_rate_chart(rates: Mapping[str, Interval], baseline: str) -> Markup:
    """Bars with intervals and a line at 50 %.

    Args:
        rates: By policy, as shares, without the baseline.
        baseline: Whom the policies are compared with.
    """
    with matplotlib.rc_context(STYLE):
        figure, axes = _figure(4.6, 0.95 + 0.45 * len(rates))
        for place, (name, rate) in enumerate(rates.items()):
            value, low, high = (100 * float(rate[key]) for key in ("value", "low", "high"))  # type: ignore[literal-required]
            axes.barh(place, value, height=0.55, color=colour(name), alpha=0.85)
            axes.plot([low, high], [place, place], color=INK, marker="|", markersize=7, linewidth=1.4)
            axes.annotate(
                f"{value:.1f} %", (max(high, value), place), (6, 0), textcoords="offset points", va="center", color=INK
            )
        axes.axvline(50, color=INK, linestyle="--", linewidth=1)
        axes.set_xlim(0, 112)
        axes.set_xticks([0, 25, 50, 75, 100])
        axes.set_yticks(range(len(rates)), [label(name) for name in rates], color=INK)
        axes.invert_yaxis()
        axes.grid(False, axis="y")
        axes.set_xlabel(f"% of prompts won against {label(baseline)}")
        shown = "; ".join(
            f"{label(name)} {rate['value']:.1%} ({rate['low']:.1%} to {rate['high']:.1%})" for name, rate in rates.items()
        )
        return _svg(figure, "win rates", f"Win rates against {label(baseline)} with 95 % intervals: {shown}.")


def score_chart(scores: Mapping[str, Interval], kls: Mapping[str, Interval], reference: str) -> Markup:
    """The judge's score over the distance from the reference, one point per policy.

    Args:
        scores: By policy.
        kls: By policy, in nats per response.
        reference: Where the KL is measured from.
    """
    with matplotlib.rc_context(STYLE):
        figure, axes = _figure(4.6, 2.9)
        for name in scores:
            score, kl = scores[name], kls[name]
            axes.plot([kl["low"], kl["high"]], [score["value"]] * 2, color=colour(name), linewidth=1.2)
            axes.plot([kl["value"]] * 2, [score["low"], score["high"]], color=colour(name), linewidth=1.2)
            axes.plot(kl["value"], score["value"], "o", color=colour(name), markersize=6)
            axes.annotate(
                label(name), (kl["value"], score["value"]), (7, 7), textcoords="offset points", color=INK
            )
        axes.margins(0.15)
        axes.set_xlabel(f"KL to {label(reference)}, nats per response")
        axes.set_ylabel("score by the judge")
        shown = "; ".join(f"{label(name)} {scores[name]['value']:.3g} at {kls[name]['value']:.3g} nats" for name in scores)
        return _svg(figure, "score over KL", f"Score by the judge over KL to {label(reference)}: {shown}.")


def _figure(width: float, height: float) -> tuple[Figure, Axes]:
    figure = Figure(figsize=(width, height), layout="constrained")
    return figure, figure.add_subplot()


def _thinned(series: Series) -> Series:
    """At most MOST_POINTS points, each the mean of as many neighbours."""
    size = math.ceil(len(series) / MOST_POINTS)
    groups = [series[start : start + size] for start in range(0, len(series), size)]
    return [(group[-1][0], sum(value for _, value in group) / len(group)) for group in groups]


def _svg(figure: Figure, name: str, description: str) -> Markup:
    """The figure as an element of an HTML page, the same bytes each time."""
    buffer = io.StringIO()
    # Without a salt the ids inside are random; with one per figure they are also unique in the page.
    with matplotlib.rc_context({"svg.hashsalt": name}):
        figure.savefig(buffer, format="svg", transparent=True, metadata={"Date": None})
    text = buffer.getvalue()
    text = text[text.index("<svg") :]
    text = re.sub(r"<metadata>.*?</metadata>", "", text, flags=re.DOTALL)
    # The HTML parser knows the namespaces; the size comes from the page; group ids repeat from figure to figure.
    text = re.sub(r' xmlns(:xlink)?="[^"]*"', "", text).replace("xlink:href", "href")
    text = re.sub(r"<g id=\"[^\"]*\"", "<g", text)
    text = re.sub(r"font-family: [^;\"]*|'DejaVu Sans'[^;\"]*", _font, text)
    for stand_in, variable in VARIABLES.items():
        text = text.replace(stand_in, variable)
    view = re.search(r'viewBox="[^"]*"', text)
    head = f'<svg role="img" aria-label="{escape(description)}" {view.group() if view else ""}>'
    return Markup(head + text[text.index(">") + 1 :].strip())


def _font(match: re.Match[str]) -> str:
    return "font-family: system-ui, sans-serif" if match.group().startswith("font-family") else "system-ui, sans-serif"
