import pytest
import torch
from lightning.pytorch import Trainer
from torch import nn

from rlhf_lightning.models.precision import compute_dtype, is_exact, trainer_dtypes


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


@pytest.mark.parametrize("precision", [None, "32-true", "64-true", "bf16-true", "16-true", "bf16-mixed"])
def test_the_types_are_those_of_a_trainer(precision, tmp_path):
    trainer = Trainer(accelerator="cpu", precision=precision, logger=False, default_root_dir=tmp_path)
    plugin, (weights, autocast) = trainer.precision_plugin, trainer_dtypes(precision)
    layer = plugin.convert_module(nn.Linear(2, 2))
    assert layer.weight.dtype == (weights or torch.float32)
    with plugin.forward_context():
        assert compute_dtype(torch.device("cpu"), torch.float32) == (autocast or torch.float32)


def test_half_precision_is_mixed_on_a_gpu_alone():
    assert trainer_dtypes("16-mixed") == (None, torch.float16)
