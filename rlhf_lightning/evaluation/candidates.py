"""What step select found, as a table."""

from collections.abc import Mapping
from typing import Any

from rich.table import Table
from rich.text import Text

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
