"""PPO against a reward of one's own that knows the right answers. Run: `python custom_reward.py`."""

import copy
from functools import partial

import lightning as L
import torch

from rlhf_lightning import PPOModule, RLHFDataModule, ScalarHeadModel, load_causal_lm, load_tokenizer

OPPOSITES = {"big": "small", "brave": "timid", "clean": "dirty", "happy": "sad", "kind": "mean", "quick": "slow"}
ROWS = [{"prompt": f"what is the opposite of {word} ? answer :", "answer": right} for word, right in OPPOSITES.items()]


def right_answer(responses: list[str], answer: list[str]) -> list[float]:
    """1 where a response begins with the reference, which is the column `answer` of the rows."""
    return [float(response.startswith(right)) for response, right in zip(responses, answer, strict=True)]


def main() -> None:
    """Score the answers, train, score them again."""
    L.seed_everything(1)
    tokenizer, policy = load_tokenizer("sandbox"), load_causal_lm("sandbox")
    module = PPOModule(
        policy,
        copy.deepcopy(policy),
        right_answer,
        ScalarHeadModel.from_causal_lm(load_causal_lm("sandbox")),
        tokenizer,
        partial(torch.optim.AdamW, lr=3e-4),
        partial(torch.optim.AdamW, lr=1e-3),
        max_new_tokens=6,
        num_minibatches=4,
        kl_coef=0.01,
        ema_decay=None,
    )
    data = RLHFDataModule("ppo", tokenizer, ROWS, test=ROWS * 8, batch_size=48, num_batches=8)
    trainer = L.Trainer(max_epochs=1, accelerator="cpu", logger=False, enable_checkpointing=False)
    (before,) = trainer.test(module, data, verbose=False)
    trainer.fit(module, data)
    (after,) = trainer.test(module, data, verbose=False)
    print(f"score {before['test/score']:.2f} -> {after['test/score']:.2f}")
    for sample in trainer.predict(module, data)[0][: len(ROWS)]:
        print(f"{sample.score:.1f}  {sample.prompt} {sample.response}")


if __name__ == "__main__":
    main()
