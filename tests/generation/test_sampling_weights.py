"""Weights that are cast, and have their adapters added, once for a whole rollout."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn

from rlhf_lightning.generation.sampling_weights import sampling_weights
from rlhf_lightning.models import matmul
from rlhf_lightning.models.lora import add_adapters, merge_adapters

IDS = torch.tensor([[3, 9, 4, 7, 1, 8]])
KINDS = ["gpt2", "llama"]


def logits(model: Any) -> torch.Tensor:
    with torch.no_grad():
        return model(input_ids=IDS).logits


def with_adapters_that_do_something(model: Any) -> Any:
    add_adapters(model, rank=2)
    torch.manual_seed(1)
    for name, weight in model.named_parameters():
        if "lora_B" in name:
            nn.init.normal_(weight, std=0.3)
    return model


@pytest.mark.parametrize("kind", KINDS)
def test_cast_weights_give_what_autocast_gives(kind: str, make_tiny_lm: Callable[..., Any]) -> None:
    model = make_tiny_lm(kind).eval()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        expected = logits(model)
        with sampling_weights(model):
            found = logits(model)
            kinds = {type(layer): layer.weight.dtype for layer in model.modules() if hasattr(layer, "weight")}
    torch.testing.assert_close(found, expected, rtol=0, atol=0)
    assert kinds[nn.Linear] == torch.bfloat16
    assert kinds[nn.Embedding] == torch.float32


@pytest.mark.parametrize("fast", [False, True], ids=["plain", "fast kernels"])
@pytest.mark.parametrize("kind", KINDS)
def test_added_adapters_give_what_the_merged_model_gives(
    kind: str, fast: bool, make_tiny_lm: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(matmul, "onednn_is_faster", lambda: fast)
    model = with_adapters_that_do_something(matmul.use_fast_matmul(make_tiny_lm(kind).eval()))
    merged = logits(merge_adapters(model))
    with sampling_weights(model):
        found = logits(model)
    torch.testing.assert_close(found, merged, rtol=0, atol=1e-6)
    torch.testing.assert_close(logits(model), merged, rtol=0, atol=1e-5)


def test_all_is_in_its_place_again_after_an_error(make_tiny_lm: Callable[..., Any]) -> None:
    model = with_adapters_that_do_something(make_tiny_lm("llama").eval())
    weights = dict(model.named_parameters())
    learn = {name: weight.requires_grad for name, weight in weights.items()}
    before = logits(model)
    autocast = torch.autocast("cpu", dtype=torch.bfloat16)
    with pytest.raises(RuntimeError, match="stop"), autocast, sampling_weights(model):
        raise RuntimeError("stop")
    after = dict(model.named_parameters())
    assert after.keys() == weights.keys()
    assert all(after[name] is weight for name, weight in weights.items())
    assert {name: weight.requires_grad for name, weight in after.items()} == learn
    torch.testing.assert_close(logits(model), before, rtol=0, atol=0)
