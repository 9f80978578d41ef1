"""Our modules in a LightningCLI. Run: `python lightning_cli.py fit --model.learning_rate=2e-3`."""

from functools import partial

import torch
from lightning.pytorch.cli import LightningCLI

from rlhf_lightning import RewardModule, RLHFDataModule, ScalarHeadModel, load_causal_lm, load_tokenizer

ROWS = [
    {"prompt": f"what does the {animal} eat ? answer :", "chosen": f"the {animal} eats bread .", "rejected": "no ."}
    for animal in ("dog", "cat", "hen", "pig", "cow", "fox") * 4
]


class Reward(RewardModule):
    """A reward model, described by what can be typed on a command line.

    Args:
        base: Folder or hub id of the language model that it starts as.
        learning_rate: Learning rate.
        micro_batch_size: Prompts per backward pass, or null.
    """

    def __init__(self, base: str = "sandbox", learning_rate: float = 1e-3, micro_batch_size: int | None = None) -> None:
        model = ScalarHeadModel.from_causal_lm(load_causal_lm(base))
        super().__init__(model, partial(torch.optim.AdamW, lr=learning_rate), micro_batch_size=micro_batch_size)


class Rankings(RLHFDataModule):
    """Rankings from a file.

    Args:
        path: A JSONL file; null takes a few rows that are written here.
        tokenizer: Folder or hub id of the tokenizer.
        batch_size: Prompts per optimizer step.
    """

    def __init__(self, path: str | None = None, tokenizer: str = "sandbox", batch_size: int = 8) -> None:
        super().__init__("reward", load_tokenizer(tokenizer), path or ROWS, path or ROWS[:8], batch_size=batch_size)


if __name__ == "__main__":
    quiet = {"logger": False, "enable_checkpointing": False, "accelerator": "cpu", "max_epochs": 2}
    cli = LightningCLI(Reward, Rankings, seed_everything_default=1, trainer_defaults=quiet, save_config_callback=None)
    print(f"accuracy {float(cli.trainer.callback_metrics['validation/accuracy']):.2f}")
