"""Adapters that are added within a product give what peft's own give, gradients too."""

import pytest
import torch
from peft.tuners.lora import Linear

from rlhf_lightning.models.fused_adapter import FusedAdapter
from rlhf_lightning.models.lora import adapters_disabled, add_adapters, merge_adapters, trainable_parameters

IDS = torch.tensor([[3, 4, 5, 6, 7], [9, 10, 11, 12, 13]])


def adapted(make_tiny_lm, kind, dtype=torch.float32, seed=0):
    model = make_tiny_lm(kind, dtype=dtype, seed=seed)
    add_adapters(model, rank=3)
    torch.manual_seed(seed)
    for parameter in trainable_parameters(model):
        torch.nn.init.normal_(parameter, std=0.2)
    return model


def outcome(model, autocast):
    with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
        logits = model(input_ids=IDS, attention_mask=torch.ones_like(IDS)).logits.float()
    model.zero_grad()
    logits.square().mean().backward()
    return [logits.detach(), *(parameter.grad for parameter in trainable_parameters(model))]


def of_peft(model, autocast):
    layers = [module for module in model.modules() if isinstance(module, FusedAdapter)]
    assert layers
    for layer in layers:
        layer.__class__ = Linear
    found = outcome(model, autocast)
    for layer in layers:
        layer.__class__ = FusedAdapter
    return found


@pytest.mark.parametrize("kind", ["gpt2", "llama"])
def test_they_are_those_of_peft(make_tiny_lm, kind):
    model = adapted(make_tiny_lm, kind)
    for own, expected in zip(outcome(model, False), of_peft(model, False), strict=True):
        torch.testing.assert_close(own, expected, atol=1e-5 * max(1.0, float(expected.abs().max())), rtol=1e-5)


@pytest.mark.parametrize("kind", ["gpt2", "llama"])
def test_sixteen_bits_are_as_near_to_the_numbers_of_32(make_tiny_lm, kind):
    off = [0.0, 0.0]
    for seed in range(6):
        model = adapted(make_tiny_lm, kind, seed=seed)
        exact, own, peft = outcome(model, False), outcome(model, True), of_peft(model, True)
        for place, found in enumerate((own, peft)):
            off[place] += sum(float((a - b).norm() / b.norm()) for a, b in zip(found, exact, strict=True))
    assert 0 < off[0] < 1.1 * off[1]


def test_a_base_of_16_bits_is_left_to_peft(make_tiny_lm):
    model = adapted(make_tiny_lm, "llama", torch.bfloat16)
    for own, expected in zip(outcome(model, False), of_peft(model, False), strict=True):
        assert torch.equal(own, expected)


def test_without_adapters_and_merged_they_are_the_model_itself(make_tiny_lm):
    model, plain = adapted(make_tiny_lm, "llama"), make_tiny_lm("llama")
    with adapters_disabled(model):
        assert torch.equal(model(input_ids=IDS).logits, plain(input_ids=IDS).logits)
    torch.testing.assert_close(merge_adapters(model)(input_ids=IDS).logits, model(input_ids=IDS).logits)
