"""Stage curate: the records of the data option, cleaned, dealt out to splits and described."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

from rich.console import Console

from rlhf_lightning.artifacts import PipelineError, write_json
from rlhf_lightning.callbacks import progress_bar
from rlhf_lightning.curation.account import DATASETS, Account
from rlhf_lightning.curation.card import card_page, data_card
from rlhf_lightning.curation.curator import Curator
from rlhf_lightning.curation.few_shot import read_few_shot
from rlhf_lightning.curation.groups import SPLITS
from rlhf_lightning.data.records import Prompt
from rlhf_lightning.data.sources import read_records
from rlhf_lightning.inputs import Inputs


def curate_records(inputs: Inputs, folder: Path, build: Callable[..., Any], console: Console) -> dict[str, Any]:
    """Curate what the data option has and write records, ``dropped.jsonl`` and the data card.

    Args:
        inputs: Of the run.
        folder: Of the stage.
        build: Builds the object that a node with ``_target_`` describes.
        console: Where progress and counts go.

    Returns:
        The counts of every kind.

    Raises:
        PipelineError: When the data option has nothing to curate.
    """
    options = inputs.config["curate"]
    curator: Curator = build(options["curator"])
    records, malformed = _given(inputs)
    few_shot = [examples for path in options["few_shot"] for examples in read_few_shot(Path(path))]
    if not records and not few_shot:
        raise PipelineError(f"the data option has none of {', '.join(DATASETS)}; there is nothing to curate.")
    evaluation = [row.prompt for path in options["evaluation"] for row in read_records(path, Prompt)]
    with progress_bar(console) as bar:
        rows = sum(len(own) for given in records.values() for own in given.values())
        task = bar.add_task("curate", total=2 * rows, figures="")
        account = curator.curate(
            records,
            inputs.tokenization,
            folder,
            few_shot=few_shot,
            evaluation=evaluation,
            malformed=malformed,
            ranked=None if "comparisons" in records else inputs.config["collect"]["prompts"],
            progress=lambda what, count: bar.update(task, advance=count, figures=what),
        )
        bar.update(task, completed=2 * rows)
    card = data_card(account, options)
    write_json(folder / "data_card.json", card)
    (folder / "data_card.html").write_text(card_page(card, folder.parent.name), encoding="utf-8", errors="replace")
    for sentence in _sentences(account):
        console.print(sentence)
    for sentence in card["missing"]:
        console.print(f"[dim]{sentence}[/]")
    return dict(card["kinds"])


def _given(inputs: Inputs) -> tuple[dict[str, dict[str, list[Any]]], dict[str, list[str]]]:
    """The records of the source by kind and split, and the problems of the rows that it left out, by kind."""
    records: dict[str, dict[str, list[Any]]] = {}
    malformed: dict[str, list[str]] = {}
    for kind in DATASETS:
        before = dict(_malformed(inputs))
        given = {split: own for split in SPLITS if (own := inputs.data.records(kind, split))}
        if given:
            records[kind] = given
        # Each reading makes lists of its own, also of a file that another stage has read.
        fresh = (own for file, own in _malformed(inputs).items() if own is not before.get(file))
        malformed[kind] = [problem for own in fresh for problem in own]
    return records, malformed


def _malformed(inputs: Inputs) -> dict[str, list[str]]:
    found: dict[str, list[str]] = getattr(inputs.data, "malformed", {})
    return found


def _sentences(account: Account) -> list[str]:
    return [
        f"{kind}: {books.raw} read + {books.added} added = {books.kept.total()} kept + {books.dropped.total()} dropped"
        + (
            f" ({', '.join(f'{reason} {count}' for reason, count in books.dropped.most_common())})"
            if books.dropped
            else ""
        )
        for kind, books in account.kinds.items()
    ]
