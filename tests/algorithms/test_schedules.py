import math

import pytest
import torch

from rlhf_lightning.algorithms.schedules import cosine_schedule, warmup_schedule


def rates(make, steps, peak=2.0):
    """The learning rate of each optimizer step."""
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=peak)
    schedule = make(optimizer)
    seen = []
    for _ in range(steps):
        seen.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        schedule.step()
    return seen


def test_cosine_falls_to_a_tenth():
    seen = rates(lambda optimizer: cosine_schedule(optimizer, 8), 12)
    # 2 * (0.1 + 0.45 * (1 + cos)): the cosine is 1 at the start, sqrt(1/2) after a quarter, 0 half-way, -1 at the end.
    assert seen[0] == 2.0
    assert seen[2] == pytest.approx(2 * (0.55 + 0.45 * math.sqrt(0.5)), abs=1e-12)
    assert seen[4] == pytest.approx(1.1, abs=1e-12)
    assert seen[6] == pytest.approx(2 * (0.55 - 0.45 * math.sqrt(0.5)), abs=1e-12)
    assert seen[8:] == pytest.approx([0.2] * 4, abs=1e-12)


def test_cosine_after_a_warm_up():
    seen = rates(lambda optimizer: cosine_schedule(optimizer, 6, final_fraction=0.0, warmup_steps=4), 8)
    # A quarter more with every step, then down within the two that are left.
    assert seen == pytest.approx([0.5, 1.0, 1.5, 2.0, 2.0, 1.0, 0.0, 0.0], abs=1e-12)


def test_warm_up_from_a_tenth_then_constant():
    seen = rates(lambda optimizer: warmup_schedule(optimizer, 1000), 30)
    # 0.1, 0.19, 0.28, ... of the peak
    assert seen[:3] == pytest.approx([0.2, 0.38, 0.56], abs=1e-12)
    assert seen[5] == pytest.approx(1.1, abs=1e-12)
    assert seen[9] == pytest.approx(1.82, abs=1e-12)
    assert seen[10:] == pytest.approx([2.0] * 20, abs=1e-12)


@pytest.mark.parametrize("total_steps", [0, 1])
def test_schedules_of_no_length(total_steps):
    assert rates(lambda optimizer: cosine_schedule(optimizer, total_steps), 2)[1] == pytest.approx(0.2)
    assert rates(lambda optimizer: warmup_schedule(optimizer, total_steps, warmup_steps=0), 2)[1] == 2.0
