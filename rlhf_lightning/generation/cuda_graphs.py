"""The next token by one launch: all kernels of a decoding step as a CUDA graph."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, cast

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn
from transformers import AttentionInterface, AttentionMaskInterface, PreTrainedModel
from transformers.masking_utils import sdpa_mask

from rlhf_lightning.algorithms.batch import PromptBatch
from rlhf_lightning.compat import attention_implementation, using_attention
from rlhf_lightning.generation.decoding import InPlaceDecoder
from rlhf_lightning.models.attention import additive_mask, adds_mask
from rlhf_lightning.models.precision import compute_dtype
from rlhf_lightning.models.short_rows import FAMILIES

GROUPED = "grouped_sdpa"
"""What transformers calls `grouped_sdpa`."""
WARM_UPS = 2
"""Steps before one is captured: libraries make their handles and choose their kernels in them."""


class GraphDecoder(InPlaceDecoder):
    """`InPlaceDecoder` with steps of one shape, which a GPU runs as a graph, without waiting for Python at every layer.

    Queries look at whole buffers under a mask. A row that has ended goes on without being looked at, until half of the
    rows have: then the others move together, and a smaller graph is captured. Without a GPU the same steps are run one
    kernel after the other.
    """

    def __init__(self, model: PreTrainedModel, prompts: PromptBatch, max_new_tokens: int) -> None:
        super().__init__(model, prompts, max_new_tokens)
        self.gapless, columns = True, self.mask.shape[1] + max_new_tokens
        for layer in self.layers:
            layer.block, layer.gapless = columns, True
        self.places: Int[Tensor, " active"] = self.rows
        """Where each row that goes on stands in the buffers."""
        self.captured = 0
        """Rows that a step reads."""
        self.visible = nn.functional.pad(self.mask, (0, max_new_tokens), value=False)
        self.positions = self.lengths.unsqueeze(1)
        self.column = torch.tensor([self.mask.shape[1]], device=self.device)
        """Where the next keys go."""
        self.graph: torch.cuda.CUDAGraph | None = None

    def next(self, chosen: Int[Tensor, " active"], going: Bool[Tensor, " active"]) -> Float[Tensor, "going vocab"]:
        """Append the chosen tokens; logits of the rows that go on."""
        keep = going.nonzero().squeeze(1)
        self.rows, self.places, chosen = self.rows[keep], self.places[keep], chosen[keep]
        fewer = not self.captured or 2 * len(keep) <= self.captured
        if fewer:
            self._move_together()
        self.ids[self.places, 0] = chosen
        self.visible.index_fill_(1, self.column, True)
        if fewer:
            self._capture()
        if self.graph is None:
            self.logits = self._step()
        else:
            self.graph.replay()
        self.column += 1
        self.positions += 1
        return self.logits[self.places]

    def _move_together(self) -> None:
        """Keep the rows that go on alone, one behind the other."""
        if len(self.places) < len(self.visible):
            self.visible, self.positions = self.visible[self.places], self.positions[self.places]
            for layer in self.layers:
                layer.keep(self.places)
        self.captured = len(self.places)
        self.places = torch.arange(self.captured, device=self.device)
        self.ids = torch.zeros_like(self.positions)
        for layer in self.layers:
            layer.column = self.column

    def _capture(self) -> None:
        """Note the kernels of a step, which replaces what was noted of more rows."""
        self.graph = None
        if self.device.type != "cuda":
            return
        beside = torch.cuda.Stream(self.device)
        beside.wait_stream(torch.cuda.current_stream(self.device))
        with torch.cuda.stream(beside):
            for _ in range(WARM_UPS):
                self._step()
        torch.cuda.current_stream(self.device).wait_stream(beside)
        graph, stream = torch.cuda.CUDAGraph(), torch.cuda.current_stream(self.device)
        try:
            with torch.cuda.graph(graph):
                self.logits = self._step()
        except RuntimeError:
            torch.cuda.set_stream(stream)  # torch stays on that of the capture
            raise
        self.graph = graph

    def _step(self) -> Tensor:
        """Logits after the tokens in `ids`, whose keys and values are put into column `column`."""
        model = cast(PreTrainedModel, self.model)
        with _grouped_queries(model):
            seen: Tensor = self.visible[:, None, None, :]
            if adds_mask(model):
                seen = additive_mask(seen, compute_dtype(self.device, model.dtype))
            return self._forward(self.ids, seen, self.positions)


def grouped_sdpa(
    module: nn.Module,
    query: Float[Tensor, "rows heads time width"],
    key: Float[Tensor, "rows key_heads seen width"],
    value: Float[Tensor, "rows key_heads seen width"],
    attention_mask: Bool[Tensor, "rows 1 time seen"] | None,
    scaling: float | None = None,
    dropout: float = 0.0,
    **others: Any,
) -> tuple[Float[Tensor, "rows time heads width"], None]:
    """Torch's attention under a mask, as transformers calls it, but without a copy of the keys for every query head.

    Where torch has a kernel for that: on an H200, in 16 bits, for one new token it took about as long as reading keys
    and values takes by their bytes.
    """
    hidden = nn.functional.scaled_dot_product_attention(
        query,
        key,
        value,
        attn_mask=attention_mask,
        dropout_p=dropout if module.training else 0.0,
        scale=scaling,
        enable_gqa=query.shape[1] != key.shape[1],
    )
    return hidden.transpose(1, 2).contiguous(), None


AttentionInterface.register(GROUPED, grouped_sdpa)
AttentionMaskInterface.register(GROUPED, sdpa_mask)


@contextmanager
def _grouped_queries(model: PreTrainedModel) -> Iterator[None]:
    config = cast(Any, model.config)
    own = attention_implementation(model)
    with using_attention(config, GROUPED if own == "sdpa" and config.model_type in FAMILIES else own):
        yield
