import pytest

from rlhf_lightning.curation.few_shot import few_shot_examples, read_few_shot
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


@pytest.mark.parametrize(
    ("line", "sentence"),
    [
        ("{", "line 2: Expecting property name"),
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
