import math
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rlhf_lightning.data.records import RecordError
from rlhf_lightning.data.rows.columns import column_value
from rlhf_lightning.data.rows.records_of import check_source

pytestmark = pytest.mark.usefixtures("types_as_users_have_them")

ROW = {
    "q": "why?",
    "in": "",
    "none": None,
    "n": 0,
    "a.b": "dotted",
    "info": {"title": "T", "deep": [{"x": 1}, {"x": 2}], "fine-grained": 5},
    "messages": ["m0", "m1", "m2"],
    "answers": [{"text": "a", "score": 0.5}, {"text": "b", "score": 2}, {"text": "c", "score": 0.5}],
    "label": 2,
    "word": "2",
}


@pytest.mark.parametrize(
    ("column", "value"),
    [
        ("q", "why?"),
        (None, None),
        ("none", None),
        ("a.b", "dotted"),
        ("info.title", "T"),
        ("info.fine-grained", 5),
        ("info.deep[1].x", 2),
        ("info.deep[*].x", [1, 2]),
        ("messages[0]", "m0"),
        ("messages[-1]", "m2"),
        ("messages[:-1]", ["m0", "m1"]),
        ("messages[:1]", ["m0"]),
        ("answers[*].text", ["a", "b", "c"]),
        ("{q}\n{in}", "why?"),
        ("{q} {none} {n} {info.title}.", "why?  0 T."),
        ("{answers[0].text}", "a"),
        (["q", "info.title"], ["why?", "T"]),
        ({"column": "label", "values": {1: [1, 2], 2: [2, 1]}}, [2, 1]),
        # Cells of a CSV file are strings.
        ({"column": "word", "values": {1: [1, 2], 2: [2, 1]}}, [2, 1]),
        ({"column": "info.title", "values": {"T": "t"}}, "t"),
        ({"rank": "answers[*].score", "best": "highest"}, [2, 1, 2]),
        ({"rank": "answers[*].score", "best": "lowest"}, [1, 2, 1]),
        ({"rank": ["label", "word", "n"], "best": "highest"}, [1, 1, 2]),
    ],
)
def test_values(column, value):
    assert column_value(ROW, column) == value


@pytest.mark.parametrize(
    ("column", "message"),
    [
        ("gone", r"column 'gone' is missing; the row has q, in, none.*Mend 'columns'\."),
        ("{q} {gone}", r"column 'gone' is missing; the row has q, in"),
        ("info.gone", r"column 'info.gone' is missing; what 'gone' is looked up in has title, deep.*Mend"),
        ("q.gone", r"column 'q.gone' is missing; what 'gone' is looked up in is 'why\?'"),
        ("messages[3]", r"column 'messages\[3\]' is missing; the list has 3 elements"),
        ("info[0]", r"column 'info\[0\]' needs a list where it has \[0\], got \{'title'"),
        ("q[*].x", r"column 'q\[\*\].x' needs a list where it has \[\*\], got 'why\?'"),
        ("messages[x]", r"column 'messages\[x\]' is no path such as a\.b"),
        ("a..b", r"column 'a\.\.b' is no path"),
        ("", r"column '' is no path"),
        ("{messages}", r"column 'messages' holds \['m0'.*which a template cannot write"),
        (
            {"column": "label", "values": {7: 1}},
            r"'label' holds 2, for which 'values' has no entry; it has 7\. Add the",
        ),
        ({"column": "messages", "values": {7: 1}}, r"'messages' holds \['m0', 'm1', 'm2'\], for which 'values'"),
        ({"column": "q"}, r"'columns' holds \{'column': 'q'\}, which is no name, template"),
        ({"rank": "messages", "best": "first"}, r"'columns' holds .*highest or lowest"),
        (7, r"'columns' holds 7, which is no name"),
        ({"rank": "messages", "best": "lowest"}, r"column 'messages' holds the score 'm0', which is no finite number"),
        ({"rank": "label", "best": "lowest"}, r"column 'label' holds 2, which is no list of scores"),
    ],
)
def test_errors(column, message):
    with pytest.raises(RecordError, match=message):
        column_value(ROW, column)


@pytest.mark.parametrize("score", [math.nan, math.inf, None, True, "good", "nan", [1], 10**400])
def test_scores_that_are_no_numbers(score):
    with pytest.raises(RecordError, match=r"column 's' holds the score .*, which is no finite number\. Mend it or"):
        column_value({"s": [1, score]}, {"rank": "s", "best": "highest"})


@given(st.lists(st.integers(-3, 3) | st.floats(-2, 2), min_size=1, max_size=8))
def test_ranks_keep_the_order_of_scores(scores):
    ranks = column_value({"s": scores}, {"rank": "s", "best": "highest"})
    assert set(ranks) == set(range(1, max(ranks) + 1))
    for a, b in zip(scores, ranks, strict=True):
        for c, d in zip(scores, ranks, strict=True):
            assert (a > c) == (b < d)
    assert column_value({"s": [-score for score in scores]}, {"rank": "s", "best": "lowest"}) == ranks


ANYTHING = st.recursive(
    st.none() | st.integers() | st.text(max_size=3) | st.floats(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from("abc"), inner, max_size=3),
    max_leaves=6,
)


@given(
    st.dictionaries(st.sampled_from("abc"), ANYTHING),
    st.text("abc.[]*-:1{} ", max_size=8)
    | st.builds(lambda name: {"rank": name, "best": "lowest"}, st.sampled_from("abc")),
)
def test_any_path_is_a_value_or_a_record_error(row, column):
    message = "column"
    try:
        column_value(row, column)
    except RecordError as error:
        message = str(error)
    assert "column" in message


@pytest.mark.parametrize(
    ("source", "said"),
    [
        ({"path": 5}, r"here\.path must be text or null, got 5"),
        ({"path": "x", "where": 5}, r"here\.where must be a mapping or null, got 5"),
        ({"path": "x", "load": 5}, r"here\.load must be a mapping or null, got 5"),
        ({"path": "x", "shape": {"group_by": 5}}, r"'shape' is .*it must be message_trees, "),
        ({"path": "x", "columns": {"prompt": 5}}, r"here\.columns\.prompt: 'columns' holds 5, which is no name"),
        ({"path": "x", "columns": {"prompt": ["a", 5]}}, r"here\.columns\.prompt: 'columns' holds 5"),
        ({"path": "x", "columns": {"labels": {"tone": 5}}}, r"here\.columns\.labels: 'columns' holds 5"),
        ({"path": "x", "columns": {"ranks": {"column": "ranks", "values": 5}}}, r"here\.columns\.ranks: 'columns' ho"),
        ({"path": "x", "columns": {"ranks": {"rank": "ranks", "best": "most"}}}, r"here\.columns\.ranks: 'columns' h"),
        ({"path": "x", "columns": {"prompt": "{prompt"}}, r"here\.columns\.prompt: the template .*not closed"),
    ],
    ids=str,
)
def test_what_stands_for_no_column_is_refused_before_a_row_is_read(source: dict[str, Any], said: str) -> None:
    with pytest.raises(RecordError, match=said):
        check_source(source, "here")


def test_every_form_of_a_column_is_right() -> None:
    forms = ["a", "a[*].b", "{a}\n{b}", ["a"], [{"role": "user", "content": "{a}"}], {"rank": "a", "best": "lowest"}]
    for form in (*forms, None, {"column": "a", "values": {"b": 1}}):
        check_source({"path": Path("x"), "columns": {"prompt": form, "labels": {"tone": form}}}, "here")
