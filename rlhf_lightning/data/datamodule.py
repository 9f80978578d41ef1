"""The one LightningDataModule that every step shares."""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal, get_args
from warnings import warn

import lightning as L
from lightning.pytorch.utilities import CombinedLoader
from transformers import PreTrainedTokenizerBase

from rlhf_lightning.arguments import AtLeastTwo, Count, Decay, NonNegativeInt, checked
from rlhf_lightning.data.examples import split_into_pairs
from rlhf_lightning.data.loader import (
    Loader,
    ResumableLoader,
    collate_comparisons,
    collate_lm,
    collate_prompts,
)
from rlhf_lightning.data.records import Comparison, Demonstration, Prompt, Text
from rlhf_lightning.data.rows.readers import SourceRow
from rlhf_lightning.data.rows.records_of import Source, read_records
from rlhf_lightning.data.tally import DROPPED, Tallied
from rlhf_lightning.data.text_share import ShareOf, mixed_text, text_shares
from rlhf_lightning.data.tokenize import LAST, Tokenization, TrainOn
from rlhf_lightning.parallel.processes import world_size
from rlhf_lightning.tokenization.formats import FormatName


@dataclass(frozen=True)
class Task:
    """What a module learns from.

    Args:
        record: The record that a row becomes.
        examples: Makes examples of records, given tokenization, records and block size.
        collate: Makes a batch of examples.
        mixes_text: Whether pretraining text may be mixed into its rows.
        adds_text: Whether a batch of pretraining text may stand beside each of its batches.
    """

    record: type[Any]
    examples: Callable[[Tokenization, Iterable[Any], int], Sequence[Any]]
    collate: Callable[..., Any]
    mixes_text: bool = False
    adds_text: bool = False


TaskName = Literal["pretrain", "sft", "reward", "ppo"]
_TASKS = (
    Task(Text, lambda tokens, records, size: tokens.texts(records, size), collate_lm),
    Task(Demonstration, lambda tokens, records, _: tokens.demonstrations(records), collate_lm, mixes_text=True),
    Task(Comparison, lambda tokens, records, _: tokens.comparisons(records), collate_comparisons),
    Task(Prompt, lambda tokens, records, _: tokens.prompts(records), collate_prompts, adds_text=True),
)
TASKS: dict[TaskName, Task] = dict(zip(get_args(TaskName), _TASKS, strict=True))
TASK_OF = {task.record: name for name, task in TASKS.items()}
"""The task that learns from a kind of record."""


class RLHFDataModule(L.LightningDataModule, Tallied):
    """Loads, checks, tokenizes and batches the records of one step.

    It knows records, tokenizer, lengths, batch sizes and seeds, and nothing of models. Its position is saved and
    restored exactly with Lightning's checkpoints, in the middle of an epoch too.

    Args:
        task: ``pretrain`` (`Text` records, `LMBatch`), ``sft`` (`Demonstration`, `LMBatch`), ``reward`` (`Comparison`,
            `ComparisonBatch`) or ``ppo`` (`Prompt`; batches are ``{"prompts": PromptBatch, "pretrain": LMBatch}``, the
            second only where ``text`` is given).
        tokenizer: A tokenizer with EOS and pad tokens that differ.
        train: Records, rows as dicts (any format of `docs/data.md`), a JSONL file, a ``datasets`` data set or a hub
            id; see `rlhf_lightning.data.rows.records_of.read_records`.
        validation: Records to validate on, likewise, or None.
        test: Records for `Trainer.test` and `Trainer.predict`, likewise, or None; then those to train on may be None.
        text: Pretraining text that is mixed in: for ``sft`` as a share (``text_share``), for ``ppo`` as a second batch
            of ``text_batch_size`` rows (PPO-ptx).
        batch_size: Rows per optimizer step for ``pretrain`` and ``sft``, prompts per batch for ``reward``, episodes
            per iteration for ``ppo``; over all ranks.
        num_batches: Batches per epoch; None makes an epoch one pass over the data.
        text_share: Share of pretraining text in what ``sft`` learns from, in [0, 1).
        text_share_of: What it is a share of, which the paper does not say: ``rows`` (ours), or ``tokens`` that count in
            the loss. 10 % of rows of 1,024 tokens are 65 % of the tokens in the loss beside responses of 60.
        text_batch_size: Pretraining rows per PPO iteration.
        as_pairs: Make every pair of a ranking an element of its own, shuffled among all others: what InstructGPT,
            section 3.5, advises against. For comparison with the K-wise form.
        block_size: Tokens per row of pretraining text.
        max_prompt_tokens: Longer prompts are left out and counted.
        max_response_tokens: Longer responses are cut.
        prompt_template: How a plain string becomes the text that the model continues, see `Tokenization`.
        train_on: ``last`` or ``all`` turns of the assistant in the conversation of a demonstration.
        format: ``chat``, ``template``, ``plain`` or None (by model): what a plain string goes through.
        seed: Seed of the order of the data.
        num_workers: Processes that collate batches.

    Raises:
        ValueError: When nothing is left to train on.
    """

    @checked
    def __init__(
        self,
        task: TaskName,
        tokenizer: PreTrainedTokenizerBase,
        train: Source | None = None,
        validation: Source | None = None,
        test: Source | None = None,
        *,
        text: Source | None = None,
        batch_size: Count = 32,
        num_batches: Count | None = None,
        text_share: Decay = 0.0,
        text_share_of: ShareOf = "rows",
        text_batch_size: NonNegativeInt = 0,
        as_pairs: bool = False,
        block_size: AtLeastTwo = 1024,
        max_prompt_tokens: Count = 1024,
        max_response_tokens: Count = 1024,
        prompt_template: str | None = None,
        train_on: TrainOn = LAST,
        format: FormatName | None = None,
        seed: int = 0,
        num_workers: NonNegativeInt = 0,
    ) -> None:
        super().__init__()
        self.task, self._kind = task, TASKS[task]
        self.train, self.validation, self.test, self.text = train, validation, test, text
        self.tokenization = Tokenization(
            tokenizer, max_prompt_tokens, max_response_tokens, prompt_template, train_on, format
        )
        self.tally = self.tokenization.tally
        self.batch_size, self.num_batches = batch_size, num_batches
        self.text_share, self.text_share_of = text_share, text_share_of
        self.text_batch_size, self.block_size = text_batch_size, block_size
        self.text_shares: dict[str, float] = {}
        """Share of the text among rows and tokens, by log key, where some is mixed in."""
        self.as_pairs = as_pairs
        self.seed, self.num_workers = seed, num_workers
        self.examples: dict[str, Sequence[Any]] = {}
        self._loaders: dict[str, ResumableLoader] = {}
        self._states: dict[str, dict[str, int]] = {}
        self._unused: set[str] = set()
        """States that were restored, and no loader has gone on from."""
        self._val_limit: int | float | None = None

    def setup(self, stage: str | None = None) -> None:
        """Read and tokenize everything, once."""
        if not self.examples:
            self._read()
        if stage == "fit":
            self._needed("train")
            if not self._unused:  # they are of a training before
                self._loaders, self._states = {}, {}
        if self.trainer is not None and stage == "fit" and not self.examples["validation"]:
            # Lightning would ask for validation batches all the same, and warn that there are none.
            self._val_limit, self.trainer.limit_val_batches = self.trainer.limit_val_batches, 0

    def _read(self) -> None:
        for name, source in (("train", self.train), ("validation", self.validation), ("test", self.test)):
            self.tally.part = name
            records = [] if source is None else read_records(source, self._kind.record, left_out=self._leave_out)
            self.examples[name] = self._kind.examples(self.tokenization, records, self.block_size)
            if name == "test" and self._kind.record is Demonstration:
                self.tally.part = "predict"
                self.examples["predict"] = self.tokenization.prompts([Prompt(record.prompt) for record in records])
            if source is not None and name != "validation" and not self.examples[name]:
                why = f"left out: {dict(self.dropped)}" if self.dropped else "the data are empty"
                raise ValueError(f"no {self.task} example is left to {name} on; {why}.")
        if self._kind.record is Comparison and self.as_pairs:
            self.examples["train"] = split_into_pairs(self.examples["train"])
        if (self.text is not None) != self._uses_text():
            takes = "text_batch_size" if self._kind.adds_text else "text_share" if self._kind.mixes_text else "no text"
            given = (
                "text is given, and nothing of it is read" if self.text is not None else "there is no text to mix in"
            )
            warn(f"{given}: task {self.task} takes {takes}, and text beside it.", stacklevel=2)
        if self.text is not None and self._uses_text():
            self.examples["text"] = self.tokenization.texts(read_records(self.text, Text), self.block_size)
        if self._kind.mixes_text and "text" in self.examples:
            train = self.examples["train"]
            text = mixed_text(train, self.examples["text"], self.text_share, self.text_share_of)
            self.text_shares = text_shares(train, text)
            self.examples["train"] = [*train, *text]

    def train_dataloader(self) -> ResumableLoader | CombinedLoader:
        """One batch per optimizer step, or per PPO iteration."""
        loader = self._loader("train", self.batch_size, self.seed)
        if not self._kind.adds_text:
            return loader
        loaders = {"prompts": loader}
        if "text" in self.examples:
            module = None if self.trainer is None else self.trainer.lightning_module
            if module is not None and module.hparams.get("ptx_coef") == 0:
                warn("text is read, and nothing learns from it: give PPOModule a ptx_coef, or no text.", stacklevel=2)
            loaders["pretrain"] = self._loader("text", self.text_batch_size, self.seed + 1)
        return CombinedLoader(loaders, "min_size")

    def val_dataloader(self) -> Loader | list[Any]:
        """Validation records in order; empty where there are none."""
        return self._in_order("validation") if self.examples["validation"] else []

    def test_dataloader(self) -> Loader:
        """Test records in order."""
        return self._in_order(self._needed("test"))

    def predict_dataloader(self) -> Loader:
        """The same; for ``sft`` as `PromptBatch`, to be answered. A warning counts those that are left out."""
        self._needed("test")
        name = "predict" if "predict" in self.examples else "test"
        if dropped := self.tally.total(DROPPED, name):
            why = ", ".join(f"{reason}: {count}" for reason, count in dropped.items())
            warn(f"{dropped.total()} of the test records get no result ({why}): results are fewer.", stacklevel=2)
        return self._in_order(name)

    def teardown(self, stage: str | None = None) -> None:
        """Give the trainer its limit back."""
        if self._val_limit is not None and self.trainer is not None:
            self.trainer.limit_val_batches, self._val_limit = self._val_limit, None

    def on_exception(self, exception: BaseException) -> None:
        """As at the end."""
        self.teardown()

    def probe(self, count: int) -> list[Any]:
        """Batches of the first validation examples, or training examples where there are none; always the same."""
        name = "validation" if self.examples["validation"] else "train"
        examples, collate = self.examples[name][:count], self._collate(name)
        size = min(16, self.batch_size)  # what does not fit into memory in training does not here
        return [collate(examples[start : start + size]) for start in range(0, len(examples), size)]

    def _needed(self, name: str) -> str:
        if getattr(self, name) is None:
            raise ValueError(f"this data module has nothing to {name} on: give RLHFDataModule {name}=<records>.")
        return name

    def _in_order(self, name: str) -> Loader:
        examples, collate = self.examples[name], self._collate(name)
        return Loader(examples, collate, batch_size=self.batch_size, seed=self.seed, num_workers=self.num_workers)

    def _uses_text(self) -> bool:
        return (self._kind.mixes_text and self.text_share > 0) or (self._kind.adds_text and self.text_batch_size > 0)

    def _leave_out(self, row: SourceRow) -> None:
        self.tally.count(DROPPED, str(row.problem))

    def _loader(self, name: str, batch_size: int, seed: int) -> ResumableLoader:
        # Every PPO iteration takes one batch of each loader, however long the data sets are.
        num_batches = self.num_batches
        if name == "text" and num_batches is None:
            num_batches = -(-len(self.examples["train"]) // self.batch_size)
        state, before = self._states.get(name), self._loaders.get(name)
        if before is not None and name not in self._unused and self.trainer is not None and self.trainer.training:
            # Lightning asks anew in the midst of a training; with another batch size its tuner does.
            state = before.state_dict() if before.batches.batch_size == batch_size else None
        self._unused.discard(name)
        loader = self._loaders[name] = ResumableLoader(
            self.examples[name],
            self._collate(name),
            batch_size=batch_size,
            seed=seed,
            shuffle=True,
            num_batches=num_batches,
            num_workers=self.num_workers,
        )
        if self.trainer is not None:
            loader.counted, loader.repeats = True, vars(self.trainer).get("overfit_batches", 0) > 0
        if state is not None:
            loader.load_state_dict(state)
        if self._kind.adds_text and name == "train" and (least := loader.batches.smallest) < world_size():
            raise ValueError(
                f"a batch of {least} prompts leaves one of {world_size()} processes without any (train has "
                f"{loader.batches.size}, batch_size is {batch_size}). Set num_batches, which makes all batches full, "
                "or another batch_size, or start fewer processes."
            )
        return loader

    def state_dict(self) -> dict[str, Any]:
        """Batches that each loader has handed out, and of what.

        Lightning restores loaders itself only when nothing asked for their length before, as every schedule does.
        """
        return {name: loader.state_dict() for name, loader in self._loaders.items()}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Let the loaders go on from there; a checkpoint of an earlier version has the numbers alone."""
        self._states = {
            name: state if isinstance(state, dict) else {"position": state} for name, state in state_dict.items()
        }
        self._unused = set(state_dict)

    def _collate(self, name: str) -> Callable[[Sequence[Any]], Any]:
        pad: Any = self.tokenization.tokenizer.pad_token_id
        others: dict[str, Callable[..., Any]] = {"text": collate_lm, "predict": collate_prompts}
        return partial(others.get(name, self._kind.collate), pad_token_id=pad)
