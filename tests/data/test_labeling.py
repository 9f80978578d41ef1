"""What a ranking keeps of how it came about, on its way through files and curation."""

import json

import pytest

from rlhf_lightning.curation.account import KindAccount
from rlhf_lightning.curation.filters import within_lengths
from rlhf_lightning.curation.rows import Row
from rlhf_lightning.data.labeling import labeling_at, record_row
from rlhf_lightning.data.records import Comparison, Demonstration, RecordError
from rlhf_lightning.data.rows.records_of import read_records
from rlhf_lightning.data.sources import FileData
from rlhf_lightning.data.tokenize import Tokenization

WHOLE = {
    "policies": ["sft", None, "ppo"],
    "likert": [5, None, 2.5],
    "fields": [{"hallucination": True}, {}, {"opinion": False}],
    "order": [2, 0, 1],
    "round": 2,
}


def test_it_goes_through_a_file(tmp_path):
    record = Comparison("p", ["a", "b", "c"], [1, 2, 2], labeler="ann", labeling=WHOLE)
    (tmp_path / "c.jsonl").write_text(json.dumps(record_row(record)) + "\n")
    (read,) = read_records(tmp_path / "c.jsonl", Comparison)
    assert read == record
    assert read.labeling == WHOLE


def test_lines_without_one_are_what_they_were():
    keys = ["prompt", "completions", "ranks", "labeler", "source", "labels", "user"]
    assert list(record_row(Comparison("p", ["a", "b"], [1, 2]))) == keys
    assert record_row(Demonstration("p", "r"))["labels"] is None
    assert "labeling" not in repr(Comparison("p", ["a", "b"], [1, 2]))  # by which curation draws lots


@pytest.mark.parametrize(
    "wrong",
    [
        *({"policies": each} for each in (["sft"], "sft", ["sft", 1, "ppo"])),
        *({"likert": each} for each in ([1, 2], ["1", "2", "3"])),
        {"fields": [{}, {}, None]},
        *({"order": each} for each in ([0, 1, 1], [1, 2, 3], [0, 1], ["a", 0, 1], 3)),
        *({"round": each} for each in (0, 1.5, True, "1")),
        {"policy": ["sft"] * 3},
    ],
)
def test_what_is_none_is_refused(wrong):
    with pytest.raises(RecordError, match=r"field 'labeling' must be an object .* Mend it, or hide it"):
        Comparison("p", ["a", "b", "c"], [1, 2, 3], labeling=wrong)


def test_responses_that_become_one_lose_their_own_entries(tiny_tokenizer):
    tokenization = Tokenization(tiny_tokenizer, max_prompt_tokens=4, max_response_tokens=2)
    record = Comparison("w5", ["w6 w7", "w8", "w6 w7 w9"], [1, 2, 3], labeling=WHOLE)
    kept = within_lengths(Row("", "train", record), tokenization, KindAccount()).record
    assert kept.completions == ["w6 w7", "w8"]
    assert kept.labeling == {
        **WHOLE,
        "policies": ["sft", None],
        "likert": [5, None],
        "fields": [{"hallucination": True}, {}],
        "order": [0, 1],
    }
    assert labeling_at(None, [0]) is None


def test_what_people_wrote_stands_beside_the_files(tmp_path):
    for folder, answer in (("own", "mine"), ("labels", "theirs")):
        (tmp_path / folder).mkdir()
        row = json.dumps({"prompt": "p", "response": answer})
        (tmp_path / folder / "demonstrations.train.jsonl").write_text(row + "\n")
    root, labels = str(tmp_path / "own"), str(tmp_path / "labels")
    found = FileData(root, {"demonstrations": {"train": None}}, by_name=True, labels=labels)
    assert [record.response for record in found.records("demonstrations", "train")] == ["mine", "theirs"]
    assert FileData(None, {}, labels=labels).records("demonstrations", "train") == [Demonstration("p", "theirs")]
    alone = FileData(root, {"demonstrations": {"train": None}}, by_name=True)
    assert alone.fingerprint() != found.fingerprint()
    with pytest.raises(ValueError, match=r"data\.labels=.*own2 holds no demonstrations.*rlhf-label <run> --export"):
        FileData(root, {}, labels=f"{root}2")
