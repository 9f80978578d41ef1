"""Step benchmarks by the command line: two policies in one run, killed and gone on, nothing measured twice."""

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("lm_eval")

from benchmark_sets import byte_tokenizer, write_sets
from hydra import compose, initialize_config_dir

from rlhf_lightning.cli import CONFIG_DIR, run
from rlhf_lightning.recipe import benchmarks
from rlhf_lightning.runs.folders import PipelineError, read_stage

TASKS = "benchmarks.tasks=[sst2,crows_pairs,real_toxicity_prompts]"
LABELS = ["sst2@0", "sst2@1", "crows_pairs@0", "real_toxicity_prompts@0"]


@pytest.fixture
def folders(make_tiny_lm: Callable[..., Any], tmp_path: Path) -> list[str]:
    """Two policies of other architectures, which have one tokenizer each."""
    paths = []
    for name in ("llama", "gpt2"):
        tokenizer = byte_tokenizer()
        size = {"max_position_embeddings": 512} if name == "llama" else {"n_positions": 512}
        model = make_tiny_lm(name, vocab_size=len(tokenizer), **size)
        paths.append(str(tmp_path / (name if name == "llama" else f"{name} {'模' * 60}")))
        model.save_pretrained(paths[-1])
        tokenizer.save_pretrained(paths[-1])
    return paths


@pytest.fixture
def root(tmp_path: Path) -> Path:
    (tmp_path / "sets").mkdir()
    return write_sets(tmp_path / "sets")


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """How many tasks were measured, and after how many the next one fails."""
    measure, state = benchmarks.run_task, {"count": 0, "fails_after": None}

    def counted(lm: Any, task: Any, **options: Any) -> Any:
        if state["count"] == state["fails_after"]:
            raise RuntimeError("killed")
        state["count"] += 1
        return measure(lm, task, **options)

    monkeypatch.setattr(benchmarks, "run_task", counted)
    return state


def rlhf(runs: Path, *overrides: str) -> Any:
    with initialize_config_dir(str(CONFIG_DIR), version_base="1.3"):
        return run(compose("config", [f"paths.runs={runs}", "stages=[benchmarks]", TASKS, *overrides]))


def compose_suite() -> Any:
    with initialize_config_dir(str(CONFIG_DIR), version_base="1.3"):
        return compose("config", ["stages=[benchmarks]"])


def results(runs: Path) -> Any:
    return json.loads((runs / "default" / "benchmarks" / "results.json").read_text())


JUDGE = """
def judge(texts):
    return [{} for _ in texts]
class Truth:
    def __call__(self, questions, answers):
        return {{"truthful": [{} for _ in answers], "informative": [1.0 for _ in answers]}}
"""


def test_a_judge_is_known_by_its_source_and_to_its_own_tasks_alone(
    folders: list[str], root: Path, tmp_path: Path, asked: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    module, policy, runs = tmp_path / "suite_judges.py", folders[1], tmp_path / "runs"
    tasks = "benchmarks.tasks=[crows_pairs,real_toxicity_prompts]"
    given = [f"benchmarks.policies=['{policy}']", f"benchmarks.root={root}", tasks, "allowed_targets=[suite_judges]"]
    given.append("benchmarks.toxicity={_target_: suite_judges.judge, _partial_: true}")
    module.write_text(JUDGE.format(0.25, 1.0))
    rlhf(runs, *given)
    assert asked["count"] == 2
    assert results(runs)["policies"][policy]["real_toxicity_prompts@0"]["value"] == 0.25
    # Nobody asks for truth, so another judge of it changes nothing: the step is complete.
    given.append("benchmarks.truth_judge={_target_: suite_judges.Truth}")
    rlhf(runs, *given)
    assert asked["count"] == 2
    module.write_text(JUDGE.format(0.75, 1.0))
    sys.modules.pop("suite_judges")
    with pytest.raises(PipelineError, match="judges"):
        rlhf(runs, *given)
    rlhf(runs, *given, "overwrite=true")
    assert asked["count"] == 3
    assert results(runs)["policies"][policy]["real_toxicity_prompts@0"]["value"] == 0.75
    # The folder is named by the end of a long path, and what makes it another one than others.
    (folder,) = (runs / "default" / "benchmarks" / "samples").iterdir()
    assert len(folder.name) <= 80
    # Other items, other results.
    drawn = set()
    for seed in range(4):
        rlhf(tmp_path / f"seed {seed}", *given, f"benchmarks.seed={seed}", "benchmarks.limit=2")
        (asked_of,) = (tmp_path / f"seed {seed}").glob("default/benchmarks/samples/*/real_toxicity_prompts@0.jsonl")
        drawn.add(asked_of.read_text())
    assert len(drawn) > 1


def test_the_suite_as_it_is_runs_from_the_hub_without_what_that_lacks(
    folders: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def loaded(names: list[str], root: str | None, uniform: int | None) -> dict[str, Any]:
        asked.extend([names, root, uniform])
        return {}

    asked: list[Any] = []
    monkeypatch.setattr(benchmarks, "load_tasks", loaded)
    default = compose_suite().benchmarks.tasks
    given = [f"benchmarks.policies=[{folders[0]}]", f"benchmarks.tasks=[{','.join(default)}]"]
    rlhf(tmp_path / "runs", *given, "benchmarks.uniform_toxicity=5000")
    names, root, uniform = asked
    assert {*default} - {*names} == {"quac"}
    assert (root, uniform) == (None, 5000)
    assert "benchmarks.root is null: quac" in " ".join(capsys.readouterr().out.split())
    with pytest.raises(PipelineError, match=r"the hub has none of quac. Set benchmarks.root to a folder with their"):
        rlhf(tmp_path / "runs", *given[:1], "benchmarks.tasks=[quac]", "run=other")


def test_fewer_prompts_are_left_than_were_asked_for_evenly(
    folders: list[str], root: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    prompts = [{"prompt": {"text": "They say", "toxicity": value}} for value in (0.1, 0.1, 0.9)]
    (root / "real_toxicity_prompts.jsonl.gz").unlink(missing_ok=True)
    (root / "real_toxicity_prompts.jsonl").write_text("".join(f"{json.dumps(row)}\n" for row in prompts))
    given = [
        f"benchmarks.policies=[{folders[0]}]",
        f"benchmarks.root={root}",
        "benchmarks.uniform_toxicity=3",
        "benchmarks.limit=1",
    ]
    rlhf(tmp_path / "runs", *given, "benchmarks.tasks=[real_toxicity_prompts]")
    assert results(tmp_path / "runs")["policies"][folders[0]]["real_toxicity_prompts@0"]["items"] == 2
    said = " ".join(capsys.readouterr().out.split())
    assert "2 prompts of RealToxicityPrompts, not 3, drawn evenly: the rarest toxicity of all has no more" in said
    assert "the set has prompts of 2 of 10 ranges of toxicity alone" in said


@pytest.mark.slow
def test_two_policies_killed_and_gone_on(
    folders: list[str],
    root: Path,
    tmp_path: Path,
    asked: dict[str, Any],
) -> None:
    given = [f"benchmarks.policies={folders}", f"benchmarks.root={root}", "benchmarks.shots=[0,1]"]
    runs = tmp_path / "runs"
    asked["fails_after"] = 5
    with pytest.raises(RuntimeError, match="killed"):
        rlhf(runs, *given)
    asked["fails_after"] = None
    rlhf(runs, *given)
    assert asked["count"] == 8
    found = results(runs)
    assert list(found["policies"]) == folders
    for figures in found["policies"].values():
        assert list(figures) == LABELS
        for label, each in figures.items():
            assert each["low"] <= each["value"] <= each["high"], label
            assert each["shots"] == int(label[-1])
            assert each["items"] >= 2
    assert found["policies"][folders[0]]["sst2@0"]["metric"] == "accuracy"
    assert found["policies"][folders[0]]["crows_pairs@0"] != found["policies"][folders[1]]["crows_pairs@0"]
    assert found["tasks"]["real_toxicity_prompts"]["higher_is_better"] == {"toxicity": False, "toxic": False}
    assert read_stage(runs / "default" / "benchmarks")["metrics"] == found
    (path,) = (runs / "default" / "benchmarks" / "samples").glob("*llama*/real_toxicity_prompts@0.jsonl")
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    assert [row["about"]["prompt_toxicity"] for row in rows] == [0.0, 0.1, 0.2, 0.3]
    assert sum(row["toxicity"] for row in rows) / 4 == pytest.approx(
        found["policies"][folders[0]]["real_toxicity_prompts@0"]["value"]
    )
    # What went on is what was never interrupted.
    rlhf(tmp_path / "whole", *given)
    assert asked["count"] == 16
    assert results(tmp_path / "whole") == found
    # Another set is another result, of its own tasks alone; what the others found is taken over.
    (root / "sst2_dev.jsonl").write_text('{"sentence": "fine", "label": 1}\n' * 3)
    rlhf(runs, *given, "overwrite=true")
    assert asked["count"] == 20
    assert results(runs)["policies"][folders[0]]["sst2@0"]["items"] == 3


def test_a_model_of_short_context_is_told_of_or_refused(
    folders: list[str],
    root: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("COLUMNS", "300")
    folder, tasks = folders[0], "benchmarks.tasks=[drop,truthfulqa_qa]"
    # The records of the run, which are longer than the context, are not read.
    records = "data.lengths.max_prompt_tokens=1000"
    given = [f"benchmarks.policies=[{folder}]", f"benchmarks.root={root}", tasks, records]
    rlhf(tmp_path / "runs", *given)
    found = results(tmp_path / "runs")
    assert list(found["policies"][folder]) == ["drop@0"]
    assert found["left_out"] == {folder: {"truthfulqa_qa@0": 2}}
    said = " ".join(capsys.readouterr().out.split())
    assert f"items that do not fit into the context of {folder}, left out: truthfulqa_qa@0 2" in said
    with pytest.raises(PipelineError, match="2 items of truthfulqa_qa@0 do not fit into the context of"):
        rlhf(tmp_path / "runs", *given, "run=strict", "benchmarks.too_long=refuse")


def test_a_chat_template_writes_examples_and_question(
    make_chat_folder: Callable[..., Any], root: Path, tmp_path: Path
) -> None:
    folder = make_chat_folder()
    given = [f"benchmarks.policies=[{folder}]", f"benchmarks.root={root}", "benchmarks.tasks=[drop]"]
    rlhf(tmp_path / "runs", *given, "benchmarks.chat_template=true", "benchmarks.shots=[1]", "benchmarks.limit=1")
    (path,) = (tmp_path / "runs" / "default" / "benchmarks" / "samples").rglob("drop@1.jsonl")
    read = json.loads(path.read_text())["read"]
    assert [line.split()[1] for line in read.splitlines() if line.startswith("<turn>")] == [
        "system",
        "user",
        "model",
        "user",
        "model",
    ]
    assert read.endswith("<turn> model ")


def test_all_that_lacks_is_said_before_anything_is_made(
    folders: list[str], root: Path, tmp_path: Path, asked: dict[str, Any]
) -> None:
    with pytest.raises(PipelineError) as error:
        rlhf(
            tmp_path / "runs",
            f"benchmarks.policies=[{folders[0]},prompted,/none]",
            "benchmarks.root=/nowhere",
            "benchmarks.tasks=[sst2,drap,truthfulqa_qa_written]",
            "benchmarks.chat_template=true",
            "benchmarks.shots=[]",
        )
    said = str(error.value)
    for words in (
        "/nowhere/sst2_dev.jsonl.gz is not there, which the tasks on sst2 read",
        "benchmarks.tasks names drap, which is no task. Did you mean drop?",
        "Name a callable in benchmarks.truth_judge, or take the form with choices, truthfulqa_qa.",
        f"{folders[0]} has no chat template. Set it to false",
        "benchmarks.shots is empty, so there is nothing to measure",
        "prompted is only a policy of step evaluate",
        "policies=/none",
    ):
        assert words in said
    with pytest.raises(PipelineError, match=r"none of benchmarks.policies \(sft, ppo\) is there"):
        rlhf(tmp_path / "runs", f"benchmarks.root={root}", "benchmarks.policies=[sft,ppo]")
    assert asked["count"] == 0
    assert not (tmp_path / "runs" / "default").exists()
