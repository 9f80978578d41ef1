"""Conversations as other tools keep them: used, or refused by name."""

import json

import pytest
from chat_models import chatml

from rlhf_lightning.data.records import Comparison, Demonstration, Prompt, RecordError
from rlhf_lightning.data.rows.columns import column_value
from rlhf_lightning.data.rows.formats import record_from_row
from rlhf_lightning.data.rows.records_of import read_records
from rlhf_lightning.data.tokenize import Tokenization

pytestmark = pytest.mark.usefixtures("types_as_users_have_them")

SYSTEM, USER, ASSISTANT = ({"role": role, "content": role[0]} for role in ("system", "user", "assistant"))
COLUMNS = {
    "prompt": [{"role": "system", "content": "{rules}"}, {"role": "user", "content": "Q: {question}"}],
    "response": "answer",
}


def read(tmp_path, rows, kind, **options):
    file = tmp_path / "rows.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return read_records({"path": str(file), **options}, kind)


def test_columns_make_messages(tmp_path):
    rows = [
        {"rules": "Be brief.", "question": "why?", "answer": "so"},
        {"rules": " ", "question": "who?", "answer": "we"},
        {"rules": None, "question": "{rules}", "answer": "x"},
    ]
    user = [{"role": "user", "content": f"Q: {text}"} for text in ("why?", "who?", "{rules}")]
    expected = [[{"role": "system", "content": "Be brief."}, user[0]], [user[1]], [user[2]]]
    for kind in (Demonstration, Prompt):
        assert [record.prompt for record in read(tmp_path, rows, kind, columns=COLUMNS)] == expected
    messages = {"messages": [*COLUMNS["prompt"], {"role": "assistant", "content": "answer"}], "prompt": None}
    assert read(tmp_path, rows, Demonstration, columns=messages) == read(tmp_path, rows, Demonstration, columns=COLUMNS)


@pytest.mark.parametrize(
    ("message", "fault"),
    [
        ({"role": "tool", "content": "a"}, "holds a message of the role 'tool'; it must be system, user or assistant"),
        ({"role": "user", "content": "b"}, "column 'b' is missing; the row has a"),
        ({"role": "user", "text": "a"}, "which is no name, template, list, message"),
    ],
)
def test_messages_that_no_column_makes(message, fault):
    with pytest.raises(RecordError, match=fault):
        column_value({"a": "x"}, [message])


ANSWERED = {"messages": [USER, ASSISTANT]}


@pytest.mark.parametrize(
    ("kind", "row", "prompt"),
    [
        (Prompt, {"prompt": "u"}, [SYSTEM, USER]),
        (Prompt, {"prompt": [USER]}, [SYSTEM, USER]),
        (Prompt, {"prompt": [SYSTEM, USER]}, [SYSTEM, USER]),
        (Demonstration, ANSWERED, [SYSTEM, USER]),
        (Demonstration, {"prompt": "u", "response": "a"}, [SYSTEM, USER]),
        (Demonstration, {"prompt": [USER], "completion": [ASSISTANT]}, [SYSTEM, USER]),
        (Comparison, {"prompt": "u", "chosen": "a", "rejected": "b"}, [SYSTEM, USER]),
        (Comparison, {"chosen": [USER, ASSISTANT], "rejected": [USER, {**ASSISTANT, "content": "b"}]}, [SYSTEM, USER]),
    ],
)
def test_a_system_column_is_the_system_message(kind, row, prompt):
    assert record_from_row(kind, {**row, "system": "s"}).prompt == prompt
    without = record_from_row(kind, row).prompt
    for nothing in (None, "", " \n"):
        assert record_from_row(kind, {**row, "system": nothing}).prompt == without


def test_two_system_texts_are_refused():
    row = {"prompt": [SYSTEM, USER], "system": "other"}
    with pytest.raises(
        RecordError, match=r"'system' is 'other', but .* system message 's'.*'columns: \{system: null\}'"
    ):
        record_from_row(Prompt, row)
    with pytest.raises(RecordError, match=r"field 'system' must be a string where it is given, got \['s'\]"):
        record_from_row(Prompt, {"prompt": "u", "system": ["s"]})


@pytest.mark.parametrize("kind", [Demonstration, Comparison, Prompt])
@pytest.mark.parametrize(
    ("more", "message"),
    [
        ({"tools": [{"name": "search"}]}, r"field 'tools' is \[\{.*hide the column \('columns: \{tools: null\}'\)"),
        ({"tools": '[{"name": "search"}]'}, "field 'tools' is"),
        ({"weight": 0.5}, r"field 'weight' is 0.5, but every row counts the same.*'columns: \{weight: null\}'"),
        ({"weight": 0}, "field 'weight' is 0,"),
    ],
)
def test_columns_that_would_be_dropped_are_named(kind, more, message):
    row = {"prompt": "u", "chosen": "a", "rejected": "b"}
    with pytest.raises(RecordError, match=message):
        record_from_row(kind, {**row, **more})
    nothing = {"tools": [], "weight": 1.0}, {"tools": None, "weight": None}, {"tools": "[]", "weight": "1"}
    for empty in nothing:
        assert record_from_row(kind, {**row, **empty}) == record_from_row(kind, row)


@pytest.mark.parametrize("name", ["messages", "prompt", "chosen", "completion"])
@pytest.mark.parametrize(
    ("more", "message"),
    [
        ({"tool_calls": [{"id": 1}]}, "message with tool_calls .*calls of tools are not trained here"),
        ({"function_call": {"name": "f"}}, "message with function_call"),
        ({"reasoning_content": "because"}, "message with reasoning_content 'because'; thoughts .*<think>"),
        ({"thinking": "because"}, "message with thinking 'because'"),
        ({"weight": 0.5}, "message of weight 0.5; a message is trained .1. or not .0."),
        ({"content": [{"type": "image_url", "url": "x"}]}, "message with the part .*'image_url'.*only text is read"),
        ({"content": [{"type": "text", "text": None}]}, "message with the part"),
    ],
)
def test_what_a_message_holds_besides_its_text_is_named(name, more, message):
    conversation = [USER, {**ASSISTANT, **more}, USER, ASSISTANT]
    row = {
        "messages": {"messages": conversation},
        "prompt": {"prompt": conversation[:3], "response": "a"},
        "chosen": {"chosen": conversation, "rejected": [*conversation[:3], {**ASSISTANT, "content": "b"}]},
        "completion": {"prompt": "u", "completion": [{**ASSISTANT, **more}]},
    }[name]
    with pytest.raises(RecordError, match=f"field '{name}' has a {message}"):
        record_from_row(Demonstration, row)


def test_what_stands_for_nothing_goes():
    """As parquet fills the fields that one message of many has."""
    bare = {"tool_calls": None, "reasoning_content": "", "function_call": [], "weight": 1, "name": None}
    row = {"messages": [{**USER, **bare}, {**ASSISTANT, **bare}]}
    assert record_from_row(Demonstration, row) == Demonstration([USER], "a")
    parts = [{"type": "text", "text": "a "}, {"type": "text", "text": "b", "annotations": None}]
    row = {"messages": [{**USER, "content": parts}, {**ASSISTANT, "content": parts}]}
    assert record_from_row(Demonstration, row) == Demonstration([{**USER, "content": "a b"}], "a b")


def test_answers_of_weight_0_are_not_trained():

    turns = [USER, {**ASSISTANT, "weight": 0}, USER, {**ASSISTANT, "weight": 1}, {**USER, "weight": 0}, ASSISTANT]
    record = record_from_row(Demonstration, {"messages": turns})
    tokens = Tokenization(chatml(), train_on="all")
    (example,) = tokens.demonstrations([record])
    (every,) = tokens.demonstrations([record_from_row(Demonstration, {"messages": [USER, ASSISTANT] * 3})])
    assert example.input_ids == every.input_ids
    assert (len(every.earlier), example.earlier) == (2, every.earlier[1:])
    # Written as a record and read again it is the same.
    assert record_from_row(Demonstration, json.loads(json.dumps(vars(record)))) == record
    with pytest.raises(RecordError, match="field 'messages' ends with an answer of weight 0"):
        record_from_row(Demonstration, {"messages": [USER, {**ASSISTANT, "weight": 0}]})
