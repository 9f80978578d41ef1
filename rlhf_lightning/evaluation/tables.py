"""The table that closes a run."""

from collections.abc import Mapping
from typing import Any

from rich.table import Table


def closing_table(results: Mapping[str, Any]) -> Table:
    """Policies in rows; score, win rate, KL, length and pretraining loss in columns.

    Args:
        results: Metrics of stage evaluate: ``policies``, ``baseline``, ``prompts``.
    """
    table = Table(title=f"{results['prompts']} held-out prompts, win rate against {results['baseline']}")
    for name in ("policy", "score", "win rate", "reward model", "KL", "length", "pretrain loss"):
        table.add_column(name, justify="left" if name == "policy" else "right")
    for name, own in results["policies"].items():
        loss = own["pretrain_loss"]
        table.add_row(
            name,
            _interval(own["score"], "{:.3f}"),
            "-" if name == results["baseline"] else _interval(own["win_rate"], "{:.1%}"),
            _interval(own["reward"], "{:.2f}") if own["reward"] else "-",
            f"{own['kl']:.2f}",
            f"{own['length']:.1f}",
            "-" if loss is None else f"{loss:.3f}",
        )
    return table


def _interval(interval: Mapping[str, float], form: str) -> str:
    value, low, high = (form.format(interval[name]) for name in ("value", "low", "high"))
    return f"{value} [dim]({low} .. {high})[/]"
