"""Before the first file of a run is written, everything that its steps will lack is said at once."""

import json
import re
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import rlhf_lightning
from rlhf_lightning.cli import composed
from rlhf_lightning.models.scalar_head import HEAD_FILE
from rlhf_lightning.recipe import inputs, look_ahead, model_names
from rlhf_lightning.recipe.pipeline import RECIPE, Pipeline
from rlhf_lightning.runs.files import write_json
from rlhf_lightning.runs.folders import PipelineError, Runs
from rlhf_lightning.runs.identity import plain
from rlhf_lightning.runs.targets import builder
from rlhf_lightning.training import surroundings

SMALL = str(Path(rlhf_lightning.__file__).parent / "sandbox" / "base" / "small")
ROWS = {
    "demonstrations": {"prompt": "hi", "response": "yes"},
    "comparisons": {"prompt": "hi", "completions": ["yes", "no"], "ranks": [1, 2]},
    "prompts": {"prompt": "hi"},
    "text": {"text": "hi"},
}
SHORT = [f"data.lengths.{name}=16" for name in ("max_prompt_tokens", "max_response_tokens", "block_size")]
DEMO = ("experiment=demo", "debug=fast")


def pipeline(runs: Path, *overrides: str) -> Pipeline:
    config = composed([f"paths.runs={runs}", *overrides])
    upstream = config["upstream"] or []
    return Pipeline(config, builder([]), Runs(runs, config["run"], tuple([upstream] * isinstance(upstream, str))))


def said(runs: Path, *overrides: str) -> list[str]:
    """What a run is refused with, one sentence an item; nothing was written."""
    before = sorted(runs.rglob("*"))
    with pytest.raises(PipelineError) as error:
        pipeline(runs, *overrides).run()
    assert sorted(runs.rglob("*")) == before
    first, *listed = str(error.value).split("\n  - ")
    assert not listed or first == f"{len(listed)} things lack or are wrong, and nothing was made:"
    return listed or [first]


def fine(runs: Path, *overrides: str) -> None:
    ahead = pipeline(runs, *overrides)
    look_ahead.look_ahead(ahead.context, ahead.stages)


def data(folder: Path, *names: str) -> list[str]:
    """A folder with a file of one row for each `kind.split`, as the command line names it."""
    folder.mkdir(exist_ok=True)
    for name in names:
        (folder / f"{name}.jsonl").write_text(json.dumps(ROWS[name.partition(".")[0]]) + "\n", encoding="utf-8")
    return ["data=jsonl", f"data.root={folder}", *SHORT]


def finish(runs: Path, run: str, step: str, *parts: str, **record: Any) -> None:
    """A finished step with a model."""
    for part in ("model", *parts):
        (runs / run / step / part).mkdir(parents=True)
        (runs / run / step / part / "config.json").write_bytes((Path(SMALL) / "config.json").read_bytes())
        (runs / run / step / part / "model.safetensors").touch()
    write_json(runs / run / step / "stage.json", {"status": "complete", "identity": {}, "fingerprint": step} | record)


def test_the_papers_preset_says_at_once_all_that_an_incomplete_folder_lacks(
    tmp_path: Path, make_tiny_lm: Callable[..., Any]
) -> None:
    make_tiny_lm("gpt2", n_positions=2048).save_pretrained(tmp_path / "model")
    own = [f"model.path={tmp_path / 'model'}", *data(tmp_path / "data", "demonstrations.train")[1:2], "trainer=cpu"]
    start = time.perf_counter()
    sentences = said(tmp_path / "runs", "experiment=instructgpt_1.3b", *own)
    assert time.perf_counter() - start < 5
    beginnings = [
        "ppo_init, ppo_ptx: the data option has no text for the split train",
        "collect, ppo, ppo_ptx: the data option has no prompts for the split train",
        "collect: labelers is null, and the data option has no rankings. Name an object that ranks responses",
        "reward: init is still to be given. Name base, pretrain, sft, ppo_init, select, ppo, ppo_ptx, a folder",
        "select, ppo, ppo_ptx: the data option has no prompts for the split validation",
        "evaluate: baseline is null. Name one of the policies or the folder of another; the paper takes its 175B SFT",
        "evaluate: the data option has no prompts for the split test",
    ]
    assert [sentence[: len(start)] for sentence, start in zip(sentences, beginnings, strict=True)] == beginnings
    assert not (tmp_path / "runs").exists()


WRONG = [
    ("ppo.init=stf", "ppo, ppo_ptx: init=stf is no step and no folder here. Did you mean sft? Name base, "),
    ("ppo_ptx.init=ppo_int", "ppo_ptx: init=ppo_int is no step and no folder here. Did you mean ppo_init?"),
    ("ppo.reference=sft2", "ppo, ppo_ptx: reference=sft2 is no step and no folder here. Did you mean sft?"),
    ("ppo.value_init=rewrd", "ppo, ppo_ptx: value_init=rewrd is no step and no folder here. Did you mean reward?"),
    ("ppo.reward=rewards", "ppo, ppo_ptx: reward=rewards is no step and no folder here. Did you mean reward?"),
    ("ppo.reward=sft", "ppo, ppo_ptx: reward=sft: step sft leaves a model that writes responses. Name judge, "),
    ("ppo.reward=[{reward:nobody/has:it}]", "ppo, ppo_ptx: reward=nobody/has:it: there is no file or folder"),
    ("reward.init=bse", "reward: init=bse is no step and no folder here. Did you mean base?"),
    ("reward.init=reward", "reward: init=reward: step reward leaves a reward model. Name base, pretrain, "),
    ("reward.init=./nope", "reward: init=./nope: there is no file or folder ./nope here, and it looks like a path"),
    ("reward.init=a/b/c", "reward: init=a/b/c: there is no file or folder a/b/c here, and it looks like a path"),
    ("reward.init=model.pt", "reward: init=model.pt: there is no file or folder model.pt here"),
    ("reward.init=nobody/here", "reward: init=nobody/here is no folder here, and HF_HUB_OFFLINE is set, but the "),
    ("reward.init=prompted", "reward: init=prompted: prompted is only a policy of step evaluate. Name base, "),
    ("reward.init=base/raw", "reward: init=base/raw: base has no variants. Name base, "),
    ("reward.init=collect", "reward: init=collect: step collect leaves no model. Name base, "),
    ("reward.init=ppo", "reward: the model of stage ppo is needed, and does not come before this step"),
    ("reward.init=sandbox/huge", "reward: init=sandbox/huge: the sandbox has no model 'sandbox/huge'"),
    ("collect.policies=[sft,ppo_int]", "collect: policies=ppo_int is no step and no folder here. Did you mean"),
    ("collect.policies=[sft/raww]", "collect: policies=sft/raww: sft has no variant but raw, and its epochs"),
    ("collect.policies=[sft/epoch-1]", "collect: policies=sft/epoch-1: sft keeps no epochs. Set sft.keep_epochs="),
    ("collect.policies=[]", "collect: policies is empty. Name whose responses are ranked"),
    ("collect.labelers=null", "collect: labelers is null, and the data option has no rankings."),
    ("evaluate.policies=[base,sft,pppo]", "evaluate: policies=pppo is no step and no folder here. Did you mean ppo?"),
    ("evaluate.baseline=sftt", "evaluate: baseline=sftt is not among the policies (base, "),
    ("evaluate.reference=select", "evaluate: the model of stage select is needed, but "),
    ("evaluate.judge=judge", "evaluate: the model of stage judge is needed, but "),
    ("evaluate.judge=jugde", "evaluate: judge=jugde is no step and no folder here. Did you mean judge?"),
    ("+evaluate.judges.words=nothing:here", "evaluate: nothing:here is no function of the working directory"),
    (
        "ppo.module.num_minibatches=256",
        "ppo, ppo_ptx: data.batch_size=128 episodes cannot be split into module.num",
    ),
    ("generation.engine=vllm", "collect, ppo, ppo_ptx, evaluate: generation.engine=vllm needs vLLM"),
    ("trainer.gradient_clip_val=1.0", "ppo, ppo_ptx: trainer.gradient_clip_val=1.0 does nothing for PPO"),
    (
        "trainer.accelerator=cdua",
        "trainer.accelerator=cdua is unknown. Did you mean cuda? There are cpu, and auto.",
    ),
    (
        "trainer.accelerator=cuda",
        "trainer.accelerator=cuda: this machine has none that torch can use. There is cpu",
    ),
    ("+model.causal_lm.attention=spda", "sft, ppo_init, evaluate: model.causal_lm.attention=spda is unknown. Did you"),
    (
        "+model.causal_lm.attention=flex_attention",
        "sft, ppo_init, evaluate: model.causal_lm.attention=flex_attention has",
    ),
    ("data.lengths.block_size=193", "sft, ppo_init, evaluate: the model base (sandbox/medium) reads 192 tokens"),
    ("upstream=demmo", "upstream=demmo: there is no run "),
    ("optimized_metric=pppo.rollout/score", "optimized_metric=pppo.rollout/score: pppo is none of the steps that"),
    ("optimized_metric=ppo", "optimized_metric=ppo is a step, not a number. Name one of its metrics"),
    ("optimized_metric=evaluate.policies.sft.win_rate", "optimized_metric=evaluate.policies.sft.win_rate is not a"),
    ("optimized_metric=evaluate.policies.sft.winrate.value", "optimized_metric=evaluate.policies.sft.winrate.valu"),
    ("optimized_metric=evaluate.policies.pppo.kl", "optimized_metric=evaluate.policies.pppo.kl: pppo is none of "),
    ("optimized_metric=evaluate.policies.sft.judges.me.value", "optimized_metric=evaluate.policies.sft.judges.me."),
]
"""Overrides of the demo, and how the sentence begins that each gets."""


def groups() -> list[list[tuple[str, str]]]:
    """Overrides that can stand in one command, so that few are composed: each setting once, and no sentence twice."""
    made: list[dict[str, tuple[str, str]]] = []
    for override, sentence in WRONG:
        setting = override.partition("=")[0]
        fits = (group for group in made if setting not in group and not _clash(sentence, group.values()))
        group = next(fits, None)
        if group is None:
            made.append(group := {})
        group[setting] = (override, sentence)
    return [list(group.values()) for group in made]


def _clash(sentence: str, others: Any) -> bool:
    """Whether two are about one setting, that ppo_ptx has from ppo, or that one hides the other."""
    about = sentence.partition(": ")[2].partition("=")[0]
    return any(about == other.partition(": ")[2].partition("=")[0] for _, other in others)


@pytest.mark.parametrize("group", groups())
def test_what_is_wrong_is_said_and_nothing_else(
    group: list[tuple[str, str]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(look_ahead.torch.cuda, "device_count", lambda: 0)
    monkeypatch.setattr(inputs, "find_spec", lambda name: None)
    sentences = said(tmp_path / "runs", *DEMO, *(override for override, _ in group))
    for override, beginning in group:
        assert sum(sentence.startswith(beginning) for sentence in sentences) == 1, (override, sentences)
    assert len(sentences) == len(group), sentences


@pytest.mark.parametrize(
    ("engine", "sentence"),
    [
        ("loop", "=true needs a GPU, and this runs on cpu"),
        ("transformers", " is of the engine loop, not of transformers"),
    ],
)
def test_graphs_are_for_the_loop_on_a_gpu(engine: str, sentence: str, tmp_path: Path) -> None:
    found = said(tmp_path, *DEMO, f"generation.engine={engine}", "generation.cuda_graphs=true", "stages=[collect]")
    assert [each for each in found if each.startswith(f"collect: generation.cuda_graphs{sentence}")]


@pytest.mark.parametrize(
    ("stages", "sentence"),
    [
        ("[]", "stages is empty, so there is nothing to do. Name some of check, pretrain, "),
        ("[sft,rewrd]", "stages names rewrd; the stages are check, .*evaluate, .* Did you mean reward?"),
    ],
)
def test_stages_are_names_of_steps(stages: str, sentence: str, tmp_path: Path) -> None:
    with pytest.raises(PipelineError, match=sentence):
        pipeline(tmp_path, f"stages={stages}")


def test_the_devices_are_counted(tmp_path: Path, monkeypatch: Any) -> None:
    monkeypatch.setattr(look_ahead.torch.cuda, "device_count", lambda: 2)
    for devices, wrong in (("2", False), ("3", True), ("[0,1]", False), ("[2]", True), ("auto", False)):
        overrides = (*DEMO, "trainer=gpu", f"trainer.devices={devices}")
        if wrong:
            (found,) = said(tmp_path, *overrides)
            assert found.endswith(": this machine has 2 of gpu. Name no more than there are.")
        else:
            fine(tmp_path, *overrides)


def test_right_setups_pass(tmp_path: Path, monkeypatch: Any) -> None:
    runs = tmp_path / "runs"
    fine(runs, *DEMO)
    fine(runs, "experiment=sandbox")
    fine(runs, "experiment=sandbox_base", "trainer.precision=32-true")
    fine(runs, "stages=[check]")
    for callback in ("timer", "early_stopping"):
        fine(runs, *DEMO, f"callbacks=[{callback}]")
    fine(runs, *DEMO, "sft.keep_epochs=true", "collect.policies=[sft/epoch-3]", "evaluate.policies=[sft/epoch-1,sft]")
    fine(runs, *DEMO, f"reward.init={SMALL}", "ppo.init=sandbox/large", "ppo.value_init=init", "ppo.reward=reward")
    fine(runs, *DEMO, "optimized_metric=evaluate.policies.ppo_ptx.win_rate.value", "upstream=null")
    unvalidated = ("data.source.files.demonstrations.validation=null", "optimized_metric=sft.validation/loss")
    own = data(tmp_path / "data", "demonstrations.train")
    (metric,) = said(runs, *own, "stages=[sft]", *unvalidated)
    assert metric.endswith(": there are no demonstrations for the split validation, so that sft validates nothing.")
    for metric in ("ppo.rollout/score", "reward.validation.all.accuracy.value", "sft.validation/loss"):
        fine(runs, *DEMO, f"optimized_metric={metric}")
    cached = monkeypatch.setattr(model_names, "try_to_load_from_cache", lambda name, file: f"/cache/{name}/{file}")
    assert cached is None
    fine(runs, *DEMO, "model=gpt2", "reward.init=org/model", "ppo.init=ppo2")
    assert not runs.exists()


def test_what_is_finished_here_or_upstream_is_there(tmp_path: Path) -> None:
    runs = tmp_path / "runs"
    for step in ("sft", "reward"):
        finish(runs, "demo", step)
    fine(runs, "stages=[ppo]", "upstream=demo")
    fine(runs, "stages=[ppo]", "run=demo")
    fine(runs, "stages=[evaluate]", "upstream=demo", "evaluate=default")
    (unmade,) = said(runs, "stages=[ppo]", "upstream=demo", "ppo.init=ppo_init")
    assert "ppo_init is not complete, nor is it in run demo. Add it: stages=[ppo_init,...]" in unmade
    (nowhere,) = said(runs, "stages=[sft]", "model.causal_lm.path=/nope")
    assert nowhere.startswith("sft: model.path=/nope: there is no file or folder /nope here, and it looks like a path")
    mistyped, *_ = said(runs, "stages=[ppo]", "upstream=demmo")
    assert "Did you mean demo?" in mistyped
    (epochs,) = said(runs, "stages=[ppo]", "upstream=demo", "ppo.init=sft/epoch-2")
    assert "kept no epochs; sft.keep_epochs=true keeps them" in epochs
    (tmp_path / "runs" / "demo" / "sft" / "epochs" / "1").mkdir(parents=True)
    (epochs,) = said(runs, "stages=[ppo]", "upstream=demo", "ppo.init=sft/epoch-2")
    assert "holds epochs 1" in epochs
    (runs / "demo" / "reward" / "model" / HEAD_FILE).touch()
    for place in ("demo", f"{runs}/demo"):
        fine(runs, "stages=[ppo]", "run=other", f"ppo.init={place}/sft", f"ppo.reward={place}/reward")
        (scores,) = said(runs, "stages=[ppo]", "run=other", f"ppo.init={place}/reward", "ppo.reward=demo/reward")
        assert scores.startswith(f"ppo: init={place}/reward is a reward model, which writes no responses. Name base")
        (epochs,) = said(runs, "stages=[ppo]", "upstream=demo", f"ppo.init={place}/sft/epoch-2")
        assert epochs.startswith(f"ppo: init={place}/sft/epoch-2: step")
        assert "holds no epoch-2" in epochs
    (runs / "demo" / "sft" / "model" / "model.safetensors").unlink()
    (broken,) = said(runs, "stages=[ppo]", "upstream=demo")
    assert "has no weights in safetensors" in broken


def test_a_finished_step_is_not_asked_for_what_it_was_made_from(tmp_path: Path) -> None:
    own = data(tmp_path / "data", "comparisons.train", "prompts.train")
    lacking = ["stages=[sft,ppo]", "ppo.reward=./classifier", *own]
    assert len(said(tmp_path / "runs", *lacking)) == 2
    finish(tmp_path / "runs", "default", "sft")
    (found,) = said(tmp_path / "runs", *lacking)
    assert found.startswith("ppo: reward=./classifier: there is no file or folder")
    assert len(said(tmp_path / "runs", *lacking, "overwrite=true")) == 2


def test_every_step_that_names_a_model_says_what_it_leaves() -> None:
    leaves = {stage.name: stage.leaves for stage in RECIPE}
    assert {name for name, kind in leaves.items() if kind == "reward model"} == {"judge", "reward"}
    assert {name for name, kind in leaves.items() if not kind} == {
        "check",
        "curate",
        "collect",
        "evaluate",
        "benchmarks",
    }


def test_what_other_runs_have_is_nothing_to_a_step_that_this_run_makes(tmp_path: Path) -> None:
    """Neither the epochs, the tokenizer nor the health of what it will not read."""
    for step in ("pretrain", "curate", "sft", "reward"):
        finish(
            tmp_path,
            "done",
            step,
            identity={"config": {"model": {}, "data": {}}, "data": ""},
            files={"gone": {"size": 1}},
        )
    own = ["upstream=done", "model=sandbox_scratch_small", "sft.keep_epochs=true", "ppo.init=sft/epoch-1"]
    pipeline(tmp_path, "stages=[pretrain,curate,sft,collect,reward,ppo]", *DEMO[1:], *own).look_ahead()
    with pytest.raises(PipelineError, match=r"stages=.reward. overwrite=true"):
        pipeline(tmp_path, "stages=[pretrain,curate,sft,ppo]", *DEMO[1:], *own).look_ahead()


@pytest.mark.parametrize("status", [pytest.param("complete", marks=pytest.mark.slow), "half-done"])
def test_a_later_step_with_other_settings_is_refused_before_the_first_one(status: str, tmp_path: Path) -> None:
    same = pipeline(tmp_path, *DEMO)
    reward = next(stage for stage in same.stages if stage.name == "reward")
    identity = {"config": plain(same.context.held(reward.settings(same.context))), "parents": {}}
    finish(tmp_path, "demo", "reward", status=status, identity=identity)
    fine(tmp_path, *DEMO)
    other = ("reward.data.batch_size=3", "ppo.init=sftt")
    sentence, init = said(tmp_path, *DEMO, *other)
    assert sentence.startswith(f"{tmp_path}/demo/reward is {status} with other settings:\n  reward.data.batch_size: ")
    assert "overwrite=true" in sentence
    assert "init=sftt" in init
    assert len(said(tmp_path, *DEMO, *other, "overwrite=true")) == 1
    record = tmp_path / "demo" / "reward" / "stage.json"
    record.write_text('{"status": "comp')
    assert "is torn (16 bytes)" in said(tmp_path, *DEMO)[0]
    record.unlink()
    assert "is not empty and has no stage.json" in said(tmp_path, *DEMO)[0]
    fine(tmp_path, *DEMO, "overwrite=true")


@pytest.mark.parametrize(
    ("override", "sentence"),
    [
        ("+trainer.gradient_clip_algorithm=foo", "trainer: .*foo"),
        ("+trainer.val_check_interval=-1", "trainer: .*val_check_interval"),
        ("+trainer.overfit_batches=-3", "trainer: .*overfit_batches"),
        ("trainer.limit_train_batches=-2", "trainer: .*limit_train_batches"),
        ("trainer.limit_train_batches=1.5", "trainer: .*limit_train_batches"),
        ("+trainer.strategy=ddpp", "trainer: .*ddpp"),
        ("+trainer.plugins=[foo]", "trainer: .*foo"),
        ("trainer.devices=[0]", "trainer: .*devices"),
        ("+trainer.strategy=ddp_spawn", "trainer.strategy=ddp_spawn starts processes of its own"),
        ("+trainer.check_val_every_n_epoch=0", "trainer.check_val_every_n_epoch=0 "),
        ("callbacks.timer.duration=never", ".*Timer"),
        ("+callbacks.mine._target_=torch.optim.Adam", "callbacks name torch.optim.Adam, which is no Callback"),
        ("callbacks.early_stopping.mode=up", ".*EarlyStopping"),
        ("logger=wandb", ".*WandbLogger needs wandb, which is not installed"),
    ],
)
def test_what_stands_around_the_training_is_built_once_ahead(
    override: str, sentence: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(surroundings, "find_spec", lambda name: None)
    group = override.partition("callbacks.")[2].partition(".")[0]
    options = [f"callbacks={group}"] if group in ("timer", "early_stopping") else []
    (found,) = said(tmp_path, *DEMO, *options, override)
    assert re.match(sentence, found, re.DOTALL), found


def test_blocks_count_only_where_a_named_step_reads_text(tmp_path: Path) -> None:
    runs, large = tmp_path / "runs", "data.lengths.block_size=1024"
    own = data(tmp_path / "data", "demonstrations.train", "text.train", "text.test", "prompts.test")
    fine(runs, "stages=[sft]", *own, large)
    fine(runs, "stages=[pretrain,sft]", *own, large)  # a base with weights is not pretrained
    for named in (
        ["stages=[ppo_init]"],
        ["stages=[sft]", "sft.data.text_share=0.5"],
        ["stages=[pretrain,sft]", "pretrain.on_weights=true"],
    ):
        (found,) = said(runs, *named, *own, large)
        assert "reads 192 tokens, but data.lengths allow 1024 (prompt and response, or block)" in found
    (found,) = said(runs, "stages=[sft]", *own, "data.lengths.max_prompt_tokens=180")
    assert found.endswith("allow 196 (prompt and response). Lower data.lengths.max_prompt_tokens, max_response_tokens.")


def test_the_base_model_can_write_the_stop(tmp_path: Path) -> None:
    (found,) = said(tmp_path / "runs", *DEMO, "evaluate.base_stop=nonesuchword")
    assert found.startswith("evaluate: base_stop=nonesuchword is no text that the tokenizer of the base model can ")
    fine(tmp_path / "runs", *DEMO, "evaluate.base_stop=please")
