"""Where the head of a reward model starts."""

import itertools
import math
from functools import partial

import lightning as L
import pytest
import torch
from torch.utils.data import DataLoader

from rlhf_lightning.data.datamodule import RLHFDataModule
from rlhf_lightning.data.records import Comparison
from rlhf_lightning.models.scalar_head import FinalStates, ScalarHeadModel
from rlhf_lightning.models.shared_prefix import separate_scores
from rlhf_lightning.modules.reward import RewardModule
from rlhf_lightning.training.fit import QUIET
from rlhf_lightning.training.head_start import SPREAD, HeadStart, fitted_head, scaled_head

pytestmark = [
    pytest.mark.filterwarnings(f"ignore:{message}")
    for message in (*QUIET, ".*no `val_dataloader`.*", ".*many workers.*", ".*does not support a shared prefix.*")
]
ADAM = partial(torch.optim.Adam, lr=1e-3)
RANKS = [[1, 2, 3], [2, 1, 1], [3, 2, 1, 1], [2, 1]]


def rankings(count=40):
    """The ranks have nothing to do with the words."""
    return [
        Comparison(
            f"w{3 + n % 30} w{4 + n % 7}", [f"w{5 + (n * 3 + k * 7) % 33} w{6 + k}" for k in range(len(ranks))], ranks
        )
        for n, ranks in enumerate(itertools.islice(itertools.cycle(RANKS), count))
    ]


def louder(causal_lm):
    """With final states as large as those of pretrained models."""
    causal_lm.base_model.norm.weight.data.fill_(3.0)
    return causal_lm


def fit(module, tokenizer, start, folder, records=None, checkpoint=None, epochs=1):
    data = RLHFDataModule("reward", tokenizer, records or rankings(), batch_size=40)
    quiet = {"enable_checkpointing": False, "enable_progress_bar": False, "enable_model_summary": False}
    trainer = L.Trainer(
        accelerator="cpu", max_epochs=epochs, logger=False, callbacks=[start], default_root_dir=folder, **quiet
    )
    trainer.fit(module, datamodule=data, ckpt_path=checkpoint, weights_only=True)
    return trainer


@pytest.mark.parametrize("pooling", ["last", "mean"])
def test_the_loss_on_random_orderings_starts_at_log_2(tiny_llama, tiny_tokenizer, tmp_path, pooling):
    losses = []
    for scale in (None, "rms"):
        torch.manual_seed(2)
        module = RewardModule(ScalarHeadModel.from_causal_lm(louder(tiny_llama), pooling), ADAM)
        losses.append(float(fit(module, tiny_tokenizer, HeadStart(scale), tmp_path).logged_metrics["train/loss"]))
    assert abs(losses[1] / math.log(2) - 1) < 0.03
    assert losses[0] > 1.2 * math.log(2)


def test_the_scale_pair_by_pair():
    states = torch.randn(5, 3, 8, generator=torch.Generator().manual_seed(0))
    mask = torch.tensor([[True, True, True]] * 4 + [[True, True, False]])
    weight = scaled_head(states, mask, torch.ones(1, 8))
    squares = []
    for row, exists in zip(states @ weight[0], mask, strict=True):
        squares += [float(a - b) ** 2 for a, b in itertools.permutations(row[exists], 2)]
    assert math.sqrt(sum(squares) / len(squares)) == pytest.approx(SPREAD, rel=1e-5)
    alike = torch.ones(2, 2, 8)
    assert torch.equal(scaled_head(alike, torch.ones(2, 2, dtype=torch.bool), torch.ones(1, 8)), torch.ones(1, 8))


def test_the_fitted_head_is_the_lowest_point_and_finds_what_is_there():
    generator = torch.Generator().manual_seed(0)
    states = torch.randn(120, 4, 6, generator=generator) * torch.tensor([1.0, 30.0, 1.0, 0.1, 1.0, 1.0]) + 5
    truth = torch.tensor([1.0, 0.0, -2.0, 0.0, 0.5, 0.0])
    scores = states @ truth + 0.3 * torch.randn(120, 4, generator=generator)
    ranks = (-scores).argsort(1).argsort(1) + 1
    ranks[::3, 3] = 0  # ragged
    weight, said = fitted_head(states, ranks, list(range(120)))
    right = [
        float((row[a] - row[b]) @ weight[0]) > 0
        for row, order in zip(states, ranks.tolist(), strict=True)
        for a, b in itertools.permutations(range(4), 2)
        if 0 < order[a] < order[b]
    ]
    assert sum(right) / len(right) > 0.9
    assert "120 rankings" in said
    noise, said = fitted_head(
        states, torch.stack([torch.randperm(4, generator=generator) + 1 for _ in states]), list(range(120))
    )
    assert "ridge 10" in said
    assert float(((states - states.mean(1, keepdim=True)) @ noise[0]).std()) < 0.2


def test_rankings_of_one_prompt_are_held_out_together():
    """States that tell the prompt alone: who sees a prompt in both parts does better than chance."""
    generator = torch.Generator().manual_seed(0)
    own = torch.randn(30, 2, 40, generator=generator)
    states, ranks = own.repeat_interleave(4, 0), torch.tensor([[1, 2]]).repeat(120, 1)
    _, said = fitted_head(states, ranks, [n // 4 for n in range(120)])
    assert float(said.split("loss there is ")[1].split(",")[0]) > 0.6


@pytest.mark.parametrize("pooling", ["last", "mean"])
def test_fitted_first_the_model_starts_better_and_goes_on(tiny_llama, tiny_tokenizer, tmp_path, pooling):
    told = []
    better = [Comparison(f"w{3 + n % 30} w9", [f"w{5 + n % 25} w20", f"w{5 + n % 25} w31"], [1, 2]) for n in range(40)]
    module = RewardModule(ScalarHeadModel.from_causal_lm(louder(tiny_llama), pooling), ADAM)
    trainer = fit(module, tiny_tokenizer, HeadStart("rms", True, told.append), tmp_path, better)
    assert float(trainer.logged_metrics["train/accuracy"]) > 0.9
    assert float(trainer.logged_metrics["train/loss"]) < 0.5
    assert len(told) == 1


def test_a_run_that_goes_on_keeps_the_head_that_it_has(tiny_llama, tiny_tokenizer, tmp_path):
    module = RewardModule(ScalarHeadModel.from_causal_lm(tiny_llama), partial(torch.optim.SGD, lr=0.0))
    trainer = fit(module, tiny_tokenizer, HeadStart(), tmp_path)
    before = module.model.head.weight.detach().clone() * 2
    module.model.head.weight.data.copy_(before)
    trainer.save_checkpoint(tmp_path / "last.ckpt")
    fit(module, tiny_tokenizer, HeadStart(first=True), tmp_path, checkpoint=tmp_path / "last.ckpt", epochs=2)
    assert torch.equal(module.model.head.weight, before)


def test_the_global_random_state_is_not_touched(tiny_llama, tiny_tokenizer, tmp_path):
    """Or a run with another head would see other samples."""
    states = []
    for start in (HeadStart(None), HeadStart("rms", True, lambda said: None)):
        torch.manual_seed(4)
        module = RewardModule(ScalarHeadModel.from_causal_lm(tiny_llama), ADAM)
        fit(module, tiny_tokenizer, start, tmp_path)
        states.append(torch.get_rng_state())
    assert torch.equal(*states)


def test_states_are_what_the_head_reads(tiny_llama, tiny_tokenizer):
    data = RLHFDataModule("reward", tiny_tokenizer, rankings(8), batch_size=8)
    data.setup()
    batch = next(iter(data.train_dataloader()))
    for pooling in ("last", "mean"):
        model = ScalarHeadModel.from_causal_lm(tiny_llama, pooling)
        states = separate_scores(FinalStates(model), batch)
        torch.testing.assert_close(
            (states @ model.head.weight[0])[batch.mask], separate_scores(model, batch)[batch.mask]
        )


def test_rankings_from_elsewhere_are_refused(tiny_llama, tmp_path):
    module = RewardModule(ScalarHeadModel.from_causal_lm(tiny_llama), ADAM)
    quiet = {"enable_checkpointing": False, "enable_progress_bar": False, "enable_model_summary": False}
    trainer = L.Trainer(max_epochs=1, logger=False, callbacks=[HeadStart()], default_root_dir=tmp_path, **quiet)
    with pytest.raises(ValueError, match="reads the rankings of an RLHFDataModule"):
        trainer.fit(module, DataLoader([0]))
