import json

from rlhf_lightning.data.records import Comparison, Demonstration
from rlhf_lightning.data.sources import RecordStream
from rlhf_lightning.labeling.export import demonstrations, rankings, write_exports
from rlhf_lightning.labeling.store import Answer, LabelStore
from rlhf_lightning.labeling.tasks import Task

KNOWN = {"user": "u", "source": "s", "labels": {"use_case": "brainstorming", "unclear": False}, "round": 2}


def test_rankings_are_comparisons():
    task = Task("", "ranking", "b", "p", ["x", "y"], ["sft", "ppo"], known=KNOWN)
    planted = Task("", "ranking", "b", "q", ["x", "y"], planted={"ranks": [1, 2]})
    answers = [
        Answer(task, "ann", {"ranks": [2, 1], "likert": [1, 7]}, [1, 0], 3.0, 0.0),
        Answer(task, "bob", {"ranks": [1, 1]}, [0, 1], 3.0, 0.0),
        Answer(task, "cem", {"skipped": "unclear"}, [0, 1], 3.0, 0.0),
        Answer(planted, "ann", {"ranks": [2, 1]}, [0, 1], 3.0, 0.0),
        Answer(Task("", "evaluation", "b", "p", ["x", "y"]), "ann", {"likert": [1, 2]}, [0, 1], 3.0, 0.0),
    ]
    asked, known, made = ("p", ["x", "y"]), ("s", KNOWN["labels"], "u"), {"policies": ["sft", "ppo"], "round": 2}
    assert rankings(answers) == [
        Comparison(*asked, [2, 1], "ann", *known, {**made, "likert": [1, 7], "order": [1, 0]}),
        Comparison(*asked, [1, 1], "bob", *known, {**made, "order": [0, 1]}),
    ]
    assert demonstrations(answers) == []


def test_demonstrations_of_every_kind_of_prompt():
    talk = [{"role": "user", "content": "p"}]
    own = Task("", "demonstration", "b", None)
    pairs = [{"query": "hot", "response": "cold"}, {"query": "up", "response": "down"}]
    answers = [
        Answer(Task("", "demonstration", "b", talk, known=KNOWN), "ann", {"response": "r"}, [], 1.0, 0.0),
        Answer(own, "bob", {"prompt_kind": "plain", "prompt": "q", "response": "r"}, [], 1.0, 0.0),
        Answer(own, "bob", {"prompt_kind": "few_shot", "instruction": "Opposites.", "pairs": pairs}, [], 1.0, 0.0),
        Answer(own, "bob", {"skipped": "tired"}, [], 1.0, 0.0),
    ]
    few = {"labeler": "bob", "prompt_kind": "few_shot"}
    assert demonstrations(answers) == [
        Demonstration(talk, "r", "u", "s", {**KNOWN["labels"], "labeler": "ann", "prompt_kind": "given"}),
        Demonstration("q", "r", "bob", "labeler", {"labeler": "bob", "prompt_kind": "plain"}),
        Demonstration("Opposites.\n\nup\ndown\n\nhot", "cold", "bob", "labeler", few),
        Demonstration("Opposites.\n\nhot\ncold\n\nup", "down", "bob", "labeler", few),
    ]


def test_files_hold_everything(tmp_path):
    with LabelStore(tmp_path / "labels.sqlite") as store:
        store.add_labeler("ann")
        task = Task("", "ranking", "round-2", "p", ["x", "y"], ["sft", None], known=KNOWN)
        store.add_tasks([task, Task("", "demonstration", "sft", "ü \u2028")])
        for number, answer in enumerate(({"ranks": [1, 2], "likert": [7, 1]}, {"response": "r"})):
            mine = store.next_task("ann")
            store.save(mine.id, "ann", answer, 5.5, f"s{number}")
        store.undo("ann")
        store.save(mine.id, "ann", {"response": "better"}, 9.0, "s2")
        paths = write_exports(store, tmp_path / "out")
        saved = {answer.submission: answer for answer in store.answers()}
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == sorted(path.name for path in paths)
    made = {"policies": ["sft", None], "likert": [7, 1], "order": saved["s0"].order, "round": 2}
    assert [*RecordStream([tmp_path / "out" / "comparisons.train.jsonl"], Comparison, None, {})] == [
        Comparison("p", ["x", "y"], [1, 2], "ann", "s", KNOWN["labels"], "u", made)
    ]
    (demonstration,) = RecordStream([tmp_path / "out" / "demonstrations.train.jsonl"], Demonstration, None, {})
    assert (demonstration.prompt, demonstration.response) == ("ü \u2028", "better")
    ranked, written = (json.loads(line) for line in (tmp_path / "out" / "answers.jsonl").read_text().split("\n")[:2])
    assert ranked["saved_at"] >= ranked.pop("given_at") == saved["s0"].given_at
    assert ranked.pop("order") in ([0, 1], [1, 0])
    assert ranked.pop("saved_at")
    assert ranked == {
        "task": task.id,
        "kind": "ranking",
        "batch": "round-2",
        "prompt": "p",
        "responses": ["x", "y"],
        "policies": ["sft", None],
        "labelers_wanted": 1,
        "form": "quality",
        "known": KNOWN,
        "planted": None,
        "labeler": "ann",
        "answer": {"ranks": [1, 2], "likert": [7, 1]},
        "seconds": 5.5,
        "submission": "s0",
        "undone_at": None,
    }
    assert (written["answer"], written["seconds"]) == ({"response": "better"}, 9.0)
    (undone,) = [json.loads(line) for line in (tmp_path / "out" / "undone.jsonl").read_text().split("\n")[:-1]]
    assert (undone["answer"], undone["submission"]) == ({"response": "r"}, "s1")
    assert undone["undone_at"] is not None
