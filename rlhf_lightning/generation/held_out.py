"""What `Trainer.test` and `Trainer.predict` do with a module: figures, scores and samples of held-out records."""

from typing import Any, NamedTuple

import lightning as L
from jaxtyping import Float
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from rlhf_lightning.algorithms.batch import PromptBatch, Rollout
from rlhf_lightning.generation.rewards import response_scores
from rlhf_lightning.generation.sample import SamplingOptions, response_texts, sample_responses
from rlhf_lightning.models.lora import adapters_disabled
from rlhf_lightning.models.offload import on_device_within
from rlhf_lightning.parallel.processes import mean_over_rows
from rlhf_lightning.parallel.sharding import unshard


class Sample(NamedTuple):
    """A response to a prompt; `_asdict()` is a row for a file."""

    prompt: str
    response: str
    score: float | None
    """What the reward says; None where there is none."""


class HeldOut(L.LightningModule):
    """A module whose test is its validation, logged as `test/...`."""

    def split_key(self, key: str) -> str:
        """The key of a figure: `validation/loss` is `test/loss` under `Trainer.test`."""
        testing = getattr(getattr(self, "running_trainer", None), "testing", False)
        return key.replace("validation/", "test/", 1) if testing else key

    def set_suffix(self, dataloader_idx: int) -> str:
        """What Lightning adds to the key of a figure where there are several sets: `/dataloader_idx_1`."""
        trainer = getattr(self, "running_trainer", None)
        sets = 1 if trainer is None else len(trainer.num_test_batches if trainer.testing else trainer.num_val_batches)
        return f"/dataloader_idx_{dataloader_idx}" if sets > 1 else ""

    def on_test_epoch_start(self) -> None:
        """As in validation."""
        self.on_validation_epoch_start()

    def test_step(self, batch: Any, batch_idx: int, dataloader_idx: int = 0) -> None:
        """As in validation."""
        self.validation_step(batch, batch_idx, dataloader_idx)

    def on_test_epoch_end(self) -> None:
        """As in validation."""
        self.on_validation_epoch_end()


def samples(
    tokenizer: PreTrainedTokenizerBase, rollout: Rollout, scores: Float[Tensor, " rows"] | None = None
) -> list[Sample]:
    """Prompts and responses as text, without the row that a process reads where it has none.

    Args:
        tokenizer: The tokenizer of the policy.
        rollout: Prompts and responses.
        scores: A score for each, or None.
    """
    numbers = [None] * len(rollout.ended) if scores is None else scores.tolist()
    texts, real = response_texts(tokenizer, rollout), (rollout.prompts.prompt_index >= 0).tolist()
    rows = zip(real, rollout.prompts.texts, texts, numbers, strict=True)
    return [Sample(str(prompt), *of_row) for is_real, prompt, *of_row in rows if is_real]


def sampled(module: Any, prompts: PromptBatch) -> list[Sample]:
    """Samples of a `LanguageModelModule`, as long as the data module lets a response be.

    Args:
        module: The module, under a Trainer.
        prompts: The prompts.

    Raises:
        ValueError: When the Trainer has no `RLHFDataModule`, whose tokenizer it takes.
    """
    tokens = getattr(module.trainer.datamodule, "tokenization", None)
    if tokens is None:
        raise ValueError(
            "samples are made with the tokenizer of the data: trainer.predict(module, datamodule=RLHFDataModule('sft', "
            "tokenizer, test=...)). Batches with input_ids and labels are scored without one."
        )
    options = SamplingOptions.from_tokenizer(tokens.tokenizer, tokens.max_response_tokens)
    with unshard(module.model):
        return samples(tokens.tokenizer, sample_responses(module.model, prompts, options))


def answered(module: Any, prompts: PromptBatch) -> tuple[Rollout, Float[Tensor, " rows"]]:
    """Fresh samples of a `PPOModule`, and their scores.

    Args:
        module: The module.
        prompts: The prompts.
    """
    reward = module.reward
    with on_device_within(module.device, *module.offloaded), adapters_disabled(reward), unshard(reward):
        rollout = module.rollout(prompts)
        return rollout, response_scores(reward, rollout, module.tokenizer)


def mean_score(module: Any, prompts: PromptBatch) -> tuple[Float[Tensor, ""], int]:
    """Mean score of fresh samples of a `PPOModule` over the prompts of all processes, and how many these are.

    Args:
        module: The module.
        prompts: The prompts of this process.
    """
    rollout, scores = answered(module, prompts)
    return mean_over_rows(scores[rollout.prompts.prompt_index >= 0])
