"""Keys and values of prompts, shared by all responses to them and gathered for one layer at a time."""

from typing import Any, cast

import torch
from jaxtyping import Int
from torch import Tensor
from transformers import DynamicCache
from transformers.cache_utils import DynamicLayer


class SelectedLayer(DynamicLayer):
    """Rows of another layer's keys and values, copied when they are read and never kept.

    Args:
        source: The layer that has the keys and values of the prompts.
        rows: The prompt of each row that is read behind them.
    """

    def __init__(self, source: DynamicLayer, rows: Int[Tensor, " chosen"]) -> None:
        cast(Any, super()).__init__()
        self.source, self.rows, self.is_initialized = source, rows, True

    def update(self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
        """The rows with these behind them; the layer stays as it is."""
        keys, values = cast(Tensor, self.source.keys)[self.rows], cast(Tensor, self.source.values)[self.rows]
        return torch.cat([keys, key_states], -2), torch.cat([values, value_states], -2)

    def get_seq_length(self) -> int:
        """Tokens of the prompts, padding included."""
        return int(self.source.get_seq_length())


def selected(cache: DynamicCache, rows: Int[Tensor, " chosen"]) -> DynamicCache:
    """The cache of those rows, for one pass behind it; the original stays as it is."""
    chosen = DynamicCache()
    chosen.layers = [SelectedLayer(cast(DynamicLayer, layer), rows) for layer in cache.layers]
    return chosen
