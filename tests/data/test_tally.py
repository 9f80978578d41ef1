"""Records that were left out or cut are counted for each set, and for each source where there are several."""

from typing import Any

from rlhf_lightning.data.datamodule import RLHFDataModule
from rlhf_lightning.data.records import Comparison
from rlhf_lightning.data.tally import sentence


def test_sets_and_sources_have_counts_of_their_own(tiny_tokenizer: Any) -> None:
    def ranking(prompt: str, source: str | None, *, long: bool = False, tied: bool = False) -> Comparison:
        texts = ["w4 w5 w6 w7 w8" if long else "w4", "w9"]
        return Comparison(prompt, texts, [1, 1] if tied else [1, 2], source=source)

    train = [
        ranking("w3", "users", long=True),
        ranking("w4", "forum", long=True),
        ranking("w5", "users", long=True),
        ranking("w5 w6 w7 w8 w9", "users"),
        ranking("w6", "forum", tied=True),
        ranking("w6", "users"),
    ]
    validation = [ranking("w3", None, long=True), ranking("w3", None)]
    data = RLHFDataModule("reward", tiny_tokenizer, train, validation, max_prompt_tokens=4, max_response_tokens=3)
    data.setup()
    cut = "ranked responses cut at 3 tokens, without an end"
    assert data.tally.by_set("cut") == {"train": {cut: {"users": 2, "forum": 1}}, "validation": {cut: 1}}
    assert data.tally.by_set("dropped") == {"train": {"all responses tied": 1, "prompt over 4 tokens": 1}}
    # The totals, as before.
    assert data.cut == {cut: 4}
    assert data.dropped == {"all responses tied": 1, "prompt over 4 tokens": 1}
    assert sentence(data.tally.by_set("cut")) == f"train: {cut} 3 (users 2, forum 1); validation: {cut} 1"


def test_a_line_names_the_largest_sources_alone() -> None:
    counts = {f"s{number}": number for number in range(1, 9)}
    assert sentence({"train": {"cut": counts}}) == "train: cut 36 (s8 8, s7 7, s6 6, s5 5, s4 4, 3 more)"
