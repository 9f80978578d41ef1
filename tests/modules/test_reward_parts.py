"""A batch of rankings in parts: the gradient is that of the whole, through whatever steps the optimizer."""

import copy
import itertools
from functools import partial

import lightning as L
import pytest
import torch
from lightning.fabric import Fabric
from torch.optim import SGD
from torch.utils.data import DataLoader

from rlhf_lightning.algorithms.losses import ranking_loss
from rlhf_lightning.data.examples import ComparisonExample
from rlhf_lightning.data.loader import collate_comparisons
from rlhf_lightning.models.lora import with_adapters
from rlhf_lightning.models.micro_batches import ranking_parts, together
from rlhf_lightning.modules.reward import RewardModule
from rlhf_lightning.training.fit import QUIET
from rlhf_lightning.training.live_bytes import LiveBytes

from ..models.test_recompute import scalar_model

pytestmark = [
    pytest.mark.filterwarnings(f"ignore:{message}")
    for message in (*QUIET, ".*no `val_dataloader`.*", ".*many workers.*", ".*does not support a shared prefix.*")
]
LEARN = partial(SGD, lr=0.1)
RANKS = ([1, 2, 3, 4], [1, 1], [2, 1, 1], [1, 2], [1, 1, 1], [3, 1, 2, 2, 5])
"""Ragged, with ties; the second and the fifth prompt have no pair that is decided."""


def batch(seed=0):
    generator = torch.Generator().manual_seed(seed)

    def ids(length):
        return torch.randint(3, 40, (length,), generator=generator).tolist()

    rows = [
        ComparisonExample(
            ids(2 + 3 * row % 7), [ids(2 + (row + k) % 4) for k in range(len(ranks))], ranks, f"g{row % 2}"
        )
        for row, ranks in enumerate(RANKS)
    ]
    return collate_comparisons(rows, 0)


def fitted(model, micro, clip=None, precision="32-true", **options):
    """Two steps under a Trainer: the module, and what it logged."""
    module = RewardModule(copy.deepcopy(model), LEARN, micro_batch_size=micro, **options)
    quiet = {"enable_checkpointing": False, "enable_progress_bar": False, "enable_model_summary": False}
    trainer = L.Trainer(
        accelerator="cpu", max_epochs=1, logger=False, gradient_clip_val=clip, precision=precision, **quiet
    )
    trainer.fit(module, DataLoader([batch(), batch(9)], batch_size=None))
    return module, {name: float(value) for name, value in trainer.logged_metrics.items() if name.startswith("train/")}


def largest_difference(module, other):
    return max(
        float((a - b).detach().abs().max()) for a, b in zip(module.parameters(), other.parameters(), strict=True)
    )


@pytest.mark.parametrize("family", ["GPT-2", "Llama", "Qwen 3", "Gemma 3 text"])
@pytest.mark.parametrize("micro", [1, 4])
def test_parts_train_as_the_whole_batch_does(family, micro):
    model = scalar_model(family)
    whole, logged = fitted(model, None)
    parts, found = fitted(model, micro)
    assert largest_difference(whole, model_as(whole, model)) > 1e-2  # it learned
    assert largest_difference(whole, parts) < 1e-6
    assert found == pytest.approx(logged, abs=1e-6)


def model_as(module, model):
    return RewardModule(copy.deepcopy(model), module.optimizer_factory)


@pytest.mark.parametrize("options", [{"activation_checkpointing": True}, {"shared_prefix": False}, {"head_lr": 0.05}])
def test_with_clipping_and_other_settings(options):
    model = scalar_model("Llama")
    whole, _ = fitted(model, None, clip=0.05, **options)
    parts, _ = fitted(model, 2, clip=0.05, **options)
    unclipped, _ = fitted(model, 2, **options)
    assert largest_difference(whole, parts) < 1e-6 < largest_difference(unclipped, parts)


def test_as_large_as_the_batch_it_is_the_batch_bit_for_bit():
    model = scalar_model("GPT-2")
    assert largest_difference(fitted(model, None)[0], fitted(model, len(RANKS))[0]) == 0


def test_a_part_without_pairs_and_a_batch_without_any():
    tied = batch()._replace(ranks=torch.ones_like(batch().ranks) * batch().mask)
    fabric, module = under_fabric(scalar_model("GPT-2"), 1)
    loss = module.training_step(tied, 0)
    fabric.backward(loss)
    assert float(loss.detach()) == 0
    assert all(not parameter.grad.any() for parameter in module.parameters())


def test_in_bf16_the_scores_and_all_that_is_made_of_them_have_32_bits():
    """What the head reads, scores, loss and statistics; the gradient of parts is as near as 16 bits allow."""
    model, seen = scalar_model("Llama"), []

    class Noting(RewardModule):
        def loss(self, batch):
            scores = self.scores(batch)
            loss, statistics = ranking_loss(scores, batch.ranks, batch.mask)
            assert torch.is_autocast_enabled("cpu")
            seen.extend([scores.dtype, loss.dtype, statistics.accuracy.dtype, statistics.margin.dtype])
            return loss, statistics

    own = copy.deepcopy(model)
    own.backbone.norm.register_forward_hook(lambda module, inputs, output: seen.append(output.dtype))
    module = Noting(own, LEARN, micro_batch_size=2)
    quiet = {"enable_checkpointing": False, "enable_progress_bar": False, "enable_model_summary": False}
    trainer = L.Trainer(accelerator="cpu", max_epochs=1, logger=False, precision="bf16-mixed", **quiet)
    trainer.fit(module, DataLoader([batch()], batch_size=None))
    assert len(seen) > 12
    assert set(seen) == {torch.float32}


class Scaled(Fabric):
    """Multiplies every loss, as precisions with a gradient scaler do."""

    def backward(self, tensor, *arguments, **options):
        super().backward(tensor * 1024, *arguments, **options)


def under_fabric(model, micro, kind=Fabric):
    """A fabric, and the module as it sets it up."""
    fabric = kind(accelerator="cpu", devices=1)
    own = copy.deepcopy(model)
    module, _ = fabric.setup(RewardModule(own, LEARN, micro_batch_size=micro), LEARN(own.parameters()))
    module.mark_forward_method("training_step")
    return fabric, module


def test_gradients_that_are_scaled():
    """The losses of parts have to be multiplied alike."""
    model, found = scalar_model("Llama"), []
    for micro in (None, 2):
        fabric, module = under_fabric(model, micro, Scaled)
        fabric.backward(module.training_step(batch(), 0))
        found.append(torch.cat([parameter.grad.flatten() for parameter in module.parameters()]) / 1024)
    assert float(found[0].norm()) > 0.1
    torch.testing.assert_close(found[1], found[0], rtol=1e-5, atol=1e-6)


def test_gradients_that_were_cleared_in_between_are_missed():
    """`zero_grad` between `training_step` and the backward pass, as in a plain loop of torch."""
    fabric, module = under_fabric(scalar_model("GPT-2"), 2)
    loss = module.training_step(batch(), 0)
    module.zero_grad()
    with pytest.raises(RuntimeError, match=r"zero_grad\(\) before training_step"):
        fabric.backward(loss)


def test_parts_are_of_similar_length_the_longest_first():
    whole = batch()
    parts = ranking_parts(whole, 2)
    tokens = [(part.prompt_mask.sum(1) + part.response_mask.sum((1, 2))).tolist() for part, _ in parts]
    flat = list(itertools.chain(*tokens))
    assert flat == sorted(flat, reverse=True)
    assert len(flat) == len(RANKS)
    assert sum(float(weight) for _, weight in parts) == pytest.approx(1)
    assert sorted(group for part, _ in parts for group in part.groups) == sorted(whole.groups)


def test_statistics_of_parts_are_those_of_the_whole():
    whole, generator = batch(), torch.Generator().manual_seed(1)
    scores = torch.randn(whole.ranks.shape, generator=generator)
    table = {tuple(row.tolist()): number for number, row in enumerate(whole.prompt_ids)}
    found = []
    for part, weight in ranking_parts(whole, 2):
        loss, statistics = ranking_loss(
            scores[[table[tuple(row.tolist())] for row in part.prompt_ids]], part.ranks, part.mask
        )
        found.append((loss * weight, statistics))
    for own, expected in zip(together(found), ranking_loss(scores, whole.ranks, whole.mask), strict=True):
        torch.testing.assert_close(own, expected)


def test_memory_is_that_of_a_part():
    model, peaks = scalar_model("Llama"), []
    for micro in (None, 1):
        fabric, module = under_fabric(model, micro)
        fabric.backward(module.training_step(batch(), 0))  # passes are tried here
        module.zero_grad()
        with LiveBytes() as live:
            fabric.backward(module.training_step(batch(), 0))
        peaks.append(live.peak)
    size = sum(parameter.numel() * 4 for parameter in model.parameters())
    assert peaks[1] - size < 0.6 * (peaks[0] - size)


def test_the_head_has_a_rate_of_its_own():
    optimizer = RewardModule(scalar_model("GPT-2"), LEARN, head_lr=0.125).build_optimizers()[0]
    assert [group["lr"] for group in optimizer.param_groups] == [0.1, 0.125]
    assert [tuple(p.shape) for p in optimizer.param_groups[1]["params"]] == [(1, 32)]
    frozen = scalar_model("GPT-2")
    frozen.backbone.requires_grad_(False)
    assert len(RewardModule(frozen, LEARN, head_lr=0.125).build_optimizers()[0].param_groups) == 1
    with pytest.raises(ValueError, match=r"head_lr=0\.125: Linear has no `head`"):
        RewardModule(torch.nn.Linear(2, 1), LEARN, head_lr=0.125).build_optimizers()


def test_adapters_learn_from_parts_too():
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = with_adapters(scalar_model("Llama"), rank=2)
    assert largest_difference(fitted(model, None)[0], fitted(model, 2)[0]) < 1e-6
