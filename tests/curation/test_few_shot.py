import gzip

import pytest

from rlhf_lightning.curation.few_shot import read_few_shot
from rlhf_lightning.data.few_shot import few_shot_examples
from rlhf_lightning.data.records import RecordError

PAIRS = [("hot", "cold"), ("up", "down"), ("old", "young")]


def test_k_pairs_make_k_examples_each_with_the_others_as_context():
    examples = few_shot_examples("Name the opposite.", PAIRS, user="l", source="labeler", labels={"use_case": "other"})
    assert [example.response for example in examples] == ["cold", "down", "young"]
    assert examples[1].prompt == "Name the opposite.\n\nhot\ncold\n\nold\nyoung\n\nup"
    assert all("down" in example.prompt for example in (examples[0], examples[2]))
    assert "down" not in examples[1].prompt
    assert {(example.user, example.source, example.labels["use_case"]) for example in examples} == {
        ("l", "labeler", "other")
    }


def test_one_pair_has_no_context():
    (example,) = few_shot_examples("Name the opposite.", PAIRS[:1])
    assert (example.prompt, example.response) == ("Name the opposite.\n\nhot", "cold")


def test_reading(tmp_path):
    path = tmp_path / "few.jsonl"
    path.write_text(
        '{"instruction": "a", "pairs": [{"query": "b", "response": "c"}, {"query": "d", "response": "e"}], "user": "u"}'
        "\n"
        "\n"
        '{"instruction": "f", "pairs": [{"query": "g", "response": "h"}]}\n'
    )
    assert [[example.user for example in examples] for examples in read_few_shot(path)] == [["u", "u"], [None]]


def test_malformed_rows_are_counted_or_kept(tmp_path):
    path = tmp_path / "few.jsonl.gz"
    good = b'{"instruction": "f", "pairs": [{"query": "g", "response": "h"}]}\n'
    path.write_bytes(gzip.compress(b"[]\n" + good + b'{"instruction": "\xff"}\n'))
    with pytest.raises(
        RecordError, match=r"few.jsonl.gz, line 1: a few-shot row.*\n2 malformed rows in all; also\n.*l"
    ):
        list(read_few_shot(path))
    kept = []
    assert len(list(read_few_shot(path, kept.append))) == 1
    assert [row.place for row in kept] == [f"{path}, line 1", f"{path}, line 3"]
    assert "broken UTF-8" in kept[1].problem


def test_a_file_with_nothing(tmp_path):
    with pytest.raises(
        RecordError, match=r"few.jsonl does not exist\. Mend the path in curate.few_shot, or take it out"
    ):
        list(read_few_shot(tmp_path / "few.jsonl"))
    (tmp_path / "few.jsonl").write_text("[]\n")
    with pytest.raises(RecordError, match=r"few.jsonl holds no few-shot prompt\. Mend it(.|\n)*line 1: a few-shot row"):
        list(read_few_shot(tmp_path / "few.jsonl", lambda row: None))


@pytest.mark.parametrize(
    ("line", "sentence"),
    [
        ("{", r"line 2: no JSON \(Expecting property name.* Each line must hold"),
        ("[]", "line 2: a few-shot row must be a JSON object"),
        ('{"instruction": 3, "pairs": []}', "line 2: a few-shot row must be a JSON object with a string 'instruction'"),
        ('{"instruction": "a", "pairs": []}', "line 2: field 'pairs' is empty"),
        ('{"instruction": "a", "pairs": [["b", "c"]]}', r"line 2: field 'pairs' must be a list of \{'query'"),
        ('{"instruction": "a", "pairs": [{"query": "b", "response": " "}]}', "line 2: field 'response' is empty"),
    ],
)
def test_malformed_rows_are_named(tmp_path, line, sentence):
    path = tmp_path / "few.jsonl"
    path.write_text('{"instruction": "f", "pairs": [{"query": "g", "response": "h"}]}\n' + line + "\n")
    with pytest.raises(RecordError, match=f"few.jsonl, {sentence}"):
        list(read_few_shot(path))
