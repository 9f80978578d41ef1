"""How fast training is: seconds and tokens per phase, share of padding, model FLOP utilisation."""

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from lightning.fabric.utilities.throughput import get_available_flops
from torch import Tensor, nn
from transformers import PreTrainedConfig, PreTrainedModel

from rlhf_lightning.parallel.processes import world_size

_DENSE = {"h200": 989e12, "h100 nvl": 835e12}
"""16-bit FLOP/s without sparsity, where Lightning's table gives the number with it or none."""


@dataclass
class Phase:
    """What one phase of a step did."""

    seconds: float = 0.0
    tokens: int = 0
    positions: int = 0
    flops: int = 0


class Throughput:
    """A stop watch for the phases of a step, which also counts what went through the models.

    Examples:
        >>> throughput = Throughput()
        >>> with throughput.phase("update"):
        ...     throughput.count(nn.Linear(2, 2), tokens=3, positions=4)
        >>> throughput.figures()["time/padding"]
        0.25

    Args:
        total: FLOPs of all processes before it was made.
    """

    def __init__(self, total: float = 0.0) -> None:
        self.total = total
        self._phases: dict[str, Phase] = {}
        self._open: list[str] = []
        self._since = 0.0

    def start(self, name: str) -> None:
        """Open a phase; the time of one within another is taken out of the outer one."""
        self._lap()
        self._open.append(name)
        self._phases.setdefault(name, Phase())

    def stop(self) -> None:
        """Close the phase that was opened last."""
        self._lap()
        self._open.pop()

    @contextmanager
    def phase(self, name: str) -> Iterator[None]:
        """A phase from here to the end of the block."""
        self.start(name)
        try:
            yield
        finally:
            self.stop()

    def count(
        self,
        model: nn.Module,
        tokens: int | Tensor,
        positions: int | Tensor,
        *,
        lengths: Tensor | None = None,
        backward: bool = False,
    ) -> None:
        """Note that the open phase runs a model; outside of any phase nothing is counted.

        Args:
            model: The model that runs.
            tokens: Real tokens that it reads.
            positions: Those and the padding that it reads.
            lengths: Tokens of each row, from the first that is read to the last; None leaves attention out.
            backward: Whether gradients are computed too.
        """
        if not self._open:
            return
        phase = self._phases[self._open[-1]]
        phase.tokens += int(tokens)
        phase.positions += int(positions)
        phase.flops += flops(
            model, torch.as_tensor(tokens) if lengths is None else lengths, backward, lengths is not None
        )

    def figures(self) -> dict[str, float]:
        """The figures since the last call, by the names they are logged under.

        Seconds and tokens per second of each phase, and over all of them the share of padding, the FLOPs of this
        process (`flops`), those of all processes so far and, on a GPU whose peak is known, the model FLOP utilisation:
        the FLOPs over the GPU's dense 16-bit peak (Chowdhery et al. 2022, appendix B).
        """
        phases = self._phases.values()
        figures = {}
        for name, phase in self._phases.items():
            figures[f"time/{name}_seconds"] = phase.seconds
            figures[f"time/{name}_tokens_per_second"] = phase.tokens / max(phase.seconds, 1e-9)
        figures["time/padding"] = 1 - sum(p.tokens for p in phases) / max(sum(p.positions for p in phases), 1)
        figures["time/flops"] = float(sum(phase.flops for phase in phases))
        self.total += figures["time/flops"] * world_size()
        figures["time/total_flops"] = self.total
        peak = dense_peak()
        if peak is not None:
            figures["time/mfu"] = figures["time/flops"] / (sum(p.seconds for p in phases) * peak)
        self._phases = {}
        return figures

    def _lap(self) -> None:
        if torch.cuda.is_initialized():
            torch.cuda.synchronize()
        now = time.perf_counter()
        if self._open:
            self._phases[self._open[-1]].seconds += now - self._since
        self._since = now


def flops(model: nn.Module, lengths: Tensor, backward: bool = False, attention: bool = True) -> int:
    """FLOPs of a pass over rows: 2 N D forward, 4 N D backward for weights that learn, and 2 N D for those that do not.

    N are the weights that every token is multiplied with (`matmul_weights`), D the tokens. Attention adds 4 times its
    width for each token and each token that it sees, in the forward pass. A language model's head is left out, as are
    passes that are computed again: it is a lower bound. Source: Kaplan et al. 2020, section 2.1.

    Args:
        model: The model.
        lengths: Tokens of each row.
        backward: Whether gradients are computed too.
        attention: Whether the rows are known, and not only how many tokens they have together.

    Examples:
        >>> flops(nn.Linear(3, 5), torch.tensor([10])), flops(nn.Linear(3, 5), torch.tensor([10]), backward=True)
        (300, 900)
    """
    tokens, pairs = int(lengths.sum()), int((lengths * (lengths + 1)).sum()) // 2
    of_attention = 4 * attention_width(model) * pairs * attention
    forward = 2 * matmul_weights(model) * tokens + of_attention
    if not backward:
        return forward
    return 2 * forward + 2 * matmul_weights(model, learned=True) * tokens + of_attention


def attention_width(model: nn.Module) -> int:
    """Numbers that a query has in all heads of all layers; 0 for what is no transformers model.

    Examples:
        >>> attention_width(nn.Linear(2, 2))
        0
    """
    config: Any = getattr(getattr(model, "backbone", model), "config", None)
    text: Any = config.get_text_config() if isinstance(config, PreTrainedConfig) else None
    heads = getattr(text, "num_attention_heads", None)
    if not isinstance(heads, int):
        return 0
    width = getattr(text, "head_dim", None) or text.hidden_size // heads
    return int(text.num_hidden_layers * heads * width)


def matmul_weights(model: nn.Module, *, learned: bool = False) -> int:
    """Weights that every token is multiplied with: all matrices but tables of embeddings and a language model's head.

    Args:
        model: The model.
        learned: Whether to count those that learn alone.

    Examples:
        >>> matmul_weights(nn.Sequential(nn.Embedding(100, 4), nn.Linear(4, 8), nn.LayerNorm(8)))
        32
    """
    tables = {id(module.weight) for module in model.modules() if isinstance(module, nn.Embedding)}
    if isinstance(model, PreTrainedModel):
        tables.add(id(getattr(model.get_output_embeddings(), "weight", None)))
    matrices = (p for p in model.parameters() if p.dim() == 2 and id(p) not in tables)
    return sum(p.numel() for p in matrices if p.requires_grad or not learned)


def dense_peak() -> float | None:
    """FLOP/s of the GPU in use in 16 bits without sparsity; None without one, or with one that is not known."""
    if not torch.cuda.is_initialized():
        return None
    name = torch.cuda.get_device_name().lower()
    known = next((peak for part, peak in _DENSE.items() if part in name), None)
    return known or get_available_flops(torch.device("cuda"), torch.bfloat16)
