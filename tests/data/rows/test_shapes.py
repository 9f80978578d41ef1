import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rlhf_lightning.data.records import RecordError
from rlhf_lightning.data.rows.readers import SourceRow
from rlhf_lightning.data.rows.shapes import grouped, message_rankings, shaped

pytestmark = pytest.mark.usefixtures("types_as_users_have_them")

BROKEN = SourceRow("line 9", None, "no JSON")


def placed(rows):
    return [SourceRow(f"line {n}", row) for n, row in enumerate(rows, 1)]


def test_shapes_by_name():
    rows = placed([{"p": 1, "r": "a"}, {"p": 1, "r": "b"}])
    assert list(shaped(rows, None)) == rows
    assert [row.value for row in shaped(rows, {"group_by": "p"})] == [{"p": 1, "r": ["a", "b"]}]
    problem = "column 'message_id' is missing; the row has p, r. Mend 'shape'."
    assert [row.problem for row in shaped(rows, "message_trees")] == [problem, problem]
    for shape in ("trees", {"by": "p"}, 5):
        with pytest.raises(RecordError, match=r"'shape' is .*; it must be message_trees, \{group_by: <column>\}"):
            shaped(rows, shape)


def test_neighbours_with_one_value_are_a_group():
    rows = placed([{"p": "x", "r": "a"}, {"p": "x", "r": "b"}, {"p": "y", "r": "c"}, {"p": "x", "r": "d"}])
    groups = list(grouped([*rows[:3], BROKEN, rows[3]], "p"))
    assert [row.value for row in groups if row.problem is None] == [
        {"p": "x", "r": ["a", "b"]},
        {"p": "y", "r": ["c"]},
        {"p": "x", "r": ["d"]},
    ]
    assert groups[0].place == "line 1 (first of 2)"
    assert BROKEN in groups


def test_columns_that_only_some_rows_of_a_group_have():
    (group,) = grouped(placed([{"p": "x", "r": "a"}, {"p": "x", "s": 1}]), "p")
    assert group.value == {"p": "x", "r": ["a", None]}


def test_a_row_without_the_column_to_group_by():
    rows = list(grouped(placed([{"q": "x"}, [1]]), "p"))
    assert [row.problem for row in rows] == [
        "column 'p' is missing, got {'q': 'x'}. Mend 'shape'.",
        "column 'p' is missing, got [1]. Mend 'shape'.",
    ]


# Trees


def message(own, parent, role, text, rank=None):
    return {"message_id": own, "parent_id": parent, "role": role, "text": text, "rank": rank, "lang": "en"}


TABLE = [
    message("p", None, "prompter", "which way ?"),
    # A reply may stand before the message it answers.
    message("r", "q", "assistant", "stop", 0),
    message("a", "p", "assistant", "left", 3),
    message("b", "p", "assistant", "right", 0),
    message("c", "p", "assistant", "back", 1),
    message("d", "p", "assistant", "unranked"),
    message("q", "b", "prompter", "and then ?"),
    message("s", "q", "assistant", "go on", 1),
    message("t", "s", "prompter", "thanks"),
]
FIRST = [{"role": "user", "content": "which way ?"}]
SECOND = [*FIRST, {"role": "assistant", "content": "right"}, {"role": "user", "content": "and then ?"}]
RANKINGS = [
    {"prompt": FIRST, "completions": ["left", "right", "back"], "ranks": [3, 1, 2], "lang": "en"},
    {"prompt": SECOND, "completions": ["stop", "go on"], "ranks": [1, 2], "lang": "en"},
]


def test_a_table_of_messages():
    rows = list(message_rankings([BROKEN, *placed(TABLE)]))
    assert rows == [BROKEN, SourceRow("line 1", RANKINGS[0]), SourceRow("line 7", RANKINGS[1])]


def test_a_tree_per_row():
    def tree(own):
        found = next(row for row in TABLE if row["message_id"] == own)
        below = [tree(row["message_id"]) for row in TABLE if row["parent_id"] == own]
        return {name: found[name] for name in ("role", "text", "rank", "lang")} | {"replies": below}

    trees = [{"message_tree_id": n, "prompt": tree("p")} for n in (1, 2)]
    rows = list(message_rankings(placed(trees)))
    # The same identifiers in two trees do not meet.
    assert [row.value for row in rows] == [*RANKINGS, *RANKINGS]
    assert [row.place for row in rows] == ["line 1", "line 1", "line 2", "line 2"]


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        ({"parent_id": "gone"}, "field 'parent_id' is 'gone', which leads to no first message"),
        ({"parent_id": "b2"}, "field 'parent_id' is 'b2', which leads to no first message"),
        ({"parent_id": ["p"]}, "fields 'message_id' and 'parent_id' must be strings, got 'b2' and ['p']"),
        ({"message_id": "a"}, "field 'message_id' is 'a', as at line 3"),
        ({"message_id": None}, "fields 'message_id' and 'parent_id' must be strings, got None"),
        ({"role": "user"}, "field 'role' must be prompter or assistant, got 'user'"),
        ({"role": ["prompter"]}, "field 'role' must be prompter or assistant, got ['prompter']"),
        ({"text": None}, "field 'text' must be a string, got None"),
        ({"rank": "first"}, "field 'rank' must be a number where it is given, got 'first'"),
        ({"rank": math.nan}, "field 'rank' must be a number where it is given, got nan"),
    ],
)
def test_malformed_messages(change, problem):
    extra = {**message("b2", "p", "assistant", "other"), **change}
    rows = list(message_rankings(placed([*TABLE, extra])))
    (bad,) = [row for row in rows if row.problem is not None]
    assert (bad.place, bad.value) == ("line 10", extra)
    assert bad.problem is not None
    assert problem in bad.problem
    assert [row.value for row in rows if row.problem is None] == RANKINGS


@pytest.mark.parametrize(
    ("replies", "problem"),
    [
        (5, "a message must be a JSON object, got 5. Mend it or leave it out."),
        ([5], "a message must be a JSON object, got 5. Mend it or leave it out."),
        ("text", "a message must be a JSON object, got 'text'. Mend it or leave it out."),
        ({"a": 1}, "column 'role' is missing; the row has a, message_id, parent_id. Mend 'shape'."),
    ],
)
def test_malformed_trees(replies, problem):
    rows = list(message_rankings(placed([{"prompt": {"role": "prompter", "text": "a", "replies": replies}}])))
    assert [(row.place, row.problem) for row in rows] == [("line 1", problem)]


NAMES = st.sampled_from(["a", "b", "c", "d", "e", None])


@given(
    st.lists(
        st.fixed_dictionaries(
            {"message_id": NAMES, "parent_id": NAMES, "role": st.sampled_from(["prompter", "assistant"])},
            optional={"text": st.sampled_from(["x", "y"]), "rank": st.none() | st.integers(0, 3)},
        ),
        max_size=8,
    )
)
def test_every_message_is_in_a_tree_or_a_problem(messages):
    rows = list(message_rankings(placed(messages)))
    usable = {}
    for row in messages:
        if row["message_id"] is not None and "text" in row:
            usable.setdefault(row["message_id"], row["parent_id"])

    def rooted(name):
        for _ in messages:
            name = usable.get(name, "nowhere")
            if name is None:
                return True
        return False

    assert sum(row.problem is not None for row in rows) == len(messages) - sum(rooted(name) for name in usable)


@given(st.lists(st.fixed_dictionaries({"p": st.integers(0, 2)}, optional={"r": st.integers(0, 9)}) | st.integers(0, 1)))
def test_every_row_is_in_a_group_or_a_problem(values):
    rows = list(grouped(placed(values), "p"))
    in_groups = sum(int(row.place.rpartition("first of ")[2][:-1]) for row in rows if row.problem is None)
    assert in_groups + sum(row.problem is not None for row in rows) == len(values)
