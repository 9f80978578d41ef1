"""What step select found, as a table and as figures."""

import re
from collections.abc import Mapping
from operator import itemgetter
from typing import Any

from markupsafe import Markup
from rich.table import Table
from rich.text import Text

from rlhf_lightning.evaluation.interval_plots import interval_plot, line_plot
from rlhf_lightning.evaluation.intervals import Interval
from rlhf_lightning.evaluation.tables import cell, measured


def candidate_table(metrics: Mapping[str, Any], prompts: int, split: str) -> Table:
    """What step select chose from, the best one marked.

    Args:
        metrics: Those of the step.
        prompts: How many prompts were answered.
        split: The split that they are of.
    """
    table = Table(title=f"Mean reward on {prompts} prompts for {split}: {metrics['best']} is the best")
    for name in ("candidate", "mean reward", "below the best", "length", "validation\nloss"):
        table.add_column(name, justify="left" if name == "candidate" else "right")
    for row in candidate_rows(metrics):
        table.add_row(
            Text(row["name"], "bold" * row["best"]),
            *(f"{one['value']}\n[dim]{one['interval']}[/]" for one in row["cells"]),
        )
    return table


def candidate_rows(metrics: Mapping[str, Any]) -> list[dict[str, Any]]:
    """The candidates of step select, then its few-shot prefixes: name, cells, whether it is the best of its kind."""
    rows = []
    for kind in ("candidates", "prefixes"):
        found = metrics.get(kind, [])
        best = max(found, key=lambda row: row["score"]["value"])["name"] if found else None
        for row in found:
            cells = [cell(row["score"]), cell(None if row["name"] == best else row["behind"])]
            cells += [cell(measured(row, name)) for name in ("length", "validation_loss")]
            rows.append({"name": row["name"], "best": row["name"] == best, "cells": cells})
    return rows


_NUMBERED = re.compile(r"(.*?)-?(\d+)")
_SHOWN = {"Reward on validation prompts": "score", "Validation loss": "nats per token"}


def candidate_plots(metrics: Mapping[str, Any]) -> list[tuple[str, Markup]]:
    """Reward and validation loss of the candidates, over epochs or batches where these are what is chosen from.

    Args:
        metrics: Those of step select; of another step nothing is drawn.
    """
    found = metrics.get("candidates") or []
    scores = {row["name"]: row["score"] for row in found}
    losses = {row["name"]: loss for row in found if (loss := measured(row, "validation_loss")) is not None}
    measures = zip(_SHOWN.items(), (scores, losses), strict=True)
    return [(title, _plot(title, unit, own, metrics["best"])) for (title, unit), own in measures if own]


def _plot(title: str, unit: str, measured_on: Mapping[str, Interval], best: str) -> Markup:
    places = {name: (own[1], float(own[2])) for name in measured_on if (own := _NUMBERED.fullmatch(name))}
    lines: dict[str, list[tuple[float, Interval]]] = {}
    for name, (line, place) in places.items():
        lines.setdefault(line, []).append((place, measured_on[name]))
    if len(places) == len(measured_on) and min(map(len, lines.values())) > 1:
        ordered = {name: sorted(points, key=itemgetter(0)) for name, points in lines.items()}
        return line_plot(title, ordered, {}, _across(lines), unit, dict([places[best]]))
    return interval_plot(title, {name: {title: own} for name, own in measured_on.items()}, {}, unit)


def _across(lines: Mapping[str, Any]) -> str:
    return " or ".join(sorted({name.rpartition("/")[2] for name in lines} - {""})) or "number"
