"""Every setting has a type and a range, and no key is accepted and ignored."""

import json
import math
import time
from collections.abc import Iterator
from copy import deepcopy
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import yaml

from rlhf_lightning.cli import composed
from rlhf_lightning.recipe.pipeline import RECIPE, Pipeline
from rlhf_lightning.recipe.settings import setting_faults
from rlhf_lightning.runs.folders import PipelineError, Runs
from rlhf_lightning.runs.targets import builder

WRONG = """
sft.fit.epochs=0                          must be a whole number of at least 1, got 0.
sft.fit.epochs=two                        must be a whole number of at least 1, got "two".
sft.fit.epochs=1.5                        must be a whole number of at least 1, got 1.5.
sft.fit.epochs=null                       must be a whole number of at least 1, got null.
sft.fit.checkpoint_every=0                must be a whole number of at least 1, got 0.
sft.fit.log_every=true                    must be a whole number of at least 1, got true.
sft.fit.epoch=3                           is no setting; did you mean sft.fit.epochs?
sft.epochs=3                              is no setting; did you mean sft.fit.epochs?
sft.data.batch_size=-1                    must be a whole number of at least 1, got -1.
sft.data.text_share=1                     must be a number in [0, 1), got 1.
sft.data.max_validation=-5                must be a whole number of at least 0 or null, got -5.
sft.data.max_train=-5                     must be a whole number of at least 1 or null, got -5.
sft.data.leave_out=[1]                    must be a list (text each) or null, got [1].
sft.data.as_pairs=true                    is no setting; did you mean reward.data.as_pairs?
sft.data.seed=3                           is no setting; did you mean seed?
sft.lora.rank=-1                          must be a whole number of at least 0, got -1.
sft.lora.alpha=0                          must be a number above 0 or null, got 0.
sft.lora.targets=3                        must be text or a list (text each), got 3
sft.residual_dropout=1                    must be a number in [0, 1), got 1.
sft.keep_epochs=yes please                must be true or false, got "yes please".
sft.export=onnx                           must be one of merged, adapter, both or null, got "onnx".
sft.rates={"0": -1.0}                     must be a mapping (a number of at least 0 each), got {"0": -1.0}.
sft.module.scheduler=cosine               must be a node with _target_ or null, got "cosine".
sft.module.model=x                        is no setting
sft.module.shared_prefix=true             is no setting; did you mean reward.module.shared_prefix?
sft.module.optimizer.lr=-1.0              is refused by torch.optim.Adam: Invalid learning rate: -1.0.
sft.module.optimizer.lr=fast              must be a number or a node with _target_, got "fast".
sft.module.optimizer.betas=[0.9, 1.5]     is refused by torch.optim.Adam: Invalid beta parameter at index 1: 1.5.
sft.module.optimizer.weight_decai=0.1     is no setting; did you mean sft.module.optimizer.weight_decay?
sft.module.scheduler.num_warmup_steps=-5  num_warmup_steps=-5 must not be below 0.
sft.module.scheduler.min_lr_rate=-0.5     min_lr_rate=-0.5 must not be below 0.
pretrain.on_weights=1                     must be true or false, got 1.
pretrain.export_dtype=int7                must be one of float32, bfloat16, float16, float64, got "int7".
reward.bias_demonstrations=-1             must be a whole number of at least 0, got -1.
reward.folds=user                         must be one of labeler, source or null, got "user".
reward.init=1                             must be text or null, got 1; quote it: '1'.
reward.module.shared_prefix=2             must be true or false, got 2.
ppo.module.max_grad_norm=-1               must be a number above 0 or null, got -1.
ppo.module.ema_decay=1                    must be a number in [0, 1) or null, got 1.
ppo.module.discount=1.1                   must be a number in [0, 1], got 1.1.
ppo.module.gae_lambda=-0.1                must be a number in [0, 1], got -0.1.
ppo.module.kl_coef=-0.1                   must be a number of at least 0, got -0.1.
ppo.module.kl_coeff=0.1                   is no setting; did you mean ppo.module.kl_coef?
ppo.module.seed=3                         is no setting; did you mean seed?
ppo.module.score_hook=clip                must be a node with _target_ or null, got "clip".
ppo.module.scheduler.start_factor=0       Starting multiplicative factor expected to be greater than 0
ppo.data.num_batches=0                    must be a whole number of at least 1 or null, got 0.
ppo.data.max_validation=3                 is no setting; did you mean
ppo.reward=[]                             must be a step,
ppo.reward=3                              must be a step,
ppo.reward={path: a, lable: b}            ppo.reward.lable='b' is no setting; did you mean ppo.reward.label?
ppo.reward=[{reward: a, weight: x}]       ppo.reward.0.weight must be a number, got "x".
ppo.reward={url: "http://x", retries: -1}  ppo.reward.retries must be a whole number of at least 0, got -1.
ppo_ptx.module.ptx_coef=-1                must be a number of at least 0, got -1.
ppo_ptx.data.text_batch_size=-1           must be a whole number of at least 0, got -1.
collect.prompts.train=-5                  must be a whole number of at least 1, got -5.
collect.prompts.validation=-5             must be a whole number of at least 0, got -5.
collect.prompts.tarin=5                   is no setting; did you mean collect.prompts.train?
collect.sampling.min_responses=1          must be a whole number of at least 2, got 1.
collect.sampling.temperature=-1           must be a number of at least 0, got -1.
collect.sampling.seed=1                   is no setting; did you mean seed?
collect.policies=sft                      must be a list (text each), got "sft".
collect.labelers=anna                     must be a node with _target_ or one of people, files or null, got "anna".
collect.labelers.count=0                  must be a whole number of at least 1, got 0.
collect.labelers.mode=wild                must be one of
evaluate.num_prompts=-5                   must be a whole number of at least 1, got -5.
evaluate.num_texts=-5                     must be a whole number of at least 0, got -5.
evaluate.temperature=-1                   must be a number of at least 0, got -1.
evaluate.judges=[1]                       must be a mapping, got [1].
evaluate.judges={mine: 3}                 evaluate.judges.mine must be a step,
evaluate.metadata={_target_: os.getcwd}  _target_ os.getcwd is neither a class of
evaluate.metadata={_target_: torch.nn.No}  _target_ torch.nn.No cannot be found
curate.curator.overlap_words=0            must be a whole number of at least 1, got 0.
curate.curator.personal.action=drop       must be one of filter, mask, got "drop".
curate.curator.thinning.near_similarity=0 must be a number in (0, 1] or null, got 0.
curate.curator.splits.shares={train: 2}   must be a mapping (a number in [0, 1] each) or null, got {"train": 2}.
curate.few_shot=a.json                    must be a list (text each), got "a.json".
data.lengths.max_prompt_tokens=0          must be a whole number of at least 1, got 0.
data.lengths.max_promt=3                  is no setting; did you mean data.lengths.max_prompt_tokens?
data.lengths.format=xml                   must be one of chat, template, plain or null, got "xml".
data.source.imperfect=1.5                 must be a number in [0, 1], got 1.5.
data.source.prompts=-5                    must be a whole number of at least 0, got -5.
data.root=/d                              data.root is /d, but nothing in this option of data reads it.
model.path=/m                             model.path is /m, but nothing in this option of model reads it.
model.size=huge                           must be one of small, medium, large, got "huge".
model.causal_lm.dtype=int8                must be one of float32, bfloat16, float16, float64, got "int8".
trainer.devices=2.5                       trainer.devices must be
trainer.acelerator=cpu                    is no setting; did you mean trainer.accelerator?
trainer.logger=wandb                      must be a node with _target_, got "wandb".
logger=wandb                              must be a node with _target_, got "wandb".
callbacks={timer: {_target_: lightning.pytorch.callbacks.Timer, durasion: x}}  did you mean callbacks.timer.duration?
generation.engine=vlm                     must be one of loop, transformers, vllm, vllm_server, got "vlm".
generation.options={x: 1}                 must be {} for the engine loop, got {'x': 1}.
paths.runs=3                              must be text, got 3; quote it: '3'.
stages=5                                  must be text or a list (text each), got 5; quote it: '5'.
run=1                                     must be text, got 1; quote it: '1'.
upstream=[1]                              must be text or a list (text each) or null, got [1].
overwrite=maybe                           must be true or false, got "maybe".
seed=-1                                   must be a whole number in [0, 4294967295], got -1.
tags=a                                    must be a list (text each), got "a".
foo=1                                     foo=1 is no setting; the configuration takes paths,
kl_coef=1                                 is no setting; did you mean ppo.module.kl_coef?
optimiser=adam                            is no setting; did you mean pretrain.module.optimizer?
allowed_targets=mine                      must be a list (text each), got "mine".
"""
ROWS = [(setting, said.strip()) for setting, _, said in (row.partition("  ") for row in WRONG.strip().splitlines())]


@cache
def demo() -> dict[str, Any]:
    return composed(["experiment=demo"])


def changed(path: str, value: Any, config: dict[str, Any] | None = None) -> dict[str, Any]:
    """The demo, or another configuration, with one setting changed, also one that is not there."""
    config = node = json.loads(json.dumps(config or demo()))  # steps that inherit a node have it to themselves
    *places, key = path.split(".")
    for place in places:
        node = node[place]
    node[key] = value
    return config


def faults(config: dict[str, Any]) -> list[str]:
    return setting_faults(config, RECIPE, [])


@pytest.mark.parametrize(("setting", "said"), ROWS, ids=[setting for setting, _ in ROWS])
def test_a_wrong_setting_is_named_with_what_is_allowed(setting: str, said: str) -> None:
    path, _, text = setting.partition("=")
    (fault,) = faults(changed(path, yaml.safe_load(text)))
    assert fault.startswith((path, path.rpartition(".")[0]))
    assert said in fault


def test_the_table_is_long() -> None:
    assert len(ROWS) >= 100


def leaves(value: Any, path: str = "") -> Iterator[tuple[str, Any]]:
    for key, item in value.items():
        if isinstance(item, dict):
            yield from leaves(item, f"{path}{key}.")
        else:
            yield f"{path}{key}", item


def nodes(value: Any, path: str = "") -> Iterator[str]:
    for key, item in value.items():
        if isinstance(item, dict):
            yield f"{path}{key}"
            yield from nodes(item, f"{path}{key}.")


GROUPS = ("pretrain", "sft", "ppo_init", "collect", "reward", "judge", "ppo", "ppo_ptx", "evaluate", "curate", "data")
NUMBERS = [
    path
    for group in GROUPS
    for path, value in leaves(demo()[group], f"{group}.")
    if isinstance(value, int | float) and not isinstance(value, bool)
]
ANY_SIGN = ("seed", "weight")
"""Numbers that may be negative."""


MAPPED = ("rates", "value_rates", "shares", "temperatures")
"""Mappings of numbers, which are named as a whole."""


@pytest.mark.parametrize("value", ["two", math.nan, math.inf, True, -1000], ids=str)
@pytest.mark.parametrize("group", GROUPS)
def test_no_number_is_a_text_or_nan_or_below_its_range(group: str, value: Any) -> None:
    paths = [path for path in NUMBERS if path.startswith(f"{group}.")]
    paths = [path for path in paths if value != -1000 or not path.endswith(ANY_SIGN)]
    # An object refuses one number of itself at a time: those of optimizers and schedulers are tried one by one.
    alone = [path for path in paths if value == -1000 and ("optimizer." in path or "scheduler." in path)]
    config = demo()
    for path in paths:
        config = config if path in alone else changed(path, value, config)
    parents = {path: path.rpartition(".")[0] for path in paths}
    named = {parents[path] if parents[path].endswith(MAPPED) else path for path in paths if path not in alone}
    assert sorted(fault.split()[0] for fault in faults(config)) == sorted(named)
    for path in alone:
        (fault,) = faults(changed(path, value))
        assert fault.startswith(parents[path])


def test_all_numbers_are_looked_at() -> None:
    assert len(NUMBERS) >= 120


FREE = (
    "logger",
    "callbacks",
    "rates",
    "value_rates",
    "shares",
    "config",
    "judges",
    "prompt_sets",
    "where",
    "likert",
    "temperatures",
)
"""Mappings whose names are the user's, or of another kind."""


@pytest.mark.parametrize("path", [path for path in nodes(demo()) if not path.endswith(FREE)])
def test_no_node_takes_an_unknown_key(path: str) -> None:
    (fault,) = faults(changed(f"{path}.xyzzy", 1))
    assert fault.startswith((f"{path}.xyzzy=1 is no setting; ", f"{path} must be {{}} for the engine"))


def test_all_faults_are_named_at_once(tmp_path: Path) -> None:
    config = changed("sft.fit.epochs", 0)
    config["ppo"]["module"]["discount"] = 2
    config["foo"] = 1
    with pytest.raises(PipelineError) as refused:
        Pipeline(config, builder([]), Runs(tmp_path, "run"))
    lines = str(refused.value).splitlines()
    assert [line.split()[0] for line in lines] == ["sft.fit.epochs", "ppo.module.discount", "foo=1"]
    assert not list(tmp_path.iterdir())


def test_a_fault_that_a_step_has_from_another_is_named_once() -> None:
    config = composed(["experiment=demo", "ppo.module.discount=2", "+ppo.module.foo=1"])
    assert config["ppo_ptx"]["module"]["discount"] == 2
    assert [fault.partition(" ")[0] for fault in faults(config)] == ["ppo.module.discount", "ppo.module.foo=1"]


def test_what_is_not_allowed_is_not_imported(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "trap.py").write_text("raise SystemExit('imported')")
    monkeypatch.syspath_prepend(tmp_path)
    (fault,) = faults(changed("evaluate.metadata", {"_target_": "trap.Trap"}))
    assert "allowed_targets" in fault


TRUSTING = {
    "model.causal_lm.trust_remote_code": True,
    "model.tokenizer.trust_remote_code": True,
    "evaluate.judges": {"a": {"rewards": [{"path": "gpt2"}, {"path": "gpt2", "trust_remote_code": True}]}},
    "trainer.plugin": {"_target_": "collections.Counter", "made_up": [{"trust_remote_code": "yes"}]},
}


@pytest.mark.parametrize("path", TRUSTING)
def test_code_of_models_needs_a_second_word_wherever_it_is_let_run(path: str) -> None:
    config = changed(path, TRUSTING[path])
    (fault,) = [each for each in faults(config) if "trust_remote_code=true lets code run" in each]
    assert fault.startswith(path)
    assert "allowed_targets=[transformers_modules]" in fault
    assert not any("lets code run" in each for each in setting_faults(config, RECIPE, ["transformers_modules"]))
    assert not any("lets code run" in each for each in faults(demo()))


def test_a_library_that_lacks_is_asked_for_by_the_steps_that_run_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "measures.py").write_text("import a_library_that_is_not_there")
    monkeypatch.syspath_prepend(tmp_path)
    config = changed("evaluate.metadata", {"_target_": "measures.Mine"})
    (fault,) = setting_faults(config, RECIPE, ["measures"])
    assert "a_library_that_is_not_there" in fault
    assert setting_faults({**config, "stages": ["sft"]}, RECIPE, ["measures"]) == []


@pytest.mark.parametrize("path", ["model.token", "foo.api_key", "ppo.module.hub_token", "paths.runs"])
def test_a_secret_in_a_wrong_place_is_not_shown(path: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HUB_API_KEY", "staple-and-nothing-else")
    config = json.loads(json.dumps(demo()))
    config.setdefault("foo", {})
    group, _, rest = path.partition(".")
    config[group][rest.rpartition(".")[2]] = ["staple-and-nothing-else"] if path == "paths.runs" else "correct-horse"
    found = faults(config)
    assert found
    assert not any("horse" in fault or "staple" in fault for fault in found)


def test_a_missing_value_is_for_the_step_that_needs_it() -> None:
    assert faults(changed("pretrain.module.optimizer.lr", "???")) == []


def test_a_missing_key_is_named() -> None:
    config = deepcopy(demo())
    del config["reward"]["folds"], config["sft"]["fit"]["epochs"]
    assert faults(config) == ["sft.fit.epochs is missing.", "reward.folds is missing."]


def test_it_takes_no_time() -> None:
    faults(demo())
    start = time.perf_counter()
    faults(demo())
    assert time.perf_counter() - start < 0.5
