"""The tables of the report: numbers with their intervals as cells of text."""

from collections.abc import Mapping
from typing import Any

from rlhf_lightning.evaluation.intervals import Interval
from rlhf_lightning.evaluation.plots import number

COLUMNS = (
    ("score", "Score", "by the judge"),
    ("win_rate", "Win rate", "% against the baseline, by the judge"),
    ("reward", "Reward", "by the reward model"),
    ("kl", "KL", "nats per response"),
    ("length", "Length", "tokens"),
    ("pretrain_loss", "Pretraining loss", "nats per token"),
)


def measured(own: Mapping[str, Any], key: str) -> Interval | None:
    """A measure of a policy with its interval; one without gets its own value as both ends."""
    value = own.get(key)
    if isinstance(value, Mapping):
        return {"value": value["value"], "low": value["low"], "high": value["high"]}
    if value is None:
        return None
    low, high = own.get("intervals", {}).get(key, (value, value))
    return {"value": value, "low": low, "high": high}


def cell(measure: Interval | None, scale: float = 1.0) -> dict[str, str]:
    """A value and its interval as text, a dash where nothing was measured."""
    if measure is None:
        return {"value": "-", "interval": ""}
    value, low, high = (scale * end for end in (measure["value"], measure["low"], measure["high"]))
    size = max(abs(value), abs(low), abs(high))
    interval = "" if low == high else f"{number(low, size)} .. {number(high, size)}"
    return {"value": number(value, size), "interval": interval}


def policy_table(results: Mapping[str, Any]) -> dict[str, Any]:
    """One row per policy, one column per measure that any of them has."""
    policies = results["policies"]
    columns = [column for column in COLUMNS if any(own.get(column[0]) is not None for own in policies.values())]
    rows = []
    for name, own in policies.items():
        cells = []
        for key, *_ in columns:
            beside_itself = key == "win_rate" and name == results["baseline"]
            scale = 100.0 if key == "win_rate" else 1.0
            cells.append({"value": "baseline", "interval": ""} if beside_itself else cell(measured(own, key), scale))
        rows.append({"name": name, "cells": cells})
    return {"columns": columns, "rows": rows}


def measure_table(results: Mapping[str, Any], key: str) -> dict[str, Any] | None:
    """Further judges, metadata or automatic measures: one row each, a column per policy."""
    policies = results["policies"]
    found: dict[str, dict[str, Interval]] = {}
    for name, own in policies.items():
        for measure, value in (own.get(key) or {}).items():
            nested = {measure: value} if value is None or "value" in value else value
            for part, interval in nested.items():
                if interval is not None:
                    found.setdefault(measure if part == measure else f"{measure}: {part}", {})[name] = interval
    rows = [(measure.replace("_", " "), [cell(own.get(name)) for name in policies]) for measure, own in found.items()]
    title = {"judges": "Win rate by other judges", "metadata": "Metadata", "probes": "Automatic measures"}[key]
    return {"title": title, "policies": list(policies), "rows": rows} if rows else None


def split_tables(record: Mapping[str, Any]) -> dict[str, Any]:
    """The accuracy tables that a reward model's stage recorded, by split."""
    return {split: table for split, table in record.get("metrics", {}).items() if isinstance(table, Mapping)}


def accuracy_rows(record: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Accuracy and "longer wins" per split and group."""
    rows = []
    for split, groups in split_tables(record).items():
        for group, own in groups.items():
            cells = [cell(measured(own, key), 100.0) for key in ("accuracy", "longer_wins")]
            counts = [own.get("prompts"), own.get("pairs")]
            rows.append({"split": split, "group": group, "cells": cells, "counts": counts})
    return rows
