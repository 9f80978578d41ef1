"""How fast training is: seconds and tokens per phase, share of padding, model FLOP utilisation."""

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from lightning.fabric.utilities.throughput import get_available_flops
from torch import Tensor, nn
from transformers import PreTrainedModel

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
    """

    def __init__(self) -> None:
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

    def count(self, model: nn.Module, tokens: int | Tensor, positions: int | Tensor, *, backward: bool = False) -> None:
        """Note that the open phase runs a model; outside of any phase nothing is counted.

        Args:
            model: The model that runs.
            tokens: Real tokens that it reads.
            positions: Those and the padding that it reads.
            backward: Whether gradients are computed too, which takes twice the forward pass.
        """
        if not self._open:
            return
        phase = self._phases[self._open[-1]]
        phase.tokens += int(tokens)
        phase.positions += int(positions)
        phase.flops += (6 if backward else 2) * matmul_weights(model) * int(tokens)

    def figures(self) -> dict[str, float]:
        """The figures since the last call, by the names they are logged under.

        Seconds and tokens per second of each phase, and over all of them the share of padding and, on a GPU whose
        peak is known, the model FLOP utilisation: 2 FLOPs per weight and token forward, 4 backward, over the GPU's
        dense 16-bit peak (Chowdhery et al. 2022, appendix B). Attention and heads are left out: it is a lower bound.
        """
        phases = self._phases.values()
        figures = {}
        for name, phase in self._phases.items():
            figures[f"time/{name}_seconds"] = phase.seconds
            figures[f"time/{name}_tokens_per_second"] = phase.tokens / max(phase.seconds, 1e-9)
        figures["time/padding"] = 1 - sum(p.tokens for p in phases) / max(sum(p.positions for p in phases), 1)
        peak = dense_peak()
        if peak is not None:
            figures["time/mfu"] = sum(p.flops for p in phases) / (sum(p.seconds for p in phases) * peak)
        self._phases = {}
        return figures

    def _lap(self) -> None:
        if torch.cuda.is_initialized():
            torch.cuda.synchronize()
        now = time.perf_counter()
        if self._open:
            self._phases[self._open[-1]].seconds += now - self._since
        self._since = now


def matmul_weights(model: nn.Module) -> int:
    """Weights that every token is multiplied with: all matrices but tables of embeddings and a language model's head.

    Examples:
        >>> matmul_weights(nn.Sequential(nn.Embedding(100, 4), nn.Linear(4, 8), nn.LayerNorm(8)))
        32
    """
    tables = {id(module.weight) for module in model.modules() if isinstance(module, nn.Embedding)}
    if isinstance(model, PreTrainedModel):
        tables.add(id(getattr(model.get_output_embeddings(), "weight", None)))
    return sum(p.numel() for p in model.parameters() if p.dim() == 2 and id(p) not in tables)


def dense_peak() -> float | None:
    """FLOP/s of the GPU in use in 16 bits without sparsity; None without one, or with one that is not known."""
    if not torch.cuda.is_initialized():
        return None
    name = torch.cuda.get_device_name().lower()
    known = next((peak for part, peak in _DENSE.items() if part in name), None)
    return known or get_available_flops(torch.device("cuda"), torch.bfloat16)
