import math
from functools import partial

import lightning as L
import pytest
import torch
from torch import nn
from transformers import get_cosine_with_min_lr_schedule_with_warmup

from rlhf_lightning.algorithms.batch import LMBatch
from rlhf_lightning.data.datamodule import RLHFDataModule
from rlhf_lightning.data.examples import LMExample
from rlhf_lightning.data.loader import collate_lm
from rlhf_lightning.data.records import Demonstration
from rlhf_lightning.models.lora import add_adapters, trainable_parameters
from rlhf_lightning.modules.language_model import LanguageModelModule

pytestmark = pytest.mark.filterwarnings(
    "ignore:.*many workers.*",
    "ignore:.*in eval mode.*",
    "ignore:.*LeafSpec.*",
    "ignore:.*does not have many.*",
    "ignore:.*no `val_dataloader`.*",
    "ignore:Total length of `list`.*",
)
SGD = partial(torch.optim.SGD, lr=0.1)
ADAM = partial(torch.optim.AdamW, lr=0.01)


class Table(nn.Module):
    """The next token's probabilities depend on the token alone."""

    def __init__(self, probabilities):
        super().__init__()
        self.table = nn.Parameter(torch.tensor(probabilities).log())

    def forward(self, input_ids, attention_mask, position_ids):
        return self.table[input_ids]


def trainer_of(**options):
    quiet = {"logger": False, "enable_progress_bar": False, "enable_model_summary": False}
    return L.Trainer(accelerator="cpu", enable_checkpointing=False, **quiet, **options)


def loader_of(*batches):
    return torch.utils.data.DataLoader(batches, batch_size=None)


def test_only_the_response_counts():
    model = Table([[0.25, 0.5, 0.25], [0.125, 0.125, 0.75], [0.5, 0.25, 0.25]])
    # Prompt 0 1, response 2 0: p(2 | 1) = 3/4 and p(0 | 2) = 1/2. Prompt 2, response 1: p(1 | 2) = 1/4.
    batch = collate_lm([LMExample([0, 1, 2, 0], 2), LMExample([2, 1], 1)], 0)
    loss, statistics = LanguageModelModule(model, SGD).loss(batch)
    assert float(loss.detach()) == pytest.approx((math.log(4 / 3) + math.log(2) + math.log(4)) / 3, abs=1e-6)
    assert int(statistics.num_tokens) == 3


@pytest.mark.parametrize("algorithm", ["norm", "value"])
@pytest.mark.parametrize("precision", ["32-true", "bf16-mixed"])
def test_a_fused_optimizer_can_clip(make_tiny_lm, precision, algorithm):
    """A step of size 1 along a gradient that was cut to 0.001."""
    model = make_tiny_lm("gpt2")
    before = [p.detach().clone() for p in model.parameters()]
    module = LanguageModelModule(model, partial(torch.optim.SGD, lr=1.0, fused=True))
    batch = collate_lm([LMExample([3, 4, 5, 6, 1], 1)], 0)
    options = {"gradient_clip_val": 1e-3, "gradient_clip_algorithm": algorithm, "precision": precision}
    trainer_of(max_steps=1, **options).fit(module, loader_of(batch))
    moved = torch.cat([(p.detach() - old).flatten() for p, old in zip(model.parameters(), before, strict=True)])
    size = moved.norm() if algorithm == "norm" else moved.abs().max()
    assert float(size) == pytest.approx(1e-3, rel=1e-2)


def test_padding_changes_nothing(tiny_lm):
    example = LMExample([3, 4, 5, 6, 1], 2)
    long = LMExample(list(range(3, 20)), 17)  # a row without targets: nothing but width
    module = LanguageModelModule(tiny_lm, SGD)
    alone, _ = module.loss(collate_lm([example], 0))
    alone.backward()
    gradients = [p.grad.clone() for p in tiny_lm.parameters()]
    tiny_lm.zero_grad()
    padded, statistics = module.loss(collate_lm([example, long], 0))
    padded.backward()
    assert int(statistics.num_tokens) == 3
    torch.testing.assert_close(padded, alone, atol=1e-5, rtol=0)
    for parameter, expected in zip(tiny_lm.parameters(), gradients, strict=True):
        torch.testing.assert_close(parameter.grad, expected, atol=1e-5, rtol=1e-4)


def test_padding_on_the_left_changes_nothing(tiny_lm):
    module = LanguageModelModule(tiny_lm, SGD)
    batch = collate_lm([LMExample([3, 4, 5, 6, 1], 2)], 0)
    wider = LMBatch(*(torch.nn.functional.pad(part, (3, 0)) for part in batch))
    torch.testing.assert_close(module.loss(wider)[0], module.loss(batch)[0], atol=1e-5, rtol=0)


def test_dropout_is_on_in_training_and_off_in_validation(make_tiny_lm):
    model = make_tiny_lm("gpt2", resid_pdrop=0.5)
    assert not model.training  # as a folder gives it
    module = LanguageModelModule(model, partial(torch.optim.SGD, lr=0.0))
    batch = collate_lm([LMExample([3, 4, 5, 6, 1], 1)], 0)
    quiet = float(module.loss(batch)[0].detach())
    seen, validated = [], []
    step, validate = module.training_step, module.validation_step

    def training_step(batch, batch_idx):
        loss = step(batch, batch_idx)
        seen.append(float(loss.detach()))
        return loss

    def validation_step(batch, batch_idx):
        validate(batch, batch_idx)
        validated.append(float(module.loss(batch)[0]))

    module.training_step, module.validation_step = training_step, validation_step
    trainer = trainer_of(max_epochs=2, num_sanity_val_steps=1)
    trainer.fit(module, loader_of(batch, batch), loader_of(batch, batch))
    assert len(set(seen)) == 4  # after the validation at the end of the first epoch as well
    assert validated == pytest.approx([quiet] * 5, abs=1e-6)


def test_validation_weighs_tokens():
    model = Table([[0.5, 0.5], [0.25, 0.75]])
    # 3 targets of log 2 in one batch, 1 of log 4 in the other
    batches = [collate_lm([LMExample([0, 0, 0, 1], 1)], 0), collate_lm([LMExample([1, 0], 1)], 0)]
    module = LanguageModelModule(model, SGD)
    (metrics,) = trainer_of().validate(module, loader_of(*batches), verbose=False)
    assert metrics["validation/loss"] == pytest.approx((3 * math.log(2) + math.log(4)) / 4, abs=1e-6)


def test_the_schedule_steps_once_per_optimizer_step():
    cosine = partial(get_cosine_with_min_lr_schedule_with_warmup, num_warmup_steps=0, min_lr_rate=0.5)
    module = LanguageModelModule(Table([[0.5, 0.5], [0.5, 0.5]]), SGD, cosine)
    batch = collate_lm([LMExample([0, 1], 1)], 0)
    trainer = trainer_of(max_epochs=2)
    trainer.fit(module, loader_of(*[batch] * 2))
    assert trainer.global_step == 4
    assert trainer.optimizers[0].param_groups[0]["lr"] == pytest.approx(0.05)  # half the peak: the end of the decay


def test_it_learns_to_answer(make_tiny_lm, tiny_tokenizer):
    # The answer to w_n is w_{n+10} and the end.
    records = [Demonstration(f"w{n}", f"w{n + 10}") for n in range(5, 25)]
    data = RLHFDataModule("sft", tiny_tokenizer, records, batch_size=5)
    model = make_tiny_lm("gpt2", initializer_range=0.02)
    module = LanguageModelModule(model, ADAM)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        trainer = trainer_of(max_epochs=100)
        trainer.fit(module, data)
    # From about log(40) = 3.7
    assert float(trainer.callback_metrics["train/loss"]) < 0.05
    model.eval()
    with torch.no_grad():
        for n in (5, 12, 24):
            assert int(model(torch.tensor([[n]])).logits[0, -1].argmax()) == n + 10
            assert int(model(torch.tensor([[n, n + 10]])).logits[0, -1].argmax()) == 1


@pytest.mark.parametrize(
    "options", [{"micro_batch_size": 2}, {"packing": True}, {"micro_batch_size": 3, "packing": True}]
)
@pytest.mark.parametrize("lora", [False, True])
def test_micro_batches_and_packing_change_speed_only(make_tiny_lm, options, lora):
    """Steps of SGD, so that a gradient of another size shows in the weights."""
    examples = [LMExample(list(range(3, 3 + size)), start) for size, start in ((9, 1), (3, 2), (12, 3), (5, 4), (2, 1))]
    batches = [collate_lm(examples, 0), collate_lm(examples[::2], 0)]
    weights, losses = [], []
    for settings in ({}, options):
        model = make_tiny_lm("llama", num_key_value_heads=2)
        if lora:
            add_adapters(model, rank=2)
            with torch.random.fork_rng():
                torch.manual_seed(0)
                for parameter in trainable_parameters(model):
                    torch.nn.init.normal_(parameter, std=0.1)
        trainer = trainer_of(max_epochs=2)
        trainer.fit(LanguageModelModule(model, SGD, **settings), loader_of(*batches))
        losses.append(float(trainer.callback_metrics["train/loss"]))
        weights.append([parameter.detach() for parameter in model.parameters()])
    assert losses[1] == pytest.approx(losses[0], abs=1e-5)
    for found, expected in zip(*weights, strict=True):
        torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-5)


@pytest.mark.filterwarnings("ignore:You are trying to `self.log")
def test_a_part_counts_by_its_tokens_and_not_by_its_rows():
    """Rows of 3 and 1 targets: the mean of the two means would be another."""
    model = Table([[0.5, 0.5], [0.25, 0.75]])
    batch = collate_lm([LMExample([0, 0, 0, 1], 1), LMExample([1, 0], 1)], 0)
    module = LanguageModelModule(model, SGD, micro_batch_size=1)
    loss = module.training_step(batch, 0)
    assert float(loss.detach()) == pytest.approx((3 * math.log(2) + math.log(4)) / 4, abs=1e-6)
    loss.backward()
    # d/d logits of a row is p - [target], over 4 targets: three times 0 -> (0, 0, 1), once 1 -> 0.
    expected = torch.tensor([[(1.5 - 2) / 4, (1.5 - 1) / 4], [(0.25 - 1) / 4, 0.75 / 4]])
    torch.testing.assert_close(model.table.grad, expected)


@pytest.mark.parametrize("size", [0, -1, 1.5])
def test_a_micro_batch_has_a_row(size):
    with pytest.raises((TypeError, ValueError), match="micro_batch_size"):
        LanguageModelModule(Table([[0.5, 0.5], [0.5, 0.5]]), SGD, micro_batch_size=size)
