"""Matrix products in 32 bits on a CPU, through the library that is the fastest there."""

import platform
from functools import cache as memoised
from pathlib import Path
from typing import Any, TypeVar, cast

import torch
from jaxtyping import Float
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from rlhf_lightning.compat import has_onednn_linear, onednn_linear

Module = TypeVar("Module", bound=nn.Module)


def matmul(
    left: Float[Tensor, "rows inner"], right: Float[Tensor, "inner columns"], bias: Tensor | None = None
) -> Float[Tensor, "rows columns"]:
    """`left @ right`, plus a bias of the columns.

    On AMD processors with AVX-512, MKL, which torch asks for products in 32 bits, reaches less than half the rate of
    oneDNN, which torch asks for products in 16 bits. The precision is the same.

    Args:
        left: One factor, of any strides: a transposed view costs nothing.
        right: The other factor, likewise.
        bias: What is added to each row.

    Examples:
        >>> matmul(torch.tensor([[1.0, 2.0]]), torch.tensor([[3.0], [4.0]]), torch.tensor([5.0]))
        tensor([[16.]])
    """
    if not _fits(left, right):
        return left @ right if bias is None else torch.addmm(bias, left, right)
    if torch.is_grad_enabled():
        return cast(Tensor, cast(Any, _Product.apply)(left, right, bias))
    return _onednn(left, right, bias)


def use_fast_matmul(model: Module) -> Module:
    """Let the linear layers of a model multiply by `matmul`, where that helps; parameters stay as they are."""
    if onednn_is_faster():
        for module in model.modules():
            if type(module) in _FAST:
                module.__class__ = _FAST[type(module)]
    return model


@memoised
def onednn_is_faster() -> bool:
    """Whether this machine's CPU is one on which oneDNN beats torch's own choice."""
    return (
        torch.backends.mkl.is_available()
        and has_onednn_linear()
        and torch.backends.cpu.get_cpu_capability() == "AVX512"
        and "AuthenticAMD" in _processor()
    )


def _processor() -> str:
    information = Path("/proc/cpuinfo")
    return information.read_text(encoding="utf-8") if information.exists() else platform.processor()


def _fits(left: Tensor, right: Tensor) -> bool:
    return (
        left.dtype == right.dtype == torch.float32
        and left.device.type == right.device.type == "cpu"
        and left.numel() > 0
        and onednn_is_faster()
        and bool(torch.backends.mkldnn.enabled)  # torch's own switch: `torch.backends.mkldnn.flags(enabled=False)`
        and not torch.is_autocast_enabled("cpu")
        and not torch.compiler.is_compiling()
    )


def _onednn(left: Tensor, right: Tensor, bias: Tensor | None) -> Tensor:
    return onednn_linear(_strided(left), _strided(right).t(), bias)


def _strided(matrix: Tensor) -> Tensor:
    """The matrix itself where its rows or its columns lie one behind the other, else a copy."""
    return matrix if matrix.is_contiguous() or matrix.t().is_contiguous() else matrix.contiguous()


class _Product(torch.autograd.Function):
    """The gradients are products again, and so have gradients themselves."""

    @staticmethod
    def forward(ctx: Any, left: Tensor, right: Tensor, bias: Tensor | None) -> Tensor:
        ctx.save_for_backward(left, right)
        return _onednn(left, right, bias)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
        (left, right), (gradient,) = ctx.saved_tensors, gradients
        of_left, of_right, of_bias = ctx.needs_input_grad
        return (
            matmul(gradient, right.t()) if of_left else None,
            matmul(left.t(), gradient) if of_right else None,
            gradient.sum(0) if of_bias else None,
        )


def _over_rows(values: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    rows = values.reshape(-1, values.shape[-1])
    return matmul(rows, weight, bias).view(*values.shape[:-1], weight.shape[1])


class _FastLinear(nn.Linear):
    """A linear layer whose weight is `out x in`."""

    def forward(self, input: Tensor) -> Tensor:
        return _over_rows(input, self.weight.t(), self.bias)


class _FastConv1D(Conv1D):
    """The linear layer of GPT-2, whose weight is `in x out`."""

    def forward(self, x: Tensor) -> Tensor:
        return _over_rows(x, self.weight, self.bias)


_FAST: dict[type[nn.Module], type[nn.Module]] = {nn.Linear: _FastLinear, Conv1D: _FastConv1D}
LINEAR = (*_FAST, *_FAST.values())
"""The linear layers, with those that `use_fast_matmul` makes of them; not others, such as quantised ones."""
