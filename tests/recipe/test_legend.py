"""Models are called as people know them, and no two of them alike."""

from pathlib import Path

import pytest

from rlhf_lightning.cli import composed
from rlhf_lightning.recipe.legend import base_name, run_legend
from rlhf_lightning.recipe.pipeline import RECIPE, Pipeline
from rlhf_lightning.runs.folders import Runs
from rlhf_lightning.runs.targets import builder


@pytest.mark.parametrize(
    ("overrides", "name"),
    [
        ([], "base"),
        (["model.size=large"], "base"),
        (["model=sandbox_scratch"], "base"),
        (["model=gpt2"], "openai-community/gpt2"),
        (["model=folder", "model.path=/models/SmolLM2-135M/"], "SmolLM2-135M"),
        (["model=folder", "model.path=./SmolLM2-135M"], "SmolLM2-135M"),
    ],
)
def test_the_base_model_has_its_name(overrides: list[str], name: str) -> None:
    legend = run_legend(RECIPE, composed(overrides))
    assert (legend.label("base"), legend.label("prompted")) == (name, f"{name} prompted")
    assert legend.label("ppo_ptx") == "PPO-ptx"
    assert base_name(composed(overrides)["model"]["causal_lm"]) == name


def test_policies_that_are_folders_or_hub_ids_have_short_names_that_differ(tmp_path: Path) -> None:
    names = [f"{tmp_path}/{name}" for name in ("a/ppo/model", "b/ppo/model", "b/other", "x/SmolLM2", "SFT")]
    policies = [*names, "Qwen/Qwen3-0.6B", "sft", "sft/epoch-1"]
    options = ["model=folder", "model.path=/models/SmolLM2", f"evaluate.policies=[{','.join(policies)}]"]
    legend = run_legend(RECIPE, composed(options))
    labels = [legend.label(name) for name in (*policies, "base")]
    assert labels == [
        *("a", "b", "other", "x/SmolLM2", f"{tmp_path.name}/SFT"),
        *("Qwen/Qwen3-0.6B", "SFT", "sft/epoch-1", "SmolLM2"),
    ]


def test_models_of_other_runs_are_called_by_their_runs() -> None:
    policies = [f"/runs/{name}/model" for name in ("flan/sft", "t0/sft", "kl05/ppo", "kl05/ppo_ptx", "ppo/ppo", "x/y")]
    policies += ["/models/t0", "/runs/PPO/sft/model_ema"]
    legend = run_legend(RECIPE, composed([f"evaluate.policies=[base,prompted,ppo,{','.join(policies)}]"]))
    labels = [legend.label(name) for name in ("base", "prompted", "ppo", *policies)]
    # /models/t0 is t0 already, ppo another policy, and PPO what it is called.
    assert labels == [
        *("base", "base prompted", "PPO", "flan", "t0 SFT", "kl05 PPO", "kl05 PPO-ptx", "ppo PPO", "y/model"),
        *("t0", "PPO SFT"),
    ]


def test_pretraining_leaves_weights_alone_unless_told(tmp_path: Path) -> None:
    """`experiment=real` lists step pretrain, which must not train what the user brought on its text."""

    def reason(*overrides: str) -> str | None:
        config = composed(["experiment=real", f"data.root={tmp_path}", *overrides])
        config["data"] = composed([])["data"]
        pipeline = Pipeline(config, builder([]), Runs(tmp_path, "run"))
        return pipeline.step("pretrain").not_needed(pipeline.context)

    folder = ("model=folder", "model.path=/models/SmolLM2")
    assert reason() is None
    assert reason(*folder) == ("/models/SmolLM2 has weights; pretrain.on_weights=true trains them further on the text")
    assert reason(*folder, "pretrain.on_weights=true") is None
