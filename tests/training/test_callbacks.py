"""The callbacks of the recipe."""

from pathlib import Path
from typing import Any

import lightning as L
import pytest
import torch

from rlhf_lightning.runs.files import read_metrics
from rlhf_lightning.training.callbacks import LearningRates
from rlhf_lightning.training.metrics_file import MetricsFile

pytestmark = pytest.mark.filterwarnings("ignore:.*many workers.*", "ignore:.*LeafSpec.*", "ignore:.*logging interval.*")


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
