"""The metadata of table 3 as the console shows them when a run ends."""

from collections.abc import Mapping
from typing import Any

from rich.table import Table

from rlhf_lightning.evaluation.plots import Legend
from rlhf_lightning.evaluation.table_3 import TABLE_3
from rlhf_lightning.evaluation.tables import NOT_MEASURED, interval_text


def table_3_table(results: Mapping[str, Any], legend: Legend) -> Table | None:
    """The metadata of table 3, which are measured in rows, policies in columns; None where none is.

    Args:
        results: The metrics of step evaluate.
        legend: Names of the policies.
    """
    found = {name: own.get("table_3") or {} for name, own in results["policies"].items()}
    fields = {name: [own.get(name) for own in found.values()] for name in TABLE_3}
    lacking = [TABLE_3[name] for name, values in fields.items() if not any(values)]
    if len(lacking) == len(TABLE_3):
        return None
    caption = f"{NOT_MEASURED}: {'; '.join(lacking)}." if lacking else None
    table = Table("", title="Metadata of table 3", caption=caption)
    for name in found:
        table.add_column(legend.label(name), justify="right")
    for name, values in fields.items():
        form = "{:.2f}" if name == "likert" else "{:.1%}"
        if any(values):
            table.add_row(TABLE_3[name], *(interval_text(value, form) for value in values))
    return table
