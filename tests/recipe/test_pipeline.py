"""The pipeline as the command line drives it: all of it runs, finished work is kept, mistakes are sentences."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from hydra import compose, initialize_config_dir
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification

from rlhf_lightning.cli import CONFIG_DIR, run
from rlhf_lightning.data.datamodule import RLHFDataModule
from rlhf_lightning.modules.ppo import PPOModule
from rlhf_lightning.runs.files import write_json
from rlhf_lightning.runs.folders import PipelineError, read_stage
from rlhf_lightning.runs.identity import model_fingerprint

pytestmark = pytest.mark.filterwarnings(
    "ignore:.*many workers.*", "ignore:.*in eval mode.*", "ignore:.*LeafSpec.*", "ignore:.*logging interval.*"
)
STAGES = ("sft", "ppo_init", "collect", "reward", "ppo", "ppo_ptx", "evaluate")
TINY = [
    "debug=fast",
    "data.source.prompts=40",
    "data.source.demonstrations=40",
    "data.source.text=20",
    "data.source.validation=16",
    "sft.fit.epochs=1",
    "ppo.data.batch_size=8",
    "ppo_ptx.data.batch_size=8",
    "ppo_ptx.data.text_batch_size=4",
    "ppo.fit.checkpoint_every=1",
]


def rlhf(folder: Path, *overrides: str) -> float | None:
    with initialize_config_dir(str(CONFIG_DIR), version_base="1.3"):
        return run(compose("config", [f"paths.runs={folder}", *TINY, *overrides]))


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("runs")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("COLUMNS", "160")
        rlhf(folder, "experiment=demo")
    return folder


def test_every_stage_leaves_its_artifact(finished: Path) -> None:
    for stage in STAGES:
        record = read_stage(finished / "demo" / stage)
        assert record["status"] == "complete", stage
        assert record["seed"] == 1
        assert record["versions"]["torch"]
        assert (finished / "demo" / stage / "config.yaml").exists()
    for model in ("sft/model", "ppo/model", "ppo/model_ema", "ppo_ptx/model"):
        AutoModelForCausalLM.from_pretrained(finished / "demo" / model)
    reward = AutoModelForSequenceClassification.from_pretrained(finished / "demo" / "reward" / "model")
    assert isinstance(reward.config.reward_bias, float)
    assert not list(finished.rglob("*.unfinished*"))


def test_results_have_the_agreed_form(finished: Path) -> None:
    results = json.loads((finished / "demo" / "report" / "results.json").read_text())
    assert list(results["policies"]) == ["base", "prompted", "sft", "ppo", "ppo_ptx"]
    # Behind a few-shot prefix there is no distribution over responses to the bare prompt.
    assert results["policies"].pop("prompted")["kl"] is None
    for own in results["policies"].values():
        assert own["win_rate"].keys() == {"value", "low", "high"}
        assert own["score"]["low"] <= own["score"]["value"] <= own["score"]["high"]
        assert isinstance(own["kl"], float)
        assert own["length"] >= 1
        assert 0 < own["pretrain_loss"] < 10
    assert results["policies"]["sft"]["win_rate"]["value"] == 0.5
    assert results["policies"]["sft"]["kl"] == pytest.approx(0, abs=1e-4)
    assert set(results["seconds"]) == {*STAGES}
    assert (finished / "demo" / "report" / "index.html").stat().st_size > 10_000


def test_demonstrations_score_zero_on_average(finished: Path) -> None:
    """Recomputed from the exported folder, through text, one response at a time."""
    from rlhf_lightning.generation.text_reward import TextReward
    from rlhf_lightning.sandbox.data import SandboxData

    records = SandboxData(prompts=40, demonstrations=40, text=20, validation=16).records("demonstrations", "train")
    assert records is not None
    reward = TextReward(str(finished / "demo" / "reward" / "model"), batch_size=1)
    scores = reward([str(r.prompt) for r in records], [r.response for r in records])  # type: ignore[union-attr]
    assert sum(scores) / len(scores) == pytest.approx(0, abs=1e-4)


def test_second_run_skips_everything(finished: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = {path: path.stat().st_mtime_ns for path in finished.rglob("*.safetensors")}
    rlhf(finished, "experiment=demo")
    assert capsys.readouterr().out.count("complete already, skipped") == len(STAGES)
    assert before == {path: path.stat().st_mtime_ns for path in finished.rglob("*.safetensors")}


def test_other_settings_are_refused_with_the_difference(finished: Path) -> None:
    with pytest.raises(PipelineError, match=r"kl_coef: 0\.\d+ there, 0\.7 now") as error:
        rlhf(finished, "experiment=demo", "ppo.module.kl_coef=0.7")
    assert "overwrite=true" in str(error.value)


def test_upstream_run_is_built_on_and_overwrite_makes_again(finished: Path) -> None:
    metric = "optimized_metric=ppo.rollout/score"
    first = rlhf(finished, "stages=[ppo]", "run=other", "upstream=demo", "ppo.module.kl_coef=0.7", metric)
    assert first is not None
    assert not (finished / "other" / "sft").exists()
    rlhf(finished, "stages=[ppo]", "run=other", "upstream=demo", "ppo.module.kl_coef=0.6", "overwrite=true")
    assert read_stage(finished / "other" / "ppo")["identity"]["config"]["ppo"]["module"]["kl_coef"] == 0.6


def test_several_upstream_runs_are_looked_through_in_order(finished: Path) -> None:
    rlhf(finished, "stages=[sft]", "run=mine", "seed=2")
    with pytest.raises(PipelineError, match=r"stage reward is needed.* nor is it in run mine"):
        rlhf(finished, "stages=[ppo]", "run=both", "upstream=[mine]")
    rlhf(finished, "stages=[ppo]", "run=both", "upstream=[mine,demo]")
    parents = read_stage(finished / "both" / "ppo")["identity"]["parents"]
    assert parents["init"] == model_fingerprint(str(finished / "mine" / "sft" / "model"))
    assert parents["reward"] == model_fingerprint(str(finished / "demo" / "reward" / "model"))


def test_models_of_every_epoch_are_kept_and_can_be_evaluated(tmp_path: Path) -> None:
    rlhf(
        tmp_path,
        "stages=[sft,evaluate]",
        "sft.keep_epochs=true",
        "sft.fit.epochs=2",
        "evaluate.policies=[base,prompted,sft/epoch-1,sft/epoch-2,sft]",
        "evaluate.judges=null",
    )
    weights = [
        load_file(tmp_path / "default" / "sft" / name / "model.safetensors")
        for name in ("epochs/1", "epochs/2", "model")
    ]
    assert any(not torch.equal(weights[0][name], weights[1][name]) for name in weights[0])
    assert all(torch.equal(weights[1][name], weights[2][name]) for name in weights[1])
    samples = json.loads((tmp_path / "default" / "evaluate" / "samples.json").read_text(encoding="utf-8"))
    assert samples["sft/epoch-2"]["responses"] == samples["sft"]["responses"]
    assert samples["prompted"]["responses"] != samples["base"]["responses"]
    assert set(samples["sft"]["metadata"]) >= {"follows_instruction", "hallucination", "likert"}


def test_a_reward_model_leaves_sources_out(finished: Path) -> None:
    rows = (finished / "demo" / "collect" / "comparisons.train.jsonl").read_text(encoding="utf-8").splitlines()
    teams = sorted({json.loads(row)["source"] for row in rows})
    assert len(teams) > 1
    with pytest.raises(ValueError, match="no reward example is left"):
        rlhf(finished, "run=alone", "upstream=demo", "stages=[reward]", f"reward.data.leave_out=[{','.join(teams)}]")


@pytest.mark.slow
def test_a_reward_model_is_cross_validated_over_its_labelers(
    finished: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    trained_on: list[set[str]] = []

    class Watched(RLHFDataModule):
        def setup(self, stage: str | None = None) -> None:
            if not self.examples:
                trained_on.append({str(ranking.source) for ranking in self.train})  # type: ignore[union-attr]
            super().setup(stage)

    monkeypatch.setattr("rlhf_lightning.recipe.stage.RLHFDataModule", Watched)
    options = ("stages=[reward]", "run=folds", "upstream=demo", "reward.folds=source")
    rlhf(finished, *options)
    shown = capsys.readouterr().out
    folder = finished / "folds" / "reward"
    tables = read_stage(folder)["metrics"]["folds"]
    teams = trained_on[0]
    groups = [tables[f"held_out_group_{number}"]["members"] for number in range(1, len(trained_on))]
    assert sorted(name for group in groups for name in group) == sorted(teams)
    assert [teams - own for own in trained_on[1:]] == [set(group) for group in groups]
    # Every validation ranking is held out once, and predicted by all other folds.
    assert tables["training_groups"]["pairs"] == (len(groups) - 1) * tables["held_out_group"]["pairs"]
    assert tables["training_groups"]["prompts"] == tables["held_out_group"]["prompts"]
    accuracy = tables["held_out_group"]["accuracy"]
    assert f"held out group {accuracy['value']:.1%} ({accuracy['low']:.1%} .. {accuracy['high']:.1%})" in shown
    # The model itself is what it is without folds; an interrupted cross-validation does not train twice.
    weights = [load_file(finished / run / "reward" / "model" / "model.safetensors") for run in ("demo", "folds")]
    assert all(torch.equal(weights[0][name], weights[1][name]) for name in weights[0])
    assert not list(folder.glob("folds/*/checkpoints"))
    record = read_stage(folder)
    write_json(folder / "stage.json", {**record, "status": "half-done"})
    shutil.rmtree(folder / "folds" / "1")
    rlhf(finished, *options)
    assert len(trained_on) == len(groups) + 1 + 2
    assert read_stage(folder)["metrics"]["folds"] == tables


def test_the_check_runs_on_what_ppo_would_start_from(
    finished: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("COLUMNS", "200")
    options = ("stages=[check]", "run=checked", "upstream=demo")
    rlhf(finished, *options)
    results = json.loads((finished / "checked" / "check" / "check.json").read_text())
    nothing = {"one BOS", "long rows"}  # words have no BOS, the architecture no window
    assert {result["name"] for result in results if result["outcome"] != "pass"} == nothing
    monkeypatch.setattr("rlhf_lightning.modules.ppo.whiten", lambda values, mask, total: values)
    with pytest.raises(PipelineError, match=r"2 of 33 checks failed: advantages, whitening\. See .*check.json"):
        rlhf(finished, *options)
    assert "To do: whiten was changed" in capsys.readouterr().out


def test_missing_parent_is_a_sentence(tmp_path: Path) -> None:
    with pytest.raises(PipelineError, match=r"model of stage sft is needed.*upstream=<run>"):
        rlhf(tmp_path, "stages=[collect]")


def test_lengths_beyond_the_context_are_a_sentence(tmp_path: Path, finished: Path) -> None:
    lengths = ["data.lengths.max_prompt_tokens=180", "data.lengths.max_response_tokens=20"]
    with pytest.raises(PipelineError, match=r"the model base \(.*\) reads 192 tokens, but data\.lengths allow 200"):
        rlhf(tmp_path, "experiment=demo", "stages=[sft]", *lengths)
    prefix = "evaluate.few_shot_prefix=" + " ".join(["ball"] * 130)
    with pytest.raises(PipelineError, match=r"allow 204.*shorten evaluate\.few_shot_prefix, which has 130"):
        rlhf(finished, "experiment=demo", "stages=[evaluate]", "run=long", "upstream=demo", prefix)


def test_unknown_stage_is_a_sentence(tmp_path: Path) -> None:
    with pytest.raises(PipelineError, match="stages names dpo; the stages are check, pretrain, curate, sft"):
        rlhf(tmp_path, "stages=[dpo]")


@pytest.mark.slow
def test_interrupted_ppo_goes_on_and_ends_the_same(
    finished: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    more = ("stages=[ppo]", "upstream=demo", "trainer.limit_train_batches=4")
    rlhf(finished, *more, "run=whole")
    update, calls = PPOModule.update, []

    def failing(self: PPOModule, *args: Any) -> None:
        calls.append(int(self.iteration))
        if len(calls) == 3:
            raise KeyError("the power went out")
        update(self, *args)

    with monkeypatch.context() as patch:
        patch.setattr(PPOModule, "update", failing)
        with pytest.raises(KeyError, match="power"):
            rlhf(finished, *more, "run=broken")
    assert calls == [0, 1, 2]
    rlhf(finished, *more, "run=broken")
    for name in ("model", "model_ema"):
        own, other = (load_file(finished / run / "ppo" / name / "model.safetensors") for run in ("whole", "broken"))
        assert all(torch.equal(own[key], other[key]) for key in own)


def test_ppo_with_adapters_leaves_plain_models(finished: Path) -> None:
    options = ["ppo.lora.rank=2", "ppo.module.optimizer.lr=1e-2", "ppo.module.activation_checkpointing=true"]
    rlhf(finished, "stages=[ppo]", "upstream=demo", "run=lora", *options)
    start = load_file(finished / "demo" / "sft" / "model" / "model.safetensors")
    for name in ("model", "model_ema"):
        weights = load_file(finished / "lora" / "ppo" / name / "model.safetensors")
        assert weights.keys() == start.keys()
        changed = [key for key in start if not torch.equal(start[key], weights[key])]
        assert changed
        assert all("attn" in key or "mlp" in key for key in changed)


@pytest.mark.slow
def test_multirun_writes_folders_of_its_own_and_one_table(finished: Path) -> None:
    command = [sys.executable, "-m", "rlhf_lightning", "-m", f"paths.runs={finished}", *TINY]
    command += ["stages=[ppo]", "upstream=demo", "run=sweep", "ppo.module.kl_coef=0.01,0.1"]
    result = subprocess.run(
        command, capture_output=True, text=True, timeout=300, check=False, env={**os.environ, "COLUMNS": "200"}
    )
    assert result.returncode == 0, result.stderr[-2000:]
    assert "2 jobs" in result.stdout
    folders = sorted(path.name for path in finished.glob("sweep*"))
    assert len(folders) == 2
    assert all(len(name) < 140 for name in folders)
    coefficients = {
        read_stage(finished / name / "ppo")["identity"]["config"]["ppo"]["module"]["kl_coef"] for name in folders
    }
    assert coefficients == {0.01, 0.1}


def test_errors_on_the_command_line_are_one_sentence(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "rlhf_lightning", f"paths.runs={tmp_path}", "stages=[ppo]"]
    result = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    assert result.returncode == 1
    assert "ppo: the model of stage sft is needed" in result.stderr
    assert "Traceback" not in result.stderr
