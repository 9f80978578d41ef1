"""The presets `instructgpt_*` hold the paper's recipe: every constant, by its section, or marked as ours."""

import inspect
import math
import re
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import yaml

from rlhf_lightning import PPOModule
from rlhf_lightning.cli import CONFIG_DIR, composed
from rlhf_lightning.data.datamodule import RLHFDataModule
from rlhf_lightning.recipe.collect import collect_comparisons
from rlhf_lightning.recipe.pipeline import RECIPE
from rlhf_lightning.recipe.settings import setting_faults

CONF = Path(CONFIG_DIR)
SIZES = ("1.3b", "6b", "175b")
OURS = "ours"

COSINE = {"_target_": "transformers.get_cosine_with_min_lr_schedule_with_warmup", "num_warmup_steps": 0}
COSINE |= {"min_lr_rate": 0.1, "_partial_": True}
WARM_UP = {"_target_": "torch.optim.lr_scheduler.LinearLR", "_partial_": True, "start_factor": 0.1, "total_iters": 10}
PPO_STEPS = ("ppo", "ppo_ptx")

TABLE: tuple[tuple[str, Any, str], ...] = (
    # SFT
    ("sft.fit.epochs", 16, "C.1"),
    ("sft.module.scheduler", COSINE, "C.1"),
    ("sft.residual_dropout", 0.2, "C.1"),
    ("sft.module.optimizer.lr", (9.65e-6, 9.65e-6, 5.03e-6), "C.1"),
    ("sft.data.batch_size", (32, 32, 8), "C.1"),
    ("sft.data.text_share", 0.0, "C.1"),
    ("sft.keep_epochs", True, "C.1"),
    ("sft.fit.checkpoint_every", 100, OURS),
    ("sft.fit.log_every", 10, OURS),
    # The start of PPO
    ("ppo_init.fit.epochs", 2, "C.3"),
    ("ppo_init.data.text_share", 0.1, "C.4"),
    ("ppo_init.data.text_share_of", "rows", OURS),
    ("ppo_init.module.scheduler", COSINE, "C.3"),
    ("ppo_init.module.optimizer.lr", (5e-6, 1.04e-5, 2.45e-6), "C.3"),
    ("ppo_init.data.batch_size", (32, 32, 8), "C.3"),
    ("ppo_init.residual_dropout", 0.0, OURS),
    ("ppo_init.keep_epochs", False, OURS),
    # Rankings: those of table 6, labelers' and customers' prompts
    ("collect.sampling.min_responses", 4, "3.5"),
    ("collect.sampling.max_responses", 9, "3.5"),
    ("collect.prompts.train", 6_623 + 26_584, "A.3"),
    ("collect.prompts.validation", 3_488 + 14_399, "A.3"),
    ("collect.policies", ["sft"], "3.5"),
    ("collect.sampling.shares", None, OURS),
    ("collect.sampling.temperature", 1.0, OURS),
    # Reward model and judge
    *(
        row
        for step in ("reward", "judge")
        for row in (
            (f"{step}.init", None, "C.2"),  # to be given: 6B whatever the policy
            (f"{step}.fit.epochs", 1, "C.2"),
            (f"{step}.module.optimizer.lr", 9e-6, "C.2"),
            (f"{step}.module.scheduler", COSINE, "C.2"),
            (f"{step}.data.batch_size", 64, "C.2"),
            (f"{step}.data.as_pairs", False, "C.2"),
            (f"{step}.data.max_train", None, "C.2"),
            (f"{step}.bias_demonstrations", 11_295 + 1_430, "3.5"),
            (f"{step}.fit.log_every", 5, OURS),
            (f"{step}.head_scale", None, OURS),
        )
    ),
    # PPO and PPO-ptx
    *(
        row
        for step in PPO_STEPS
        for row in (
            (f"{step}.init", "ppo_init", "C.4"),
            (f"{step}.reference", "init", "3.5"),
            (f"{step}.validate_every", 20, OURS),
            (f"{step}.validation_prompts", 512, OURS),
            (f"{step}.reward", "reward", "3.5"),
            (f"{step}.value_init", "reward", "C.4"),
            (f"{step}.module.kl_coef", 0.02, "C.4"),
            (f"{step}.module.kl_target", None, OURS),
            (f"{step}.module.gae_lambda", 0.95, OURS),
            (f"{step}.module.discount", 1.0, "C.4"),
            (f"{step}.module.clip_range", 0.2, "C.4"),
            (f"{step}.module.temperature", 1.0, "C.4"),
            (f"{step}.module.num_minibatches", 8, "C.4"),
            (f"{step}.module.num_ppo_epochs", 1, "C.4"),
            (f"{step}.module.scheduler", WARM_UP, "C.4"),
            (f"{step}.module.ema_decay", 0.992, "C.4"),
            (f"{step}.module.value_optimizer.lr", (9e-6, 9e-6, 5e-6), "C.4"),
            (f"{step}.module.value_clip_range", 0.2, OURS),
            (f"{step}.module.max_grad_norm", None, OURS),
            (f"{step}.module.micro_batch_size", 8, OURS),
            (f"{step}.module.stop_kl", None, OURS),
            (f"{step}.module.score_hook", None, OURS),
            (f"{step}.module.score_scale", 1.0, OURS),
            (f"{step}.module.whiten_scores", False, OURS),
            (f"{step}.module.missing_eos_penalty", None, OURS),
            (f"{step}.data.batch_size", 512, "C.4"),
            (f"{step}.data.num_batches", 256_000 // 512, "C.4"),
            (f"{step}.fit.epochs", 1, OURS),
            (f"{step}.fit.checkpoint_every", 10, OURS),
        )
    ),
    ("ppo.module.optimizer.lr", (4e-6, 4e-6, 2.55e-6), OURS),
    ("ppo_ptx.module.optimizer.lr", (8.05e-6, 8.05e-6, 2.55e-6), OURS),
    ("ppo.module.ptx_coef", 0.0, "3.5"),
    ("ppo_ptx.module.ptx_coef", 27.8, "C.4"),
    ("ppo_ptx.data.text_batch_size", 8 * 512, "C.4"),
    # Evaluation
    ("evaluate.policies", ["base", "prompted", "select", "ppo", "ppo_ptx"], "3.5"),
    ("evaluate.baseline", (None, None, "select"), "4.1"),  # of 175B; that run has its own
    ("evaluate.temperature", 1.0, "F"),
    ("evaluate.reference", "ppo_init", OURS),
    ("evaluate.num_prompts", 1000, OURS),
    ("evaluate.num_texts", 200, OURS),
    # Context: 2k tokens, prompts over 1k left out, responses of 1k at most, pretraining rows as long
    ("data.lengths.max_prompt_tokens", 1024, "C"),
    ("data.lengths.max_response_tokens", 1024, "C"),
    ("data.lengths.block_size", 2048, "C"),
    # Records: the user's, all of them; at most 200 per user, split by it
    ("sft.data.max_train", None, "3.2"),
    ("ppo.data.max_train", None, "3.2"),
    ("curate.curator.thinning.most_per_group", 200, "3.2"),
    ("curate.curator.splits.column", "user", "3.2"),
    *(
        (f"{step}.module.optimizer.betas", [0.9, 0.95], "C")
        for step in ("sft", "ppo_init", "reward", "judge", *PPO_STEPS)
    ),
    *((f"{step}.module.value_optimizer.betas", [0.9, 0.95], "C") for step in PPO_STEPS),
    ("stages", ["sft", "ppo_init", "collect", "reward", "select", "ppo", "ppo_ptx", "evaluate"], "3.1"),
    ("run", tuple(f"instructgpt_{size}" for size in SIZES), OURS),
)
"""Setting, its value (one for each size where they differ), and the section of the paper that says so."""


@cache
def preset(size: str, *overrides: str) -> dict[str, Any]:
    return composed([f"experiment=instructgpt_{size}", "model.path=/m", "data.root=/d", *overrides])


def value_at(config: Any, path: str) -> Any:
    for name in path.split("."):
        config = config.get(name)
    return config


@pytest.mark.parametrize("size", SIZES)
def test_every_number_of_the_table(size: str) -> None:
    config = preset(size)
    wrong = {}
    for path, value, section in TABLE:
        wanted = value[SIZES.index(size)] if isinstance(value, tuple) else value
        if value_at(config, path) != wanted:
            wrong[path] = (value_at(config, path), wanted, section)
    assert wrong == {}
    assert len({path for path, _, _ in TABLE}) == len(TABLE)
    assert setting_faults(config, RECIPE, []) == []


def test_the_papers_own_arithmetic() -> None:
    config = preset("1.3b")
    rewards, rollouts = config["reward"]["data"]["batch_size"], config["ppo"]["data"]
    assert rewards * math.comb(config["collect"]["sampling"]["max_responses"], 2) == 2304
    assert rollouts["batch_size"] * rollouts["num_batches"] == 256_000
    assert rollouts["batch_size"] / config["ppo"]["module"]["num_minibatches"] == 64
    assert round(config["collect"]["prompts"]["train"], -3) == 33_000
    assert round(config["reward"]["bias_demonstrations"], -3) == 13_000
    scan = (2.55e-6, 2.55e-5)
    rates = [preset(size)[step]["module"]["optimizer"]["lr"] for size in SIZES for step in PPO_STEPS]
    assert all(scan[0] <= rate <= scan[1] for rate in rates)
    assert all(preset(size)["ppo"]["module"]["optimizer"]["lr"] <= 8.05e-6 for size in SIZES)


def leaves(value: Any, path: str) -> Iterator[str]:
    if isinstance(value, dict) and value:
        for name, child in value.items():
            yield from leaves(child, f"{path}.{name}" if path else name)
    else:
        yield path


def preset_files() -> list[Path]:
    files = [*CONF.glob("*/instructgpt.yaml"), *CONF.glob("experiment/instructgpt_*.yaml")]
    assert len(files) >= 10
    return files


def test_no_preset_says_more_than_the_table() -> None:
    known = {path for path, _, _ in TABLE}
    for file in preset_files():
        content = yaml.safe_load(file.read_text(encoding="utf-8"))
        del content["defaults"]
        group = "" if file.parent.name == "experiment" else file.parent.name
        assert set(leaves(content, group)) <= known, file


def test_every_line_of_a_preset_has_its_section_or_says_ours() -> None:
    sections = {section for _, _, section in TABLE}
    for file in [*preset_files(), CONF / "collect" / "instructgpt_later.yaml"]:
        previous = ""
        for line in file.read_text(encoding="utf-8").splitlines():
            said = [line, previous] if previous.startswith("#") else [line]
            named = {name for each in said for part in re.findall(r"\[([^\]]*)\]", each.partition("#")[2])
                     for name in part.split(", ")}  # fmt: skip
            says = OURS in line.partition("#")[2] or named & sections
            constant = re.search(r": *[^#{\s]", line.partition("#")[0]) and not re.match(
                r"defaults|run|stages|  - ", line
            )
            assert says or line.startswith("#") or not constant, f"{file.parent.name}/{file.name}: {line}"
            previous = line


@pytest.mark.parametrize(
    ("documented", "ours"),
    [
        (
            PPOModule,
            [
                path.rpartition(".")[2]
                for path, _, section in TABLE
                if section == OURS and path.startswith("ppo.module.")
            ],
        ),
        (collect_comparisons, ["temperature", "rounds", "shares"]),
        (RLHFDataModule, ["text_share_of"]),
    ],
)
def test_docstrings_say_what_is_ours(documented: Any, ours: list[str]) -> None:
    text = inspect.getdoc(documented) or ""
    lines = dict(re.findall(r"^    (\w+): ((?:.|\n {8})*)", text, re.MULTILINE))
    without = {"lr", "micro_batch_size"}  # a number of the preset alone; what changes memory alone
    for name in set(ours) - without:
        assert OURS in lines[name], name


def test_later_rounds_take_most_from_sft_and_some_from_ppo() -> None:
    config = preset("6b", "collect=instructgpt_later", "collect.policies=[sft,/runs/first/ppo_ptx/model]")
    assert setting_faults(config, RECIPE, []) == []
    assert config["collect"]["sampling"]["shares"] == [0.8, 0.2]
    assert config["collect"]["prompts"]["train"] == 33_207
    one = preset("6b", "collect=instructgpt_later", "collect.policies=[sft]")
    (fault,) = setting_faults(one, RECIPE, [])
    assert fault.startswith("collect.sampling: shares=[0.8, 0.2] is not one for each of the policies (sft).")


def test_judge_follows_the_reward_model() -> None:
    config = preset("1.3b", "reward.init=/six", "reward.module.optimizer.lr=1e-6")
    assert (config["judge"]["init"], config["judge"]["module"]["optimizer"]["lr"]) == ("/six", 1e-6)
