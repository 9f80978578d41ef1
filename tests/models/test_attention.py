"""Which attention runs is a matter of speed: the numbers stay, and so does the model's own choice."""

from contextlib import nullcontext

import pytest
import torch

from rlhf_lightning.models.attention import EAGER_TOKENS, fast_attention
from rlhf_lightning.models.log_probs import causal_log_probs
from rlhf_lightning.models.scalar_head import ScalarHeadModel

CPU = torch.device("cpu")
IDS = torch.tensor([[3, 4, 5, 6, 7, 8], [9, 10, 11, 12, 13, 14]])


@pytest.mark.parametrize(
    ("dtype", "autocast", "device", "tokens", "expected"),
    [
        (torch.float32, False, "cpu", 6, "sdpa"),
        (torch.bfloat16, False, "cpu", 6, "eager"),
        (torch.float32, True, "cpu", 6, "eager"),
        (torch.bfloat16, False, "cpu", EAGER_TOKENS, "eager"),
        (torch.bfloat16, False, "cpu", EAGER_TOKENS + 1, "sdpa"),
        (torch.bfloat16, False, "meta", 6, "sdpa"),
    ],
)
def test_short_rows_in_16_bits_on_a_cpu_are_eager(make_tiny_lm, dtype, autocast, device, tokens, expected):
    model = make_tiny_lm("gpt2", dtype=dtype)
    mixed = torch.autocast("cpu", torch.bfloat16) if autocast else nullcontext()
    with mixed, fast_attention(model, torch.device(device), tokens):
        assert model.config._attn_implementation == expected
    assert model.config._attn_implementation == "sdpa"


def test_the_choice_of_the_model_comes_back_after_an_error(make_tiny_lm):
    model = make_tiny_lm("gpt2", dtype=torch.bfloat16)
    with pytest.raises(KeyError), fast_attention(model, CPU, 6):
        raise KeyError
    assert model.config._attn_implementation == "sdpa"


def test_another_choice_and_other_modules_are_left_alone(make_tiny_lm):
    model = make_tiny_lm("llama", dtype=torch.bfloat16, attn_implementation="flex_attention")
    with fast_attention(model, CPU, 6), fast_attention(torch.nn.Linear(2, 2).bfloat16(), CPU, 6):
        assert model.config._attn_implementation == "flex_attention"


@pytest.mark.parametrize("kind", ["gpt2", "llama"])
def test_16_bits_keep_to_the_32_bit_values(make_tiny_lm, kind):
    model = make_tiny_lm(kind)
    mask = torch.ones_like(IDS, dtype=torch.bool)
    scalar = ScalarHeadModel.from_causal_lm(model)
    torch.nn.init.normal_(scalar.head.weight, generator=torch.Generator().manual_seed(0))
    expected = causal_log_probs(model, IDS, mask, mask), scalar(IDS)
    with torch.autocast("cpu", torch.bfloat16):
        found = causal_log_probs(model, IDS, mask, mask), scalar(IDS)
    for own, exact in zip(found, expected, strict=True):
        assert (own - exact).abs().max() < 0.02 * exact.abs().max()
        assert not torch.equal(own, exact), "these were not computed in 16 bits"
