"""What the length limits take away is counted, and what several turns are worth."""

import json

import pytest
import torch
from chat_models import EVERY, chatml, llama3

from rlhf_lightning.data.datamodule import RLHFDataModule
from rlhf_lightning.data.examples import LMExample
from rlhf_lightning.data.loader import collate_lm
from rlhf_lightning.data.records import Comparison, Demonstration, Prompt, Text
from rlhf_lightning.data.tokenize import Tokenization

EOS = 1
TURNS = [
    {"role": "user", "content": "ab"},
    {"role": "assistant", "content": "c d"},
    {"role": "user", "content": "e"},
]


def test_demonstrations_that_lose_their_end_are_counted(tiny_tokenizer):
    tokenization = Tokenization(tiny_tokenizer, max_response_tokens=3)
    records = [Demonstration("w3", response) for response in ("w4 w5", "w4 w5 w6", "w4 w5 w6 w7")]
    examples = tokenization.demonstrations(records)
    assert [example.input_ids for example in examples] == [[3, 4, 5, EOS], [3, 4, 5, 6], [3, 4, 5, 6]]
    assert tokenization.cut == {"demonstrations cut at 3 tokens, without an end": 2}
    assert tokenization.dropped == {}


def test_a_data_module_tells_what_was_cut_and_left_out(tiny_tokenizer):
    records = [Demonstration("w3", "w4 w5 w6 w7"), Demonstration("w3 w4 w5", "w4")]
    module = RLHFDataModule("sft", tiny_tokenizer, records, max_prompt_tokens=2, max_response_tokens=3)
    module.setup()
    assert module.cut == {"demonstrations cut at 3 tokens, without an end": 1}
    assert module.dropped == {"prompt over 2 tokens": 1}


def test_responses_that_are_the_same_once_they_are_cut_are_tied(tiny_tokenizer):
    tokenization = Tokenization(tiny_tokenizer, max_response_tokens=2)
    records = [
        Comparison("w3", ["w4 w5 w6", "w4 w5 w7"], [1, 2]),  # nothing is left to learn
        Comparison("w3", ["w4 w5 w6", "w8", "w4 w5 w7", "w9"], [1, 2, 4, 3]),  # w4 w5 at (1 + 4) / 2 = 2.5
        Comparison("w3", ["w4 w5 w6", "w5 w5 w6"], [2, 1]),  # cut and different
        Comparison("w3", ["w4", "w4 "], [1, 2]),  # whole and the same
    ]
    examples = tokenization.comparisons(records)
    assert [example.ranks for example in examples] == [[2, 1, 2, 3], [2, 1]]
    assert examples[0].response_ids == [[4, 5], [8, EOS], [4, 5], [9, EOS]]
    assert tokenization.dropped == {"all responses tied once they are cut": 2}
    assert tokenization.cut == {
        "rankings with responses that are the same once they are cut": 3,
        "ranked responses cut at 2 tokens, without an end": 4,
    }


def test_no_prompt_is_ever_cut():
    tokenization = Tokenization(chatml(), max_prompt_tokens=40)
    (short, _), examples = ("ab", "a" * 40), tokenization.prompts([Prompt("ab"), Prompt("a" * 40), Prompt(TURNS)])
    assert [(example.index, example.text) for example in examples] == [(0, short)]
    lengths = tokenization.prompt_lengths(["ab", "a" * 40, TURNS])
    assert [length <= 40 for length in lengths] == [True, False, False]
    assert tokenization.demonstrations([Demonstration(TURNS, "a")]) == []
    assert tokenization.dropped == {"prompt over 40 tokens": 3}


@pytest.mark.parametrize("name", EVERY)
def test_every_turn_of_the_assistant_or_the_last_one(name):
    tokenizer = EVERY[name]()
    (last,) = Tokenization(tokenizer).demonstrations([Demonstration(TURNS, "f")])
    (every,) = Tokenization(tokenizer, train_on="all").demonstrations([Demonstration(TURNS, "f")])
    assert last.earlier == []
    assert (every.input_ids, every.loss_start) == (last.input_ids, last.loss_start)
    batch = collate_lm([last, every], tokenizer.pad_token_id)
    texts = [
        tokenizer.decode(ids[mask]).replace(" ", "") for ids, mask in zip(batch.input_ids, batch.loss_mask, strict=True)
    ]
    end = tokenizer.decode(last.input_ids[-1])
    assert texts[0].endswith(f"f{end}")
    assert texts[1] == f"cd{end}{texts[0]}"


def test_the_loss_mask_of_earlier_turns():
    batch = collate_lm([LMExample([3, 4, 5, 6, 7, 8], 5, [(1, 3)]), LMExample([3, 4], 1)], 0)
    expected = [[False, True, True, False, False, True], [False, True, False, False, False, False]]
    torch.testing.assert_close(batch.loss_mask, torch.tensor(expected))


def test_which_turns_train_is_one_of_two(tiny_tokenizer):
    with pytest.raises(ValueError, match=r"train_on must be one of last, all, got 'first'"):
        Tokenization(tiny_tokenizer, train_on="first")


def test_documents_begin_with_the_bos_and_hold_no_other_special_token():
    tokenizer = llama3()
    bos, eos = tokenizer.bos_token_id, tokenizer.eos_token_id
    (block,) = Tokenization(tokenizer).texts([Text("ab"), Text("c<|end_of_text|><|begin_of_text|>")], 1000)
    special = [(place, number) for place, number in enumerate(block.input_ids) if number in tokenizer.all_special_ids]
    assert special == [(0, bos), (2, eos), (3, bos), (len(block.input_ids) - 1, eos)]
    # A model that was trained without one gets none.
    (block,) = Tokenization(chatml()).texts([Text("ab")], 1000)
    assert len(block.input_ids) == 2


def test_kto_rows_with_label_false_are_no_demonstrations(tmp_path, tiny_tokenizer):
    rows = [
        {"prompt": "w3", "completion": f"w{4 + n}", "label": label}
        for n, label in enumerate((True, False, 1, 0, -1, "undesirable"))
    ]
    path = tmp_path / "kto.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    module = RLHFDataModule("sft", tiny_tokenizer, str(path))
    module.setup()
    assert [example.input_ids for example in module.examples["train"]] == [[3, 4, EOS], [3, 6, EOS]]
    assert module.dropped == {"label false: no demonstration": 4}
    prompts = RLHFDataModule("ppo", tiny_tokenizer, str(path))
    prompts.setup()
    assert len(prompts.examples["train"]) == 6
