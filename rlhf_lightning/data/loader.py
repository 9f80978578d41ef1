"""A DataLoader that stops and continues exactly."""

import random
from collections.abc import Callable, Iterator, Sequence
from functools import cached_property
from typing import Any, TypeVar, cast
from zlib import crc32

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Sampler

from rlhf_lightning.algorithms.batch import ComparisonBatch, LMBatch, PromptBatch
from rlhf_lightning.data.examples import ComparisonExample, LMExample, PromptExample
from rlhf_lightning.parallel.processes import rank, world_size

T = TypeVar("T")


class ResumableBatches(Sampler[list[int]]):
    """Row numbers of batch after batch, as a pure function of the seed and the batch's number.

    Args:
        size: Rows in the data set.
        batch_size: Rows per batch, over all ranks; of a world of n each rank takes every n-th row of a batch.
        seed: Seed of the order; every pass over the data has another order.
        shuffle: Whether to draw an order at all.
        num_batches: Batches per epoch. None: one pass over the data, the last batch possibly smaller. A number: that
            many full batches, going on into the next pass where the data ends.
    """

    def __init__(self, size: int, batch_size: int, seed: int, shuffle: bool, num_batches: int | None) -> None:
        self.size, self.batch_size, self.seed, self.shuffle = size, batch_size, seed, shuffle
        self.num_batches = num_batches
        self.position = 0
        self.end: int | None = None
        """Where the next pass ends; None, after as many batches as an epoch has."""
        self._order: tuple[int, list[int]] = (-1, [])

    def __len__(self) -> int:
        """Batches per epoch."""
        return self.num_batches or -(-self.size // self.batch_size)

    def __iter__(self) -> Iterator[list[int]]:
        """A pass, from ``position`` on: what one before left out, when it ended early, comes first."""
        end, self.end = self.end or self.position + len(self), None
        for number in range(self.position, end):
            yield self._rows(number)[rank() :: world_size()]

    @property
    def smallest(self) -> int:
        """Rows of the smallest batch of an epoch."""
        return self.batch_size if self.num_batches else (self.size - 1) % self.batch_size + 1

    def _rows(self, number: int) -> list[int]:
        if self.num_batches is None:
            epoch, batch = divmod(number, len(self))
            return self._pass(epoch)[batch * self.batch_size : (batch + 1) * self.batch_size]
        items = range(number * self.batch_size, (number + 1) * self.batch_size)
        return [self._pass(item // self.size)[item % self.size] for item in items]

    def _pass(self, number: int) -> list[int]:
        if not self.shuffle:
            return list(range(self.size))
        if self._order[0] != number:
            generator = torch.Generator().manual_seed(hash((self.seed, number)) % 2**63)
            self._order = (number, torch.randperm(self.size, generator=generator).tolist())
        return self._order[1]


class Loader:
    """Batches of examples, each pass from the start.

    It holds a DataLoader and is none: Lightning would advise worker processes for one, and those cost more than they
    save where a batch is a few rows of ids. The global random state is not touched.

    Args:
        examples: The data set; a list is one.
        collate: Makes a batch of examples.
        batch_size: Rows per batch, over all ranks; see `ResumableBatches`, as for the next three.
        seed: Seed of the order.
        shuffle: Whether to draw an order.
        num_batches: Batches per epoch.
        num_workers: Processes that collate.
    """

    def __init__(
        self,
        examples: Sequence[Any],
        collate: Callable[[Sequence[Any]], Any],
        *,
        batch_size: int,
        seed: int = 0,
        shuffle: bool = False,
        num_batches: int | None = None,
        num_workers: int = 0,
    ) -> None:
        self.batches = ResumableBatches(len(examples), batch_size, seed, shuffle, num_batches)
        self.loader: DataLoader[Any] = DataLoader(
            cast("Dataset[Any]", examples),
            batch_sampler=self.batches,
            collate_fn=collate,
            num_workers=num_workers,
            generator=torch.Generator().manual_seed(seed),
        )

    def __len__(self) -> int:
        """Batches per epoch."""
        return len(self.batches)

    def __iter__(self) -> Iterator[Any]:
        """One pass."""
        yield from self.loader


class ResumableLoader(Loader):
    """A loader whose ``state_dict`` is the number of batches it has handed out, from which it goes on.

    Lightning saves and restores that number with its checkpoints. It counts batches of so many rows, of so many.
    """

    counted = False
    """Whether the reader counts the batches of an epoch, and goes on in its middle, as Lightning does. Otherwise the
    first pass after `load_state_dict` is the rest of one."""
    repeats = False
    """Whether every pass has the same batches, as Lightning's `overfit_batches` asks."""

    def __iter__(self) -> Iterator[Any]:
        """One pass, or the rest of one."""
        for batch in self.loader:
            self.batches.position += not self.repeats
            yield batch

    @cached_property
    def _checksum(self) -> int:
        """Of up to a thousand of the rows, at equal distances."""
        rows: Any = self.loader.dataset
        return crc32(repr([rows[place] for place in range(0, len(rows), -(-len(rows) // 1000))]).encode())

    def state_dict(self) -> dict[str, int]:
        """Batches handed out since the start of training."""
        order = self.batches
        return {
            "position": order.position,
            "batch_size": order.batch_size,
            "rows": order.size,
            "seed": order.seed,
            "checksum of rows": self._checksum,
        }

    def load_state_dict(self, state: dict[str, int]) -> None:
        """Go on after that many batches.

        Raises:
            ValueError: When they were of other rows, so that the place would be another.
        """
        now = self.state_dict()
        other = [name for name in now if name != "position" and state.get(name, now[name]) != now[name]]
        if state["position"] and other:
            said = " and ".join(f"{name} {state[name]} there, {now[name]} now" for name in other)
            raise ValueError(
                f"the checkpoint is {state['position']} batches into other data ({said}), so that going on would leave "
                "out some rows and repeat others. Give the same batch_size and data, or begin anew from its weights "
                "(load_from_checkpoint)."
            )
        self.batches.position = place = state["position"]
        self.batches.end = None if self.counted else (place // len(self) + 1) * len(self)


def random_part(rows: Sequence[T], count: int | None, seed: int) -> Sequence[T]:
    """So many of the rows, drawn by the seed, in their order: the first ones may be of one source, or one prompt.

    Args:
        rows: The rows.
        count: How many; None, or as many as there are, is all of them.
        seed: The seed.

    Examples:
        >>> random_part("abcdefgh", 3, seed=1)
        ['a', 'c', 'e']
    """
    if count is None or count >= len(rows):
        return rows
    return [rows[place] for place in sorted(random.Random(seed).sample(range(len(rows)), count))]


def collate_lm(examples: Sequence[LMExample], pad_token_id: int) -> LMBatch:
    """Sequences padded on the right."""
    examples = examples or [LMExample([int(pad_token_id == 0)], loss_start=1)]  # any other token
    ids, mask = padded([example.input_ids for example in examples], pad_token_id)
    starts = torch.tensor([example.loss_start for example in examples]).unsqueeze(1)
    targets = torch.arange(ids.shape[1]) >= starts
    for row, example in enumerate(examples):
        for start, end in example.earlier:
            targets[row, start:end] = True
    return LMBatch(ids, mask, mask & targets)


def collate_comparisons(examples: Sequence[ComparisonExample], pad_token_id: int) -> ComparisonBatch:
    """Prompts padded on the left, responses on the right; prompts with fewer responses get empty ones."""
    any_ids = [int(pad_token_id == 0)]
    examples = examples or [ComparisonExample(any_ids, [any_ids, any_ids], [1, 1], group="")]
    prompt_ids, prompt_mask = padded([example.prompt_ids for example in examples], pad_token_id, left=True)
    most = max(len(example.ranks) for example in examples)
    responses = [ids for example in examples for ids in example.response_ids + [[]] * (most - len(example.ranks))]
    response_ids, response_mask = padded(responses, pad_token_id)
    ranks = torch.tensor([example.ranks + [0] * (most - len(example.ranks)) for example in examples])
    response_ids, response_mask = (values.view(len(examples), most, -1) for values in (response_ids, response_mask))
    groups = [example.group for example in examples]
    return ComparisonBatch(prompt_ids, prompt_mask, response_ids, response_mask, ranks, groups)


def collate_prompts(examples: Sequence[PromptExample], pad_token_id: int) -> PromptBatch:
    """Prompts padded on the left; where there are none, one of number -1, whose answer nobody reads."""
    examples = examples or [PromptExample([int(pad_token_id == 0)], index=-1, text="")]
    ids, mask = padded([example.prompt_ids for example in examples], pad_token_id, left=True)
    index = torch.tensor([example.index for example in examples])
    return PromptBatch(ids, mask, index, [example.text for example in examples])


def padded(rows: Sequence[Sequence[int]], pad_token_id: int, left: bool = False) -> tuple[Tensor, Tensor]:
    """Rows of one length, and the mask of real tokens."""
    width = max(len(row) for row in rows)
    ids = torch.full((len(rows), width), pad_token_id)
    mask = torch.zeros(len(rows), width, dtype=torch.bool)
    for number, row in enumerate(rows):
        place = slice(width - len(row), width) if left else slice(0, len(row))
        ids[number, place] = torch.tensor(row, dtype=torch.long)
        mask[number, place] = True
    return ids, mask
