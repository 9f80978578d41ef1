"""The data card: what the data are, what was dropped and why, for programs and as one page for people."""

from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
from jinja2 import Environment, FileSystemLoader, StrictUndefined

from rlhf_lightning.curation.account import DATASETS, Account
from rlhf_lightning.curation.card_tables import card_tables

BINS = 32
"""Bars of a histogram of lengths."""


def data_card(
    account: Account, settings: Mapping[str, Any], labelers: Mapping[str, Any] | None = None
) -> dict[str, Any]:
    """The card as plain data: ``kinds``, ``tables``, ``missing``, ``histograms``, ``labelers``, ``settings``.

    For every kind ``raw + added == kept + dropped``.

    Args:
        account: The books of the curation.
        settings: Settings of the curation, to stand in the card.
        labelers: How far they agree: ``agreement`` with ``value``, ``low`` and ``high``, ``pairs``, ``alpha`` and
            ``by_labelers``; None where no two of them ranked the same responses.
    """
    tables = card_tables(account)
    return {
        "kinds": {kind: books.plain() for kind, books in account.kinds.items()},
        "tables": [{**asdict(table), "missing": table.missing} for table in tables],
        "missing": [sentence for table in tables for sentence in table.missing],
        "histograms": {name: found for name in DATASETS.values() if (found := _histogram(account, name))},
        "ranked_later": bool(account.ranked),
        "labelers": None if labelers is None else dict(labelers),
        "settings": dict(settings),
    }


def card_page(card: Mapping[str, Any], title: str) -> str:
    """The card as an HTML page that needs nothing from outside.

    Args:
        card: What `data_card` made.
        title: What the data are called.
    """
    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent), autoescape=True, undefined=StrictUndefined, trim_blocks=True
    )
    environment.filters["cell"] = _cell
    return environment.get_template("card.html").render(card=card, title=title)


def _histogram(account: Account, name: str) -> dict[str, Any] | None:
    lengths = [np.asarray(tally.prompt_tokens) for _, tally in account.splits(name)]
    if not lengths:
        return None
    counts, edges = np.histogram(np.concatenate(lengths), BINS)
    return {"counts": counts.tolist(), "low": float(edges[0]), "high": float(edges[-1])}


def _cell(value: Any) -> str:
    """Whole numbers with separators, others with one digit behind the point."""
    if value is None:
        return "-"
    if isinstance(value, str):
        return value
    return f"{value:,}" if isinstance(value, int) else f"{value:,.1f}"
