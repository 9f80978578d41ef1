"""Every option of every configuration group composes, and what it describes can be built."""

import importlib
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from hydra import compose, initialize_config_dir
from hydra.utils import get_object
from omegaconf.errors import InterpolationResolutionError

from rlhf_lightning.cli import CONFIG_DIR, resolved
from rlhf_lightning.cli.configuration import LIKE
from rlhf_lightning.cli.sweep_checks import check_objectives
from rlhf_lightning.models.optimizers import build_scheduler
from rlhf_lightning.recipe.look_ahead import rate_lacking
from rlhf_lightning.recipe.pipeline import RECIPE
from rlhf_lightning.recipe.settings import setting_faults
from rlhf_lightning.runs.targets import builder

CONF = Path(CONFIG_DIR)
NOT_NODES = {"hydra", "experiment", "sweep", "hparams_search", "debug"}
PACKAGED_AS = {"optimizer": "sft.module.optimizer", "scheduler": "sft.module.scheduler"}
MUST = {
    ("model", "folder"): ["model.path=/m"],
    ("model", "scratch"): ["model.tokenizer_path=/t"],
    ("data", "jsonl"): ["data.root=/d"],
    ("generation", "vllm_server"): ["generation.options.folder=/w"],
    ("data", "real"): ["data.root=/d"],
}


def options(group: str) -> list[str]:
    return sorted(path.stem for path in (CONF / group).glob("*.yaml"))


def composed(*overrides: str) -> dict[str, Any]:
    with initialize_config_dir(str(CONF), version_base="1.3"):
        return resolved(compose("config", list(overrides)))


def nodes(value: Any, path: str = "") -> Iterator[tuple[str, dict[str, Any]]]:
    if isinstance(value, dict):
        if "_target_" in value:
            yield path, value
        for name, child in value.items():
            yield from nodes(child, f"{path}.{name}")
    elif isinstance(value, list):
        for number, child in enumerate(value):
            yield from nodes(child, f"{path}.{number}")


GROUPS = sorted(path.name for path in CONF.iterdir() if path.is_dir() and path.name not in NOT_NODES | {"__pycache__"})
ALL = [(group, option) for group in GROUPS for option in options(group)]


def test_there_are_options() -> None:
    assert len(ALL) >= 25
    assert {"model", "data", "trainer", "sft", "collect", "reward", "ppo", "evaluate"} <= set(GROUPS)


@pytest.mark.parametrize(("group", "option"), ALL, ids=lambda value: value)
def test_option_names_real_parameters(group: str, option: str) -> None:
    """Every ``_target_`` exists, takes every key that is given, and is allowed."""
    place = f"{group}@{PACKAGED_AS[group]}" if group in PACKAGED_AS else group
    config = composed(f"{place}={option}", *MUST.get((group, option), []))
    assert setting_faults(config, RECIPE, []) == []
    found = list(nodes(config))
    assert all(get_object(node["_target_"]) for _, node in found)
    assert len(found) > 10


@pytest.mark.parametrize("experiment", options("experiment"))
def test_experiment_composes(experiment: str) -> None:
    brought = [] if experiment in ("demo", "rounds", "sandbox", "sandbox_base") else ["data.root=/d"]
    brought += ["model.path=/m"] if experiment in ("rule", "smollm2", "flan", "t0") or "instruct" in experiment else []
    brought += ["ppo.reward=rules:mine"] if experiment == "rule" else []
    config = composed(f"experiment={experiment}", *brought)
    assert setting_faults(config, RECIPE, []) == []
    assert config["run"] == experiment
    assert set(config["stages"]) <= {stage.name for stage in RECIPE}


def test_debug_composes_and_wins_over_the_experiment() -> None:
    config = composed("experiment=demo", "debug=fast")
    assert setting_faults(config, RECIPE, []) == []
    assert config["evaluate"]["num_prompts"] == 16


@pytest.mark.parametrize(
    "experiment", ["demo", *(pytest.param(name, marks=pytest.mark.slow) for name in ("smollm2", "instructgpt_1.3b"))]
)
@pytest.mark.parametrize("name", options("sweep"))
def test_studies_compose_with_every_kind_of_experiment(name: str, experiment: str) -> None:
    brought = [] if experiment == "demo" else ["model.path=/m", "data.root=/d"]
    with initialize_config_dir(str(CONF), version_base="1.3"):
        config = compose("config", [f"experiment={experiment}", *brought, f"sweep={name}"], return_hydra_config=True)
        params = {str(key): str(value).split(",") for key, value in config.hydra.sweeper.params.items()}
        jobs = [f"{key}={values[-1]}" for key, values in params.items()]
        job = resolved(compose("config", [f"experiment={experiment}", *brought, f"sweep={name}", *jobs]))
    assert setting_faults(job, RECIPE, []) == []
    assert all(len(values) > 1 for values in params.values())
    assert set(job["shared"]) <= {stage.name for stage in RECIPE}
    # What varies is made by each job.
    assert {key.partition(".")[0] for key in params}.isdisjoint(job["shared"])


def test_studies_scale_with_the_experiment() -> None:
    def swept(name: str, *overrides: str) -> str:
        with initialize_config_dir(str(CONF), version_base="1.3"):
            config = compose("config", [*overrides, f"sweep={name}"], return_hydra_config=True)
            return str(next(iter(config.hydra.sweeper.params.values())))

    assert swept("ppo_lr", "experiment=demo") == "3.17e-05,5.63e-05,0.0001,0.000178,0.000317"
    paper = ["experiment=instructgpt_1.3b", "model.path=/m", "data.root=/d"]
    assert swept("ptx", *paper) == "1.112,5.56,20.02,27.8,111.2"
    assert swept("ratio", *paper) == "2048,4096,16384"  # 4, 8 and 32 rows for each of 512 episodes
    assert swept("batch", *paper) == "256,512,1024,2048"
    real = ["experiment=smollm2", "model.path=/m", "data.root=/d"]
    assert swept("minibatch", *paper) == "8,16,32,64"
    assert swept("minibatch", *real) == "8,16,32"
    assert composed("experiment=demo", "sweep=minibatch", "minibatch=8")["ppo"]["module"]["num_minibatches"] == 16


@pytest.mark.parametrize(
    ("experiment", "batch", "iterations", "texts"),
    [
        ("demo", 64, 48, 32),  # 25 iterations of 128 episodes become 24
        ("demo", 512, 6, 256),
        ("smollm2", 128, 6, 64),  # 24 of 32, with 16 texts
        ("instructgpt_1.3b", 2048, 125, 16384),  # 500 of 512, with 8 texts per episode
    ],
)
def test_a_batch_has_as_many_episodes_and_as_much_text_as_the_experiment(
    experiment: str, batch: int, iterations: int, texts: int
) -> None:
    brought = [] if experiment == "demo" else ["model.path=/m", "data.root=/d"]
    job = composed(f"experiment={experiment}", *brought, "sweep=batch", f"batch={batch}")
    assert "batch" not in job
    for step in ("ppo", "ppo_ptx"):
        assert (job[step]["data"]["batch_size"], job[step]["data"]["num_batches"]) == (batch, iterations)
    assert job["ppo_ptx"]["data"]["text_batch_size"] == texts


@pytest.mark.parametrize("minibatch", [48, 256])
def test_a_minibatch_that_does_not_divide_the_batch_is_refused(minibatch: int) -> None:
    with pytest.raises(InterpolationResolutionError, match=f"128 / {minibatch} is .*, no whole number of at least 1"):
        composed("experiment=demo", "sweep=minibatch", f"minibatch={minibatch}")


@pytest.mark.parametrize("name", options("hparams_search"))
def test_searches_compose(name: str) -> None:
    pytest.importorskip("hydra_plugins.hydra_optuna_sweeper", reason="needs the extra optuna")
    with initialize_config_dir(str(CONF), version_base="1.3"):
        config = compose("config", ["experiment=demo", f"hparams_search={name}"], return_hydra_config=True)
        check_objectives(config)
        job = resolved(compose("config", ["experiment=demo", f"hparams_search={name}"]))
    assert setting_faults(job, RECIPE, []) == []


def test_a_trial_of_weights_and_biases_composes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WANDB_RUN_ID", "a1b2")
    sweep = yaml.safe_load((CONF.parent / "scripts" / "examples" / "wandb_sweep.yaml").read_text())
    launcher, *overrides, last = sweep["command"]
    assert (launcher, last) == ("rlhf", "${args_no_hyphens}")
    job = composed(*overrides, *(f"{name}={range_['min']}" for name, range_ in sweep["parameters"].items()))
    assert setting_faults(job, RECIPE, []) == []
    assert job["run"] == "wandb-a1b2"
    assert job["ppo"]["module"]["kl_coef"] == 0.01


def test_every_yaml_says_what_it_is_for_and_is_short() -> None:
    files = sorted(CONF.rglob("*.yaml"))
    assert len(files) >= 30
    for file in files:
        lines = file.read_text(encoding="utf-8").splitlines()
        first = next(line for line in lines if not line.startswith("# @package"))
        assert first.startswith("# "), f"{file} must begin with a line on what it is for"
        assert len(lines) <= 45, f"{file} has {len(lines)} lines"


def leaves(value: Any, path: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], Any]]:
    """Every setting of a node; what is below an optimizer or a scheduler is their own."""
    for name, child in value.items():
        if name in ("scheduler", "rates", "value_rates"):
            continue
        if isinstance(child, dict):
            yield from leaves({"lr": child["lr"]} if name.endswith("optimizer") else child, (*path, name))
        else:
            yield (*path, name), child


@pytest.mark.parametrize(("step", "other"), LIKE.items())
def test_one_override_sets_both(step: str, other: str) -> None:
    own = {"ppo_ptx": {"ptx_coef"}, "ppo_init": {"epochs", "text_share", "text_share_of"}, "judge": set()}[step]
    settings = [path for path, _ in leaves(composed()[other]) if path[-1] not in own | {"_target_"}]
    assert len(settings) >= 11
    values = {".".join((other, *path)): 700 + number for number, path in enumerate(settings)}
    config = composed(*(f"{name}={value}" for name, value in values.items()))
    for number, path in enumerate(settings):
        found = config[step]
        for name in path:
            found = found[name]
        assert found == 700 + number, path
    # And each can be set for the step alone, without a plus.
    alone = composed(*(f"{step}.{'.'.join(path)}=5" for path in settings))
    assert all(value == 5 for path, value in leaves(alone[step]) if path in settings)
    assert alone[other] == composed()[other]


def test_what_is_added_is_inherited_too() -> None:
    config = composed("+ppo.module.optimizer.weight_decay=0.1", "+ppo.module.optimizer.eps=1e-6", "ppo_ptx.init=base")
    for step in ("ppo", "ppo_ptx"):
        assert config[step]["module"]["optimizer"]["weight_decay"] == 0.1
    assert (config["ppo"]["init"], config["ppo_ptx"]["init"]) == ("sft", "base")


def test_an_object_of_its_own_stands_alone() -> None:
    hook = "{_target_: rlhf_lightning.generation.score_hooks.LengthPenalty, per_token: 0.01, free_tokens: 50}"
    other = "{_target_: rlhf_lightning.generation.score_hooks.LengthPenalty, per_token: 0.02}"
    config = composed(f"ppo.module.score_hook={hook}", f"ppo_ptx.module.score_hook={other}")
    assert "free_tokens" not in config["ppo_ptx"]["module"]["score_hook"]
    config = composed("ppo.reward={path: a, label: good}", "ppo_ptx.reward={path: b}")
    assert config["ppo_ptx"]["reward"] == {"path": "b"}
    assert composed("ppo.reward={path: a, label: good}")["ppo_ptx"]["reward"] == {"path": "a", "label": "good"}
    config = composed("+scheduler@ppo_ptx.module.scheduler=cosine")
    assert "start_factor" not in config["ppo_ptx"]["module"]["scheduler"]


@pytest.mark.parametrize(
    "overrides",
    [("ppo.lora.rank=4", "ppo_ptx.lora.rank=0"), ("sft.lora.rank=0", "ppo_init.lora.rank=8"), ("judge.lora.rank=8",)],
)
def test_adapters_and_whole_weights_do_not_share_a_rate(overrides: tuple[str, ...]) -> None:
    step = overrides[-1].partition(".")[0]
    stage = next(each for each in RECIPE if each.name == step)
    (found,) = rate_lacking(stage, composed("model=folder", "model.path=/m", *overrides))
    assert re.search(rf"{step} has lora\.rank=\d+ .* Set {step}\.module\.optimizer\.lr", found)
    mended = composed("model=folder", "model.path=/m", *overrides, f"{step}.module.optimizer.lr=3e-5")
    assert list(rate_lacking(stage, mended)) == []


def rates(*overrides: str) -> list[float]:
    config = composed(*overrides)
    return [config[step]["module"]["optimizer"]["lr"] for step in ("sft", "ppo_init", "reward", "judge", "ppo")]


def test_defaults_suit_pretrained_models_and_the_sealed_world_has_its_own() -> None:
    folder = ["model=folder", "model.path=/m", "data=jsonl", "data.root=/d"]
    adapters = [f"{step}.lora.rank=16" for step in ("sft", "reward", "ppo")]
    assert rates(*folder) == [1e-5, 1e-5, 9e-6, 9e-6, 2e-6]
    assert rates(*folder, *adapters) == [1e-4, 1e-4, 1e-4, 1e-4, 2e-5]
    assert rates(*folder, *adapters, "sft.module.optimizer.lr=3e-5") == [3e-5, 3e-5, 1e-4, 1e-4, 2e-5]
    assert rates() == rates("experiment=demo") == [1e-3, 1e-3, 5e-4, 5e-4, 1e-4]
    assert rates("sft=instructgpt", "experiment=demo")[:2] == [9.65e-6, 9.65e-6], "an option that is named wins"
    assert rates("experiment=demo", *folder) == rates(*folder), "the numbers of the sealed world go with its model"
    assert rates("experiment=real", *folder[:2], "data.root=/d") == rates(*folder)
    config = composed(*folder)
    assert config["collect"]["labelers"] is None
    assert config["evaluate"]["judge"] is None
    assert "prompted" not in config["evaluate"]["policies"]


def test_stage_nodes_build(tmp_path: Path) -> None:
    """The shared objects of the default configuration are built for real."""
    config = composed()
    build = builder([])
    parameters = [torch.nn.Parameter(torch.zeros(1))]
    for stage in ("sft", "ppo_init", "reward", "judge", "ppo", "ppo_ptx", "pretrain"):
        optimizer = build(config[stage]["module"]["optimizer"])(parameters)
        scheduler = build_scheduler(build(config[stage]["module"]["scheduler"]), optimizer, num_training_steps=10)
        assert optimizer.param_groups[0]["betas"] == (0.9, 0.95)
        assert scheduler.get_last_lr()[0] > 0
    trainer = build(config["trainer"], default_root_dir=tmp_path, logger=False, enable_checkpointing=False)
    assert trainer.num_devices == 1
    assert build(config["data"]["source"]).records("prompts", "train")
    assert build(config["collect"]["labelers"])
    assert build(config["evaluate"]["judge"])


@pytest.mark.parametrize("target", ["os.system", "torch.os.system", "builtins.eval", "subprocess.run"])
def test_only_allowed_targets_are_built(target: str, tmp_path: Path) -> None:
    victim = tmp_path / "made"
    with pytest.raises(Exception, match="allowed_targets"):
        builder([])({"_target_": target, "_args_": [f"touch {victim}"]})
    assert not victim.exists()


def test_user_may_allow_more() -> None:
    node = {"_target_": "fractions.Fraction", "numerator": 1, "denominator": 2}
    assert builder(["fractions"])(node) == importlib.import_module("fractions").Fraction(1, 2)
