"""PPO with a price for every token beyond the fourth. Run: `python length_penalty.py`."""

import copy
from functools import partial

import lightning as L
import torch

from rlhf_lightning import PPOModule, RLHFDataModule, ScalarHeadModel, load_causal_lm, load_tokenizer
from rlhf_lightning.generation.score_hooks import LengthPenalty

PROMPTS = [{"prompt": f"please write a sentence about the {animal} . answer :"} for animal in ("dog", "cat", "hen")]


def mean_length(trainer: L.Trainer, module: PPOModule, data: RLHFDataModule) -> float:
    """Words per response."""
    samples = [sample for batch in trainer.predict(module, data) or [] for sample in batch]
    return sum(len(sample.response.split()) for sample in samples) / len(samples)


def main() -> None:
    """Measure the length, train, measure it again."""
    L.seed_everything(1)
    tokenizer, policy = load_tokenizer("sandbox"), load_causal_lm("sandbox")
    reward = ScalarHeadModel.from_causal_lm(load_causal_lm("sandbox"))  # put your reward model here
    module = PPOModule(
        policy,
        copy.deepcopy(policy),
        reward,
        copy.deepcopy(reward),
        tokenizer,
        partial(torch.optim.AdamW, lr=3e-4),
        partial(torch.optim.AdamW, lr=1e-3),
        score_hook=LengthPenalty(per_token=0.5, free_tokens=4),  # or any function of scores and rollout
        max_new_tokens=16,
        num_minibatches=4,
        kl_coef=0.01,
    )
    data = RLHFDataModule("ppo", tokenizer, PROMPTS, test=PROMPTS * 16, batch_size=48, num_batches=8)
    trainer = L.Trainer(max_epochs=1, accelerator="cpu", logger=False, enable_checkpointing=False)
    before = mean_length(trainer, module, data)
    trainer.fit(module, data)
    print(f"words {before:.1f} -> {mean_length(trainer, module, data):.1f}")


if __name__ == "__main__":
    main()
