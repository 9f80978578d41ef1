import pytest
import torch
from lightning.pytorch import Trainer
from torch import nn

from rlhf_lightning.models.export import export_scalar_model
from rlhf_lightning.models.precision import compute_dtype, is_exact, trainer_dtypes
from rlhf_lightning.models.scalar_head import ScalarHeadModel, load_scalar_model


@pytest.mark.parametrize(
    ("dtype", "expected"),
    [(torch.float64, True), (torch.float32, True), (torch.bfloat16, False), (torch.float16, False)],
)
def test_exact_is_32_bits_at_least(dtype, expected):
    assert is_exact(nn.Linear(2, 2, dtype=dtype)) is expected


def test_autocast_is_what_products_run_in():
    layer, cpu = nn.Linear(2, 2), torch.device("cpu")
    with torch.autocast("cpu", torch.bfloat16):
        assert layer(torch.ones(1, 2)).dtype == compute_dtype(cpu, torch.float32) == torch.bfloat16
        assert not is_exact(layer)
    assert layer(torch.ones(1, 2)).dtype == compute_dtype(cpu, torch.float32) == torch.float32


@pytest.mark.parametrize("precision", [None, 32, "64", "32-true", "64-true", "bf16-true", "16-true", "bf16-mixed"])
def test_the_types_are_those_of_a_trainer(precision, tmp_path):
    trainer = Trainer(accelerator="cpu", precision=precision, logger=False, default_root_dir=tmp_path)
    plugin, (weights, autocast) = trainer.precision_plugin, trainer_dtypes(precision)
    layer = plugin.convert_module(nn.Linear(2, 2))
    assert layer.weight.dtype == (weights or torch.float32)
    with plugin.forward_context():
        assert compute_dtype(torch.device("cpu"), torch.float32) == (autocast or torch.float32)


def test_half_precision_is_mixed_on_a_gpu_alone():
    assert trainer_dtypes("16-mixed") == trainer_dtypes(16) == (None, torch.float16)


def bf16_grid(values):
    return values.to(torch.bfloat16).to(values.dtype)


@pytest.mark.parametrize("own_bits", [16, 32])
def test_a_score_is_32_bits_wide_whatever_the_body_computes_in(make_tiny_lm, own_bits):
    """Against a double loop over the same 16-bit hidden states in 64 bits; a product in 16 bits is 1e-3 off."""
    model = ScalarHeadModel.from_causal_lm(make_tiny_lm("llama")).eval()
    model.bias.fill_(0.1)
    if own_bits == 16:
        model.backbone.to(torch.bfloat16)
    read = []
    model.backbone.register_forward_hook(lambda *call: read.append(call[-1].last_hidden_state))
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16, enabled=own_bits == 32):
        scores = model(torch.arange(3, 23).view(2, 10))
    hidden = read[0].double()
    weight = model.head.weight[0].detach().double()
    expected = torch.tensor([[sum(h * w for h, w in zip(row, weight, strict=True)) + 0.1 for row in r] for r in hidden])
    assert scores.dtype == torch.float32
    torch.testing.assert_close(scores.double(), expected.double(), atol=1e-6, rtol=0)
    assert (scores != bf16_grid(scores)).float().mean() > 0.9, "scores sit on the grid of 16 bits"


def test_a_reward_model_in_16_bits_keeps_its_head_and_bias_in_32(tiny_gpt2, tiny_tokenizer, tmp_path):
    model = ScalarHeadModel.from_causal_lm(tiny_gpt2)
    model.bias.fill_(1.001)  # 16 bits would make it 1
    export_scalar_model(model, tiny_gpt2.config, tiny_tokenizer, tmp_path / "reward")
    loaded = load_scalar_model(str(tmp_path / "reward"), dtype="bfloat16")
    assert {parameter.dtype for parameter in loaded.backbone.parameters()} == {torch.bfloat16}
    assert loaded.head.weight.dtype == torch.float32
    assert float(loaded.bias) == pytest.approx(1.001, abs=1e-6)
