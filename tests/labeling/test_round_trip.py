"""The whole way by the command line: a labeler of the sealed world ranks and rates what people are asked to."""

import json
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from hydra import compose, initialize_config_dir

from rlhf_lightning.cli import CONFIG_DIR, run
from rlhf_lightning.labeling.store import Assignment, LabelStore
from rlhf_lightning.runs.errors import WaitingError
from rlhf_lightning.runs.folders import PipelineError, read_stage
from rlhf_lightning.sandbox.labelers import Labeler, screened_labelers

pytestmark = pytest.mark.filterwarnings(
    "ignore:.*many workers.*", "ignore:.*in eval mode.*", "ignore:.*LeafSpec.*", "ignore:.*logging interval.*"
)
SMALL = [
    "debug=fast",
    "model.size=small",
    "run=mine",
    *(f"data.source.{name}=24" for name in ("prompts", "demonstrations", "text", "validation")),
    "collect.policies=[base]",
    "collect.prompts={train: 6, validation: 2}",
    "collect.sampling={batch_size: 4, min_responses: 2, max_responses: 3}",
    "reward.init=base",
    "reward.bias_demonstrations=0",
    "evaluate={policies: [base], baseline: base, reference: base, judges: {}, num_texts: 0, num_prompts: 4}",
]
RUN = ["collect.labelers=people", "stages=[collect,reward,evaluate]", "evaluate.people={prompts: 2}"]


def rlhf(runs: Path, *overrides: str) -> None:
    with initialize_config_dir(str(CONFIG_DIR), version_base="1.3"):
        run(compose("config", [f"paths.runs={runs}", *SMALL, *overrides]))


def said(task: Assignment, person: Labeler) -> dict[str, Any]:
    prompt, texts = task.task.prompt, task.task.responses
    likert = [person.likert(prompt, text) for text in texts]
    return (
        {"likert": likert}
        if task.task.kind == "evaluation"
        else {"likert": likert, "ranks": person.rank(prompt, texts)}
    )


def answer_all(runs: Path, person: Labeler, most: int = 99) -> int:
    store, count = LabelStore(runs / "mine" / "labels.sqlite"), 0
    if not store.labelers():
        store.add_labeler(person.name)
    while count < most and (task := store.next_task(person.name)) is not None:
        store.save(task.id, person.name, said(task, person), 3.0, f"{task.id}")
        count += 1
    return count


def test_a_run_waits_for_people_and_goes_on_with_what_they_said(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (person,) = screened_labelers(1)
    with pytest.raises(WaitingError, match=r"train: 0 of 6 prompts .* validation: 0 of 2 .* rlhf-label .*mine"):
        rlhf(tmp_path, *RUN)
    folder = tmp_path / "mine" / "collect"
    assert read_stage(folder)["status"] == "half-done"
    with monkeypatch.context() as patch:  # neither sampled again nor loaded
        patch.setattr("rlhf_lightning.recipe.context.Context.causal_lm", lambda *_: pytest.fail("a model was loaded"))
        assert answer_all(tmp_path, person, most=3) == 3
        with pytest.raises(WaitingError, match="train: 3 of 6 prompts are ranked, 3 more"):
            rlhf(tmp_path, *RUN)
    with pytest.raises(PipelineError, match="half-done with other settings"):
        rlhf(tmp_path, *RUN, "collect.sampling.max_responses=4")
    assert answer_all(tmp_path, person) == 5
    with monkeypatch.context() as patch:
        sampler = partial(pytest.fail, "sampled again")
        patch.setattr("rlhf_lightning.recipe.collect.make_sampler", lambda **_: lambda *_: sampler())
        with pytest.raises(WaitingError, match=r"evaluate waits .* 0 of 2 prompts are rated"):
            rlhf(tmp_path, *RUN, "collect.people.enough=0.9")
    records = [json.loads(line) for line in (folder / "comparisons.train.jsonl").read_text().splitlines()]
    assert len(records) == 6
    for record in records:
        assert record["ranks"] == person.rank(record["prompt"], record["completions"])
        assert (record["labeler"], record["source"]) == (person.name, "people")
        assert record["labeling"]["policies"] == ["base"] * len(record["completions"])
        assert sorted(record["labeling"]["order"]) == [*range(len(record["completions"]))]
    assert read_stage(folder)["metrics"]["train"]["by_policy"] == {"base": {"responses": 1.0, "wins": None}}
    assert not list(folder.glob("*.unfinished"))
    assert read_stage(tmp_path / "mine" / "reward")["status"] == "complete"
    answer_all(tmp_path, person)
    rlhf(tmp_path, *RUN)
    people = read_stage(tmp_path / "mine" / "evaluate")["metrics"]["people"]
    assert (people["prompts"], people["labelers"]) == (2, 1)
    assert "By people" in (tmp_path / "mine" / "report" / "index.html").read_text(encoding="utf-8")
    rlhf(tmp_path, *RUN)  # all is complete


def test_the_same_is_sampled_whoever_ranks(tmp_path: Path) -> None:
    rlhf(tmp_path / "simulated", "stages=[collect]")
    with pytest.raises(WaitingError):
        rlhf(tmp_path / "people", "stages=[collect]", "collect.labelers=files")
    simulated = (tmp_path / "simulated" / "mine" / "collect" / "comparisons.train.jsonl").read_text()
    tasks = (tmp_path / "people" / "mine" / "collect" / "tasks.train.jsonl").read_text()
    ranked, asked = ([json.loads(line) for line in lines.splitlines()] for lines in (simulated, tasks))
    assert [(row["prompt"], row["completions"]) for row in ranked] == [
        (row["prompt"], row["responses"]) for row in asked
    ]
    assert all("labeling" not in row for row in ranked)
