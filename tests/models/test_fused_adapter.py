"""Adapters that are added within a product give what peft's own give, gradients too."""

import pytest
import torch
from peft.tuners.lora import Linear

from rlhf_lightning.models.fused_adapter import FusedAdapter
from rlhf_lightning.models.lora import adapters_disabled, add_adapters, merge_adapters, trainable_parameters

IDS = torch.tensor([[3, 4, 5, 6, 7], [9, 10, 11, 12, 13]])


def adapted(make_tiny_lm, kind, dtype=torch.float32):
    model = make_tiny_lm(kind, dtype=dtype)
    add_adapters(model, rank=3)
    torch.manual_seed(0)
    for parameter in trainable_parameters(model):
        torch.nn.init.normal_(parameter, std=0.2)
    return model


def outcome(model, autocast):
    with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
        logits = model(input_ids=IDS, attention_mask=torch.ones_like(IDS)).logits.float()
    model.zero_grad()
    logits.square().mean().backward()
    return [logits, *(parameter.grad for parameter in trainable_parameters(model))]


@pytest.mark.parametrize(("dtype", "autocast", "near"), [
    (torch.float32, False, 1e-5), (torch.float32, True, 0.05), (torch.bfloat16, False, 0.0)
])  # fmt: skip
@pytest.mark.parametrize("kind", ["gpt2", "llama"])
def test_they_are_those_of_peft(make_tiny_lm, kind, dtype, autocast, near):
    model = adapted(make_tiny_lm, kind, dtype)
    layers = [module for module in model.modules() if isinstance(module, FusedAdapter)]
    assert layers
    found = outcome(model, autocast)
    for layer in layers:
        layer.__class__ = Linear
    for own, expected in zip(found, outcome(model, autocast), strict=True):
        assert (own - expected).abs().max() <= near * expected.abs().max()


def test_without_adapters_and_merged_they_are_the_model_itself(make_tiny_lm):
    model, plain = adapted(make_tiny_lm, "llama"), make_tiny_lm("llama")
    with adapters_disabled(model):
        assert torch.equal(model(input_ids=IDS).logits, plain(input_ids=IDS).logits)
    torch.testing.assert_close(merge_adapters(model)(input_ids=IDS).logits, model(input_ids=IDS).logits)
