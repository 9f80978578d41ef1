"""The callbacks of the recipe."""

import json
from pathlib import Path
from typing import Any

import lightning as L
import pytest
import torch

from rlhf_lightning.algorithms.batch import Experience, PromptBatch, Rollout
from rlhf_lightning.runs.files import read_metrics
from rlhf_lightning.training.callbacks import LearningRates, SampleTable
from rlhf_lightning.training.checkpoint import BatchCheckpoint
from rlhf_lightning.training.metrics_file import MetricsFile, batches_done

pytestmark = pytest.mark.filterwarnings(
    "ignore:.*many workers.*",
    "ignore:.*LeafSpec.*",
    "ignore:.*logging interval.*",
    "ignore:.*dataloader is not resumable.*",
)


def test_a_body_that_two_models_share_names_the_learner_first(tmp_path: Path) -> None:
    """With adapters the critic shares its body with the reward model, which has no optimizer."""

    class Shared(L.LightningModule):
        def __init__(self) -> None:
            super().__init__()
            self.value = torch.nn.Linear(1, 1)
            self.reward = torch.nn.Sequential(self.value)

        def training_step(self, batch: Any, batch_idx: int) -> Any:
            return self.value(batch).mean()

        def configure_optimizers(self) -> Any:
            return torch.optim.SGD(self.value.parameters(), lr=0.25)

    file = MetricsFile(tmp_path / "metrics.csv")
    trainer = L.Trainer(
        max_epochs=1, logger=file, callbacks=[LearningRates()], log_every_n_steps=50, accelerator="cpu",
        enable_checkpointing=False, enable_progress_bar=False, enable_model_summary=False,
    )  # fmt: skip
    loader = torch.utils.data.DataLoader(torch.ones(3, 1))
    trainer.fit(Shared(), loader)
    # Three batches are fewer than fifty, and the last one is logged all the same.
    assert [(row["step"], row["lr/value"]) for row in read_metrics(tmp_path / "metrics.csv")] == [(2, 0.25)]


class Sampling(L.LightningModule):
    """Leaves an experience after every batch, as PPO does."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = torch.nn.Linear(1, 1)
        self.latest: Any = None

    def training_step(self, batch: Any, batch_idx: int) -> Any:
        prompts = PromptBatch(torch.tensor([[3]]), torch.tensor([[True]]), torch.tensor([0]), ["w3"])
        ids = torch.tensor([[4 + batch_idx, 1]])
        mask = torch.ones(1, 2, dtype=torch.bool)
        rollout = Rollout(prompts, ids, mask, torch.zeros(1, 2), torch.tensor([True]))
        nothing = torch.zeros(1, 2)
        self.latest = Experience(rollout, torch.tensor([0.5]), *[nothing] * 5, [])
        return self.layer(batch).mean()

    def configure_optimizers(self) -> Any:
        return torch.optim.SGD(self.parameters(), lr=0.1)


class StopAfter(L.Callback):
    """Ends the training early, by Lightning's way or as a crash does."""

    def __init__(self, iteration: int, crash: bool = False) -> None:
        self.iteration, self.crash = iteration, crash

    def on_train_batch_end(self, trainer: L.Trainer, *_: Any) -> None:
        trainer.should_stop = batches_done(trainer) > self.iteration

    def on_train_batch_start(self, trainer: L.Trainer, *_: Any) -> None:
        if self.crash and batches_done(trainer) > self.iteration:
            raise KeyError("the power went out")


@pytest.mark.parametrize(
    ("batches", "stop", "crash", "iterations"),
    [
        (8, None, False, [0, 3, 6, 7]),
        (7, None, False, [0, 3, 6]),
        (8, 4, False, [0, 3, 4]),
        (8, 3, False, [0, 3]),
        (1, None, False, [0]),
        (8, None, True, [0, 3, 6, 7]),
    ],
)
def test_samples_of_the_first_and_the_last_iteration_are_always_written(
    batches: int, stop: int | None, crash: bool, iterations: list[int], tiny_tokenizer: Any, tmp_path: Path
) -> None:
    """With three iterations between two times; crashed after the fifth of them, where a run crashes, and resumed."""
    path = tmp_path / "samples.jsonl"

    def fit(*callbacks: L.Callback) -> None:
        checkpoint = BatchCheckpoint(tmp_path / "checkpoints", 2)
        trainer = L.Trainer(
            max_epochs=1, logger=False, accelerator="cpu", enable_checkpointing=False, enable_progress_bar=False,
            enable_model_summary=False, default_root_dir=tmp_path,
            callbacks=[SampleTable(path, tiny_tokenizer, 3), *callbacks, checkpoint],
        )  # fmt: skip
        resume = str(checkpoint.path) if checkpoint.path.exists() else None
        trainer.fit(Sampling(), torch.utils.data.DataLoader(torch.ones(batches, 1)), ckpt_path=resume)

    if crash:
        with pytest.raises(KeyError, match="power"):
            fit(StopAfter(4, crash=True))
        with path.open("a") as file:
            file.write('{"iteration": 4, "prompt": "of a batch that is made again"}\n')
    fit(*([] if stop is None else [StopAfter(stop)]))
    samples = [json.loads(line) for line in path.read_text().splitlines()]
    assert [sample["iteration"] for sample in samples] == iterations
    assert samples[-1] == {
        "iteration": iterations[-1],
        "prompt": "w3",
        "response": f"w{4 + iterations[-1]}",
        "score": 0.5,
    }
    before = path.read_bytes()
    fit()  # complete, but for what the step does afterwards
    assert stop is not None or path.read_bytes() == before
