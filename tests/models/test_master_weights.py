"""Weights that learn have 32 bits, whatever the folder or the configuration says."""

from functools import partial

import pytest
import torch
from torch.optim import Adam

from rlhf_lightning.models.master_weights import check_learned, widened
from rlhf_lightning.modules.language_model import LanguageModelModule

SLOW = partial(Adam, lr=1e-5)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_every_weight_of_a_model_in_16_bits_moves(make_tiny_lm, dtype):
    """A step of Adam is its learning rate: in 16 bits 1e-5 is lost on every weight above 0.004."""
    model = make_tiny_lm("llama", dtype=dtype)
    module = LanguageModelModule(model, SLOW)
    before = [parameter.detach().clone() for parameter in model.parameters()]
    (optimizer,) = module.build_optimizers()
    sum(parameter.sum() for parameter in model.parameters()).backward()
    optimizer.step()
    for old, new in zip(before, model.parameters(), strict=True):
        assert new.dtype == torch.float32
        torch.testing.assert_close(old - new, torch.full_like(old, 1e-5), atol=1e-7, rtol=0)


def test_what_has_16_bits_and_learns_is_refused_by_name(make_tiny_lm):
    model = make_tiny_lm("gpt2")
    check_learned(model)
    model.lm_head.weight.data = model.lm_head.weight.data.bfloat16()
    with pytest.raises(RuntimeError, match=r"transformer\.wte\.weight learns and has 16 bits .* precision=bf16-mixed"):
        check_learned(model)
    check_learned(model.requires_grad_(False))
    wide = make_tiny_lm("gpt2", dtype=torch.float64)
    assert widened(wide) is wide
    assert wide.dtype == torch.float64
