"""Step reward: rankings of one prompt count together; its head, what is refused, in how many bits it scores."""

import json
from pathlib import Path
from types import SimpleNamespace
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
from rlhf_lightning.runs.files import read_metrics
from rlhf_lightning.runs.folders import PipelineError, read_stage

from .test_pipeline import rlhf

pytestmark = pytest.mark.filterwarnings("ignore:.*in eval mode.*", "ignore:.*LeafSpec.*", "ignore:.*logging interval.*")
RANKINGS = [
    {"prompt": f"tell me {n % 7}", "completions": [f"yes {n} " + "on " * (n % 5), "no", "maybe so"], "ranks": [1, 2, 2]}
    for n in range(24)
]


def test_accuracies_have_intervals_over_prompts(monkeypatch: pytest.MonkeyPatch) -> None:
    """Twelve rankings of four prompts; a conversation is known by its messages."""
    talk = [{"role": "user", "content": "p"}]
    rankings = [Comparison(prompt, ["a", "b"], [1, 2]) for prompt in ("p", "q", "r", talk) for _ in range(3)]
    examples = [ComparisonExample([3], [[4], [5]], [1, 2], "g")] * 12
    right = [1.0] * 3 + [0.0] * 3 + [1.0, 1.0, 0.0] * 2
    monkeypatch.setattr(ranking_scores, "reward_scores", lambda *_: [[value, 0.5] for value in right])
    context: Any = SimpleNamespace(tokenizer=SimpleNamespace(batch_decode=lambda ids, **_: ["cut"] * len(ids)))
    table, by_prompt = ranking_scores.accuracy(context, RewardModule.__new__(RewardModule), rankings, examples)
    assert (table["all"]["prompts"], table["all"]["pairs"]) == (4, 12)
    assert table["all"]["accuracy"] == share_interval(right, [n // 3 for n in range(12)])
    assert table["all"]["longer_read_wins"]["value"] == 0.5
    assert by_prompt["prompts"] == [0] * 3 + [3] * 3 + [6] * 3 + [9] * 3


@pytest.fixture
def data(tmp_path: Path) -> list[str]:
    """Overrides of a run on rankings of a file."""
    (tmp_path / "data").mkdir()
    rows = "".join(json.dumps(row) + "\n" for row in RANKINGS)
    for split in ("train", "test"):
        (tmp_path / "data" / f"comparisons.{split}.jsonl").write_text(rows)
    (tmp_path / "data" / "demonstrations.train.jsonl").write_text('{"prompt": "tell me", "response": "yes"}\n')
    lengths = ["data.lengths.max_prompt_tokens=24", "data.lengths.max_response_tokens=6"]
    return [
        "data=jsonl",
        f"data.root={tmp_path}/data",
        "stages=[reward]",
        "reward.init=base",
        "model.size=small",
        *lengths,
    ]


def test_a_head_first_by_the_mean_in_parts_and_in_16_bits(
    data: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
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
    rlhf(tmp_path, *data, *options, "trainer.precision=bf16-mixed", "reward.data.batch_size=6")
    assert len(types) > 6
    assert all(types)
    assert "the head was fitted to" in capsys.readouterr().out
    folder = tmp_path / "default" / "reward"
    with safe_open(folder / "model" / HEAD_FILE, "pt") as head:
        assert head.metadata()["pooling"] == "mean"
    assert load_scalar_model(str(folder / "model")).pooling == "mean"
    table = read_stage(folder)["metrics"]["test"]["all"]
    assert table["longer_wins"]["value"] > 0.5
    assert table["longer_read_wins"]["value"] != table["longer_wins"]["value"]  # six tokens hold no five times "on"
    assert {"lr/model", "lr/model/1"} <= read_metrics(folder / "metrics.csv")[-1].keys()


def test_a_frozen_body_stays_as_it_is(data: list[str], tmp_path: Path) -> None:
    rlhf(tmp_path, *data, "reward.freeze_body=true", "reward.head_scale=rms", "reward.data.max_train=10")
    folder = tmp_path / "default" / "reward"
    saved = torch.load(folder / "checkpoints" / "last.ckpt", weights_only=True)
    assert saved["state_dict"].keys() == {"model.head.weight", "model.bias"}
    assert json.loads((folder / "examples.json").read_text())["train"] == 10


def test_adapters_in_a_frozen_body_are_refused(data: list[str], tmp_path: Path) -> None:
    with pytest.raises(PipelineError, match="freeze_body=true leaves the head alone to learn"):
        rlhf(tmp_path, *data, "reward.freeze_body=true", "reward.lora.rank=4")


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
