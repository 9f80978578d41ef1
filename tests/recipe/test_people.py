"""People who rank and rate: a step ends with what they are to do, and goes on with what they said."""

import json
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pytest

from rlhf_lightning.data.examples import PromptExample
from rlhf_lightning.data.records import Comparison
from rlhf_lightning.evaluation.policies import PolicySamples
from rlhf_lightning.labeling.store import LabelStore
from rlhf_lightning.labeling.tasks import Task
from rlhf_lightning.recipe.context import Context
from rlhf_lightning.recipe.people import People
from rlhf_lightning.recipe.ranked_by_people import ranked, rankers
from rlhf_lightning.recipe.rated_by_people import rated, raters
from rlhf_lightning.runs.errors import PipelineError, WaitingError
from rlhf_lightning.runs.folders import Runs
from rlhf_lightning.runs.identity import record_files

RANKED = {"enough": 1.0, "shared": 0.0, "labelers_per_shared": 2}


def asking(tmp_path: Path, labelers: str = "people", **options: Any) -> Any:
    folder = tmp_path / "mine" / "collect"
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "stage.json").write_text('{"fingerprint": "0123456789abcdef", "identity": {}}')
    collect = {"labelers": labelers, "people": {**RANKED, **options}, "policies": ["sft"], "prompts": {"train": 9}}
    context = Context.__new__(Context)
    context.runs, context.seed, context.config = Runs(tmp_path, "mine"), 1, {"collect": collect}
    return context, folder


def sampled(count: int, **known: Any) -> dict[str, Any]:
    """By the same prompt and responses the same task."""
    rankings = [
        Comparison(f"p{n}", [f"a{n}", f"b{n}", f"c{n}"], [1, 1, 1], "people", "people", **known) for n in range(count)
    ]
    return {"train": (rankings, {"prompt too long": 2})}


def asked(context: Any, folder: Path, found: Any) -> Any:
    """What the step does with what it sampled."""
    people = rankers(context, "collect", folder)
    assert people is not None
    return ranked(people, found)


def do(tmp_path: Path, labeler: str, count: int, answer: Any) -> list[str]:
    """A labeler does so many tasks; returns their prompts."""
    store, done = LabelStore(tmp_path / "mine" / "labels.sqlite"), []
    if labeler not in {each.name for each in store.labelers()}:
        store.add_labeler(labeler)
    for number in range(count):
        task = store.next_task(labeler)
        if task is None:
            break
        store.save(task.id, labeler, answer(task), 5.0, f"{labeler}/{task.id}/{number}")
        done.append(str(task.task.prompt))
    return done


def in_order(task: Any) -> dict[str, Any]:
    """The first response of the task is the best one, wherever it stood on the page."""
    return {"ranks": [*range(1, len(task.task.responses) + 1)], "likert": [7, 4, 1]}


def unclear(task: Any) -> dict[str, Any]:
    return {"skipped": "unclear"}


def test_it_ends_with_what_lacks_and_goes_on_when_enough_is_ranked(tmp_path: Path) -> None:
    context, folder = asking(tmp_path)
    with pytest.raises(
        WaitingError, match=rf"collect waits .* 0 of 5 prompts are ranked, 5 more .* rlhf-label {tmp_path}/mine"
    ):
        asked(context, folder, sampled(5))
    assert do(tmp_path, "ann", 2, in_order) == ["p0", "p1"]
    assert do(tmp_path, "bob", 1, unclear) == ["p2"]
    said = r"2 of 5 prompts are ranked, 1 skipped as unclear, 2 more are needed \(collect\.people\.enough=1\)"
    with pytest.raises(WaitingError, match=said):  # before anything is sampled or loaded
        rankers(context, "collect", folder)
    do(tmp_path, "bob", 2, in_order)
    comparisons, dropped = asked(context, folder, sampled(5))["train"]
    assert [(each.prompt, each.labeler) for each in comparisons] == [
        ("p0", "ann"),
        ("p1", "ann"),
        ("p3", "bob"),
        ("p4", "bob"),
    ]
    assert dropped == {"prompt too long": 2, "unclear": 1}


def test_a_ranking_keeps_who_gave_it_and_how_it_came_about(tmp_path: Path) -> None:
    context, folder = asking(tmp_path)
    context.config["collect"]["round"] = 2
    known = {"labels": {"use_case": "chat"}, "user": "u7", "labeling": {"policies": ["sft", "ppo", "sft"]}}
    with pytest.raises(WaitingError):
        asked(context, folder, sampled(1, **known))
    orders: list[list[int]] = []
    do(tmp_path, "ann", 1, lambda task: orders.append(task.order) or in_order(task))
    ((record,), _) = asked(context, folder, sampled(1, **known))["train"]
    labeling = {"policies": ["sft", "ppo", "sft"], "likert": [7, 4, 1], "order": orders[0], "round": 2}
    expected = Comparison("p0", ["a0", "b0", "c0"], [1, 2, 3], "ann", "people", {"use_case": "chat"}, "u7", labeling)
    assert record == expected


@pytest.mark.parametrize(
    ("enough", "done", "lacks"),
    [(0.6, 5, 1), (0.6, 6, 0), (0.7, 7, 0), (6, 5, 1), (6, 6, 0), (1, 9, 1), (99, 9, 1), (99, 10, 0)],
)
def test_enough_is_a_share_or_a_number(tmp_path: Path, enough: float, done: int, lacks: int) -> None:
    context, folder = asking(tmp_path, enough=enough)
    with pytest.raises(WaitingError):
        asked(context, folder, sampled(10))
    do(tmp_path, "ann", done, in_order)
    if lacks:
        with pytest.raises(WaitingError, match=f"{lacks} more are needed"):
            asked(context, folder, sampled(10))
    else:
        comparisons, dropped = asked(context, folder, sampled(10))["train"]
        assert len(comparisons) == done
        assert dropped.get("not ranked", 0) == 10 - done


def test_shared_prompts_have_a_ranking_of_each_labeler(tmp_path: Path) -> None:
    context, folder = asking(tmp_path, shared=0.5)
    with pytest.raises(WaitingError):
        asked(context, folder, sampled(4))
    assert len(do(tmp_path, "ann", 9, in_order)) == 4  # enough, though nobody has shared one yet
    rankers(context, "collect", folder)
    assert len(do(tmp_path, "bob", 9, in_order)) == 2
    comparisons, dropped = asked(context, folder, sampled(4))["train"]
    assert sorted(each.labeler for each in comparisons) == ["ann"] * 4 + ["bob"] * 2
    assert dropped == {"prompt too long": 2}


def test_nothing_changes_once_the_run_has_gone_on(tmp_path: Path) -> None:
    context, folder = asking(tmp_path, enough=1.0, shared=1.0)
    with pytest.raises(WaitingError):
        asked(context, folder, sampled(2))
    do(tmp_path, "ann", 2, in_order)
    first = asked(context, folder, sampled(2))
    assert do(tmp_path, "bob", 2, in_order) == []
    assert LabelStore(tmp_path / "mine" / "labels.sqlite").undo("ann") is None
    assert asked(context, folder, sampled(2)) == first


def test_the_step_with_other_settings_has_tasks_of_its_own(tmp_path: Path) -> None:
    context, folder = asking(tmp_path)
    with pytest.raises(WaitingError):
        asked(context, folder, sampled(2))
    do(tmp_path, "ann", 1, in_order)
    (folder / "stage.json").write_text('{"fingerprint": "fedcba9876543210", "identity": {}}')
    (folder / "tasks.train.jsonl").unlink()
    with pytest.raises(WaitingError, match="0 of 3 prompts are ranked"):
        asked(context, folder, sampled(3))
    assert do(tmp_path, "ann", 9, in_order) == ["p0", "p1", "p2"]  # and none of the old ones


def answer_file(folder: Path, *rows: Any) -> None:
    lines = [row if isinstance(row, str) else json.dumps(row) for row in rows]
    (folder / "answers.train.jsonl").write_text("".join(line + "\n" for line in lines))


def rows_of(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / "tasks.train.jsonl").read_text().splitlines()]


def test_a_tool_of_ones_own_reads_tasks_and_writes_answers(tmp_path: Path) -> None:
    context, folder = asking(tmp_path, labelers="files")
    with pytest.raises(
        WaitingError, match=r"there: answers\.<part>\.jsonl beside .*tasks\.<part>\.jsonl \(part: train\)"
    ):
        asked(context, folder, sampled(3))
    assert not (tmp_path / "mine" / "labels.sqlite").exists()
    one, two, three = rows_of(folder)
    assert (one["prompt"], one["responses"], one["policies"]) == ("p0", ["a0", "b0", "c0"], [])
    fields = [{"hallucination": True}, {}, {}]
    answer_file(
        folder,
        {"task": three["id"], "labeler": "ann", "answer": {"skipped": "unclear"}},
        {"task": two["id"], "labeler": "ann", "answer": {"ranks": [2, 1, 2], "likert": [3, 6, 3], "fields": fields}},
    )
    with pytest.raises(WaitingError, match="1 of 3 prompts are ranked, 1 skipped as unclear, 1 more"):
        rankers(context, "collect", folder)
    with (folder / "answers.train.jsonl").open("a") as file:
        file.write(json.dumps({"task": one["id"], "labeler": "bob", "answer": {"ranks": [1, 1, 2]}}))  # no line end
    comparisons, dropped = asked(context, folder, sampled(3))["train"]
    assert [(each.prompt, each.ranks, each.labeler) for each in comparisons] == [
        ("p0", [1, 1, 2], "bob"),
        ("p1", [2, 1, 2], "ann"),
    ]
    assert comparisons[1].labeling == {
        "policies": ["sft"] * 3,
        "likert": [3, 6, 3],
        "fields": fields,
        "order": [0, 1, 2],
        "round": 1,
    }
    assert dropped["unclear"] == 1
    assert record_files(folder) == []  # people may go on writing there


def test_rankings_from_which_nothing_can_be_learned_are_waited_for(tmp_path: Path) -> None:
    context, folder = asking(tmp_path, labelers="files")
    with pytest.raises(WaitingError):
        asked(context, folder, sampled(2))
    one, two = rows_of(folder)
    tied = {"task": one["id"], "labeler": "ann", "answer": {"ranks": [1, 1, 1]}}
    answer_file(folder, tied, {"task": two["id"], "labeler": "ann", "answer": {"skipped": "unclear"}})
    with pytest.raises(WaitingError, match=r"train: no response was ranked above another.*Take an answer back"):
        asked(context, folder, sampled(2))
    answer_file(folder, tied, {"task": two["id"], "labeler": "ann", "answer": {"ranks": [1, 2, 1]}})
    assert len(asked(context, folder, sampled(2))["train"][0]) == 2


GOOD = {"labeler": "ann", "answer": {"ranks": [1, 2, 3]}}


@pytest.mark.parametrize(
    ("second", "said"),
    [
        ({**GOOD, "task": "x"}, "line 2: field 'task' is 'x', which no task is called"),
        ({**GOOD, "task": 0}, "line 2: ann answers task .* again, as at .*line 1"),
        ({**GOOD, "task": 1, "answer": {"ranks": [1, 2, 4]}}, "line 2: field 'ranks' must be dense"),
        ({**GOOD, "task": 1, "answer": {"ranks": [1, 2]}}, "line 2: field 'ranks' must hold 3 values"),
        ({**GOOD, "task": 1, "answer": {"ranks": [1, 2, 3], "likert": [8, 1, 1]}}, "line 2: field 'likert' must be"),
        ({**GOOD, "task": 1, "answer": {"likert": [1, 1, 1]}}, "line 2: field 'ranks' is missing"),
        ({**GOOD, "task": 1, "labeler": " "}, "line 2: a line must be"),
        ({"task": 1, "answer": {"ranks": [1, 2, 3]}}, "line 2: a line must be"),
        ({**GOOD, "task": 1, "seconds": 3}, "line 2: a line must be"),
        ("[1]", "line 2: a line must be"),
        ("{", "line 2: "),
    ],
)
def test_a_wrong_answer_is_named_with_file_and_line(tmp_path: Path, second: Any, said: str) -> None:
    context, folder = asking(tmp_path, labelers="files")
    with pytest.raises(WaitingError):
        asked(context, folder, sampled(2))
    ids = [row["id"] for row in rows_of(folder)]
    if isinstance(second, dict) and isinstance(second["task"], int):
        second = {**second, "task": ids[second["task"]]}
    answer_file(folder, {**GOOD, "task": ids[0]}, second)
    with pytest.raises(PipelineError, match=rf"answers\.train\.jsonl, {said}") as error:
        rankers(context, "collect", folder)
    assert not isinstance(error.value, WaitingError)


SAMPLES = {
    "sft": PolicySamples(responses=["same", "s1", "s2"]),
    "ppo": PolicySamples(responses=["same", "p1", "p2"]),
    "ptx": PolicySamples(responses=["x0", "x1", "x2"]),
}
PROMPTS = [PromptExample([1], number, f"q{number}") for number in range(3)]


def rating(tmp_path: Path, **options: Any) -> Any:
    context, _ = asking(tmp_path)
    folder = tmp_path / "mine" / "evaluate"
    folder.mkdir(exist_ok=True)
    (folder / "stage.json").write_text('{"fingerprint": "0123456789abcdef", "identity": {}}')
    context.config["evaluate"] = {"people": {"prompts": 2, **options}}
    return context, folder


def rate(scores: dict[str, int]) -> Any:
    def answer(task: Any) -> dict[str, Any]:
        texts = task.task.responses
        return {
            "likert": [scores[text] for text in texts],
            "fields": [{"hallucination": text == "x1"} for text in texts],
        }

    return answer


def test_people_rate_blindly_beside_the_other_judges(tmp_path: Path) -> None:
    context, folder = rating(tmp_path, labelers=2)
    samples = {name: replace(own, preferences={}) for name, own in SAMPLES.items()}
    with pytest.raises(WaitingError, match=r"evaluate waits .* 0 of 2 prompts are rated by 2 people, 2 more"):
        rated(raters(context, "evaluate", folder), samples, PROMPTS, "sft")
    # Two policies said the same to the first prompt, which is shown once.
    tasks = LabelStore(tmp_path / "mine" / "labels.sqlite").tasks(kind="evaluation")
    assert [task.responses for task in tasks] == [["same", "x0"], ["s1", "p1", "x1"]]
    do(tmp_path, "ann", 9, rate({"same": 5, "x0": 7, "s1": 4, "p1": 4, "x1": 1}))
    with pytest.raises(WaitingError, match="0 of 2"):
        raters(context, "evaluate", folder)
    do(tmp_path, "bob", 9, rate({"same": 5, "x0": 2, "s1": 4, "p1": 6, "x1": 1}))
    said = rated(raters(context, "evaluate", folder), samples, PROMPTS, "sft")["people"]
    assert (said["prompts"], said["answers"], said["labelers"], said["unclear"]) == (2, 4, 2, 0)
    assert samples["ppo"].preferences == {"people": [0.5, 0.75, None]}  # equal text; a tie and a win
    assert samples["ptx"].preferences == {"people": [0.5, 0.0, None]}
    of = {name: said["policies"][name] for name in SAMPLES}
    assert of["sft"]["win_rate"] is None
    assert of["ppo"]["win_rate"]["value"] == (0.5 + 0.5 + 0.5 + 1) / 4
    assert of["ppo"]["table_3"]["likert"]["value"] == (5 + 4 + 5 + 6) / 4
    assert of["ptx"]["table_3"]["hallucination"]["value"] == 0.5
    # Of the pairs that neither ties: x0 over same by one of two, s1 over x1 and p1 over x1 by both.
    assert said["agreement"]["agreement"]["value"] == pytest.approx(2 / 3)


def test_nobody_is_asked_to_rate_unless_it_is_said(tmp_path: Path) -> None:
    context, folder = rating(tmp_path)
    context.config["evaluate"] = {"people": None}
    samples = {name: replace(own, preferences={}) for name, own in SAMPLES.items()}
    assert rated(raters(context, "evaluate", folder), samples, PROMPTS, "sft") == {}
    assert samples == {name: replace(own, preferences={}) for name, own in SAMPLES.items()}


def test_a_prompt_that_nobody_can_rate_counts_as_unclear(tmp_path: Path) -> None:
    context, folder = rating(tmp_path, form="toxicity")
    with pytest.raises(WaitingError):
        rated(raters(context, "evaluate", folder), SAMPLES, PROMPTS, "sft")
    do(tmp_path, "ann", 1, unclear)
    do(tmp_path, "ann", 1, lambda task: {"toxicity": [2 if text == "x1" else 0 for text in task.task.responses]})
    said = rated(raters(context, "evaluate", folder), SAMPLES, PROMPTS, "sft")["people"]
    assert said["unclear"] == 1
    assert said["policies"]["ptx"]["toxicity"]["value"] == 2
    assert all(not own.preferences for own in SAMPLES.values())


def test_tasks_are_not_opened_twice(tmp_path: Path) -> None:
    context, folder = asking(tmp_path)
    people = People(context, "collect", folder, "ranked")
    tasks = [Task("", "ranking", people.batch("train"), "p", ["a", "b"])]
    for _ in range(2):
        with pytest.raises(WaitingError, match="0 of 1"):
            people.answers({"train": tasks})
    assert [asdict(task) for task in LabelStore(tmp_path / "mine" / "labels.sqlite").tasks()] == rows_of(folder)


def test_later_rounds_are_labeled_on_the_page_of_the_first(tmp_path: Path) -> None:
    context, _ = asking(tmp_path)
    folder = tmp_path / "mine" / "round-2" / "collect"
    folder.mkdir(parents=True)
    (folder / "stage.json").write_text('{"fingerprint": "0123456789abcdef", "identity": {}}')
    context.runs, context.config["collect"]["round"] = Runs(tmp_path, "mine/round-2"), 2
    with pytest.raises(WaitingError, match=rf"rlhf-label {tmp_path}/mine\. "):
        asked(context, folder, sampled(1))
    (task,) = LabelStore(tmp_path / "mine" / "labels.sqlite").tasks()
    assert (task.batch, task.known["round"]) == ("round-2/collect/train/01234567", 2)
