"""What PPO gained for the distance it went, checkpoint by checkpoint."""

import math
from collections.abc import Mapping
from typing import Any

from rlhf_lightning.evaluation.interval_plots import line_plot, point
from rlhf_lightning.evaluation.plots import Legend, Series, thinned
from rlhf_lightning.evaluation.report_parts import Head, Part, Section, policy_colours
from rlhf_lightning.evaluation.tables import cell

Columns = Mapping[str, Series]
_SHOWN = {
    "Training prompts, by the reward": ("rollout/kl", "rollout/score"),
    "Validation prompts, by the reward": ("validation/kl", "validation/score"),
    "Validation prompts, by the judge": ("validation/kl", "validation/judge"),
}
"""The columns of metrics.csv with KL and score, by what they show."""
_MOST_ROWS, _MOST_POINTS = 12, 40


def frontier_section(stages: Mapping[str, Columns], legend: Legend) -> Section | None:
    """Scores over the root of the KL, in which a policy's gain is about linear at first.

    Source: Gao et al., "Scaling laws for reward model overoptimization" (2023), section 3.

    Args:
        stages: Columns of metrics.csv, by step.
        legend: Names and colours of the steps.
    """
    trained = {name: own for name, own in stages.items() if _joined(own, *_SHOWN["Training prompts, by the reward"])}
    if not trained:
        return None
    figures = []
    for title, (kl, score) in _SHOWN.items():
        lines = {}
        for name, own in trained.items():
            points = [(step, (x, y)) for step, x, y in _joined(own, kl, score)]
            if points:
                xs, ys = (thinned([(step, both[axis]) for step, both in points], _MOST_POINTS) for axis in (0, 1))
                lines[legend.label(name)] = [
                    (math.sqrt(max(0.0, x)), point(y)) for (_, x), (_, y) in zip(xs, ys, strict=True)
                ]
        if lines:
            colours = policy_colours(list(trained), legend)
            last = {name: points[-1][0] for name, points in lines.items()}
            figures.append((title, line_plot(title, lines, colours, "√KL, KL in nats per response", "score", last)))
    rows = [row for name, own in trained.items() for row in _rows(legend.label(name), own)]
    heads = [
        Head("Step", text=True),
        Head("Iteration"),
        *(Head(title, unit) for title, unit in (("KL", "training"), ("Reward", "training"))),
        *(Head(title, "validation") for title in ("KL", "Reward", "Judge")),
    ]
    note = (
        "KL in nats per response to the reference of the step, on a root axis; the last iteration has the larger mark. "
        "What is said of training prompts is measured before an iteration's updates, of validation prompts after them. "
        "These are means without intervals. Where the judge falls while the reward rises, the policy learns the "
        "reward's errors."
    )
    return Section("frontier", "Reward over KL", note, [Part("Checkpoints", "", heads, rows, figures, folded=True)])


def _joined(columns: Columns, first: str, second: str) -> list[tuple[int, float, float]]:
    """Step and both values of the rows that have both."""
    other = dict(columns.get(second, ()))
    return [(step, value, other[step]) for step, value in columns.get(first, ()) if step in other]


def _rows(title: str, columns: Columns) -> list[list[Any]]:
    """Some iterations at equal distances, those that were validated where any was, and the last one."""
    names = ("rollout/kl", "rollout/score", "validation/kl", "validation/score", "validation/judge")
    values = {name: dict(columns.get(name, ())) for name in names}
    steps = sorted(values["validation/score"] or values["rollout/score"])
    count = min(_MOST_ROWS, len(steps))
    chosen = [steps[(place + 1) * len(steps) // count - 1] for place in range(count)]
    return [
        [title, str(step + 1), *(cell(point(own[step]) if step in own else None) for own in values.values())]
        for step in chosen
    ]
