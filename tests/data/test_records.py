import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from jaxtyping import config

from rlhf_lightning.data.records import Comparison, Demonstration, Prompt, RecordError, Text, record_from_row


@pytest.fixture(autouse=True, scope="module")
def types_as_users_have_them():
    """Without the checks of the test suite, which see a value of the wrong type before the record does."""
    config.update("jaxtyping_disable", True)
    yield
    config.update("jaxtyping_disable", False)


QUESTION = {"role": "user", "content": "which way ?"}
LEFT, RIGHT = {"role": "assistant", "content": "left"}, {"role": "assistant", "content": "right"}


@pytest.mark.parametrize("prompt", [5, [], {}, [[]], ["hello"], [{"role": "user"}], [{"role": "user", "content": 3}]])
@pytest.mark.parametrize("kind", [Demonstration, Comparison, Prompt])
def test_malformed_prompt(kind, prompt):
    row = {"prompt": prompt, "response": "b", "completions": ["b", "c"], "ranks": [1, 2]}
    with pytest.raises(RecordError, match=r"'prompt' must be a string or a list of \{'role': \.\.\., 'content'"):
        record_from_row(kind, row)


@pytest.mark.parametrize("kind", [Demonstration, Comparison, Prompt])
def test_empty_prompt(kind):
    row = {"prompt": " \n", "response": "b", "completions": ["b", "c"], "ranks": [1, 2]}
    with pytest.raises(RecordError, match="'prompt' is empty; fill it or leave the row out"):
        record_from_row(kind, row)


@pytest.mark.parametrize(("kind", "field"), [(Demonstration, "response"), (Text, "text")])
def test_malformed_strings(kind, field):
    row = {"prompt": "a", field: ["b"]}
    with pytest.raises(RecordError, match=rf"'{field}' must be a string, got \['b'\]"):
        record_from_row(kind, row)
    with pytest.raises(RecordError, match=f"'{field}' is empty; fill it or leave the row out"):
        record_from_row(kind, {**row, field: "\t"})


@pytest.mark.parametrize("completions", ["ab", ["a"], [], {"a": 1, "b": 2}])
def test_too_few_completions(completions):
    with pytest.raises(RecordError, match=r"'completions' must be a list of at least 2 strings.*leave the row out"):
        record_from_row(Comparison, {"prompt": "a", "completions": completions, "ranks": [1, 2]})


@pytest.mark.parametrize("bad", ["", None, 4])
def test_a_malformed_completion(bad):
    with pytest.raises(RecordError, match="field 'completions'"):
        record_from_row(Comparison, {"prompt": "a", "completions": ["b", bad], "ranks": [1, 2]})


@pytest.mark.parametrize("ranks", [[1], [1, 2, 3], [0, 1], [1, -1], [1.0, 2.0], [True, 2], ["1", "2"], "12", 1])
def test_malformed_ranks(ranks):
    with pytest.raises(RecordError, match=r"'ranks' must hold 2 whole numbers from 1 \(best\) up, one per completion"):
        record_from_row(Comparison, {"prompt": "a", "completions": ["b", "c"], "ranks": ranks})


@pytest.mark.parametrize(
    ("kind", "row", "field"),
    [
        (Demonstration, {"prompt": "a", "answer": "b"}, "response"),
        (Demonstration, {"prompt": None, "response": "b"}, "prompt"),
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


def test_long_values_are_shortened_in_the_message():
    with pytest.raises(RecordError) as raised:
        Prompt([{"role": "user", "text": "x" * 1000}])
    assert len(str(raised.value)) < 250


def test_other_columns_are_ignored_and_labels_kept():
    row = {"prompt": "a", "completions": ["b", "c", "d"], "ranks": [2, 1, 2], "labeler": "ann", "source": "s", "id": 4}
    assert record_from_row(Comparison, row) == Comparison("a", ["b", "c", "d"], [2, 1, 2], "ann", "s")
    assert record_from_row(Demonstration, {"prompt": [QUESTION], "response": "b", "user": "u"}).user == "u"


@pytest.mark.parametrize(
    "row",
    [
        {"prompt": [QUESTION], "chosen": "left", "rejected": "right"},
        {"prompt": [QUESTION], "chosen": [LEFT], "rejected": [RIGHT]},
        {"prompt": [QUESTION], "chosen": [QUESTION, LEFT], "rejected": [QUESTION, RIGHT]},
        {"chosen": [QUESTION, LEFT], "rejected": [QUESTION, RIGHT]},
    ],
    ids=["strings", "messages", "whole conversations", "implicit prompt"],
)
def test_pairs_are_rankings_of_two(row):
    expected = Comparison([QUESTION], ["left", "right"], [1, 2], source="pairs")
    assert record_from_row(Comparison, {**row, "source": "pairs"}) == expected


def test_explicit_completions_win_over_a_pair():
    row = {"prompt": "a", "completions": ["b", "c"], "ranks": [2, 1], "chosen": "d", "rejected": "e"}
    assert record_from_row(Comparison, row).completions == ["b", "c"]


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"chosen": [QUESTION, LEFT], "rejected": [LEFT, RIGHT]}, "must share every message but the last"),
        ({"chosen": [LEFT], "rejected": [RIGHT]}, "field 'prompt'"),
        ({"chosen": "left", "rejected": "right"}, "field 'prompt' is missing"),
        ({"prompt": "a", "chosen": "left", "rejected": ""}, "field 'completions' is empty"),
        ({"prompt": "a", "chosen": [LEFT], "rejected": [{"role": "assistant"}]}, "field 'completions' must be a str"),
        ({"prompt": "a", "chosen": "left", "rejected": [RIGHT]}, "field 'completions' must be a string"),
    ],
)
def test_malformed_pairs(row, message):
    with pytest.raises(RecordError, match=message):
        record_from_row(Comparison, row)


WORDS = st.one_of(st.none(), st.integers(-1, 3), st.sampled_from(["", " ", "a", "b c"]), st.booleans(), st.floats())
MESSAGES = st.dictionaries(st.sampled_from(["role", "content"]), WORDS)
VALUES = st.one_of(WORDS, st.lists(WORDS, max_size=3), st.lists(MESSAGES, max_size=3), MESSAGES)
KINDS = st.sampled_from([Demonstration, Comparison, Prompt, Text])


@given(
    KINDS,
    st.dictionaries(st.sampled_from(["prompt", "response", "completions", "ranks", "text"]), VALUES),
)
@example(Comparison, {"prompt": "a", "completions": ["b", "b c"], "ranks": [1, 1]})
def test_a_row_is_a_record_or_a_record_error(kind, row):
    try:
        record = record_from_row(kind, row)
    except RecordError as error:
        assert "field '" in str(error)  # noqa: PT017
    else:
        assert isinstance(record, kind)
        assert all(getattr(record, name) == value for name, value in row.items() if hasattr(record, name))


@given(st.sampled_from([None, "a", [QUESTION]]), st.lists(WORDS, min_size=1, max_size=2))
@example("a", ["b"])
def test_a_pair_of_lists_is_a_record_or_a_record_error(prompt, answers):
    with pytest.raises(RecordError):
        record_from_row(Comparison, {"prompt": prompt, "chosen": answers, "rejected": answers})


@pytest.mark.parametrize("field", ["labeler", "source"])
def test_labels_are_strings(field):
    with pytest.raises(RecordError, match=f"field '{field}'"):
        record_from_row(Comparison, {"prompt": "a", "completions": ["b", "c"], "ranks": [1, 2], field: 7})
