"""Which modules of a model are its layers, as far as every pass calls each of them once, in order."""

import pytest
import torch
from torch import nn
from transformers import OPTConfig, OPTForCausalLM

from rlhf_lightning import ScalarHeadModel
from rlhf_lightning.models.decoder_layers import decoder_layers


@pytest.mark.parametrize("kind", ["gpt2", "llama"])
def test_layers_in_the_order_of_a_pass(make_tiny_lm, kind):
    model = make_tiny_lm(kind)
    expected = list(model.transformer.h if kind == "gpt2" else model.model.layers)
    before = torch.get_rng_state()
    assert decoder_layers(model.train()) == expected
    assert model.training
    assert torch.equal(torch.get_rng_state(), before)
    body = ScalarHeadModel.from_causal_lm(model)
    assert decoder_layers(body) == list(body.backbone.h if kind == "gpt2" else body.backbone.layers)


def opt(**options):
    sizes = {"hidden_size": 8, "ffn_dim": 8, "num_hidden_layers": 2, "num_attention_heads": 2, "word_embed_proj_dim": 8}
    return OPTForCausalLM(OPTConfig(vocab_size=40, **sizes, **options))


def test_layers_that_are_called_otherwise_are_none(make_tiny_lm):
    assert len(decoder_layers(opt())) == 2
    assert decoder_layers(opt(layerdrop=0.5)) == []
    assert decoder_layers(nn.Linear(2, 2)) == []
    model = make_tiny_lm("gpt2")
    model.transformer.h[1] = model.transformer.h[0]  # one layer, twice
    assert decoder_layers(model) == []
    model = make_tiny_lm("gpt2")
    model.transformer.h[1].mlp.c_fc.weight = model.transformer.h[0].mlp.c_fc.weight
    assert decoder_layers(model) == []
    model = make_tiny_lm("llama")
    model.model.forward = None
    assert decoder_layers(model) == []
