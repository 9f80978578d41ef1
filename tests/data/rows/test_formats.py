import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from rlhf_lightning.data.records import Comparison, Demonstration, Prompt, RecordError, Text
from rlhf_lightning.data.rows.formats import record_from_row

pytestmark = pytest.mark.usefixtures("types_as_users_have_them")

QUESTION, MORE = {"role": "user", "content": "which way ?"}, {"role": "user", "content": "and then ?"}
ASKED = "\n\nHuman: Up?\n\nAssistant:"
LEFT, RIGHT = {"role": "assistant", "content": "left"}, {"role": "assistant", "content": "right"}


@pytest.mark.parametrize(
    ("kind", "row", "field"),
    [
        (Demonstration, {"prompt": "a", "answer": "b"}, "response"),
        (Demonstration, {"prompt": None, "response": "b"}, "prompt"),
        (Demonstration, {"prompt": "a", "completions": ["b", "c"]}, "response"),
        (Comparison, {"prompt": "a", "completions": ["b", "c"]}, "ranks"),
        (Comparison, {"prompt": "a", "ranks": [1, 2]}, "completions"),
        (Prompt, {"question": "a"}, "prompt"),
        (Text, {}, "text"),
    ],
)
def test_missing_fields(kind, row, field):
    has = ", ".join(row) or "no columns"
    with pytest.raises(RecordError, match=f"'{field}' is missing.*this row has {has}.*Name the column .* 'columns'"):
        record_from_row(kind, row)


def test_other_columns_are_ignored_and_labels_kept():
    row = {"prompt": "a", "completions": ["b", "c", "d"], "ranks": [2, 1, 2], "labeler": "ann", "source": "s", "id": 4}
    assert record_from_row(Comparison, row) == Comparison("a", ["b", "c", "d"], [2, 1, 2], "ann", "s")
    assert record_from_row(Demonstration, {"prompt": [QUESTION], "response": "b", "user": "u"}).user == "u"


# Pairs


@pytest.mark.parametrize(
    "row",
    [
        {"prompt": [QUESTION], "chosen": "left", "rejected": "right"},
        {"prompt": [QUESTION], "chosen": [LEFT], "rejected": [RIGHT]},
        {"prompt": [QUESTION], "chosen": [QUESTION, LEFT], "rejected": [QUESTION, RIGHT]},
        {"chosen": [QUESTION, LEFT], "rejected": [QUESTION, RIGHT]},
        {"prompt": None, "chosen": [QUESTION, LEFT], "rejected": [QUESTION, RIGHT]},
    ],
    ids=["strings", "messages", "whole conversations", "implicit prompt", "null prompt"],
)
def test_pairs_are_rankings_of_two(row):
    expected = Comparison([QUESTION], ["left", "right"], [1, 2], source="pairs")
    assert record_from_row(Comparison, {**row, "source": "pairs"}) == expected


def test_messages_after_the_prompt_belong_to_it():
    row = {"prompt": [QUESTION], "chosen": [LEFT, MORE, LEFT], "rejected": [LEFT, MORE, RIGHT]}
    assert record_from_row(Comparison, row).prompt == [QUESTION, LEFT, MORE]
    # A prompt in its own words stands for the conversation that the pair repeats.
    row = {"prompt": "which way ?", "chosen": [QUESTION, LEFT], "rejected": [QUESTION, RIGHT]}
    assert record_from_row(Comparison, row) == Comparison("which way ?", ["left", "right"], [1, 2])


@pytest.mark.parametrize(
    ("chosen", "rejected", "prompt"),
    [
        ("The sea is calm.", "The sea is loud.", "The sea is"),
        # Neither letters nor words of the replies go to the prompt.
        ("The sea is calm.", "The sea is cold.", "The sea is"),
        (f"{ASKED} No, up.", f"{ASKED} No, down.", ASKED),
        (
            f"{ASKED} B\n\nHuman: C\n\nAssistant: D",
            f"{ASKED} B\n\nHuman: C\n\nAssistant:E",
            f"{ASKED} B\n\nHuman: C\n\nAssistant:",
        ),
    ],
)
def test_whole_texts_share_their_prompt(chosen, rejected, prompt):
    expected = Comparison(prompt, [chosen.removeprefix(prompt), rejected.removeprefix(prompt)], [1, 2])
    assert record_from_row(Comparison, {"chosen": chosen, "rejected": rejected}) == expected


@pytest.mark.parametrize(
    ("chosen", "rejected"),
    [
        ("left", "right"),
        ("The sea", "A sea"),
        (f"{ASKED} B\n\nHuman: C\n\nAssistant: D", f"{ASKED} X"),
        (f"{ASKED} X", f"{ASKED} B\n\nHuman: C\n\nAssistant: D"),
        (f"{ASKED} X\n\nAssistant: Y", f"{ASKED} Z"),
    ],
)
def test_texts_that_differ_before_the_last_reply(chosen, rejected):
    with pytest.raises(
        RecordError, match=r"'chosen' and 'rejected' must be the same up to the last reply.*leave the row"
    ):
        record_from_row(Comparison, {"chosen": chosen, "rejected": rejected})


def test_the_same_text_twice_is_a_tie():
    row = {"prompt": "a", "chosen": "left", "rejected": "left"}
    assert record_from_row(Comparison, row) == Comparison("a", ["left", "left"], [1, 1])


def test_explicit_completions_win_over_a_pair():
    row = {"prompt": "a", "completions": ["b", "c"], "ranks": [2, 1], "chosen": "d", "rejected": "e"}
    assert record_from_row(Comparison, row).completions == ["b", "c"]


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"chosen": [QUESTION, LEFT], "rejected": [LEFT, RIGHT]}, "must share every message but the last"),
        ({"chosen": [LEFT], "rejected": [RIGHT]}, "field 'prompt'"),
        ({"prompt": "a", "chosen": "left", "rejected": ""}, "field 'completions' is empty"),
        ({"prompt": "a", "chosen": [LEFT], "rejected": [{"role": "assistant"}]}, "field 'completions' must be a str"),
        (
            {"prompt": "a", "chosen": [QUESTION], "rejected": [LEFT]},
            "field 'chosen' must be a string or end with one mess",
        ),
        (
            {"prompt": "a", "chosen": [], "rejected": []},
            "field 'chosen' must be a string or end with one message of the",
        ),
        ({"prompt": "a", "chosen": 3, "rejected": "c"}, "field 'completions' must be a string, got 3"),
        ({"prompt": "a", "chosen": "b"}, "field 'completions' is missing"),
    ],
)
def test_malformed_pairs(row, message):
    with pytest.raises(RecordError, match=message):
        record_from_row(Comparison, row)


# Demonstrations and prompts


@pytest.mark.parametrize(
    "row",
    [
        {"prompt": [QUESTION], "completion": "left"},
        {"prompt": [QUESTION], "completion": [LEFT]},
        {"messages": [QUESTION, LEFT]},
        {"prompt": [QUESTION], "completions": ["right", "left"], "ranks": [2, 1]},
        {"chosen": [QUESTION, LEFT], "rejected": [QUESTION, RIGHT]},
    ],
    ids=["completion", "message", "messages", "best of a ranking", "chosen"],
)
def test_formats_of_demonstrations(row):
    assert record_from_row(Demonstration, {**row, "source": "s"}) == Demonstration([QUESTION], "left", source="s")
    assert record_from_row(Prompt, {**row, "source": "s"}) == Prompt([QUESTION], source="s")


def test_the_first_of_the_best_is_the_demonstration():
    row = {"prompt": "a", "completions": ["b", "c", "d"], "ranks": [2, 1, 1]}
    assert record_from_row(Demonstration, row) == Demonstration("a", "c")
    with pytest.raises(RecordError, match="neither dense ranks"):
        record_from_row(Demonstration, {**row, "ranks": [2, 3, 3]})


def test_messages_without_an_answer_are_a_prompt():
    assert record_from_row(Prompt, {"messages": [QUESTION, LEFT, MORE]}) == Prompt([QUESTION, LEFT, MORE])
    with pytest.raises(RecordError, match="'messages' must be a string or end with one message of the assistant"):
        record_from_row(Demonstration, {"messages": [QUESTION, LEFT, MORE]})


@pytest.mark.parametrize("messages", ["hello", [], ["hello"], [5, LEFT], {"role": "user"}, [LEFT]])
@pytest.mark.parametrize("kind", [Demonstration, Prompt])
def test_malformed_messages(kind, messages):
    with pytest.raises(RecordError, match=r"field '(messages|prompt)'"):
        record_from_row(kind, {"messages": messages})


def test_conversations_of_two_replies_are_no_completion():
    with pytest.raises(RecordError, match="'completion' must be a string or end with one message"):
        record_from_row(Demonstration, {"prompt": [QUESTION], "completion": [LEFT, MORE, RIGHT]})


WORDS = st.one_of(st.none(), st.integers(-1, 3), st.sampled_from(["", " ", "a", "b c"]), st.booleans(), st.floats())
MESSAGES = st.dictionaries(
    st.sampled_from(["role", "content"]), st.one_of(WORDS, st.sampled_from(["user", "assistant"]))
)
VALUES = st.one_of(WORDS, st.lists(WORDS, max_size=3), st.lists(MESSAGES, max_size=3), MESSAGES)
KINDS = st.sampled_from([Demonstration, Comparison, Prompt, Text])
COLUMNS = [
    "prompt",
    "response",
    "completions",
    "ranks",
    "text",
    "chosen",
    "rejected",
    "completion",
    "messages",
    "source",
]


@given(KINDS, st.dictionaries(st.sampled_from(COLUMNS), VALUES))
@example(Comparison, {"prompt": "a", "completions": ["b", "b c"], "ranks": [1, 1]})
@example(Demonstration, {"messages": [QUESTION, LEFT]})
def test_a_row_is_a_record_or_a_record_error(kind, row):
    try:
        record = record_from_row(kind, row)
    except RecordError as error:
        record, message = None, str(error)
    if record is None:
        assert "field" in message
        return
    assert isinstance(record, kind)
    given_fields = {name: value for name, value in row.items() if value is not None and name != "prompt"}
    assert all(getattr(record, name) == value for name, value in given_fields.items() if hasattr(record, name))


@given(st.sampled_from([None, "a", [QUESTION]]), st.lists(WORDS, min_size=1, max_size=2))
@example("a", ["b"])
def test_a_pair_of_lists_is_a_record_or_a_record_error(prompt, answers):
    with pytest.raises(RecordError):
        record_from_row(Comparison, {"prompt": prompt, "chosen": answers, "rejected": answers})


def says(role, content):
    return {"role": role, "content": content}


CHAT = [says("user", "a"), says("assistant", "b"), says("user", "c")]


@pytest.mark.parametrize(
    ("prompt", "shared", "expected"),
    [
        ("a", [says("user", "a")], "a"),  # UltraFeedback binarized: the prompt once more
        ("a", CHAT, CHAT),  # Tulu 3: several turns, of which the prompt is the first
        ("a", [says("system", "s"), says("user", "a")], [says("system", "s"), says("user", "a")]),
        ("a", CHAT[1:], CHAT),
        ("a", [], "a"),
        (None, CHAT, CHAT),
        (CHAT, CHAT, CHAT),
        (CHAT[:1], CHAT, CHAT),
        (CHAT[:1], CHAT[1:], CHAT),
    ],
)  # fmt: skip
def test_pairs_of_message_lists_keep_every_message(prompt, shared, expected):
    row = {"prompt": prompt, "messages": [*shared, says("assistant", "good")]}
    row |= {"chosen": [*shared, says("assistant", "good")], "rejected": [*shared, says("assistant", "bad")]}
    assert record_from_row(Comparison, row) == Comparison(expected, ["good", "bad"], [1, 2])
    assert record_from_row(Demonstration, row) == Demonstration(expected, "good")
    assert record_from_row(Prompt, row) == Prompt(expected)
    # Without the pair, as in UltraChat.
    chat = {"prompt": prompt, "messages": row["messages"]}
    if shared:
        assert record_from_row(Demonstration, chat) == Demonstration(expected, "good")


def test_pairs_that_differ_in_more_than_the_last_message_are_refused():
    other = [says("user", "a"), says("assistant", "x"), says("user", "c")]
    row = {"prompt": "a", "chosen": [*CHAT, says("assistant", "d")], "rejected": [*other, says("assistant", "e")]}
    with pytest.raises(RecordError, match="'chosen' and 'rejected' must share every message but the last"):
        record_from_row(Comparison, row)


def test_a_prompt_that_no_message_asks_does_not_get_lost():
    row = {"prompt": "z", "chosen": [*CHAT, says("assistant", "d")], "rejected": [*CHAT, says("assistant", "e")]}
    with pytest.raises(RecordError, match=r"has the roles 'user, user, assistant, user'"):
        record_from_row(Comparison, row)
