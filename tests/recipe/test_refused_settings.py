"""What other libraries take is taken, and what looks right alone but is not is refused."""

import json
from functools import cache
from types import SimpleNamespace
from typing import Any

import pytest
import yaml

from rlhf_lightning.cli import composed
from rlhf_lightning.curation.filters import PersonalFilter
from rlhf_lightning.curation.personal import find_personal
from rlhf_lightning.recipe.inputs import check_sources
from rlhf_lightning.recipe.pipeline import RECIPE
from rlhf_lightning.recipe.settings import setting_faults
from rlhf_lightning.runs.folders import PipelineError
from rlhf_lightning.training.surroundings import PRECISIONS, check_trainer


@cache
def demo() -> str:
    return json.dumps(composed(["experiment=demo"]))


def faults(**changes: Any) -> list[str]:
    """The faults of the demo with settings changed; `__` stands for a dot."""
    config = json.loads(demo())
    for path, value in changes.items():
        node = config
        *places, key = path.split("__")
        for place in places:
            node = node.setdefault(place, {})
        node[key] = value
    return setting_faults(config, RECIPE, [])


SCHEDULES = """
get_linear_schedule_with_warmup: {num_warmup_steps: 3}
get_constant_schedule: {}
get_constant_schedule_with_warmup: {num_warmup_steps: 3}
get_cosine_schedule_with_warmup: {num_warmup_steps: 3}
get_cosine_with_hard_restarts_schedule_with_warmup: {num_warmup_steps: 3, num_cycles: 2}
get_polynomial_decay_schedule_with_warmup: {num_warmup_steps: 3, power: 2.0}
get_inverse_sqrt_schedule: {num_warmup_steps: 3}
get_wsd_schedule: {num_warmup_steps: 3, num_decay_steps: 10, min_lr_ratio: 0.1}
"""


@pytest.mark.parametrize("name", yaml.safe_load(SCHEDULES))
def test_every_schedule_of_transformers_may_be_named(name: str) -> None:
    options = yaml.safe_load(SCHEDULES)[name]
    assert faults(sft__module__scheduler={"_target_": f"transformers.{name}", "_partial_": True, **options}) == []


def test_schedules_are_tried_for_one_step() -> None:
    one_cycle = {"_target_": "torch.optim.lr_scheduler.OneCycleLR", "_partial_": True, "max_lr": 1e-3}
    assert faults(sft__module__scheduler={**one_cycle, "total_steps": 10}) == []
    (fault,) = faults(sft__module__scheduler__min_lr_rate=5)
    assert fault.endswith("min_lr_rate=5 must be in [0, 1]: it is a share of the highest rate.")


def test_arguments_of_another_class_name_no_setting_of_ours() -> None:
    (fault,) = faults(sft__module__optimizer={"_target_": "torch.optim.SGD", "_partial_": True, "lr": 1, "betas": []})
    assert fault.startswith("sft.module.optimizer.betas=[] is no setting; torch.optim.SGD takes lr, momentum, ")
    assert fault.endswith("; ~sft.module.optimizer.betas takes it out.")


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"check__foo": 5}, "check.foo=5 is no setting; check takes none."),
        ({"curate__curator__thinning__kinds": ["nope"]}, "curate.curator.thinning.kinds must be a list (one of "),
        ({"ppo__reward": [{"reward": "reward", "weight": 0}]}, "ppo.reward has weights of 0 alone, so that"),
        (
            {"collect__sampling__min_responses": 5, "collect__sampling__max_responses": 4, "stages": ["sft"]},
            "collect.sampling: K is from min_responses=5 to max_responses=4: there is none. Raise max_responses.",
        ),
        ({"data__on_error": "skip", "data__source__on_error": "skip"}, "data.on_error"),
        ({"data__train_on": "first", "data__lengths__train_on": "first"}, "data.train_on must be one of "),
        ({"data__lengths__train_on": "first"}, "data.lengths.train_on must be one of "),
    ],
    ids=str,
)
def test_it_is_refused_once(change: dict[str, Any], said: str) -> None:
    if "data__on_error" in change:
        change["data__source"] = {"_target_": "rlhf_lightning.data.sources.FileData", "root": None, "files": {}}
        change = {"data__source": change.pop("data__source"), **change}
    (fault,) = faults(**change)
    assert fault.startswith(said)


def test_a_reward_of_weight_0_beside_another_is_right() -> None:
    assert faults(ppo__reward=[{"reward": "reward", "weight": 0}, "reward"]) == []


@pytest.mark.parametrize(
    "option", ["num_blocks: -5", "page_size: 0", "max_memory_percent: 2.0", "scheduler_type: x", "cpu_group_timeout: 0"]
)
def test_options_of_the_engine_have_ranges(option: str) -> None:
    name = option.partition(":")[0]
    (fault,) = faults(
        generation={"engine": "transformers", "options": yaml.safe_load(f"{{{option}}}"), "batch_tokens": None}
    )
    assert fault.startswith(f"generation.options.{name} must be ")
    assert (
        faults(
            generation={
                "engine": "transformers",
                "options": {"num_blocks": 64, "use_cuda_graph": False},
                "batch_tokens": None,
            }
        )
        == []
    )


def test_an_unknown_precision_is_told_those_that_are_taken() -> None:
    assert faults(trainer__precision="nope") == []
    with pytest.raises(PipelineError, match="There are 32-true, bf16-mixed and 64-true") as refused:
        check_trainer({"precision": "nope"})
    said = str(refused.value).partition("There are ")[2].removesuffix(".").replace(" and ", ", ")
    assert {*said.split(", ")} <= {*PRECISIONS}


def test_a_finder_finds() -> None:
    import torch

    PersonalFilter("mask", [find_personal])
    with pytest.raises(ValueError, match="finders names a ReLU, which finds nothing in a text"):
        PersonalFilter("mask", [torch.nn.ReLU()])


def test_sources_to_leave_out_are_those_of_records() -> None:
    records = [SimpleNamespace(source=source) for source in ("b", None, "a")]
    check_sources("x", ["a"], records)
    with pytest.raises(PipelineError, match=r"reward.data.leave_out names nope, .* There are a, b"):
        check_sources("reward.data.leave_out", ["a", "nope"], records)


def test_a_judge_of_another_form_replaces_that_of_the_option() -> None:
    for judge in ("[{reward: reward}, {path: a}]", "{path: a}"):
        config = composed(["experiment=demo", "~evaluate.judge", f"+evaluate.judge={judge}"])
        assert config["evaluate"]["judge"] == yaml.safe_load(judge)
