"""Step curate: the records of the data option, cleaned, dealt out to splits and described."""

from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

from rlhf_lightning.curation.account import CURATED, DATASETS, Account
from rlhf_lightning.curation.card import card_page, data_card
from rlhf_lightning.curation.curator import Curator
from rlhf_lightning.curation.few_shot import read_few_shot
from rlhf_lightning.curation.groups import SPLITS
from rlhf_lightning.curation.keys import key_of, plain_text
from rlhf_lightning.data.records import Comparison, Demonstration, Prompt
from rlhf_lightning.data.rows.malformed import MalformedRows
from rlhf_lightning.data.rows.readers import SourceRow
from rlhf_lightning.data.sources import DataSource, FileData, RecordStream
from rlhf_lightning.evaluation.agreement import agreement, krippendorff_alpha
from rlhf_lightning.recipe.context import COLLECT, Context
from rlhf_lightning.recipe.schemas import CurateSettings
from rlhf_lightning.recipe.stage import Stage
from rlhf_lightning.runs.files import write_json
from rlhf_lightning.runs.hub import is_hub_id
from rlhf_lightning.training.progress import progress_bar


@dataclass(frozen=True)
class Curation(Stage):
    """Curates what the data option has; the steps after it read what stayed."""

    schema = CurateSettings
    reads_curated: ClassVar[bool] = False

    def parents(self, context: Context) -> dict[str, str]:
        """The files of few-shot prompts and of evaluation prompts."""
        options = context.config[self.name]
        named = [source["path"] if isinstance(source, Mapping) else source for source in options["evaluation"]]
        return {str(path): str(path) for path in (*options["few_shot"], *named)}

    def models(self, context: Context) -> dict[str, str]:
        """None: lengths are counted in tokens of the base model."""
        return {}

    def lacks(self, context: Context) -> Iterator[str]:
        """Something to curate, and the files that are named besides."""
        options = context.config[self.name]
        if not options["few_shot"] and not any(context.data.has(kind, split) for kind in DATASETS for split in SPLITS):
            yield f"the data option has none of {', '.join(DATASETS)}; there is nothing to curate."
        for role, paths in (("few_shot", options["few_shot"]), ("evaluation", options["evaluation"])):
            for path in (source.get("path") if isinstance(source, Mapping) else source for source in paths):
                if not Path(str(path)).exists() and (role == "few_shot" or not is_hub_id(str(path))):
                    yield f"{path} does not exist. Mend the path in curate.{role}, or take it out."

    def run(self, context: Context, folder: Path) -> dict[str, Any]:
        """Write records, ``dropped.jsonl`` and the data card; returns the counts of every kind."""
        options = context.config[self.name]
        curator: Curator = context.build(options["curator"])
        records = _records(context.data)
        few_shot, malformed = _few_shot(context.data, options["few_shot"])
        with progress_bar(context.heartbeat, self.name, _rows(records)) as (bar, task):
            account = curator.curate(
                records,
                context.tokenization,
                folder,
                few_shot=few_shot,
                evaluation=(row.prompt for row in _evaluation(context.data, options["evaluation"])),
                malformed={"demonstrations": malformed},
                ranked=None if "comparisons" in records else context.config[COLLECT]["prompts"],
                progress=lambda what, count: bar.update(task, advance=count, figures=what),
            )
            bar.update(task, total=1, completed=1)
        card = data_card(account, options, _labelers(folder))
        write_json(folder / "data_card.json", card)
        (folder / "data_card.html").write_text(card_page(card, folder.parent.name), encoding="utf-8", errors="replace")
        for sentence in _sentences(account):
            context.console.print(sentence)
        for sentence in card["missing"]:
            context.console.print(f"[dim]{sentence}[/]")
        return dict(card["kinds"])


def _records(data: DataSource) -> dict[str, dict[str, Iterable[Any]]]:
    """Streams of what the source has, by kind and split."""
    streams = {kind: {split: data.stream(kind, split) for split in SPLITS if data.has(kind, split)} for kind in CURATED}
    return {
        kind: {split: stream for split, stream in splits.items() if stream is not None}
        for kind, splits in streams.items()
        if splits
    }


def _rows(records: Mapping[str, Mapping[str, Iterable[Any]]]) -> int | None:
    """How many there are to look at, twice each; None where that is not known before."""
    streams = [stream for splits in records.values() for stream in splits.values()]
    lists = [stream for stream in streams if isinstance(stream, list)]
    return 2 * sum(map(len, lists)) if len(lists) == len(streams) else None


def _few_shot(data: DataSource, paths: Sequence[str]) -> tuple[list[list[Demonstration]], list[SourceRow]]:
    """The demonstrations of each few-shot prompt, and the malformed rows where these go to quarantine."""
    if not paths or not isinstance(data, FileData) or data.quarantine is None:
        return [examples for path in paths for examples in read_few_shot(Path(path))], []
    with MalformedRows(data.quarantine / "few_shot.jsonl") as malformed:
        examples = [pairs for path in paths for pairs in read_few_shot(Path(path), malformed.add)]
    if malformed:
        data.malformed[str(malformed.path)] = malformed
    return examples, list(malformed.rows())


def _evaluation(data: DataSource, sources: Sequence[Any]) -> Iterable[Prompt]:
    """The prompts of files that nothing may be trained on."""
    if not isinstance(data, FileData) or data.quarantine is None:
        return RecordStream(sources, Prompt, None, {})
    return RecordStream(sources, Prompt, data.quarantine / "evaluation.jsonl", data.malformed)


def _labelers(folder: Path) -> dict[str, Any] | None:
    """How far labelers agree on the rankings that stay, where two of them ranked the same prompt."""
    paths = [
        path for split in SPLITS if (path := folder / f"comparisons.{split}.jsonl").exists() and path.stat().st_size
    ]
    stream = RecordStream(paths, Comparison, None, {})
    voices = Counter(key_of(plain_text(ranking.prompt)) for ranking in stream if ranking.labeler is not None)
    several = {prompt for prompt, count in voices.items() if count > 1}
    rankings = [own for own in stream if own.labeler is not None and key_of(plain_text(own.prompt)) in several]
    try:
        found = agreement(rankings)
    except ValueError:  # nobody ranked what another one did
        return None
    ranks: defaultdict[tuple[str, str], list[int]] = defaultdict(list)
    for ranking in rankings:
        for completion, rank in zip(ranking.completions, ranking.ranks, strict=True):
            ranks[plain_text(ranking.prompt), completion].append(rank)
    width = max(map(len, ranks.values()))
    try:
        alpha = krippendorff_alpha([[*own, *[None] * (width - len(own))] for own in ranks.values()], "ordinal")
    except ValueError:  # all ranks are the same
        alpha = None
    return {**found, "alpha": alpha}


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
