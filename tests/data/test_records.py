import pytest

from rlhf_lightning.data.records import Comparison, Demonstration, Prompt, RecordError, Text, short

pytestmark = pytest.mark.usefixtures("types_as_users_have_them")


def turns(*roles):
    return [{"role": role, "content": "left or right ?"} for role in roles]


def kinds_with_prompt(prompt):
    return [lambda: Demonstration(prompt, "b"), lambda: Comparison(prompt, ["b", "c"], [1, 2]), lambda: Prompt(prompt)]


@pytest.mark.parametrize("prompt", [5, [], {}, [[]], ["hello"], [{"role": "user"}], [{"role": "user", "content": 3}]])
def test_malformed_prompt(prompt):
    for make in kinds_with_prompt(prompt):
        with pytest.raises(RecordError, match=r"'prompt' must be a string or a list of \{'role': \.\.\., 'content'"):
            make()


@pytest.mark.parametrize("prompt", [" \n", [{"role": "user", "content": ""}]])
def test_empty_prompt(prompt):
    for make in kinds_with_prompt(prompt):
        with pytest.raises(RecordError, match="'prompt' is empty; fill it or leave the row out"):
            make()


@pytest.mark.parametrize("roles", [["user"], ["system", "user"], ["user", "assistant", "user"]])
def test_roles_in_order(roles):
    assert Prompt(turns(*roles)).prompt == turns(*roles)


@pytest.mark.parametrize(
    "roles",
    [
        ["system"],
        ["assistant"],
        ["user", "assistant"],
        ["user", "user"],
        ["assistant", "user"],
        ["user", "system", "user"],
        ["system", "system", "user"],
        ["system", "assistant", "user"],
        ["user", "assistant", "assistant", "user"],
        ["user", "assistant", "user", "assistant"],
        ["User"],
        ["human"],
    ],
)
def test_roles_out_of_order(roles):
    with pytest.raises(RecordError, match=f"'prompt' has the roles '{', '.join(roles)}'; .*take turns, the user first"):
        Prompt(turns(*roles))


@pytest.mark.parametrize(
    ("make", "field"),
    [
        (lambda text: Demonstration("a", text), "response"),
        (Text, "text"),
        (lambda t: Comparison("a", ["b", t], [1, 2]), "completions"),
    ],
)
def test_malformed_strings(make, field):
    with pytest.raises(RecordError, match=rf"'{field}' must be a string, got \['b'\]"):
        make(["b"])
    with pytest.raises(RecordError, match=f"'{field}' is empty; fill it or leave the row out"):
        make("\t")
    with pytest.raises(RecordError, match=rf"'{field}' holds broken UTF-8 at character 2, got 'ab\\ud800'.*UTF-8"):
        make("ab\ud800")


@pytest.mark.parametrize("completions", ["ab", ["a"], [], {"a": 1, "b": 2}, None])
def test_too_few_completions(completions):
    with pytest.raises(RecordError, match=r"'completions' must be a list of at least 2 strings.*leave the row out"):
        Comparison("a", completions, [1, 2])


@pytest.mark.parametrize("ranks", [[1], [1, 2, 3], [0, 1], [1, -1], [1.0, 2.0], [True, 2], ["1", "2"], "12", 1])
def test_malformed_ranks(ranks):
    with pytest.raises(RecordError, match=r"'ranks' must hold 2 whole numbers from 1 \(best\) up, one per completion"):
        Comparison("a", ["b", "c"], ranks)


@pytest.mark.parametrize(
    "ranks",
    [[1, 2, 3, 4], [2, 3, 2, 1], [1, 2, 2, 4], [4, 2, 1, 2], [1, 1, 3, 4], [1, 1, 1, 1], [1, 1, 3, 3], [2, 2, 1, 2]],
)
def test_dense_and_competition_ranks_stay_as_they_are(ranks):
    assert Comparison("a", ["b", "c", "d", "e"], ranks).ranks == ranks


@pytest.mark.parametrize(
    "ranks", [[1, 3, 3, 3], [2, 3, 4, 5], [2, 2, 2, 2], [1, 2, 2, 5], [1, 1, 2, 4], [1, 1, 4, 4], [1, 2, 3, 9]]
)
def test_ranks_with_gaps(ranks):
    with pytest.raises(RecordError) as raised:
        Comparison("a", ["b", "c", "d", "e"], ranks)
    assert f"'ranks' holds {ranks}, which are neither dense ranks (1, 2, 2, 3) nor competition" in str(raised.value)
    assert "columns: {ranks: {rank: ranks, best: lowest}}" in str(raised.value)


def test_long_values_are_shortened_in_the_message():
    with pytest.raises(RecordError) as raised:
        Prompt([{"role": "user", "text": "x" * 1000}])
    assert len(str(raised.value)) < 250
    assert short("x" * 80) == "'" + "x" * 76 + "..."


@pytest.mark.parametrize(
    ("make", "field"),
    [
        (lambda: Comparison("a", ["b", "c"], [1, 2], labeler=7), "labeler"),
        (lambda: Comparison("a", ["b", "c"], [1, 2], source=7), "source"),
        (lambda: Demonstration("a", "b", user=7), "user"),
        (lambda: Prompt("a", source=["s"]), "source"),
        (lambda: Text("a", source=7), "source"),
    ],
)
def test_labels_are_strings(make, field):
    with pytest.raises(RecordError, match=f"field '{field}' must be a string where it is given"):
        make()


@pytest.mark.parametrize("labels", ["qa", ["qa"], {"use_case": 3}, {"ambiguous": ["yes"]}])
@pytest.mark.parametrize(
    "make",
    [
        lambda labels: Demonstration("a", "b", labels=labels),
        lambda labels: Comparison("a", ["b", "c"], [1, 2], labels=labels),
        lambda labels: Prompt("a", labels=labels),
    ],
)
def test_malformed_labels(make, labels):
    with pytest.raises(RecordError, match="'labels' must be an object of strings and true or false"):
        make(labels)


def test_labels_are_carried_and_change_no_hash():
    labelled = Prompt("a", labels={"use_case": "qa", "ambiguous": False, "user": None})
    assert labelled.labels == {"use_case": "qa", "ambiguous": False, "user": None}
    assert labelled != Prompt("a")
    assert len({labelled, Prompt("a", labels={"use_case": "chat"})}) == 2
