"""Automatic measures: continuations in order, cut where they should be; choices by mean log-probability."""

import math
import statistics

import pytest
import torch
from torch import nn

from rlhf_lightning.evaluation.probes import Choice, Continuation, run_probe


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
