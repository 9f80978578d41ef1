"""Columns that no field of a prompt takes, for rewards that ask for them by name."""

import datetime
import json

import pytest
from datasets import Dataset

from rlhf_lightning.curation.account import KindAccount
from rlhf_lightning.curation.filters import hidden_identifiers
from rlhf_lightning.data.records import Demonstration, Prompt, RecordError
from rlhf_lightning.data.rows.records_of import read_records

pytestmark = pytest.mark.usefixtures("types_as_users_have_them")

ROW = {
    "question": "why?",
    "topic": "life",
    "solution": 42,
    "info": {"level": [1, {"a": None}]},
    "by": "jo",
    "response": "so",
    "chosen": "a",
    "rejected": "b",
    "tools": [],
}


def read(tmp_path, row, kind=Prompt, **options):
    file = tmp_path / "rows.jsonl"
    file.write_text(json.dumps(row) + "\n")
    (record,) = read_records({"path": str(file), **options}, kind)
    return record


@pytest.mark.parametrize(
    ("columns", "fields"),
    [
        # The response of a demonstration is a reference; other answers, and what a field took, are none.
        ({}, {"topic": "life", "solution": 42, "info": {"level": [1, {"a": None}]}, "by": "jo", "response": "so"}),
        ({"user": "by", "labels": {"use_case": "topic"}, "response": None}, {"solution": 42, "info": ROW["info"]}),
        ({"source": "{topic} of {info.level[0]}", "response": "by"}, {"solution": 42, "response": "jo"}),
        ({"fields": {"answer": "solution", "text": "{by}: {topic}"}}, {"answer": 42, "text": "jo: life"}),
        ({"fields": "info"}, ROW["info"]),
        ({"fields": None}, None),
    ],
)
def test_fields_of_a_row(tmp_path, columns, fields):
    prompt = read(tmp_path, ROW, columns={"prompt": "question", **columns})
    assert (prompt.prompt, prompt.fields) == ("why?", fields)
    assert read(tmp_path, ROW, Demonstration, columns={"prompt": "question", "response": "response", **columns}).prompt


def test_rows_without_further_columns_have_none(tmp_path):
    row = {"prompt": "a", "user": "u", "source": "s", "labels": {"x": "y"}}
    assert read(tmp_path, row) == Prompt("a", "u", "s", {"x": "y"})
    assert read(tmp_path, {"messages": [{"role": "user", "content": "a"}], "system": "s", "weight": 1}).fields is None


def test_a_written_record_is_read_as_it_was(tmp_path):
    prompt = read(tmp_path, ROW, columns={"prompt": "question"})
    assert prompt.fields
    assert read(tmp_path, vars(prompt)) == prompt
    # And beside columns that somebody adds to it.
    assert read(tmp_path, {**vars(prompt), "new": 1}).fields == {**prompt.fields, "new": 1}
    assert hash(prompt) == hash(Prompt("why?", "jo" if prompt.user else None))


def test_values_that_json_does_not_know_are_texts():
    rows = Dataset.from_list([{"prompt": "a", "day": datetime.date(2024, 7, 26), "when": [datetime.time(9)]}])
    (prompt,) = read_records(rows, Prompt)
    assert prompt.fields == {"day": "2024-07-26", "when": ["09:00:00"]}


@pytest.mark.parametrize("fields", ["text", [1], {1: "a"}, {"a": {1, 2}}, {"a": b"x"}])
def test_fields_that_are_none(fields):
    with pytest.raises(RecordError, match=r"field 'fields' must be an object of names and JSON values .*fields: null"):
        Prompt("a", fields=fields)


def test_curation_masks_what_is_personal_in_fields():
    fields = {"answer": "ask jo@example.org", "many": [{"mail": "jo@example.org", "count": 3}]}
    books = KindAccount()
    hidden = hidden_identifiers(Prompt("a", fields=fields), books)
    assert hidden.fields == {"answer": "ask [email]", "many": [{"mail": "[email]", "count": 3}]}
    assert books.changed == {"identifier hidden": 1}
    sound = Prompt("a", fields={"answer": 42})
    assert hidden_identifiers(sound, books) is sound
