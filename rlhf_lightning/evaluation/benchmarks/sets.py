"""The public sets by name: where each is, and how its rows become the documents that the tasks put into words."""

from collections.abc import Callable
from typing import Any, NamedTuple

Rows = list[dict[str, Any]]


class Source(NamedTuple):
    """Where a set is.

    Args:
        rows: From rows as they are stored, here or on the hub, to documents.
        file: Name of the local file, without `.jsonl` or `.jsonl.gz`.
        examples: Name of the local file with few-shot examples; "" where they are other rows of the first one.
        hub: Id, configuration (or ""), split, and split of the examples (or "") on the hub; () where it has no set
            that loads without code.
        cluster: The field of its documents whose first line says which of them belong together (the title of an
            article, a passage); "" where each stands alone.
    """

    rows: Callable[[Rows], Rows]
    file: str
    examples: str = ""
    hub: tuple[str, str, str, str] | tuple[()] = ()
    cluster: str = ""


class IncompleteError(ValueError):
    """Rows that belong together are not all there."""


def _label(row: dict[str, Any], *names: str) -> int:
    """A label as a number, whether it is stored as one, as a truth value, or by its name."""
    label = row["label"]
    if label in names:
        return names.index(label)
    if not float(label).is_integer():
        raise ValueError("no whole number")
    return int(float(label))


def _endings(rows: Rows) -> Rows:
    return [{"context": row["ctx"], "choices": row["endings"], "gold": _label(row)} for row in rows]


def _sentiments(rows: Rows) -> Rows:
    return [{"text": row["sentence"].strip(), "choices": ["negative", "positive"], "gold": _label(row)} for row in rows]


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
            # The best answer stands first: it is the one right choice of MC1. As the authors do, each is closed like
            # the answers of the QA prompt.
            "choices": [f"{each.strip().removesuffix('.')}." for each in (*true, *row["incorrect_answers"])],
            "best": row["best_answer"],
            "true": len(true),
            "about": {"type": row["type"], "category": row["category"]},
        }
        for row in named
        for true in [list(dict.fromkeys([row["best_answer"], *row["correct_answers"]]))]
    ]


def continuations(rows: Rows) -> Rows:
    """Of RealToxicityPrompts, each prompt with its own toxicity."""
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
    for name, each in sentences.items():
        if lacking := {"male", "female"} - each.keys():
            raise IncompleteError(f"{name} has no sentence of {' and '.join(sorted(lacking))}")
    return [
        {
            "choices": [each["male"], each["female"]],
            "occupation": name.partition(".")[0],
            "about": {"sentence": name},
        }
        for name, each in sentences.items()
    ]


def _asked(rows: Rows) -> Rows:
    """Questions in the form of the paper's samples, with their references; one of many where they are joined."""
    return [{"context": row["context"].rstrip(), "references": row.get("refs") or _references(row)} for row in rows]


def _references(row: dict[str, Any]) -> list[str]:
    return [row["answer"], *row["aliases"]] if "answer" in row else [*row["ref_text"].split("|")]


def _background(rows: Rows) -> Rows:
    """Of SQuAD 2; rows of the hub have the texts of the answers beside their places."""
    return [
        {
            "context": f"Title: {row['title']}\n\nBackground: {row['context']}\n\nQ: {row['question']}\n\nA:",
            "references": list(dict.fromkeys(answers)) or ["Not in background."],
        }
        for row in rows
        for answers in [row["answers"]["text"] if isinstance(row["answers"], dict) else row["answers"]]
    ]


def _passages(rows: Rows) -> Rows:
    """Of DROP, on the hub."""
    return [
        {
            "context": f"Passage: {row['passage']}\nQuestion: {row['question']}\nAnswer:",
            "references": list(dict.fromkeys(row["answers_spans"]["spans"])),
        }
        for row in rows
    ]


def _translations(rows: Rows) -> Rows:
    """Of WMT15, on the hub."""
    pairs = [row["translation"] for row in rows]
    return [{"context": f"French: {pair['fr']}\nEnglish:", "references": [pair["en"]]} for pair in pairs]


def _articles(rows: Rows) -> Rows:
    return [{"text": row["article"], "references": [row.get("reference") or row["highlights"]]} for row in rows]


def _posts(rows: Rows) -> Rows:
    """Of TL;DR, where a reference is one text whatever it holds; local rows are in the form of the paper's samples."""
    named = [
        (row["prompt"], row["completion"]) if "prompt" in row else (row["context"], row["ref_text"]) for row in rows
    ]
    return [{"context": prompt.rstrip(), "references": [summary.strip()]} for prompt, summary in named]


def _either(hub: Callable[[Rows], Rows], column: str) -> Callable[[Rows], Rows]:
    """Rows of the hub, which have that column, or local ones in the form of the paper's samples."""
    return lambda rows: (hub if column in rows[0] else _asked)(rows)


_SQUAD = ("rajpurkar/squad_v2", "", "validation", "train")
SOURCES: dict[str, Source] = {
    "truthfulqa": Source(_questions, "truthfulqa", hub=("truthfulqa/truthful_qa", "generation", "validation", "")),
    "real_toxicity_prompts": Source(
        continuations, "real_toxicity_prompts", hub=("allenai/real-toxicity-prompts", "", "train", "")
    ),
    "winogender": Source(
        _genders, "winogender", hub=("oskarvanderwal/winogender", "all", "test", ""), cluster="occupation"
    ),
    "crows_pairs": Source(_pairs, "crows_pairs", hub=("jannalu/crows_pairs_multilingual", "english", "test", "")),
    "drop": Source(
        _either(_passages, "passage"),
        "paper100_drop",
        hub=("ucinlp/drop", "", "validation", "train"),
        cluster="context",
    ),
    "quac": Source(_asked, "quac", cluster="context"),
    "squadv2": Source(_either(_background, "answers"), "paper100_squadv2", hub=_SQUAD, cluster="context"),
    "squadv2_dev": Source(_background, "squad_v2_dev", hub=_SQUAD, cluster="context"),
    "hellaswag": Source(_endings, "hellaswag", hub=("Rowan/hellaswag", "", "validation", "train")),
    "sst2": Source(_sentiments, "sst2_dev", "sst2_train_fewshot", ("stanfordnlp/sst2", "", "validation", "train")),
    "rte": Source(
        _entailments,
        "rte_val",
        "rte_train_fewshot",
        ("aps/super_glue", "rte", "validation", "train"),
        cluster="premise",
    ),
    "wsc": Source(
        _pronouns, "wsc_val", "wsc_train_fewshot", ("aps/super_glue", "wsc", "validation", "train"), cluster="text"
    ),
    "wmt15_fr_en": Source(
        _either(_translations, "translation"), "paper100_fr_to_en", hub=("wmt/wmt15", "fr-en", "test", "validation")
    ),
    "cnn_dailymail": Source(
        _articles, "cnn_dailymail_100", hub=("abisee/cnn_dailymail", "3.0.0", "test", "validation")
    ),
    "tldr": Source(_posts, "paper100_tldr", hub=("trl-lib/tldr", "", "test", "validation")),
}
"""Every set by name; where there is a local file of the paper's own items, the hub's set is the whole."""
