"""Speed, memory and accuracy of curation on synthetic prompts with planted faults; writes docs/curation.json.

    scripts/benchmark_curation.py                    a million prompts, near-duplicates and Presidio at 100,000
    scripts/benchmark_curation.py --rows 20000 --few 2000 --out /tmp/curation.json

Each part (steps, whole, near, presidio) runs in a process of its own; whole is the command, rlhf stages=[curate], on a
JSONL file.
"""

import argparse
import json
import resource
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import numpy as np
from benchmark import ROOT, machine
from benchmarks.synthetic import KINDS, Prompts, evaluation_prompts, kind_of, original
from rich.console import Console
from tokenizers import Tokenizer
from tokenizers.models import BPE
from tokenizers.pre_tokenizers import ByteLevel
from tokenizers.trainers import BpeTrainer
from transformers import PreTrainedTokenizerFast

from rlhf_lightning.curation.groups import GroupSplits
from rlhf_lightning.curation.keys import PREFIX_CHARACTERS, kept_per_key, key_of, normalised
from rlhf_lightning.curation.language import LanguageIdentifier
from rlhf_lightning.curation.near import near_duplicate_groups
from rlhf_lightning.curation.overlap import EvaluationOverlap
from rlhf_lightning.curation.personal import find_personal
from rlhf_lightning.curation.presidio import PresidioFinder
from rlhf_lightning.data.tokenize import Tokenization
from rlhf_lightning.runs.signals import Children

MAX_TOKENS = 128
MOST = 200
SHARES = {"train": 0.9, "validation": 0.05, "test": 0.05}


class Clock:
    """Adds up the seconds of each step."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}

    def __call__(self, step: str, work: Callable[[], Any]) -> Any:
        """Do it and take the time."""
        start = time.perf_counter()
        result = work()
        self.seconds[step] = self.seconds.get(step, 0.0) + time.perf_counter() - start
        return result

    def rates(self, rows: int) -> dict[str, int]:
        """Rows per second of each step."""
        return {step: round(rows / seconds) for step, seconds in self.seconds.items()}


def tokenization() -> Tokenization:
    """A byte-level BPE of 4,000 tokens, trained on the first rows."""
    words = Tokenizer(BPE())
    words.pre_tokenizer = ByteLevel()
    trainer = BpeTrainer(vocab_size=4000, special_tokens=["<pad>", "<eos>"], show_progress=False)
    words.train_from_iterator((str(prompt.prompt) for prompt in Prompts(5000)), trainer)
    fast = PreTrainedTokenizerFast(tokenizer_object=words, pad_token="<pad>", eos_token="<eos>")
    return Tokenization(fast, MAX_TOKENS, MAX_TOKENS)


def flagged(flags: Any, kinds: list[str], planted: str) -> dict[str, float]:
    """Recall on the rows of the planted kind, and the share of all others that were taken for it, by kind."""
    flags, names = np.asarray(flags, bool), np.asarray(kinds)
    others = {kind: float(flags[names == kind].mean()) for kind in KINDS if kind != planted and kind in kinds}
    return {
        "planted": int((names == planted).sum()),
        "recall": float(flags[names == planted].mean()),
        "false_positive_rate": float(flags[names != planted].mean()),
        "false_positive_rate_by_kind": others,
    }


def thinned(kept: Any, kinds: list[str], *same: str) -> dict[str, float]:
    """How well one row is left of those that are the same, and none of the others is lost.

    Args:
        kept: Whether each row stays.
        kinds: Of each row.
        same: Kinds that are the same as the row they go back to.
    """
    labels = [original(number) if kind in same else number for number, kind in enumerate(kinds)]
    _, groups, sizes = np.unique(labels, return_inverse=True, return_counts=True)
    left = np.bincount(groups, kept)
    surplus = int((sizes - 1).sum())
    return {
        "planted": surplus,
        "recall": float(1 - np.maximum(left - 1, 0).sum() / surplus),
        "false_positive_rate": float((left == 0).mean()),
    }


def steps(rows: int) -> dict[str, Any]:
    """Each step by itself over all rows: speed, and what it found of what was planted."""
    clock, tokens, identify, splits = Clock(), tokenization(), LanguageIdentifier(), GroupSplits(shares=SHARES)
    users, whole, first, ranks = (np.empty(rows, np.uint64) for _ in range(4))
    private, long, foreign, leaked = (np.zeros(rows, bool) for _ in range(4))
    overlap = EvaluationOverlap()
    for text in evaluation_prompts():
        overlap.add(text)
    source = iter(Prompts(rows))
    for start in range(0, rows, 1000):
        own = slice(start, min(start + 1000, rows))
        chunk = clock("making the prompts", lambda own=own: [next(source) for _ in range(own.stop - own.start)])
        texts = [str(row.prompt) for row in chunk]
        users[own] = [key_of(row.user) for row in chunk]
        plain = clock("normalising", lambda texts=texts: [normalised(text) for text in texts])
        whole[own] = clock("exact keys", lambda plain=plain: [key_of(text) for text in plain])
        first[own] = clock("prefix keys", lambda plain=plain: [key_of(text[:PREFIX_CHARACTERS]) for text in plain])
        ranks[own] = clock("ranks", lambda chunk=chunk: [key_of(repr(row), "rank 0") for row in chunk])
        clock("splits by user", lambda chunk=chunk: [splits.split(row) for row in chunk])
        private[own] = clock(
            "personal data, regular expressions", lambda texts=texts: [bool(find_personal(text)) for text in texts]
        )
        leaked[own] = clock("decontamination", lambda texts=texts: [overlap(text) for text in texts])
        long[own] = np.array(clock("lengths in tokens", lambda texts=texts: tokens.prompt_lengths(texts))) > MAX_TOKENS
        codes = clock("language", lambda texts=texts: [identify(text) for text in texts])
        foreign[own] = [code not in ("en", "unsure") for code in codes]
    kept_whole = clock("exact duplicates, choosing", lambda: kept_per_key(whole, ranks, 1))
    kept_first = clock("prefixes, choosing", lambda: kept_per_key(first, ranks, 1))
    capped = ~clock("cap per user, choosing", lambda: kept_per_key(users, ranks, MOST))
    kinds = [kind_of(number) for number in range(rows)]
    _, owners, counts = np.unique(users, return_inverse=True, return_counts=True)
    return {
        "rows": rows,
        "rows_per_second": clock.rates(rows),
        "found": {
            "exact duplicates": thinned(kept_whole, kinds, "copy"),
            "shared prefixes": thinned(kept_first, kinds, "copy", "prefix"),
            "personal data": flagged(private, kinds, "personal"),
            "decontamination": flagged(leaked, kinds, "leaked"),
            "language": flagged(foreign, kinds, "foreign"),
            "length": flagged(long, kinds, "long"),
            "cap per user": {
                "over it": int(np.maximum(0, counts - MOST).sum()),
                "dropped": int(capped.sum()),
                "dropped of users under it": int(capped[counts[owners] <= MOST].sum()),
            },
        },
    }


def whole(rows: int) -> dict[str, Any]:
    """The command, from a file on disk to files: its time, its memory, and what became of each planted fault."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        tokenization().tokenizer.save_pretrained(folder / "model")
        write_rows(folder / "prompts.jsonl", (vars(prompt) for prompt in Prompts(rows)))
        write_rows(folder / "evaluation.jsonl", ({"prompt": text} for text in evaluation_prompts()))
        size = (folder / "prompts.jsonl").stat().st_size
        start = time.perf_counter()
        with Children() as children:
            children.run(stage_command(folder), stdout=subprocess.DEVNULL).check_returncode()
        seconds = time.perf_counter() - start
        peak = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss / 1024
        stage = folder / "runs" / "benchmark" / "curate"
        books = json.loads((stage / "data_card.json").read_text())["kinds"]["prompts"]
        reasons = reasons_by_kind(stage / "dropped.jsonl")
    return {
        "rows": rows,
        "file_mib": round(size / 2**20),
        "seconds": round(seconds, 1),
        "rows_per_second": round(rows / seconds),
        "counts": books,
        "dropped_by_kind": reasons,
        "peak_mib": round(peak),
    }


def stage_command(folder: Path) -> list[str]:
    """Stage curate on the file in the folder."""
    files = "{prompts: {train: prompts.jsonl, test: null}, demonstrations: {train: null}}"
    lengths = f"{{max_prompt_tokens: {MAX_TOKENS}, max_response_tokens: {MAX_TOKENS}, block_size: {MAX_TOKENS}}}"
    return [
        *(sys.executable, "-m", "rlhf_lightning", "stages=[curate]", "run=benchmark", f"paths.runs={folder}/runs"),
        *("data=jsonl", f"data.root={folder}", f"data.source.files={files}", f"data.lengths={lengths}"),
        *("model=folder", f"model.path={folder}/model", "curate=full", "curate.curator.language.keep=[en]"),
        *("curate.curator.personal.finders=[]", "curate.curator.thinning.near_similarity=null"),
        f"curate.evaluation=[{folder}/evaluation.jsonl]",
    ]


def write_rows(path: Path, rows: Iterable[Any]) -> None:
    """One JSON object per line."""
    with path.open("w", encoding="utf-8") as file:
        file.writelines(json.dumps(row) + "\n" for row in rows)


def reasons_by_kind(path: Path) -> dict[str, dict[str, int]]:
    """Rows of each planted kind by the reason for which they were dropped."""
    found: dict[str, Counter[str]] = {kind: Counter() for kind in KINDS}
    with path.open(encoding="utf-8") as lines:
        for line in lines:
            row = json.loads(line)
            number = int(row["place"].rpartition("line ")[2]) - 1
            found[kind_of(number)][row["reason"]] += 1
    return {kind: dict(counts.most_common()) for kind, counts in found.items()}


def near(rows: int) -> dict[str, Any]:
    """Near-duplicates."""
    clock = Clock()
    texts = [normalised(str(prompt.prompt)) for prompt in Prompts(rows)]
    groups = clock("near-duplicates", lambda: near_duplicate_groups(texts))
    kept = groups == np.arange(rows)
    kinds = [kind_of(number) for number in range(rows)]
    return {
        "rows": rows,
        "rows_per_second": clock.rates(rows),
        "found": {"near-duplicates": thinned(kept, kinds, "copy", "near")},
    }


def presidio(rows: int) -> dict[str, Any]:
    """Presidio without a model, besides the regular expressions."""
    clock = Clock()
    find = clock("loading", PresidioFinder)
    texts = [str(prompt.prompt) for prompt in Prompts(rows)]
    kinds = [kind_of(number) for number in range(rows)]
    found = clock("Presidio", lambda: [bool(find(text)) for text in texts])
    both = [bool(find_personal(text)) or own for text, own in zip(texts, found, strict=True)]
    return {
        "rows": rows,
        "rows_per_second": {"Presidio": round(rows / clock.seconds["Presidio"])},
        "found": {"alone": flagged(found, kinds, "personal"), "with the floor": flagged(both, kinds, "personal")},
    }


PARTS: dict[str, Callable[[int], dict[str, Any]]] = {"steps": steps, "whole": whole, "near": near, "presidio": presidio}


def main() -> None:
    """Measure what was asked for, each part in a process of its own, and write it down."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("parts", nargs="*", help=f"of {', '.join(PARTS)}; default: all")
    parser.add_argument("--rows", type=int, default=1_000_000)
    parser.add_argument("--few", type=int, default=100_000, help="rows for near-duplicates and Presidio")
    parser.add_argument("--out", type=Path, default=ROOT / "docs" / "curation.json")
    parser.add_argument("--inside", action="store_true", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.inside:
        (part,) = arguments.parts
        result = PARTS[part](arguments.rows)
        result.setdefault("peak_mib", round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024))
        sys.stdout.write(json.dumps(result))
        return
    found = json.loads(arguments.out.read_text()) if arguments.out.exists() else {}
    for part in arguments.parts or PARTS:
        rows = arguments.few if part in ("near", "presidio") else arguments.rows
        command = [sys.executable, __file__, part, "--inside", "--rows", str(rows)]
        with Children() as children:
            done = children.run(command, stdout=subprocess.PIPE, text=True)
        done.check_returncode()
        found[part] = json.loads(done.stdout) | machine("cpu")
        Console().print(part, found[part])
        arguments.out.write_text(json.dumps(found, indent=1) + "\n")


if __name__ == "__main__":
    main()
