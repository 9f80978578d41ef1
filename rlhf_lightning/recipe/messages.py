"""What people are told while a run goes on."""

import json
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.markup import escape

from rlhf_lightning.data.sources import DataSource, FileData
from rlhf_lightning.data.tally import CUT, DROPPED, Tally, sentence
from rlhf_lightning.evaluation.tables import EVALUATE
from rlhf_lightning.parallel.processes import rank
from rlhf_lightning.runs.files import naming_full_disk, write_json
from rlhf_lightning.runs.folders import Runs, is_complete
from rlhf_lightning.runs.secrets import redacted
from rlhf_lightning.runs.signals import Ended, ended_by_signals
from rlhf_lightning.runs.terminal import HarmlessOutput
from rlhf_lightning.training.heartbeat import Heartbeat

KEPT = ("**/*.ckpt", "**/scores.json", "ranked.*.unfinished", "measured.unfinished", "samples/*/*.jsonl")
"""What a step that was interrupted goes on from."""


def no_records(name: str, split: str) -> str:
    """That there are no records of a kind and split, and where to name them."""
    return (
        f"the data option has no {name} for the split {split}, which is needed. Name their file: "
        f"data.source.files.{name}.{split}=<file>; data=jsonl finds {name}.{split}.jsonl by itself."
    )


def not_made(runs: Runs, step: str) -> str:
    """That a step has not run, and what to do."""
    if step in runs.hidden:
        return (
            f"the model of stage {step} is needed, and does not come before this step, so that it would be that of an "
            "earlier round or of another run, which is not there. Name a run that has it: upstream=<run>."
        )
    return (
        f"the model of stage {step} is needed, but {runs.folder(step)} is not complete"
        + (f", nor is it in run {' or '.join(runs.upstream)}" if runs.upstream else "")
        + f". Add it: stages=[{step},...], or name a run that has it: upstream=<run>."
    )


def no_rankings(name: str) -> str:
    """That neither the data option nor step collect has rankings."""
    if name != "comparisons":
        return f"{no_records(name, 'train')} Or leave the step out of stages."
    return (
        f"there are no {name}: the data option has none and stage collect has not run. Name their file, "
        f"data.source.files.{name}.train=<file> (data=jsonl finds {name}.train.jsonl by itself), add collect to "
        "stages, or name a run that has it: upstream=<run>."
    )


def row_lengths(config: Mapping[str, Any], data: DataSource) -> dict[str, Any]:
    """`data.lengths`, with blocks of text only where a named step reads some."""
    named, lengths = config["stages"], dict(config["data"]["lengths"])
    has_weights = config["model"]["causal_lm"].get("path") is not None
    steps = {name: config.get(name) or {} for name in ([named] if isinstance(named, str) else named)}
    rows = (step.get("data", {}) for step in steps.values())
    trained = any(not has_weights or step["on_weights"] for step in steps.values() if "on_weights" in step)
    learned = trained or any(row.get("text_share") or row.get("text_batch_size") for row in rows)
    if not learned and not (steps.get(EVALUATE, {}).get("num_texts") and data.has("text", "test")):
        del lengths["block_size"]
    return lengths


def longest_row(lengths: Mapping[str, Any], before: int = 0) -> int:
    """Tokens of the longest row that `row_lengths` allow, behind so many of a prefix."""
    block = lengths.get("block_size", 0)
    return int(max(before + lengths["max_prompt_tokens"] + lengths["max_response_tokens"], block))


def too_long(lengths: Mapping[str, Any], config: Any, name: str, before: int = 0) -> str | None:
    """That such a row does not fit into the context of a model with that configuration; None where it does."""
    positions, needed = getattr(config.get_text_config(), "max_position_embeddings", None), longest_row(lengths, before)
    if positions is None or needed <= positions:
        return None
    block, size = (", or block", ", block_size") if "block_size" in lengths else ("", "")
    return (
        f"the model {name} reads {positions} tokens, but data.lengths allow {needed} (prompt and response{block}). "
        f"Lower data.lengths.max_prompt_tokens, max_response_tokens{size}"
        + (f", or shorten evaluate.few_shot_prefix, which has {before}." if before else ".")
    )


class Messages:
    """Tells people what happens to steps and records.

    Args:
        data: The records of the run.
        console: Where progress and tables go.
    """

    def __init__(self, data: DataSource, console: Console | None = None) -> None:
        self.data, self.console = data, console or Console()
        self.console.push_render_hook(HarmlessOutput())
        self.heartbeat = Heartbeat(self.console)
        self._reported: set[str] = set()

    def say(self, step: str, message: str) -> None:
        """One line about a step."""
        self.console.print(f"[bold]{step:<9}[/] {escape(redacted(message))}")

    @contextmanager
    def ending_in_order(self, step: str, folder: Path) -> Iterator[None]:
        """One sentence where a signal or a full disk ends a step within the block, and its name with any other error.

        While a Trainer runs, its callback `BatchCheckpoint` has the signals. The first process listens: the others wait
        for it in calls that no handler interrupts, and end at once.

        Args:
            step: The step's name.
            folder: The step's output folder.
        """
        try:
            with naming_full_disk(step, folder), ExitStack() as signals:
                if rank() == 0:
                    signals.enter_context(ended_by_signals())
                yield
        except Ended as ended:
            goes_on = is_complete(folder) or any(True for form in KEPT for _ in folder.glob(form))
            begun = "goes on from here" if goes_on else "begins it anew, as nothing of it was kept"
            self.say(step, f"stopped by {ended.name}; the same command {begun}")
            raise
        except BaseException as error:
            error.add_note(f"in step {step}, {folder}")
            raise

    def report_dropped(self, step: str, folder: Path, tally: Tally) -> None:
        """Say and write down how many records a step left out, and how many it cut, by set, reason and source."""
        for name, what in ((DROPPED, "left out"), (CUT, "cut")):
            if counts := tally.by_set(name):
                write_json(folder / f"{name}.json", counts)
                self.say(step, f"{what}: {sentence(counts)}")

    def report_unread(self) -> None:
        """Name the files beside the records that are not read, and look as if they should be."""
        if isinstance(self.data, FileData):
            for name, meant in self.data.unread():
                if name not in self._reported:
                    self._reported.add(name)
                    self.say("data", f"{name} is not read: records are in <kind>.<split>.jsonl. Did you mean {meant}?")

    def report_malformed(self, step: str) -> None:
        """Say how many malformed rows went aside since the last time, and which rows hold no such record."""
        if isinstance(self.data, FileData):
            for name, reasons in self.data.left_out.items():
                if name not in self._reported:
                    self._reported.add(name)
                    self.say(step, f"no {name}: {json.dumps(reasons)}")
        for file, rows in self.data.malformed.items():
            if file not in self._reported:
                self._reported.add(file)
                self.say(step, f"malformed rows: {len(rows)}, now in {file}, the first: {rows.sentences[0]}")
