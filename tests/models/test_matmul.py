"""Products through oneDNN: the values and gradients of torch's own, whatever the strides."""

import copy

import pytest
import torch
from torch import nn
from transformers.pytorch_utils import Conv1D

from rlhf_lightning.models import matmul as products
from rlhf_lightning.models.loading import load_causal_lm
from rlhf_lightning.models.matmul import matmul, use_fast_matmul


@pytest.fixture(autouse=True)
def on_any_machine(monkeypatch):
    """oneDNN is there on every x86 machine, also where it is not preferred."""
    if not torch.backends.mkldnn.is_available():
        pytest.skip("this build of torch has no oneDNN")
    monkeypatch.setattr(products, "onednn_is_faster", lambda: True)


def factors(rows=7, inner=33, columns=12):
    return tuple(torch.randn(size, requires_grad=True) for size in ((rows, inner), (inner, columns), (columns,)))


def test_values_and_gradients_are_those_in_64_bits():
    own = factors()
    exact = [value.detach().double().requires_grad_() for value in own]
    weight = torch.randn(7, 12)
    found, expected = matmul(*own), exact[0] @ exact[1] + exact[2]
    torch.testing.assert_close(found.double(), expected, rtol=0, atol=1e-5)
    (found * weight).sum().backward()
    (expected * weight).sum().backward()
    for value, reference in zip(own, exact, strict=True):
        torch.testing.assert_close(value.grad.double(), reference.grad, rtol=0, atol=1e-5)


def test_gradients_have_gradients():
    own = factors(inner=5)
    exact = [value.detach().double().requires_grad_() for value in own]
    seconds = []
    for values, result in ((own, matmul(*own)), (exact, exact[0] @ exact[1] + exact[2])):
        gradients = torch.autograd.grad(result.sin().sum(), values, create_graph=True)
        seconds.append(torch.autograd.grad(sum(gradient.square().sum() for gradient in gradients), values[:2]))
    for found, expected in zip(*seconds, strict=True):
        torch.testing.assert_close(found.double(), expected, rtol=1e-4, atol=1e-4)


def test_the_fast_path_is_taken_and_only_where_it_fits(monkeypatch):
    taken = []
    monkeypatch.setattr(products, "_onednn", lambda left, right, bias: taken.append(1) or left @ right)
    left, right, _ = (value.detach() for value in factors())
    matmul(left, right)
    assert len(taken) == 1
    matmul(left.double(), right.double())
    matmul(left[:0], right)
    with torch.autocast("cpu", torch.bfloat16):
        matmul(left, right)
    with monkeypatch.context() as switched_off:
        switched_off.setattr(torch.backends.mkldnn, "enabled", False)
        matmul(left, right)
    monkeypatch.setattr(products, "onednn_is_faster", lambda: False)
    matmul(left, right)
    assert len(taken) == 1


@pytest.mark.parametrize(
    "view",
    [
        lambda matrix: matrix.t().contiguous().t(),
        lambda matrix: matrix[:, :1].expand_as(matrix),
        lambda matrix: torch.cat([matrix, matrix], 1)[:, ::2],
        lambda matrix: torch.cat([matrix, matrix], 1)[:, : matrix.shape[1]],
    ],
    ids=["transposed", "expanded", "every second", "part of a row"],
)
def test_strides_do_not_matter(view):
    left, right, bias = (value.detach() for value in factors())
    for first, second in ((view(left), right), (left, view(right)), (view(left), view(right))):
        expected = first.double() @ second.double() + bias.double()
        torch.testing.assert_close(matmul(first, second, bias).double(), expected, rtol=0, atol=1e-5)


@pytest.mark.parametrize("layer", [nn.Linear(5, 3), nn.Linear(5, 3, bias=False), Conv1D(3, 5)])
def test_layers_keep_parameters_and_values(layer):
    values = torch.randn(2, 4, 5)
    expected, names = layer(values), list(layer.state_dict())
    fast = use_fast_matmul(nn.Sequential(copy.deepcopy(layer)))[0]
    assert type(fast) is not type(layer)
    assert isinstance(fast, type(layer))
    assert list(fast.state_dict()) == names
    torch.testing.assert_close(fast(values), expected, rtol=0, atol=1e-6)
    torch.testing.assert_close(copy.deepcopy(fast)(values[0, 0]), expected[0, 0], rtol=0, atol=1e-6)


@pytest.mark.parametrize("kind", ["gpt2", "llama"])
def test_a_model_says_the_same(kind):
    small = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "vocab_size": 50}
    model = load_causal_lm(config={"model_type": kind, **small})
    exact = copy.deepcopy(model).double()
    ids = torch.randint(50, (3, 9))
    torch.testing.assert_close(model(ids).logits.double(), exact(ids).logits, rtol=0, atol=1e-5)
