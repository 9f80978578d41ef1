"""The baselines FLAN and T0 (C.5): runs of their own, whose models are policies of one evaluation under short names."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hydra import compose, initialize_config_dir

from rlhf_lightning.cli import CONFIG_DIR, composed, run
from rlhf_lightning.recipe.legend import run_legend
from rlhf_lightning.recipe.pipeline import RECIPE
from rlhf_lightning.recipe.settings import setting_faults
from rlhf_lightning.runs.files import read_metrics
from rlhf_lightning.runs.folders import read_stage

pytestmark = pytest.mark.filterwarnings("ignore:.*in eval mode.*", "ignore:.*logging interval.*")
PAPER = {
    "flan": {"batch_size": 64, "sample": None},
    "t0": {"batch_size": 128, "sample": 1_280_000},
}
COLUMNS = {"flan": ("inputs", "targets"), "t0": ("inputs_pretokenized", "targets_pretokenized")}


@pytest.mark.parametrize("name", PAPER)
def test_the_papers_numbers(name: str) -> None:
    config = composed([f"experiment={name}", "model.path=/m", "data.root=/d"])
    sft, train = config["sft"], config["data"]["source"]["files"]["demonstrations"]["train"]
    assert setting_faults(config, RECIPE, []) == []
    assert (config["run"], config["stages"]) == (name, ["sft", "select"])
    assert sft["module"]["optimizer"]["lr"] == 4e-6
    assert (sft["module"]["scheduler"]["min_lr_rate"], sft["module"]["scheduler"]["num_warmup_steps"]) == (0.1, 0)
    assert {"batch_size": sft["data"]["batch_size"], "sample": train.get("sample")} == PAPER[name]
    assert (sft["fit"]["epochs"], sft["keep_every"]) == (1, 3500)
    assert "sample" not in config["data"]["source"]["files"]["demonstrations"]["validation"]
    assert [train["columns"][field].strip("{}") for field in ("prompt", "response")] == list(COLUMNS[name])


def rlhf(runs: Path, *overrides: str) -> None:
    lengths = "data.lengths={max_prompt_tokens: 8, max_response_tokens: 4, block_size: 8}"
    with initialize_config_dir(str(CONFIG_DIR), version_base="1.3"):
        run(
            compose(
                "config", [f"paths.runs={runs}", lengths, "model=folder", f"model.path={runs / 'base'}", *overrides]
            )
        )


def test_both_run_and_stand_in_one_evaluation(
    tmp_path: Path, make_tiny_lm: Callable[..., Any], tiny_tokenizer: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    make_tiny_lm("llama").save_pretrained(tmp_path / "base")
    tiny_tokenizer.save_pretrained(tmp_path / "base")
    (tmp_path / "longer_wins.py").write_text(
        "def score(responses):\n    return [float(len(each)) for each in responses]\n"
    )
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    for name, (prompt, response) in COLUMNS.items():
        (tmp_path / f"{name}_rows").mkdir()
        rows = [{prompt: f"w{n} w4", response: f"w{n + 8}", "task": "add"} for n in range(3, 19)]
        for split, part in (("train", rows), ("validation", rows[:4])):
            text = "".join(f"{json.dumps(row)}\n" for row in part)
            (tmp_path / f"{name}_rows" / f"rows-{split}.jsonl").write_text(text)
        sample = ["data.source.files.demonstrations.train.sample=12"] * (name == "t0")
        size = ["sft.data.batch_size=4", "sft.fit.log_every=1", "sft.keep_every=2"]
        size += ["select.reward=longer_wins:score"]
        rlhf(tmp_path, f"experiment={name}", f"data.root={tmp_path / f'{name}_rows'}", *size, *sample)
    metrics = {name: read_metrics(tmp_path / name / "sft" / "metrics.csv") for name in COLUMNS}
    trained = {name: [row["lr/model"] for row in rows if "train/loss" in row] for name, rows in metrics.items()}
    # One pass: 16 rows in batches of 4; 12 of them.
    assert {name: len(rates) for name, rates in trained.items()} == {"flan": 4, "t0": 3}
    # Half a cosine from 4e-6 to a tenth of it: after half the batches 4e-6 * (.1 + .9 / 2).
    assert trained["flan"][0] == pytest.approx(4e-6)
    assert trained["flan"][2] == pytest.approx(2.2e-6)
    chosen = {name: read_stage(tmp_path / name / "select")["metrics"]["candidates"] for name in COLUMNS}
    # After 2 of 3 batches and the last; after 4 of 4, which are the last.
    assert {name: [row["name"] for row in rows] for name, rows in chosen.items()} == {
        "flan": ["sft/batch-2", "sft/batch-4"],
        "t0": ["sft/batch-2", "sft"],
    }
    (tmp_path / "prompts.test.jsonl").write_text('{"prompt": "w5 w4"}\n{"prompt": "w6 w4"}\n')
    models = [f"{tmp_path / name}/select/model" for name in COLUMNS]
    evaluate = [
        *("stages=[evaluate]", "data=jsonl", f"data.root={tmp_path}", "run=mine"),
        f"evaluate.policies=[base,{models[0]}]",
        f"evaluate.baseline={models[1]}",
        *("evaluate.reference=base", "evaluate.judge=longer_wins:score"),
    ]
    rlhf(tmp_path, *evaluate)
    found = read_stage(tmp_path / "mine" / "evaluate")["metrics"]
    # The baseline is a folder and no policy that is named, and is measured all the same.
    assert list(found["policies"]) == ["base", *models]
    assert found["policies"][models[1]]["win_rate"]["value"] == 0.5
    legend = run_legend(RECIPE, composed(evaluate))
    assert [legend.label(name) for name in ("base", *models)] == ["base", "flan", "t0"]
