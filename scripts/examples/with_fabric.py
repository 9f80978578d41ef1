"""A training loop of one's own with Lightning Fabric, on plain dicts of tokens. Run: `python with_fabric.py`."""

from functools import partial

import lightning as L
import torch
from torch.utils.data import DataLoader

from rlhf_lightning import LanguageModelModule, load_causal_lm, load_tokenizer

EATS = {"dog": "bread", "cat": "honey", "hen": "corn", "pig": "soup", "cow": "rice", "fox": "cheese"}


def rows() -> list[dict[str, torch.Tensor]]:
    """Tokens and labels, -100 where a token is no target."""
    tokenizer, found = load_tokenizer("sandbox"), []
    for animal, food in EATS.items():
        prompt = tokenizer(f"what does the {animal} eat ? answer :", return_tensors="pt").input_ids[0]
        answer = tokenizer(f"{food} . {tokenizer.eos_token}", return_tensors="pt").input_ids[0]
        found.append(
            {"input_ids": torch.cat([prompt, answer]), "labels": torch.cat([torch.full_like(prompt, -100), answer])}
        )
    return found


def main() -> None:
    """Train for ten epochs, then say what the answers are worth."""
    fabric = L.Fabric(accelerator="cpu", devices=1)
    fabric.seed_everything(1)
    module = LanguageModelModule(load_causal_lm("sandbox"), partial(torch.optim.AdamW, lr=1e-3))
    wrapped, optimizer = fabric.setup(module, *module.build_optimizers())
    loader = fabric.setup_dataloaders(DataLoader(rows(), batch_size=3, shuffle=True))
    for epoch in range(10):
        for number, batch in enumerate(loader):
            optimizer.zero_grad()
            loss = wrapped.training_step(batch, number)
            fabric.backward(loss)
            fabric.clip_gradients(wrapped, optimizer, max_norm=1.0)
            optimizer.step()
        fabric.print(f"epoch {epoch}: loss {loss.item():.3f}")
    batch = next(iter(loader))
    fabric.print("log-prob of each answer", [round(float(each), 2) for each in module.predict_step(batch, 0)])


if __name__ == "__main__":
    main()
