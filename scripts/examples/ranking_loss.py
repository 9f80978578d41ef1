"""The loss over all pairs of a ranking in a LightningModule of one's own. Run: `python ranking_loss.py`."""

import lightning as L
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from rlhf_lightning import ranking_loss


class Taste(L.LightningModule):
    """Learns from rankings of up to five dishes what is liked in a dish."""

    def __init__(self, features: int) -> None:
        super().__init__()
        self.scorer = nn.Linear(features, 1)

    def training_step(self, batch: list[Tensor], batch_idx: int) -> Tensor:
        """Loss of the scores, menus x dishes, given ranks of which 1 is best, and which dishes there are."""
        dishes, ranks, mask = batch
        loss, statistics = ranking_loss(self.scorer(dishes).squeeze(-1), ranks, mask)
        self.log_dict({"loss": loss, "accuracy": statistics.accuracy}, prog_bar=True)
        return loss

    def configure_optimizers(self) -> torch.optim.Optimizer:
        """Adam."""
        return torch.optim.Adam(self.parameters(), lr=0.1)


def rankings(menus: int, likes: Tensor) -> TensorDataset:
    """Menus of five dishes, of which some lack the last one, ranked by what is liked."""
    dishes = torch.randn(menus, 5, len(likes))
    mask = torch.ones(menus, 5, dtype=torch.bool)
    mask[::3, 4] = False
    liked = (dishes @ likes).masked_fill(~mask, -torch.inf)
    ranks = liked.argsort(descending=True).argsort() + 1
    return TensorDataset(dishes, ranks.masked_fill(~mask, 0), mask)


def main() -> None:
    """Learn it back."""
    L.seed_everything(1)
    likes = torch.tensor([2.0, -1.0, 0.0, 1.0])
    trainer = L.Trainer(max_epochs=5, accelerator="cpu", logger=False, enable_checkpointing=False)
    module = Taste(len(likes))
    trainer.fit(module, DataLoader(rankings(512, likes), batch_size=32, shuffle=True))
    learned = module.scorer.weight.detach()[0]
    print(f"accuracy {float(trainer.callback_metrics['accuracy']):.2f}")
    print(f"direction {float(torch.cosine_similarity(learned, likes, dim=0)):.2f}, 1 is right")


if __name__ == "__main__":
    main()
