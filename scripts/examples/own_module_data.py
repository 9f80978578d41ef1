"""RLHFDataModule with a model and a LightningModule of one's own. Run: `python own_module_data.py`."""

import lightning as L
import torch
from torch import Tensor, nn

from rlhf_lightning import RLHFDataModule, load_tokenizer
from rlhf_lightning.algorithms.batch import LMBatch

ROWS = [
    {"messages": [{"role": "user", "content": f"where is the {thing} ?"}, {"role": "assistant", "content": place}]}
    for thing, place in (("dog", "garden ."), ("key", "kitchen ."), ("book", "library ."), ("boat", "harbor ."))
] * 8


class Answerer(L.LightningModule):
    """Predicts each token from what is remembered of all before it."""

    def __init__(self, words: int, width: int = 64) -> None:
        super().__init__()
        self.table, self.head = nn.Embedding(words, width), nn.Linear(width, words)
        self.memory = nn.GRU(width, width, batch_first=True)

    def loss(self, batch: LMBatch) -> Tensor:
        """Cross-entropy of the tokens that count: the response and its end, not the prompt, not the padding."""
        logits = self.head(self.memory(self.table(batch.input_ids))[0])[:, :-1]
        counts = batch.loss_mask[:, 1:]
        return nn.functional.cross_entropy(logits[counts], batch.input_ids[:, 1:][counts])

    def training_step(self, batch: LMBatch, batch_idx: int) -> Tensor:
        """One optimizer step."""
        loss = self.loss(batch)
        self.log("loss", loss, prog_bar=True)
        return loss

    def validation_step(self, batch: LMBatch, batch_idx: int) -> None:
        """The same on what is held out."""
        self.log("held_out", self.loss(batch), batch_size=len(batch.mask))

    def configure_optimizers(self) -> torch.optim.Optimizer:
        """Adam."""
        return torch.optim.Adam(self.parameters(), lr=1e-2)


def main() -> None:
    """Train; the data module reads, checks, tokenizes and batches, and resumes in the middle of an epoch."""
    L.seed_everything(1)
    tokenizer = load_tokenizer("sandbox")
    data = RLHFDataModule("sft", tokenizer, ROWS, ROWS[:4], batch_size=8, max_prompt_tokens=64)
    trainer = L.Trainer(max_epochs=10, accelerator="cpu", logger=False, enable_checkpointing=False)
    trainer.fit(Answerer(len(tokenizer)), data)
    print(f"held-out loss {float(trainer.callback_metrics['held_out']):.2f}")


if __name__ == "__main__":
    main()
