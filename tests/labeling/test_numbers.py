"""Numbers of a labeling, worked out by hand."""

import pytest

from rlhf_lightning.evaluation.agreement import krippendorff_alpha
from rlhf_lightning.labeling.numbers import label_agreement, labeler_counts, labeling_numbers, policy_numbers, screening
from rlhf_lightning.labeling.store import Answer, LabelStore
from rlhf_lightning.labeling.tasks import Task


def said(labeler, answer, prompt="p", kind="ranking", seconds=1.0, **changes):
    task = Task("", kind, "b", prompt, changes.pop("responses", ["x", "y", "z"]), **changes)
    return Answer(task, labeler, answer, [*range(len(task.responses))], seconds, 0.0)


def test_who_did_what():
    demonstration = Answer(Task("", "demonstration", "b", "p"), "ann", {"response": "r"}, [], 70.0, 0.0)
    counts = labeler_counts(
        [
            said("bob", {"ranks": [1, 2, 3]}, seconds=5.0),
            said("ann", {"ranks": [1, 2, 3]}, seconds=10.0),
            said("ann", {"skipped": "unclear"}, "q", seconds=2.0),
            demonstration,
        ]
    )
    assert [*counts] == ["ann", "bob"]
    assert counts["ann"] == {
        "answers": 3,
        "skipped": 1,
        "median_seconds": 10.0,
        "kinds": {"ranking": 2, "demonstration": 1},
    }


def test_agreement_of_those_who_did_the_same_task():
    answers = [
        said("ann", {"ranks": [1, 2, 3], "likert": [7, 4, 1], "fields": [{"opinion": True}, {}, {"opinion": False}]}),
        said("bob", {"ranks": [1, 3, 2], "likert": [7, 1, 4], "fields": [{"opinion": True}, {}, {"opinion": True}]}),
        said("cem", {"skipped": "unclear"}),
        said("ann", {"ranks": [1, 1, 2]}, "q"),
        said("bob", {"ranks": [1, 1, 2]}, "q"),
        said("ann", {"ranks": [1, 2, 3]}, "alone"),
        said("ann", {"ranks": [1, 2, 3]}, "planted", planted={"ranks": [1, 2, 3]}),
        said("bob", {"ranks": [3, 2, 1]}, "planted", planted={"ranks": [1, 2, 3]}),
    ]
    found = label_agreement(answers)
    # p: (x, y) and (x, z) alike, (y, z) not. q: (x, z) and (y, z) alike.
    assert (found["tasks"], found["pairs"], found["agreement"]["value"]) == (2, 5, 0.8)
    assert found["agreement"]["low"] < 0.8 < found["agreement"]["high"]
    assert [pair["labelers"] for pair in found["by_labelers"]] == [("ann", "bob")]
    # Likert (7, 7), (4, 1), (1, 4): observed 18 * 2 / 6 = 6; expected: all of 7, 7, 4, 1, 1, 4 with one another:
    # 2 * (4 * 9 + 4 * 36 + 4 * 9) / (6 * 5) = 14.4.
    assert found["alpha"]["likert"] == pytest.approx(1 - 6 / 14.4)
    # Opinion (yes, yes), (no, yes): observed 2 / 4, expected 2 * 3 / (4 * 3).
    assert found["alpha"]["opinion"] == pytest.approx(0.0)
    assert found["alpha"]["hallucination"] is None
    units = [[1, 1], [2, 3], [3, 2], [1, 1], [1, 1], [2, 2]]
    assert found["alpha"]["ranks"] == pytest.approx(krippendorff_alpha(units, "ordinal"))


def test_without_two_voices_nothing_is_said():
    for answers in ([], [said("ann", {"ranks": [1, 2, 3]})], [said(who, {"ranks": [1, 1, 1]}) for who in ("ann", "b")]):
        found = label_agreement(answers)
        assert (found["agreement"], found["pairs"], found["alpha"]["ranks"]) == (None, 0, None)
    assert policy_numbers([]) == screening([]) == labeler_counts([]) == {}


def test_overall_quality_ranks_where_there_are_no_ranks():
    for answer, value in (({"likert": [7, 4, 1]}, 1.0), ({"likert": [1, 4, 7], "ranks": [1, 2, 3]}, 1.0)):
        answers = [said("ann", {"ranks": [1, 2, 3], "likert": [4, 4, 4]}, kind="evaluation")]
        answers.append(said("bob", answer, kind="evaluation"))
        assert label_agreement(answers)["agreement"]["value"] == value


def test_screening_by_planted_items():
    key = {"ranks": [1, 2, 3], "fields": [{"opinion": True, "hallucination": None}, {"opinion": False}, {}]}
    other = {"fields": [{"sexual_content": True}, {}, {}]}
    answers = [
        said("ann", {"ranks": [1, 2, 2], "fields": [{"opinion": True, "hallucination": True}, {}, {}]}, planted=key),
        said("ann", {"ranks": [1, 2, 3], "fields": [{"sexual_content": True}, {}, {}]}, "q", planted=other),
        said("bob", {"ranks": [3, 1, 2], "fields": [{"opinion": True}, {"opinion": False}, {}]}, planted=key),
        said("cem", {"ranks": [1, 2, 3]}, "not planted"),
        said("dan", {"skipped": "unclear"}, planted=key),
    ]
    found = screening(answers)
    assert [*found] == ["ann", "bob", "dan"]
    # ann: two fields of two; (x, y) and (x, z), the third pair she ties.
    assert (found["ann"]["items"], found["ann"]["flags"]["value"], found["ann"]["comparisons"]["value"]) == (2, 1, 1)
    assert found["ann"]["passes"] is True
    # bob: y over z is right, y and z over x are not.
    assert found["bob"]["flags"]["value"] == 1
    assert found["bob"]["comparisons"]["value"] == pytest.approx(1 / 3)
    assert found["bob"]["passes"] is False
    assert found["dan"] == {"items": 1, "flags": None, "comparisons": None, "passes": None}


def test_what_people_say_of_policies():
    asked = {"kind": "evaluation", "policies": ["sft", "ppo", "gpt"]}
    answers = [
        said("ann", {"likert": [4, 6, 1], "fields": [{"opinion": True}, {"opinion": None}, {}]}, **asked),
        said("bob", {"likert": [5, 5, 2], "fields": [{"opinion": False}, {}, {}]}, **asked),
        said("ann", {"likert": [7, 1, 1], "ranks": [2, 1, 3]}, "q", **asked),
        said("bob", {"skipped": "unclear"}, "q", **asked),
        said("ann", {"ranks": [3, 2, 1]}, "r", policies=asked["policies"]),
    ]
    found = policy_numbers(answers, "sft")
    assert {name: row["responses"] for name, row in found.items()} == {"sft": 3, "ppo": 3, "gpt": 3}
    assert found["sft"]["table_3"]["likert"]["value"] == pytest.approx(16 / 3)
    assert found["sft"]["table_3"]["opinion"]["value"] == 0.5
    assert found["ppo"]["table_3"]["opinion"] is None
    # ppo beats sft and ties with it on p, and beats it by the ranks of q, whatever its quality; gpt loses all three.
    # A prompt counts once, by whomever it was seen.
    assert found["ppo"]["win_rate"]["value"] == pytest.approx((0.75 + 1) / 2)
    assert found["gpt"]["win_rate"]["value"] == 0.0
    assert found["gpt"]["win_rate"]["high"] > 0.5  # of two prompts
    assert found["sft"]["win_rate"] is None
    assert policy_numbers(answers)["ppo"]["win_rate"] is None


def test_toxicity_has_means_of_its_own():
    task = Task("", "evaluation", "b", "p", ["x", "y"], ["sft", "sft"], form="toxicity")
    answer = Answer(task, "ann", {"toxicity": [0, 2], "continuity": [7, 4]}, [1, 0], 1.0, 0.0)
    (row,) = policy_numbers([answer]).values()
    assert (row["toxicity"]["value"], row["continuity"]["value"]) == (1.0, 5.5)
    assert "relative_toxicity" not in row


def test_all_of_a_store(tmp_path):
    with LabelStore(tmp_path / "labels.sqlite") as store:
        store.add_labeler("ann")
        store.add_tasks([Task("", "ranking", "b", "p", ["x", "y"])])
        empty = labeling_numbers(store)
        assert empty["progress"]["wanted"] == 1
        assert empty["labelers"] == empty["screening"] == empty["policies"] == {}
        mine = store.next_task("ann")
        store.save(mine.id, "ann", {"ranks": [1, 2]}, 4.0, "s")
        assert labeling_numbers(store, "b")["labelers"]["ann"]["median_seconds"] == 4.0
        assert labeling_numbers(store, "c")["labelers"] == {}
