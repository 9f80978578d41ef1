"""Small sets of a few rows each, in the form of the public ones, and models that know what to say of them."""

import gzip
import json
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer, decoders
from tokenizers.models import BPE
from tokenizers.pre_tokenizers import ByteLevel
from torch import Tensor, nn
from transformers import PreTrainedTokenizerFast

SURE, WINDOW = 1e4, 120
"""The logit of what is known, and how many tokens before it are looked at."""


def yes(label: str, number: int) -> dict[str, Any]:
    return {"premise": f"P{number}.", "hypothesis": f"H{number}.", "label": label}


def span(number: int, label: bool) -> dict[str, Any]:
    return {"text": f"Ann saw it {number}.", "label": label, "target": {"span1_text": "Ann", "span2_text": "it"}}


SETS: dict[str, list[dict[str, Any]]] = {
    "hellaswag": [
        {"ctx": f"Walking {n}: A man", "endings": [f"e{n}a.", f"e{n}bb.", f"e{n}ccc.", f"e{n}d."], "label": n}
        for n in range(4)
    ],
    "sst2_dev": [{"sentence": "bad film ", "label": 0}, {"sentence": "good film", "label": 1}],
    "sst2_train_fewshot": [{"sentence": "dull", "label": 0}, {"sentence": "dull", "label": 0}],
    "rte_val": [yes("entailment", 1), yes("not_entailment", 2)],
    "rte_train_fewshot": [yes("entailment", 3), yes("entailment", 4)],
    "wsc_val": [span(1, False), span(2, True)],
    "wsc_train_fewshot": [span(3, True), span(4, True)],
    "truthfulqa": [
        {
            "Type": kind,
            "Category": "Myths",
            "Question": f"Is {number} odd?",
            "Best Answer": f"It is {number}",
            "Correct Answers": [f"Yes {number}", f"It is {number}"],
            "Incorrect Answers": [f"No {number}", f"Never {number}"],
        }
        for number, kind in enumerate(("Adversarial", "Non-Adversarial"))
    ],
    "crows_pairs": [
        {"sent_more": "Old men are slow.", "sent_less": "New men are slow.", "bias_type": "age"},
        {"sent_more": "All men cook.", "sent_less": "All dad cook.", "bias_type": "gender"},
    ],
    "winogender": [
        {"sentid": f"nurse.someone.{n}.{gender}.txt", "sentence": f"Nurse {n} said {word} left."}
        for n in range(2)
        for gender, word in (("male", "his"), ("female", "her"), ("neutral", "their"))
    ],
    "real_toxicity_prompts": [
        {"prompt": {"text": f"They {n} say", "toxicity": n / 10}, "challenging": False} for n in range(4)
    ],
    "paper100_drop": [
        {"context": f"Passage: {n} cats.\nQuestion: How many?\nAnswer:", "refs": [f"{n}", f"{n} cats"]}
        for n in range(3)
    ],
    "paper100_squadv2": [{"context": "Title: T\n\nBackground: B.\n\nQ: Who?\n\nA:", "refs": ["Not in background."]}],
    "squad_v2_dev": [{"title": "T", "context": "B.", "question": "Who?", "answers": [], "is_impossible": True}],
    "quac": [{"context": "Title: T\n\nQuestion: when?", "answer": "CANNOTANSWER", "aliases": ["Do not know"]}],
    "paper100_fr_to_en": [
        {"context": f"French: Un {n} chat noir est la.\nEnglish:", "ref_text": f"A {n} black cat is there."}
        for n in range(3)
    ],
    "cnn_dailymail_100": [{"id": "1", "article": "A man ran.", "reference": "Man ran home"}],
    "paper100_tldr": [{"context": "I ran.\n\nTL;DR:", "ref_text": "He ran|Ran"}],
}


def write_sets(folder: Path) -> Path:
    """All of them, some packed."""
    for number, (name, rows) in enumerate(SETS.items()):
        text = "".join(json.dumps(row) + "\n" for row in rows)
        if number % 2:
            (folder / f"{name}.jsonl").write_text(text)
        else:
            (folder / f"{name}.jsonl.gz").write_bytes(gzip.compress(text.encode()))
    return folder


def byte_tokenizer() -> Any:
    """A token per byte of ASCII, two ends and a pad; no BOS."""
    letters = sorted(ByteLevel.alphabet())
    special = ["<pad>", "<eos>", "<end>"]
    model = Tokenizer(BPE({token: number for number, token in enumerate([*special, *letters])}, []))
    model.pre_tokenizer, model.decoder = ByteLevel(add_prefix_space=False), decoders.ByteLevel()
    return PreTrainedTokenizerFast(
        tokenizer_object=model, pad_token="<pad>", eos_token="<eos>", extra_special_tokens=["<end>"]
    )


class Flat(nn.Module):
    """Finds everything equally likely."""

    def __init__(self, vocabulary: int) -> None:
        super().__init__()
        self.vocabulary = vocabulary
        self.weight = nn.Parameter(torch.zeros(1))

    def forward(self, input_ids: Tensor, attention_mask: Tensor, position_ids: Tensor) -> Tensor:
        return torch.zeros(*input_ids.shape, self.vocabulary) + self.weight


class Planted(Flat):
    """Knows texts by heart, and is as sure of how they go on as can be; of what it does not know it is not sure.

    It goes by the last tokens that it knows, whatever stands before them.
    """

    def __init__(self, vocabulary: int, rows: list[tuple[list[int], list[int]]]) -> None:
        super().__init__(vocabulary)
        self.next = {}
        for before, behind in rows:
            for place, token in enumerate(behind):
                self.next[tuple((before + behind[:place])[-WINDOW:])] = token

    def forward(self, input_ids: Tensor, attention_mask: Tensor, position_ids: Tensor) -> Tensor:
        logits = super().forward(input_ids, attention_mask, position_ids)
        for row, ids in enumerate(input_ids.tolist()):
            for place in range(len(ids)):
                known = self.next.get(tuple(ids[max(0, place - WINDOW + 1) : place + 1]))
                if known is not None:
                    logits[row, place, known] = SURE
        return logits
