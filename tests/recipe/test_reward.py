"""Step reward: rankings of one prompt count together; its head, what is refused, in how many bits it scores."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open

from rlhf_lightning.data.examples import ComparisonExample
from rlhf_lightning.data.loader import random_part
from rlhf_lightning.data.records import Comparison
from rlhf_lightning.evaluation.intervals import share_interval
from rlhf_lightning.models.scalar_head import HEAD_FILE, load_scalar_model
from rlhf_lightning.modules.reward import RewardModule
from rlhf_lightning.recipe import ranking_scores
from rlhf_lightning.recipe.context import Context
from rlhf_lightning.runs.files import read_metrics
from rlhf_lightning.runs.folders import PipelineError, read_stage

from .test_pipeline import rlhf

pytestmark = pytest.mark.filterwarnings("ignore:.*in eval mode.*", "ignore:.*LeafSpec.*", "ignore:.*logging interval.*")


def test_accuracies_have_intervals_over_prompts(monkeypatch: pytest.MonkeyPatch, tiny_tokenizer: Any) -> None:
    """Twelve rankings of four prompts; a conversation is known by its messages."""
    talk = [{"role": "user", "content": "p"}]
    rankings = [Comparison(prompt, ["a", "b"], [1, 2]) for prompt in ("p", "q", "r", talk) for _ in range(3)]
    examples = [ComparisonExample([3], [[4], [5]], [1, 2], "g")] * 12
    right = [1.0] * 3 + [0.0] * 3 + [1.0, 1.0, 0.0] * 2
    monkeypatch.setattr(ranking_scores, "reward_scores", lambda *_: [[value, 0.5] for value in right])
    context = Context.__new__(Context)
    context._shared = tiny_tokenizer
    table, by_prompt = ranking_scores.accuracy(context, RewardModule.__new__(RewardModule), rankings, examples)
    assert (table["all"]["prompts"], table["all"]["pairs"]) == (4, 12)
    assert table["all"]["accuracy"] == share_interval(right, [n // 3 for n in range(12)])
    assert table["all"]["longer_read_wins"]["value"] == 0.5
    assert by_prompt["prompts"] == [0] * 3 + [3] * 3 + [6] * 3 + [9] * 3


@pytest.fixture(scope="module")
def collected(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of runs, one of which has rankings of responses of the base model."""
    folder = tmp_path_factory.mktemp("runs")
    rlhf(folder, "stages=[collect]", "collect.policies=[base]", "run=first", "model.size=small")
    return folder


def trained(runs: Path, run: str, *options: str) -> Path:
    """The folder of a reward model on those rankings."""
    rlhf(runs, "upstream=first", "stages=[reward]", "reward.init=base", "model.size=small", f"run={run}", *options)
    return runs / run / "reward"


def test_a_head_first_by_the_mean_in_parts_and_in_16_bits(
    collected: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Whatever scores outside of the Trainer computes as that does; the folder holds what was trained."""
    types = []
    scores = RewardModule.scores

    def noted(module: RewardModule, batch: Any) -> Any:
        types.append(torch.is_autocast_enabled("cpu"))
        return scores(module, batch)

    monkeypatch.setattr(RewardModule, "scores", noted)
    options = [
        "reward.head_first=true",
        "reward.pooling=mean",
        "reward.module.micro_batch_size=2",
        "reward.rates.head=0.01",
    ]
    folder = trained(collected, "mean", *options, "trainer.precision=bf16-mixed", "reward.data.batch_size=6")
    assert len(types) > 6
    assert all(types)
    assert "the head was fitted to" in capsys.readouterr().out
    with safe_open(folder / "model" / HEAD_FILE, "pt") as head:
        assert head.metadata()["pooling"] == "mean"
    assert load_scalar_model(str(folder / "model")).pooling == "mean"
    assert read_stage(folder)["metrics"]["validation"]["all"].keys() >= {"accuracy", "longer_wins", "longer_read_wins"}
    assert {"lr/model", "lr/model/1"} <= read_metrics(folder / "metrics.csv")[0].keys()


def test_a_frozen_body_stays_as_it_is(collected: Path) -> None:
    options = ["reward.freeze_body=true", "reward.head_scale=rms", "reward.data.max_train=5"]
    folder = trained(collected, "frozen", *options)
    saved = torch.load(folder / "checkpoints" / "last.ckpt", weights_only=True)
    assert saved["state_dict"].keys() == {"model.head.weight", "model.bias"}
    assert json.loads((folder / "examples.json").read_text())["train"] == 5


def test_adapters_in_a_frozen_body_are_refused(collected: Path) -> None:
    with pytest.raises(PipelineError, match="freeze_body=true leaves the head alone to learn"):
        trained(collected, "both", "reward.freeze_body=true", "reward.lora.rank=4")


def test_a_part_of_the_rows_is_a_random_part() -> None:
    """256 rows of 64 prompts were the first ones; the order is kept, and the seed decides."""
    rows = list(range(1000))
    part = random_part(rows, 100, seed=1)
    assert len(part) == len(set(part)) == 100
    assert part == sorted(part)
    assert part == random_part(rows, 100, seed=1) != random_part(rows, 100, seed=2)
    assert 400 < sum(part) / 100 < 600
    assert random_part(rows, None, 1) is rows
    assert random_part(rows, 2000, 1) is rows
