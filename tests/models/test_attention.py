"""Which attention runs is a matter of speed: the numbers stay, and so does the model's own choice."""

from contextlib import nullcontext

import pytest
import torch
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.masking_utils import ALL_MASK_ATTENTION_FUNCTIONS

from rlhf_lightning.compat import using_attention
from rlhf_lightning.models import short_rows
from rlhf_lightning.models.attention import EAGER_TOKENS, fast_attention
from rlhf_lightning.models.log_probs import causal_log_probs
from rlhf_lightning.models.padding import position_ids
from rlhf_lightning.models.scalar_head import ScalarHeadModel

from .families import FAMILIES, make_family

CPU = torch.device("cpu")
IDS = torch.tensor([[3, 4, 5, 6, 7, 8], [9, 10, 11, 12, 13, 14]])


@pytest.mark.parametrize(
    ("dtype", "autocast", "device", "tokens", "expected"),
    [
        (torch.float32, False, "cpu", 6, "sdpa"),
        (torch.bfloat16, False, "cpu", 6, "short_rows"),
        (torch.float32, True, "cpu", 6, "short_rows"),
        (torch.bfloat16, False, "cpu", EAGER_TOKENS, "short_rows"),
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


PLAIN = [name for name, (kind, _) in FAMILIES.items() if kind in short_rows.FAMILIES]


@pytest.mark.parametrize("name", PLAIN)
def test_short_rows_attend_as_the_model_does(name):
    """Logits and gradients, with padding and without, in 32 bits against the model's own eager attention."""
    assert {FAMILIES[each][0] for each in PLAIN} == short_rows.FAMILIES, "each is tried"
    model = make_family(name)
    ids = torch.arange(33).view(3, 11) % 40 + 3
    mask = torch.arange(11) >= torch.tensor([[0], [4], [2]])
    found = {}
    for attention in ("eager", "short_rows"):
        with using_attention(model.config, attention):
            whole = model(input_ids=ids, attention_mask=torch.ones_like(ids)).logits
            padded = model(input_ids=ids, attention_mask=mask, position_ids=position_ids(mask)).logits[mask]
        (whole.square().mean() + padded.square().mean()).backward()
        gradients = [parameter.grad for parameter in model.parameters() if parameter.grad is not None]
        found[attention] = [whole, padded, *gradients]
        model.zero_grad()
    for own, expected in zip(found["short_rows"], found["eager"], strict=True):
        torch.testing.assert_close(own, expected, atol=1e-5, rtol=1e-5)


def test_a_mask_for_all_rows_is_made_once(tiny_llama):
    """And autocast does not bring the softmax back to 32 bits."""
    seen = []

    def spy(*states, **options):
        seen.append((states[4].stride(0), states[1].dtype))
        return short_rows.short_row_attention(*states, **options)

    AttentionInterface.register("spy", spy)
    AttentionMaskInterface.register("spy", ALL_MASK_ATTENTION_FUNCTIONS["short_rows"])
    with using_attention(tiny_llama.config, "spy"):
        tiny_llama(input_ids=IDS)
    assert seen == [(0, torch.float32)] * 2


def test_rows_of_padding_in_16_bits_are_numbers(tiny_llama):
    """A mask of 32 bits under autocast; padding on the left sees nothing at all."""
    mask = torch.tensor([[False, False, False, True, True, True], [True] * 6])
    exact = tiny_llama(input_ids=IDS, attention_mask=mask, position_ids=position_ids(mask)).logits
    with torch.autocast("cpu", torch.bfloat16), fast_attention(tiny_llama, CPU, 6):
        found = tiny_llama(input_ids=IDS, attention_mask=mask, position_ids=position_ids(mask)).logits
    assert (found - exact)[mask].abs().max() < 0.05 * exact.abs().max()
