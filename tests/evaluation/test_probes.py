"""Automatic measures: continuations in order, cut where they should be; choices by mean log-probability."""

import math
import statistics

import pytest
import torch
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from torch import nn
from transformers import PreTrainedTokenizerFast

from rlhf_lightning.evaluation.probes import Choice, Continuation, choice_rows, probe_batches, run_probe


class Table(nn.Module):
    """The next token's probabilities depend on the token alone."""

    def __init__(self, rows):
        super().__init__()
        self.table = nn.Parameter(torch.full((40, 40), 1e-30).log())
        with torch.no_grad():
            for token, row in rows.items():
                for following, probability in row.items():
                    self.table[token, following] = math.log(probability)

    def forward(self, input_ids, attention_mask, position_ids):
        return self.table[input_ids]


# w3 -> w9 -> w10 -> end; w4 -> w10 (more often) or w11, and so on.
MODEL = Table({3: {9: 1.0}, 4: {10: 0.75, 11: 0.25}, 9: {10: 1.0}, 10: {1: 1.0}, 11: {11: 0.5, 1: 0.5}})


def lengths(texts):
    return {"words": [float(len(text.split())) for text in texts], "texts": list(texts)}


def test_continuations_come_in_order_whatever_the_batch(tiny_tokenizer):
    probe = Continuation("words", ["w3", "w4", "w5 w3", "w9"], lengths)
    for batch_size in (1, 3, 128):
        found = run_probe(MODEL, tiny_tokenizer, probe, batch_size)
        assert found["texts"] == ["w9 w10", "w10", "w9 w10", "w10"]
        assert found["words"] == [2.0, 1.0, 2.0, 1.0]


def test_batches_of_a_probe_are_even_in_number():
    long, short = Continuation("", ["w3"] * 100, lengths), Choice("", ["w3"] * 5, [["w9"]] * 5, [0] * 5)
    assert probe_batches(long) == [(range(50), long), (range(50, 100), long)]
    assert probe_batches(short) == [(range(5), short)]


def test_a_continuation_is_cut_before_the_stop_word(tiny_tokenizer):
    probe = Continuation("words", ["w3", "w4"], lengths, stop="w10")
    assert run_probe(MODEL, tiny_tokenizer, probe)["texts"] == ["w9", ""]


def test_the_length_limit_and_the_temperature_hold(tiny_tokenizer):
    assert run_probe(MODEL, tiny_tokenizer, Continuation("", ["w3"], lengths, max_new_tokens=1))["texts"] == ["w9"]
    probe = Continuation("", ["w4"] * 400, lengths, max_new_tokens=1, temperature=1.0)
    sampled = run_probe(MODEL, tiny_tokenizer, probe)["texts"]
    assert statistics.mean(text == "w10" for text in sampled) == pytest.approx(0.75, abs=0.07)


def test_a_choice_goes_by_the_mean_per_token(tiny_tokenizer):
    # After w4: "w10" has log .75; "w11 w11" has (log .25 + log .5) / 2 = log .354 per token, "w11" alone log .25.
    def chosen(endings):
        probe = Choice("", ["w4"], [endings], [0])
        return run_probe(MODEL, tiny_tokenizer, probe)["accuracy"] == [1.0]

    assert chosen(["w10", "w11 w11"])
    assert chosen(["w11 w11", "w11"])
    assert not chosen(["w11", "w11 w11"])


def test_choices_of_several_items_do_not_mix(tiny_tokenizer):
    probe = Choice("", ["w3", "w9 w4", "w9"], [["w10", "w9"], ["w10", "w11", "w12"], ["w9", "w10"]], [1, 0, 0])
    for batch_size in (1, 2, 64):
        assert run_probe(MODEL, tiny_tokenizer, probe, batch_size) == {"accuracy": [1.0, 1.0, 0.0]}


BOS = 39


def with_bos(tokens, name="<s>", number=BOS):
    """A fast tokenizer that writes a BOS before every text, as those of Llama do."""
    tokens.post_processor = processors.TemplateProcessing(single=f"{name} $A", special_tokens=[(name, number)])
    return PreTrainedTokenizerFast(
        tokenizer_object=tokens, bos_token=name, eos_token="<eos>", pad_token="<pad>", unk_token="<unk>"
    )


@pytest.fixture
def bos_tokenizer():
    names = ["<pad>", "<eos>", "<unk>", *(f"w{number}" for number in range(3, BOS)), "<s>"]
    words = Tokenizer(models.WordLevel({name: number for number, name in enumerate(names)}, unk_token="<unk>"))
    words.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return with_bos(words)


def test_one_bos_stands_before_a_context_and_none_before_its_ending(bos_tokenizer):
    rows = choice_rows(bos_tokenizer, [("w3 w4", "w9"), ("w3", "w9 w10"), ("w3 ", "w9"), ("w3", " w9"), ("", "w9")])
    ids = [[BOS, 3, 4, 9], [BOS, 3, 9, 10], [BOS, 3, 9], [BOS, 3, 9], [BOS, 9]]
    assert [row.input_ids for row in rows] == ids
    assert [row.loss_start for row in rows] == [3, 2, 2, 2, 1]


def test_what_a_bos_between_would_make_likely_is_not_chosen(bos_tokenizer):
    """After a BOS comes w11, after w4 mostly w10: a BOS before the ending turns the choice."""
    model = Table({4: {10: 0.75, 11: 0.25}, BOS: {10: 0.1, 11: 0.9}})
    assert run_probe(model, bos_tokenizer, Choice("", ["w4"], [["w10", "w11"]], [0])) == {"accuracy": [1.0]}
    # A prompt that is gone on with has one BOS too, and what it spells of special tokens is text.
    seen = run_probe(Table({9: {10: 1.0}, 10: {1: 1.0}}), bos_tokenizer, Continuation("", ["w9"], lengths))
    assert seen["texts"] == ["w10"]


def test_a_token_over_the_border_counts_for_the_ending():
    names = ["<pad>", "<eos>", "<unk>", "<s>", "x", "y", " ", "x "]
    pieces = models.BPE({name: number for number, name in enumerate(names)}, [("x", " ")], unk_token="<unk>")
    rows = choice_rows(with_bos(Tokenizer(pieces), number=3), [("yx", "y")])
    assert rows[0].input_ids == [3, 5, 7, 5], "one text: a BOS, y, 'x ', y"
    assert rows[0].loss_start == 2


def test_an_ending_with_nothing_before_it_is_refused(tiny_tokenizer):
    with pytest.raises(ValueError, match="nothing stands before the ending 'w9'"):
        choice_rows(tiny_tokenizer, [("", "w9")])
