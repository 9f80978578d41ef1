"""From a configuration to the memory table: what it counts, and what it says when that is too much."""

import io
from functools import partial
from pathlib import Path

import pytest
import torch
from rich.console import Console

from rlhf_lightning.cli import composed
from rlhf_lightning.models.device_memory import available_memory
from rlhf_lightning.recipe.memory_plan import StagePlan, with_remedies
from rlhf_lightning.recipe.pipeline import Pipeline
from rlhf_lightning.runs.folders import Runs
from rlhf_lightning.runs.targets import builder

FRESH = ["model=sandbox_scratch", "model.causal_lm.config.n_layer=2", "model.causal_lm.config.n_embd=64"]


def pipeline_of(folder: Path, *overrides: str) -> Pipeline:
    config = composed([*FRESH, *overrides])
    return Pipeline(config, builder([]), Runs(folder, config["run"]))


def planned(pipeline: Pipeline, name: str = "ppo") -> StagePlan:
    plan = pipeline.step(name).memory(pipeline.context, pipeline.config)
    assert plan is not None
    return plan


def test_every_training_stage_has_a_plan(tmp_path: Path) -> None:
    pipeline = pipeline_of(tmp_path)
    found = [stage.memory(pipeline.context, pipeline.config) for stage in pipeline.recipe]
    plans = [plan for plan in found if plan is not None]
    trained = ["pretrain", "sft", "ppo_init", "judge", "reward", "ppo", "ppo_ptx"]
    others = ["select", "benchmarks"]
    assert sorted(plan.stage for plan in plans) == sorted([*trained, *others])
    assert all(plan.peak.total > plan.peak.parts["optimizer"] > 0 for plan in plans if plan.stage in trained)
    assert all(plan.peak.total > plan.peak.parts["model"] > 0 for plan in plans if plan.stage in others)
    phases = {plan.stage: [phase.name for phase in plan.phases] for plan in plans}
    assert phases["ppo"] == ["rollout", "score", "update policy", "update value"]
    assert "ptx" in phases["ppo_ptx"]
    assert not any(tmp_path.iterdir())


@pytest.mark.slow
def test_parts_are_those_of_the_configuration(tmp_path: Path) -> None:
    def parts(*overrides: str) -> dict[str, int]:
        phases = planned(pipeline_of(tmp_path, *overrides)).phases
        return next(phase.parts for phase in phases if phase.name == "update policy")

    plain = parts()
    assert plain["optimizer"] == pytest.approx(4 * plain["policy"], rel=0.1)  # two moments, policy and critic
    assert "average" not in parts("ppo.module.ema_decay=null")
    both = [f"ppo.module.{name}" for name in ("optimizer", "value_optimizer")]
    sgd = [f"{one}._target_=torch.optim.SGD" for one in both] + [f"~{one}.betas" for one in both]
    assert parts(*sgd)["optimizer"] == 0
    half = parts("+model.causal_lm.dtype=bfloat16")
    assert half["reference"] == plain["reference"] / 2
    assert (half["policy"], half["value"], half["optimizer"]) == (plain["policy"], plain["value"], plain["optimizer"])
    assert parts("ppo.module.micro_batch_size=4")["activations"] < plain["activations"] / 2
    assert parts("trainer.devices=4")["activations"] < plain["activations"] / 2


@pytest.mark.parametrize("step", ["sft", "reward"])
def test_adapters_are_planned_and_proposed(tmp_path: Path, step: str) -> None:
    full = planned(pipeline_of(tmp_path), step).peak
    override = f"{step}.lora.rank=16"
    pipeline = pipeline_of(tmp_path, override)
    adapted = planned(pipeline, step).peak
    assert adapted.parts["optimizer"] < full.parts["optimizer"] / 2
    assert adapted.parts["gradients"] < full.parts["gradients"] / 2
    before, after = (
        [lever.text for lever in one.step(step).levers(one.config)] for one in (pipeline_of(tmp_path), pipeline)
    )
    assert override in before
    assert override not in after


def test_offloaded_models_count_where_they_are_used(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pipeline = pipeline_of(tmp_path, "ppo.module.offload_frozen=true")
    monkeypatch.setattr(pipeline.context, "device", torch.device("cuda"))
    with_both = [phase.name for phase in planned(pipeline).phases if "reference" in phase.parts]
    assert with_both == ["score"]


def test_a_judge_of_the_validation_counts_where_it_answers(tmp_path: Path) -> None:
    overrides = ("ppo.validate_every=5", "ppo.validation_judge=judge")
    with_judge, without = planned(pipeline_of(tmp_path, *overrides)), planned(pipeline_of(tmp_path))
    sizes = [phase.parts.get("validation judge", 0) for phase in with_judge.phases]
    assert sizes == [without.phases[0].parts["reward"]] * 2 + [0] * (len(sizes) - 2)
    assert [phase.total - size for phase, size in zip(with_judge.phases, sizes, strict=True)] == [
        phase.total for phase in without.phases
    ]


def test_a_reward_model_of_another_architecture_is_planned_as_it_is(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pipeline = pipeline_of(tmp_path)
    same = planned(pipeline).peak.parts
    monkeypatch.setattr(pipeline.context, "available", lambda name: name == "reward")
    monkeypatch.setattr(pipeline.context, "model_path", lambda name: "sandbox/large" if name == "reward" else None)
    other = planned(pipeline).peak.parts
    assert other["policy"] == same["policy"]
    assert other["reward"] > 10 * same["reward"]


@pytest.mark.slow
def test_remedies_name_what_fits(tmp_path: Path) -> None:
    pipeline = pipeline_of(tmp_path)
    plan = planned(pipeline)
    process = plan.peak.parts["process"]  # no setting makes it smaller
    passing = ("activations", "gradients", "allocator", "process")
    resident = sum(size for part, size in plan.peak.parts.items() if part not in passing)
    limit = process + int(0.7 * (plan.peak.total - process))
    ppo = pipeline.step("ppo")
    remedies = partial(
        with_remedies, plan, partial(ppo.memory, pipeline.context), ppo.levers(pipeline.config), pipeline.config
    )
    enough = remedies(limit).remedies
    assert enough
    for override, promised in enough.items():
        assert planned(pipeline_of(tmp_path, override)).peak.total == promised <= limit
    (together, promised), *others = remedies(process + resident // 2).remedies.items()
    assert not others
    assert len(together.split()) > 1
    assert planned(pipeline_of(tmp_path, *together.split())).peak.total == promised


@pytest.mark.parametrize("available", [2**40, 2**20])
def test_the_table_says_whether_it_fits(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, available: int) -> None:
    config = composed([*FRESH, "stages=[sft,ppo]"])
    out = io.StringIO()
    pipeline = Pipeline(config, builder([]), Runs(tmp_path, "default"), Console(file=out, width=160))
    monkeypatch.setattr("rlhf_lightning.recipe.pipeline.available_memory", lambda device: available)
    pipeline.plan()
    text = out.getvalue()
    assert "Memory of stage sft: 32 rows of 48 + 26 tokens" in text
    assert ("does not fit" in text) == (available == 2**20)
    assert ("ppo.data.batch_size=" in text) == (available == 2**20)
    assert not any(tmp_path.iterdir())


def test_a_machine_says_how_much_it_has() -> None:
    size = available_memory(torch.device("cpu"))
    assert size is None or 2**28 < size < 2**45


def test_sampling_batches_bound_the_cache(tmp_path: Path) -> None:
    """512 episodes of 1,024 tokens fit where no more of them are sampled at once than the memory allows."""

    def rollout(*overrides: str) -> dict[str, int]:
        lengths = ["data.lengths.max_prompt_tokens=512", "data.lengths.max_response_tokens=512"]
        pipeline = pipeline_of(tmp_path, *lengths, "ppo.data.batch_size=512", *overrides)
        return planned(pipeline).phases[0].parts

    row = 1024 * 2 * 2 * 64 * 4  # keys and values of 2 layers of width 64
    assert rollout("generation.batch_tokens=8192")["key-value cache"] == 8 * row
    assert rollout("generation.batch_tokens=100")["key-value cache"] == row
    assert rollout()["key-value cache"] <= min(512 * row, (available_memory(torch.device("cpu")) or 2**32) // 4)


def test_select_answers_in_batches_and_benchmarks_read_what_fits(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pipeline = pipeline_of(tmp_path)
    few, many = (planned(pipeline_of(tmp_path, f"select.batch_size={size}"), "select") for size in (4, 64))
    assert many.phases[0].parts["key-value cache"] == 16 * few.phases[0].parts["key-value cache"]
    assert "reward" in few.phases[1].parts
    assert pipeline.step("select").levers(pipeline.config)[0].text.startswith("select.batch_size=")
    whole = planned(pipeline, "benchmarks").phases[0].parts["activations"]
    monkeypatch.setattr("rlhf_lightning.recipe.reading_plan.available_memory", lambda device: 10 * whole // 2)
    part = planned(pipeline, "benchmarks")
    assert 0.45 * whole < part.phases[0].parts["activations"] < 0.55 * whole
    assert part.rows.endswith("tokens at a time")


def test_the_process_counts_on_a_cpu_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pipeline = pipeline_of(tmp_path)
    assert planned(pipeline, "sft").peak.parts["process"] > 2**27
    monkeypatch.setattr(pipeline.context, "device", torch.device("cuda"))
    assert not {"process", "allocator"} & planned(pipeline, "sft").peak.parts.keys()
