"""RewardModule on a network that is not of transformers. Run: `python own_reward_model.py`."""

from functools import partial
from typing import ClassVar

import lightning as L
import torch
from torch import Tensor, nn

from rlhf_lightning import RewardModule, RLHFDataModule, load_tokenizer

FOODS = ("bread", "soup", "cake", "rice", "corn", "milk")
ROWS = [
    {
        "prompt": f"what does the dog eat {'and what the cat ' * (number % 2)}? answer :",
        "completions": [f"the dog eats {food} .", f"{food} .", f"i do not know about the {food} ."],
        "ranks": [1, 2, 3],
    }
    for number, food in enumerate(FOODS * 8)
]


class Recurrent(nn.Module):
    """A number per token. What it calls the mask of real tokens stands in `forward_names`."""

    forward_names: ClassVar = {"attention_mask": "real"}

    def __init__(self, words: int, width: int = 32) -> None:
        super().__init__()
        self.table, self.head = nn.Embedding(words, width), nn.Linear(width, 1)
        self.body = nn.LSTM(width, width, batch_first=True)

    def forward(self, tokens: Tensor, real: Tensor) -> Tensor:
        """Scores, rows x time."""
        hidden, _ = self.body(self.table(tokens) * real.unsqueeze(-1))
        return self.head(hidden).squeeze(-1)


def main() -> None:
    """Train, test, score. A warning says that each response is read with a copy of its prompt."""
    L.seed_everything(1)
    tokenizer = load_tokenizer("sandbox")
    module = RewardModule(Recurrent(len(tokenizer)), partial(torch.optim.Adam, lr=1e-2))
    data = RLHFDataModule("reward", tokenizer, ROWS[6:], test=ROWS[:6], batch_size=6)
    trainer = L.Trainer(max_epochs=4, accelerator="cpu", logger=False, enable_checkpointing=False)
    trainer.fit(module, data)
    (figures,) = trainer.test(module, data, verbose=False)
    print(f"accuracy {figures['test/accuracy']:.2f}")
    print("scores", [round(score, 1) for score in trainer.predict(module, data)[0][0]])


if __name__ == "__main__":
    main()
