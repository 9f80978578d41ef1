"""Rows of the public sets, from local files or from the hub, as documents that the tasks' YAML files put into words."""

import gzip
import json
import random
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from datasets import Dataset, load_dataset

Rows = list[dict[str, Any]]
TEST, EXAMPLES = "test", "examples"
"""Splits of every task: what is asked, and what few-shot examples are drawn from."""
_BINS = 10
"""Equally wide ranges of toxicity between 0 and 1."""


class Source(NamedTuple):
    """Where a set is.

    Args:
        rows: From rows as they are stored, here or on the hub, to documents.
        file: Name of the local file, without `.jsonl` or `.jsonl.gz`.
        examples: Name of the local file with few-shot examples; "" where they are other rows of the first one.
        hub: Id, configuration (or ""), split, and split of the examples (or "") on the hub; () where it has no set
            that loads without code.
    """

    rows: Callable[[Rows], Rows]
    file: str
    examples: str = ""
    hub: tuple[str, str, str, str] | tuple[()] = ()


def splits(*, source: str, root: str | None = None, uniform: int | None = None, config_source: str = "") -> Any:
    """The documents of a task as the harness asks for them (`custom_dataset`).

    Args:
        source: The name of the set, of `SOURCES`.
        root: The folder with the local files; None loads the set from the hub.
        uniform: For RealToxicityPrompts, how many prompts to draw evenly over their toxicity; None takes all in order.
        config_source: The task's YAML file, which the harness names and nobody needs.
    """
    found = SOURCES[source]
    stored = _stored(found, root)
    rows = {split: found.rows(part) for split, part in stored.items()}
    if uniform is not None and found.rows is _continuations:
        rows[TEST] = evenly(rows[TEST], uniform)
    return {split: Dataset.from_list(part) for split, part in rows.items()}


def files(source: str, root: str) -> list[Path]:
    """The local files of a set, whether they are there or not."""
    found = SOURCES[source]
    return [_file(Path(root), name) for name in (found.file, found.examples) if name]


def evenly(rows: Rows, count: int, seed: int = 0) -> Rows:
    """Rows drawn evenly over the toxicity of their prompts, in an order of which every beginning is even too.

    Source: InstructGPT, figure 39 (5,000 prompts, uniform over prompt toxicity).

    Args:
        rows: Documents with ``about.prompt_toxicity``; those without it are left out.
        count: How many are drawn, or all that there are.
        seed: Seed of the draw.

    Examples:
        >>> rows = [{"about": {"prompt_toxicity": value}} for value in (0.1, 0.1, 0.1, 0.9)]
        >>> sorted(row["about"]["prompt_toxicity"] for row in evenly(rows, 2))
        [0.1, 0.9]
    """
    drawn, bins = random.Random(seed), list[Rows]([] for _ in range(_BINS))
    for row in rows:
        toxicity = row["about"]["prompt_toxicity"]
        if toxicity is not None:
            bins[min(_BINS - 1, int(toxicity * _BINS))].append(row)
    for each in bins:
        drawn.shuffle(each)
    rounds = (each[place] for place in range(max(map(len, bins))) for each in bins if place < len(each))
    return list(rounds)[:count]


def _stored(source: Source, root: str | None) -> dict[str, Rows]:
    if root is not None:
        parts = {TEST: _read(_file(Path(root), source.file))}
        return parts | ({EXAMPLES: _read(_file(Path(root), source.examples))} if source.examples else {})
    if not source.hub:
        raise ValueError(f"the hub has no {source.file} that loads without code; give its file: benchmarks.root.")
    path, name, test, examples = source.hub
    named = {split: part for split, part in ((TEST, test), (EXAMPLES, examples)) if part}
    return {split: load_dataset(path, name or None, split=part).to_list() for split, part in named.items()}


def _file(root: Path, name: str) -> Path:
    plain = root / f"{name}.jsonl"
    return plain if plain.exists() else root / f"{name}.jsonl.gz"


def _read(path: Path) -> Rows:
    opened = gzip.open if path.suffix == ".gz" else open
    rows = []
    with opened(path, "rt", encoding="utf-8") as lines:
        for number, line in enumerate(lines, 1):
            try:
                rows.append(json.loads(line))
            except ValueError as error:
                raise ValueError(f"{path}, line {number}: {error}. Mend or delete the line.") from error
    if not rows:
        raise ValueError(f"{path} is empty. Put the set's rows there, or leave its tasks out.")
    return rows


def _label(row: dict[str, Any], *names: str) -> int:
    """A label as a number, whether it is stored as one, as a truth value, or by its name."""
    label = row["label"]
    return names.index(label) if label in names else int(label)


def _endings(rows: Rows) -> Rows:
    return [{"context": row["ctx"], "choices": row["endings"], "gold": int(row["label"])} for row in rows]


def _sentiments(rows: Rows) -> Rows:
    return [
        {"text": row["sentence"].strip(), "choices": ["negative", "positive"], "gold": _label(row)} for row in rows
    ]


def _entailments(rows: Rows) -> Rows:
    return [
        {
            "premise": row["premise"],
            "hypothesis": row["hypothesis"].rstrip(". "),
            "choices": ["yes", "no"],
            "gold": _label(row, "entailment", "not_entailment"),
        }
        for row in rows
    ]


def _pronouns(rows: Rows) -> Rows:
    # Local rows have the spans within `target`, those of the hub beside the text.
    return [
        {
            "text": row["text"],
            "pronoun": row.get("target", row)["span2_text"],
            "noun": row.get("target", row)["span1_text"],
            "choices": ["no", "yes"],
            "gold": _label(row),
        }
        for row in rows
    ]


def _questions(rows: Rows) -> Rows:
    """Of TruthfulQA; the columns of the hub are written small."""
    named = [{name.lower().replace(" ", "_"): value for name, value in row.items()} for row in rows]
    return [
        {
            "question": row["question"],
            # The best answer stands first: it is the one right choice of MC1.
            "choices": [*true, *row["incorrect_answers"]],
            "best": row["best_answer"],
            "true": len(true),
            "about": {"type": row["type"], "category": row["category"]},
        }
        for row in named
        for true in [list(dict.fromkeys([row["best_answer"], *row["correct_answers"]]))]
    ]


def _continuations(rows: Rows) -> Rows:
    return [
        {
            "text": row["prompt"]["text"],
            "about": {"prompt_toxicity": row["prompt"]["toxicity"], "challenging": row.get("challenging")},
        }
        for row in rows
    ]


def _pairs(rows: Rows) -> Rows:
    return [
        {"choices": [row["sent_more"], row["sent_less"]], "about": {"bias_type": str(row["bias_type"])}} for row in rows
    ]


def _genders(rows: Rows) -> Rows:
    """Sentences that differ in the gender of the pronoun alone."""
    sentences: dict[str, dict[str, str]] = {}
    for row in rows:
        name, gender, _ = row["sentid"].rsplit(".", 2)
        sentences.setdefault(name, {})[gender] = row["sentence"]
    return [
        {"choices": [each["male"], each["female"]], "about": {"sentence": name}} for name, each in sentences.items()
    ]


def _asked(rows: Rows) -> Rows:
    """Questions whose context is written already, with their references."""
    return [
        {"context": row["context"], "references": row.get("refs") or [*[row["answer"]], *row["aliases"]]}
        if "answer" in row or "refs" in row
        else {"context": row["context"], "references": [row["ref_text"]]}
        for row in rows
    ]


def _background(rows: Rows) -> Rows:
    """Of SQuAD 2, in the form of the paper's samples."""
    return [
        {
            "context": f"Title: {row['title']}\n\nBackground: {row['context']}\n\nQ: {row['question']}\n\nA:",
            "references": list(dict.fromkeys(answers)) or ["Not in background."],
        }
        for row in rows
        for answers in [row["answers"]["text"] if isinstance(row["answers"], dict) else row["answers"]]
    ]


def _passages(rows: Rows) -> Rows:
    """Of DROP: local rows are in the form of the paper's samples, those of the hub are put into it."""
    return [
        *_asked([row for row in rows if "context" in row]),
        *(
            {
                "context": f"Passage: {row['passage']}\nQuestion: {row['question']}\nAnswer:",
                "references": list(dict.fromkeys(row["answers_spans"]["spans"])),
            }
            for row in rows
            if "passage" in row
        ),
    ]


def _translations(rows: Rows) -> Rows:
    return [
        {"context": f"French: {row['translation']['fr']}\nEnglish:", "references": [row["translation"]["en"]]}
        if "translation" in row
        else {"context": row["context"], "references": [row["ref_text"]]}
        for row in rows
    ]


def _articles(rows: Rows) -> Rows:
    return [{"text": row["article"], "references": [row.get("reference") or row["highlights"]]} for row in rows]


def _posts(rows: Rows) -> Rows:
    """Posts of Reddit; the paper's samples join several references by a stroke."""
    return [
        {"context": row["prompt"].rstrip(), "references": [row["completion"].strip()]}
        if "prompt" in row
        else {"context": row["context"], "references": row["ref_text"].split("|")}
        for row in rows
    ]


SOURCES: dict[str, Source] = {
    "truthfulqa": Source(
        _questions, "truthfulqa", hub=("truthfulqa/truthful_qa", "generation", "validation", "")
    ),
    "real_toxicity_prompts": Source(
        _continuations, "real_toxicity_prompts", hub=("allenai/real-toxicity-prompts", "", "train", "")
    ),
    "winogender": Source(_genders, "winogender", hub=("oskarvanderwal/winogender", "all", "test", "")),
    "crows_pairs": Source(_pairs, "crows_pairs", hub=("jannalu/crows_pairs_multilingual", "english", "test", "")),
    "drop": Source(_passages, "paper100_drop", hub=("ucinlp/drop", "", "validation", "train")),
    "quac": Source(_asked, "quac"),
    "squadv2": Source(_asked, "paper100_squadv2"),
    "squadv2_dev": Source(_background, "squad_v2_dev", hub=("rajpurkar/squad_v2", "", "validation", "train")),
    "hellaswag": Source(_endings, "hellaswag", hub=("Rowan/hellaswag", "", "validation", "train")),
    "sst2": Source(
        _sentiments, "sst2_dev", "sst2_train_fewshot", ("stanfordnlp/sst2", "", "validation", "train")
    ),
    "rte": Source(_entailments, "rte_val", "rte_train_fewshot", ("aps/super_glue", "rte", "validation", "train")),
    "wsc": Source(_pronouns, "wsc_val", "wsc_train_fewshot", ("aps/super_glue", "wsc", "validation", "train")),
    "wmt15_fr_en": Source(_translations, "paper100_fr_to_en", hub=("wmt/wmt15", "fr-en", "test", "validation")),
    "cnn_dailymail": Source(
        _articles, "cnn_dailymail_100", hub=("abisee/cnn_dailymail", "3.0.0", "test", "validation")
    ),
    "tldr": Source(_posts, "paper100_tldr", hub=("trl-lib/tldr", "", "test", "validation")),
}
"""Every set by name; where there is a local file of the paper's own items, the hub's set is the whole."""


def missing(sources: Sequence[str], root: str | None) -> list[str]:
    """A sentence for each set that is not where it should be, as far as is known without a connection."""
    lacking = []
    for source in dict.fromkeys(sources):
        if root is None:
            lacking += [] if SOURCES[source].hub else [
                f"the hub has no {source} that loads without code. Set benchmarks.root to the folder that holds "
                f"{SOURCES[source].file}.jsonl, or leave it out of benchmarks.tasks."
            ]
        else:
            lacking += [
                f"{path} is not there, which the tasks on {source} read. Put it there, or leave them out of "
                "benchmarks.tasks."
                for path in files(source, root)
                if not path.is_file()
            ]
    return lacking
