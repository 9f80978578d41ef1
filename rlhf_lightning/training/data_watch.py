"""What is wrong with the records that a model learns from is said before the first step."""

from collections.abc import Iterator
from typing import Any

import lightning as L

from rlhf_lightning.data.datamodule import RLHFDataModule
from rlhf_lightning.data.examples import ComparisonExample, LMExample
from rlhf_lightning.tokenization.unknown import MANY_UNKNOWN, unknown_tokens
from rlhf_lightning.training.warnings_file import Warnings

MANY_CUT = 0.05
"""The share of cut responses from which they are pointed out."""
SHOWN = 12
"""Tokens of a row that are shown."""


class RecordsWatch(L.Callback):
    """Looks at the records before the first step.

    Args:
        warnings: Says what is wrong with them.
        data: What the model learns from.
    """

    def __init__(self, warnings: Warnings, data: RLHFDataModule) -> None:
        self.warnings, self.data = warnings, data


class UnknownWatch(RecordsWatch):
    """Warns where the tokenizer has no tokens for what the records say."""

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Count them."""
        tokenizer = self.data.tokenization.tokenizer
        rows = [row for example in self.data.examples["train"] for row in _rows(example)]
        share, worst = unknown_tokens(tokenizer, rows)
        if share > MANY_UNKNOWN:
            read = str(tokenizer.decode(worst[:SHOWN]))
            self.warnings.warn(
                "unknown",
                f"{share:.0%} of the tokens of the records are {tokenizer.unk_token}: the tokenizer has none for their "
                f"words. A row is read as {read!r}, and nothing is learned of what cannot be read. Take a model whose "
                "tokenizer knows these texts (model=...).",
            )


class TrialWatch(L.Callback):
    """Warns where a model learns from a few batches alone, so that nobody takes its figures for results.

    Args:
        warnings: Says it.
    """

    def __init__(self, warnings: Warnings) -> None:
        self.warnings = warnings

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Say how many."""
        limit = trainer.limit_train_batches
        if isinstance(limit, int):
            self.warnings.warn(
                "trial",
                f"trainer.limit_train_batches={limit}: a trial, which learned from {limit} batches an epoch. Its "
                "figures say that the step runs, and no more.",
            )


class CutWatch(RecordsWatch):
    """Warns where many responses that a model learns from were cut without their end."""

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Count them."""
        tokens, train = self.data.tokenization, self.data.examples["train"]
        limit, ends = tokens.max_response_tokens, {tokens.tokenizer.eos_token_id, *tokens.dialogue.text.ends}
        responses = [ids for example in train for ids in _responses(example)]
        cut = sum(len(ids) == limit and ids[-1] not in ends for ids in responses)
        if cut > MANY_CUT * len(responses):
            what, lesson = _OF_RANKINGS if isinstance(train[0], ComparisonExample) else _OF_DEMONSTRATIONS
            self.warnings.warn(
                "cut",
                f"{cut / len(responses):.0%} of the {what} ({cut} of {len(responses)}) were cut at {limit} tokens, "
                f"without their end; {lesson}. Raise data.lengths.max_response_tokens, or leave such records out.",
            )


_OF_DEMONSTRATIONS = "responses", "what learns from them learns not to end"
_OF_RANKINGS = (
    "ranked responses",
    "a reward model of cut responses teaches PPO not to end (or set missing_eos_penalty of ppo.module there)",
)


def _responses(example: Any) -> list[list[int]]:
    if isinstance(example, ComparisonExample):
        return example.response_ids
    # Rows of text count from their second token on.
    return (
        [example.input_ids[example.loss_start :]] if isinstance(example, LMExample) and example.loss_start > 1 else []
    )


def _rows(example: Any) -> Iterator[list[int]]:
    if isinstance(example, LMExample):
        yield example.input_ids
        return
    yield example.prompt_ids
    yield from example.response_ids if isinstance(example, ComparisonExample) else ()
