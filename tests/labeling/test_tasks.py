import pytest

from rlhf_lightning.data.records import RecordError
from rlhf_lightning.labeling.tasks import FIELDS, Task, check_answer, share

pytestmark = pytest.mark.usefixtures("types_as_users_have_them")
RANKING = Task("", "ranking", "b", "p", ["x", "y", "z"], ["sft", None, "ppo"])
EVALUATION = Task("", "evaluation", "b", "p", ["x", ""])
TOXICITY = Task("", "evaluation", "b", "p", ["x", "y"], form="toxicity")
DEMONSTRATION = Task("", "demonstration", "b", [{"role": "user", "content": "p"}])
OWN = Task("", "demonstration", "b", None)
FEW_SHOT = Task("", "demonstration", "b", None, known={"prompt_kind": "few_shot"})
PAIRS = [{"query": "hot", "response": "cold"}, {"query": "up", "response": "down"}]

GOOD = [
    (RANKING, {"ranks": [2, 1, 2]}),
    (RANKING, {"ranks": [1, 1, 1], "likert": [1, 7, 4], "fields": [{}, {"hallucination": True}, {"opinion": None}]}),
    (RANKING, {"skipped": "unclear"}),
    (EVALUATION, {"likert": [7, 1]}),
    (EVALUATION, {"likert": [7, 1], "ranks": [1, 2], "fields": [{"opinion": False}, {}]}),
    (TOXICITY, {"toxicity": [0, 2], "relative_toxicity": [-1, 1], "continuity": [7, 1]}),
    (DEMONSTRATION, {"response": "r"}),
    (DEMONSTRATION, {"response": "r", "prompt_kind": "given", "prompt": [{"role": "user", "content": "p"}]}),
    (OWN, {"prompt_kind": "plain", "prompt": "p", "response": "r"}),
    (OWN, {"prompt_kind": "user_based", "prompt": [{"role": "user", "content": "p"}], "response": "r"}),
    (OWN, {"prompt_kind": "few_shot", "instruction": "Opposites.", "pairs": PAIRS}),
    (FEW_SHOT, {"prompt_kind": "few_shot", "instruction": "Opposites.", "pairs": PAIRS}),
    (OWN, {"skipped": "nothing came to mind"}),
]
BAD = [
    (RANKING, [1, 2, 3], "an answer must be an object"),
    (RANKING, {}, "an answer must be an object"),
    (RANKING, {"likert": [1, 2, 3]}, "'ranks' is missing"),
    (RANKING, {"ranks": [1, 2]}, "'ranks' must hold 3 values"),
    (RANKING, {"ranks": [1, 3, 3]}, "'ranks' must be dense"),
    (RANKING, {"ranks": [2, 2, 3]}, "'ranks' must be dense"),
    (RANKING, {"ranks": [0, 1, 2]}, "'ranks' must be a list .a whole number of at least 1 each"),
    (RANKING, {"ranks": [1, 2, True]}, "'ranks' must be a list"),
    (RANKING, {"ranks": "123"}, "'ranks' must be a list"),
    (RANKING, {"ranks": None}, "'ranks' must be a list"),
    (RANKING, {"ranks": [1, 2, 3], "likert": [1, 2, 8]}, "'likert' must be a list .a whole number in .1, 7. each"),
    (RANKING, {"ranks": [1, 2, 3], "likert": [1.0, 2, 3]}, "'likert' must be a list"),
    (RANKING, {"ranks": [1, 2, 3], "rank": 1}, "'rank' is not asked for; did you mean 'ranks'"),
    (RANKING, {"ranks": [1, 2, 3], "fields": [{}, {}, {"halucination": True}]}, "did you mean 'hallucination'"),
    (RANKING, {"ranks": [1, 2, 3], "fields": [{}, {}, {"hallucination": 1}]}, "'fields' must be a list"),
    (RANKING, {"ranks": [1, 2, 3], "skipped": "unclear"}, "'ranks' is not asked for"),
    (RANKING, {"skipped": " "}, "'skipped' must be text that is not empty"),
    (EVALUATION, {"ranks": [1, 2]}, "'likert' is missing"),
    (TOXICITY, {"toxicity": [0, 3]}, "'toxicity' must be a list"),
    (DEMONSTRATION, {"response": "\n"}, "'response' must be text that is not empty"),
    (DEMONSTRATION, {"response": "r" * 200_001}, "'response' has 200,001 characters; 200,000 are allowed"),
    (DEMONSTRATION, {"response": "\ud800"}, "'response' holds broken UTF-8"),
    (DEMONSTRATION, {"response": "r", "prompt": "another"}, "'prompt' is not the prompt of the task"),
    (DEMONSTRATION, {"response": "r", "prompt_kind": "plain"}, "'prompt_kind' must be one of given"),
    (OWN, {"response": "r", "prompt": "p"}, "'prompt_kind' must be one of plain, few_shot, user_based, got None"),
    (OWN, {"response": "r", "prompt_kind": "plain"}, "'prompt' must be a string"),
    (OWN, {"response": "r", "prompt_kind": "plain", "prompt": ""}, "'prompt' is empty"),
    (OWN, {"prompt_kind": "plain", "prompt": "p" * 200_001, "response": "r"}, "'prompt' is too long"),
    (OWN, {"prompt_kind": "few_shot", "instruction": "i", "pairs": []}, "'pairs' must be a list of one"),
    (OWN, {"prompt_kind": "few_shot", "instruction": "i", "pairs": ["x"]}, "'pairs' must hold"),
    (OWN, {"prompt_kind": "few_shot", "instruction": "i", "pairs": [{"query": "q"}]}, "'response' must be text"),
    (OWN, {"prompt_kind": "few_shot", "instruction": "\ud800", "pairs": PAIRS}, "'prompt' holds broken UTF-8"),
    (OWN, {"prompt_kind": "few_shot", "pairs": PAIRS}, "'instruction' must be text"),
    (FEW_SHOT, {"prompt_kind": "plain", "prompt": "p", "response": "r"}, "'prompt_kind' must be one of few_shot"),
]


@pytest.mark.parametrize(("task", "answer"), GOOD)
def test_an_answer_to_the_task(task, answer):
    check_answer(task, answer)


@pytest.mark.parametrize(("task", "answer", "said"), BAD)
def test_what_is_no_answer_to_the_task_is_refused(task, answer, said):
    with pytest.raises(RecordError, match=said):
        check_answer(task, answer)


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("", "rating", "b", "p"), "'kind' of a task must be one of"),
        (("", "ranking", "b", "p", ["x"]), "at least 2"),
        (("", "ranking", "b", "p", ["x", " "]), "'completions' is empty"),
        (("", "ranking", "b", None, ["x", "y"]), "'prompt' must be"),
        (("", "demonstration", "b", None, [], [], 1, "quality", {"user": 5}), "'user' must be a string"),
        (("", "evaluation", "b", "p"), "'responses' of a task of kind evaluation cannot be"),
        (("", "demonstration", "b", "p", ["x"]), "'responses' of a task of kind demonstration cannot be"),
        (("", "ranking", "b", "p", ["x", "y"], ["sft"]), "'policies' of a task must name"),
        (("", "ranking", "b", "p", ["x", "y"], [], 0), "'labelers_wanted' of a task must be"),
        (("", "ranking", "b", "p", ["x", "y"], [], 1, "speed"), "'form' of a task must be one of"),
        (("", "ranking", "b", "p", ["x", "y"], [], 1, "quality", {"labels": {"n": 1}}), "'labels' must be"),
        (("", "ranking", "b", "p", ["x", "y"], [], 1, "quality", {}, {}), "'planted' must hold"),
        (("", "ranking", "b", "p", ["x", "y"], [], 1, "quality", {}, {"ranks": [1]}), "'ranks' must hold 2"),
        (("", "ranking", "b", "p", ["x", "y"], [], 1, "quality", {}, {"likert": [1, 2]}), "'likert' is not asked"),
    ],
)
def test_a_task_that_is_none_is_refused(arguments, said):
    with pytest.raises(RecordError, match=said):
        Task(*arguments)


def test_tasks_are_known_by_content():
    same = Task("", "ranking", "b", "p", ["x", "y", "z"], ["ppo", None, None], known={"user": "u"})
    assert same.id == RANKING.id
    others = [
        Task("", "ranking", "c", "p", ["x", "y", "z"]),
        Task("", "ranking", "b", "q", ["x", "y", "z"]),
        Task("", "ranking", "b", "p", ["y", "x", "z"]),
        Task("", "evaluation", "b", "p", ["x", "y", "z"]),
        Task("", "evaluation", "b", "p", ["x", "y", "z"], form="toxicity"),
    ]
    assert len({RANKING.id, *(task.id for task in others)}) == 6
    assert Task("mine", "ranking", "b", "p", ["x", "y"]).id == "mine"


def test_a_share_goes_to_several_and_stays_where_tasks_are_added():
    tasks = [Task("", "ranking", "b", f"p{number}", ["x", "y"]) for number in range(50)]
    shared = share(tasks, 0.2, 3, seed=1)
    assert [task.labelers_wanted for task in shared].count(3) == 10
    assert [task.labelers_wanted for task in shared].count(1) == 40
    assert [task.prompt for task in shared] == [task.prompt for task in tasks]
    assert share(tasks[::-1], 0.2, 3, seed=1) == shared[::-1]
    assert share(tasks, 0.2, 3, seed=2) != shared
    with pytest.raises(ValueError, match=r"share must be a number in \[0, 1\]"):
        share(tasks, 1.5, 2)


def test_fields_are_those_of_table_3():
    assert len(FIELDS) == 11
    assert "likert" not in FIELDS
