"""The stop watch: times nest, padding is a share, utilisation is of the dense peak."""

import pytest
import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from rlhf_lightning.models.scalar_head import ScalarHeadModel
from rlhf_lightning.parallel import throughput as module
from rlhf_lightning.parallel.throughput import Throughput, dense_peak, flops, matmul_weights


@pytest.fixture
def clock(monkeypatch):
    now = [100.0]
    monkeypatch.setattr(module.time, "perf_counter", lambda: now[0])
    return now


def test_a_phase_within_a_phase_is_taken_out_of_it(clock):
    throughput = Throughput()
    model = nn.Linear(2, 2)
    with throughput.phase("update"):
        clock[0] += 1
        throughput.count(model, 30, 40)
        with throughput.phase("ptx"):
            clock[0] += 4
            throughput.count(model, torch.tensor(20), torch.tensor(20), backward=True)
        clock[0] += 2
    clock[0] += 50
    assert throughput.figures() == {
        "time/update_seconds": 3,
        "time/update_tokens_per_second": 10,
        "time/ptx_seconds": 4,
        "time/ptx_tokens_per_second": 5,
        "time/padding": pytest.approx(1 - 50 / 60),
        "time/flops": 2 * 4 * 30 + 6 * 4 * 20,
        "time/total_flops": 2 * 4 * 30 + 6 * 4 * 20,
    }


def test_figures_start_over_and_nothing_outside_of_phases_counts(clock):
    throughput = Throughput()
    throughput.count(nn.Linear(2, 2), 5, 10)
    throughput.start("step")
    throughput.stop()
    throughput.figures()
    throughput.start("step")
    clock[0] += 2
    throughput.count(nn.Linear(2, 2), 4, 4)
    throughput.stop()
    assert throughput.figures() == {
        "time/step_seconds": 2,
        "time/step_tokens_per_second": 2,
        "time/padding": 0,
        "time/flops": 2 * 4 * 4,
        "time/total_flops": 2 * 4 * 4,
    }


@pytest.mark.parametrize("kind", ["gpt2", "llama"])
def test_weights_of_the_blocks(make_tiny_lm, kind):
    # 2 layers of width 32; GPT-2: 3 + 1 + 4 + 4 squares, Llama: 2 + 2 / 2 squares and 3 x 32 x 64.
    per_layer = {"gpt2": 12 * 32 * 32, "llama": 3 * 32 * 32 + 3 * 32 * 64}[kind]
    model = make_tiny_lm(kind)
    assert matmul_weights(model) == 2 * per_layer
    assert matmul_weights(ScalarHeadModel.from_causal_lm(model)) == 2 * per_layer + 32


def test_flops_of_a_pass_are_those_of_its_products(make_tiny_lm):
    """Against torch's own counter, which counts the products of a whole square of attention and of the head."""
    model = make_tiny_lm("llama", attn_implementation="eager")
    with FlopCounterMode(display=False) as counter:
        loss = model(input_ids=torch.arange(24).view(2, 12) + 3).logits.sum()
        forward = counter.get_total_flops()
        loss.backward()
    head = 2 * 24 * 32 * 40
    square = 4 * 2 * 32 * 2 * 12 * 12  # two products, 2 layers of width 32, 2 rows of 12 x 12 pairs
    half = 4 * 2 * 32 * 2 * (12 * 13 // 2)
    lengths = torch.tensor([12, 12])
    assert flops(model, lengths) == forward - head - square + half
    both = counter.get_total_flops() - 3 * (head + square - half)
    assert flops(model, lengths, backward=True) == pytest.approx(both, rel=0.02)  # no gradient to the first embedding
    assert flops(model.requires_grad_(False), lengths, backward=True) == 2 * flops(model, lengths) + half


def test_the_total_goes_on_after_a_checkpoint(clock):
    throughput = Throughput(total=500.0)
    with throughput.phase("step"):
        throughput.count(nn.Linear(2, 2), 4, 4, lengths=torch.tensor([3, 1]))
    assert throughput.figures()["time/total_flops"] == 532


def on_a_gpu(monkeypatch, name):
    monkeypatch.setattr(torch.cuda, "is_initialized", lambda: True)
    monkeypatch.setattr(torch.cuda, "synchronize", lambda: None)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda *_: name)


def test_utilisation_of_a_gpu(monkeypatch, clock):
    on_a_gpu(monkeypatch, "NVIDIA H200")
    assert dense_peak() == 989e12
    throughput = Throughput()
    with throughput.phase("step"):
        clock[0] += 2
        throughput.count(nn.Linear(1000, 1000, bias=False), 10**9, 10**9, backward=True)
    assert throughput.figures()["time/mfu"] == pytest.approx(6 * 10**6 * 10**9 / (2 * 989e12))


@pytest.mark.filterwarnings("ignore:FLOPs not found")
@pytest.mark.parametrize(("name", "peak"), [("NVIDIA A100-SXM4-80GB", 312e12), ("a card of tomorrow", None)])
def test_peaks_of_other_gpus(monkeypatch, name, peak):
    on_a_gpu(monkeypatch, name)
    assert dense_peak() == peak
