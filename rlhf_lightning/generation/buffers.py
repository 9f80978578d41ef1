"""Keys and values in buffers that are filled in place."""

from typing import Any

import torch
from torch import Tensor
from transformers.cache_utils import DynamicLayer


class BufferedLayer(DynamicLayer):
    """Keys and values of one layer in buffers that have room for more.

    Args:
        rows: Rows of the batch.
        block: Columns that the buffers grow by; all that will be needed where they are not to grow.
        gapless: Whether queries get the whole buffers, unused columns included, instead of a part of each row.
    """

    def __init__(self, rows: int, block: int, gapless: bool) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.rows, self.block, self.gapless, self.length = rows, block, gapless, 0
        self.prompts: tuple[Tensor, Tensor, int, int] | None = None
        """Where the next keys are those of prompts: the rows that get them, which of them each gets, and the columns
        from the first to behind the last."""
        self.column: Tensor | None = None
        """Where the next keys go, in the memory of the device: then every step is the same, whatever the column."""
        self.buffers: list[Tensor] = []

    def move(self, movers: Tensor, holes: Tensor, count: int) -> None:
        """Put some rows into the places of others and keep the first `count`."""
        for buffer in self.buffers:
            buffer[holes, :, : self.length] = buffer[movers, :, : self.length]
        self.rows = count

    def keep(self, rows: Tensor) -> None:
        """Keep those rows alone, in new buffers."""
        self.buffers, self.rows = [buffer[rows] for buffer in self.buffers], len(rows)

    def update(self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
        """Write new keys and values; all that the queries may look at."""
        new = key_states, value_states
        if self.prompts is not None:
            rows, which, start, stop = self.prompts
            self._make_room(new, stop)
            for buffer, states in zip(self.buffers, new, strict=True):
                buffer[rows, :, start:stop] = states[which]
            read = (buffer[:1, :, : self.length].expand(len(key_states), -1, -1, -1) for buffer in self.buffers)
            keys, values = (torch.cat(parts, 2) if self.length else parts[1] for parts in zip(read, new, strict=True))
            return keys, values
        if self.column is not None:
            for buffer, states in zip(self.buffers, new, strict=True):
                buffer.index_copy_(2, self.column, states)
            keys, values = self.buffers
            return keys, values
        start, self.length = self.length, self.length + key_states.shape[2]
        self._make_room(new, self.length)
        for buffer, states in zip(self.buffers, new, strict=True):
            buffer[: self.rows, :, start : self.length] = states
        stop = self.buffers[0].shape[2] if self.gapless else self.length
        keys, values = (buffer[: self.rows, :, :stop] for buffer in self.buffers)
        return keys, values

    def _make_room(self, new: tuple[Tensor, Tensor], columns: int) -> None:
        """Buffers of at least so many columns, with what was in the old ones."""
        if self.buffers and self.buffers[0].shape[2] >= columns:
            return
        columns += -columns % self.block
        old, self.buffers = self.buffers, []
        for place, states in enumerate(new):
            self.buffers.append(states.new_zeros(self.rows, states.shape[1], columns, states.shape[3]))
            if old:
                self.buffers[place][:, :, : old[place].shape[2]] = old[place][: self.rows]

    def get_seq_length(self) -> int:
        """Tokens that the next queries find in front of them."""
        return self.length


def moved(values: Tensor, movers: Tensor, holes: Tensor, count: int) -> Tensor:
    """The first `count` rows, some of them in the places of others."""
    kept = values[:count].clone()
    kept[holes] = values[movers]
    return kept
