"""What kills a run is said once, with figures and what to do, and costs the training nothing."""

import json
import math
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import lightning as L
import pytest
import torch
from rich.console import Console

from rlhf_lightning.data.datamodule import RLHFDataModule
from rlhf_lightning.data.records import Comparison, Demonstration
from rlhf_lightning.models.scalar_head import ScalarHeadModel
from rlhf_lightning.modules.language_model import LanguageModelModule
from rlhf_lightning.modules.reward import RewardModule
from rlhf_lightning.training.checkpoint import BatchCheckpoint
from rlhf_lightning.training.heartbeat import Heartbeat
from rlhf_lightning.training.metrics_file import MetricsFile
from rlhf_lightning.training.warnings_file import Warnings
from rlhf_lightning.training.watch import FIGURES, PolicyWatch, policy_warnings, watches

pytestmark = pytest.mark.filterwarnings(
    "ignore:.*many workers.*", "ignore:.*in eval mode.*", "ignore:.*LeafSpec.*", "ignore:.*logging interval.*",
    "ignore:.*no `val_dataloader`.*", "ignore:.*dataloader is not resumable.*",
)  # fmt: skip
DEMONSTRATIONS = [Demonstration(f"w{3 + n} w{4 + n}", f"w{5 + n} w{6 + n}") for n in range(20)]
HELD_OUT = [Demonstration(f"w{9 + n} w{4 + n}", f"w{20 + n} w{16 - n}") for n in range(5)]
FINE = {"ended": 0.9, "length": 20.0, "kl": 2.0, "score": 0.0, "score_std": 1.0}


def rows(**changes: tuple[float, float]) -> list[dict[str, float]]:
    """Three iterations with the first values, one between, three with the second."""
    ends = [FINE | {name: pair[place] for name, pair in changes.items()} for place in (0, 1)]
    return [*[ends[0]] * 3, FINE, *[ends[1]] * 3]


@pytest.mark.parametrize(
    ("changes", "about", "words"),
    [
        ({"ended": (0.31, 0.0)}, ["endings"], ["from 31% to 0%", "ppo.module.missing_eos_penalty", "cut.json"]),
        ({"ended": (0.9, 0.46)}, [], []),  # more than half of what it was
        ({"ended": (0.15, 0.06)}, [], []),  # a few episodes less
        ({"ended": (0.02, 0.03)}, ["endings"], ["3% of the responses end", "model.eos"]),
        ({"ended": (0.9, 0.7), "score": (0.0, 0.5)}, ["length"], ["from 0 to 0.5", "10% to 30%", "samples.jsonl"]),
        ({"ended": (0.9, 0.7), "score": (0.0, 0.2)}, [], []),  # within the spread of the scores
        ({"ended": (0.9, 0.1), "score": (0.0, 2.0)}, ["endings", "length"], []),
        ({"score": (0.0, 2.0)}, [], []),
        ({"kl": (1.0, 21.0)}, ["kl"], ["21 nats", "20 tokens", "usual 20", "ppo.module.kl_coef"]),
        ({"kl": (1.0, 19.0)}, [], []),
        ({"kl": (1.0, 9.0), "length": (4.0, 4.0)}, [], []),  # short responses are few nats from anything
        ({"kl": (1.0, 51.0), "length": (900.0, 900.0)}, ["kl"], ["usual 50"]),
        ({"score_std": (1.0, 0.0), "score": (1.5, 1.5)}, ["spread"], ["same score, 1.5"]),
        ({"score_std": (1.0, math.nan)}, [], []),
    ],
)  # fmt: skip
def test_what_ends_a_run_of_ppo_badly(changes: Any, about: list[str], words: list[str]) -> None:
    found = policy_warnings(rows(**changes), "ppo")
    assert list(found) == about
    assert all(word in " ".join(found.values()) for word in words)
    assert policy_warnings(rows(**changes)[:2], "ppo") == {}


class Policy(L.LightningModule):
    """Logs the figures of a run of PPO."""

    def __init__(self, figures: list[dict[str, float]]) -> None:
        super().__init__()
        self.figures, self.layer = figures, torch.nn.Linear(1, 1)

    def rollout(self) -> None:
        """What makes it one."""

    def training_step(self, batch: Any, batch_idx: int) -> Any:
        self.log_dict({f"rollout/{name}": self.figures[batch_idx][name] for name in FIGURES})
        return self.layer(batch).mean()

    def configure_optimizers(self) -> Any:
        return torch.optim.SGD(self.parameters(), lr=0.1)


def trained(
    module: Any, folder: Path, data: Any, *more: L.Callback, epochs: int = 1, watched: bool = True
) -> list[str]:
    """Train it with what watches it; what was said."""
    said: list[str] = []
    source = {"datamodule": data} if isinstance(data, L.LightningDataModule) else {"train_dataloaders": data}
    checkpoint, heartbeat = BatchCheckpoint(folder / "checkpoints", 1), Heartbeat(Console(quiet=True))
    warnings = Warnings(folder / "warnings.json", said.append)
    seen: list[L.Callback] = [warnings, PolicyWatch(warnings, "ppo")]
    if "datamodule" in source:
        seen = watches("sft", module, data, folder, said.append, heartbeat)
    trainer = L.Trainer(
        accelerator="cpu", max_epochs=epochs, logger=MetricsFile(folder / "metrics.csv"), log_every_n_steps=1,
        callbacks=[*(seen if watched else []), *more, checkpoint],
        enable_checkpointing=False, enable_progress_bar=False, enable_model_summary=False, num_sanity_val_steps=0,
        default_root_dir=folder, **({} if getattr(data, "validation", None) else {"limit_val_batches": 0}),
    )  # fmt: skip
    resume = str(checkpoint.path) if checkpoint.path.exists() else None
    trainer.fit(module, **source, ckpt_path=resume, weights_only=True)
    return said


class StopAt(L.Callback):
    """Ends as a crash does."""

    def __init__(self, batch: int) -> None:
        self.batch = batch

    def on_train_batch_start(self, trainer: L.Trainer, *_: Any) -> None:
        if trainer.fit_loop.epoch_loop.total_batch_idx == self.batch:
            raise KeyError("the power went out")


def test_a_falling_share_of_endings_is_said_once_also_over_a_resume(tmp_path: Path) -> None:
    loader = torch.utils.data.DataLoader(torch.ones(8, 1))
    figures = [FINE | {"ended": ended} for ended in (0.31, 0.3, 0.29, 0.2, 0.1, 0.05, 0.0, 0.0)]
    with pytest.raises(KeyError, match="power"):
        trained(Policy(figures), tmp_path, loader, StopAt(7))
    kept = json.loads((tmp_path / "warnings.json").read_text())
    assert len(kept) == 1
    assert "fell from 30% to 12%" in kept[0]  # the mean of the iterations 4 to 6
    assert trained(Policy(figures), tmp_path, loader) == []
    assert json.loads((tmp_path / "warnings.json").read_text()) == kept


def test_a_warning_after_the_last_checkpoint_is_said_again(tmp_path: Path) -> None:
    (tmp_path / "warnings.json").write_text('["of a batch that is made again"]')
    assert trained(Policy([FINE] * 4), tmp_path, torch.utils.data.DataLoader(torch.ones(4, 1))) == []
    assert json.loads((tmp_path / "warnings.json").read_text()) == []


def sft(model: Any, tokenizer: Any, lr: float, held_out: Any = HELD_OUT) -> tuple[Any, RLHFDataModule]:
    torch.manual_seed(1)
    for layer in model.modules():
        if isinstance(layer, torch.nn.Dropout):
            layer.p = 0.2
    module = LanguageModelModule(model, partial(torch.optim.SGD, lr=abs(lr), maximize=lr < 0))
    return module, RLHFDataModule("sft", tokenizer, DEMONSTRATIONS, held_out, batch_size=4, seed=5)


def loss_by_hand(model: Any, tokenizer: Any, records: Any) -> float:
    """Mean over demonstrations of the mean negative log-likelihood of response and EOS, one by one."""
    losses = []
    model.requires_grad_(False)
    for record in records:
        prompt = tokenizer(record.prompt + " \n\n")["input_ids"]
        response = [*tokenizer(record.response)["input_ids"], 1]
        logits = model.eval()(torch.tensor([[*prompt, *response]])).logits[0].log_softmax(-1)
        losses.append(
            -sum(float(logits[len(prompt) + n - 1, token]) for n, token in enumerate(response)) / len(response)
        )
    return sum(losses) / len(losses)


@pytest.mark.parametrize(("held_out", "count", "which"), [(HELD_OUT, 5, "validation"), (None, 8, "training")])
def test_a_model_that_got_worse_is_said(
    held_out: Any, count: int, which: str, make_tiny_lm: Any, tiny_tokenizer: Any, tmp_path: Path
) -> None:
    before = loss_by_hand(make_tiny_lm("gpt2"), tiny_tokenizer, held_out or DEMONSTRATIONS[:8])
    model = make_tiny_lm("gpt2")
    (sentence,) = trained(*interchanged(sft(model, tiny_tokenizer, -0.1, held_out), tmp_path))
    after = loss_by_hand(model, tiny_tokenizer, held_out or DEMONSTRATIONS[:8])
    assert sentence.startswith(
        f"warning: the loss on the same {count} {which} examples was {before:.4g} before training and is "
        f"{after:.4g} after epoch 1: "
    )
    assert "sft.module.optimizer.lr" in sentence
    assert "sft.fit.epochs" in sentence
    assert json.loads((tmp_path / "warnings.json").read_text()) == [sentence.removeprefix("warning: ")]


def interchanged(made: tuple[Any, RLHFDataModule], folder: Path) -> tuple[Any, Path, RLHFDataModule]:
    return made[0], folder, made[1]


def test_a_model_that_got_better_is_not(make_tiny_lm: Any, tiny_tokenizer: Any, tmp_path: Path) -> None:
    assert trained(*interchanged(sft(make_tiny_lm("gpt2"), tiny_tokenizer, 0.05, None), tmp_path)) == []
    assert not (tmp_path / "warnings.json").exists()


def test_words_that_the_tokenizer_does_not_know_are_said(
    make_tiny_lm: Any, tiny_tokenizer: Any, tmp_path: Path
) -> None:
    module, data = sft(make_tiny_lm("gpt2"), tiny_tokenizer, 0.05, None)
    data.train = [Demonstration("w3 kettle", "w4 hallway"), *DEMONSTRATIONS[:3]]
    sentences = trained(module, tmp_path, data)
    tokens = [id for example in data.examples["train"] for id in example.input_ids]
    share = tokens.count(tiny_tokenizer.unk_token_id) / len(tokens)
    assert 0.05 < share < 0.2
    assert sentences[0].startswith(
        f"warning: {share:.0%} of the tokens of the records are <unk>: the tokenizer has none"
    )
    assert "'w3 <unk> w4 <unk> <eos>'" in sentences[0].replace("  ", " ")


def test_a_trial_is_called_one(make_tiny_lm: Any, tiny_tokenizer: Any, tmp_path: Path) -> None:
    module, data = sft(make_tiny_lm("gpt2"), tiny_tokenizer, 0.05, None)
    said: list[str] = []
    callbacks = watches("sft", module, data, tmp_path, said.append, Heartbeat(Console(quiet=True)))
    L.Trainer(
        accelerator="cpu", max_epochs=1, limit_train_batches=2, callbacks=callbacks, logger=False,
        enable_checkpointing=False, enable_model_summary=False, default_root_dir=tmp_path,
    ).fit(module, data)  # fmt: skip
    assert said[0].startswith("warning: trainer.limit_train_batches=2: a trial, which learned from 2 batches an epoch.")


def test_the_loss_of_the_start_survives_a_resume(make_tiny_lm: Any, tiny_tokenizer: Any, tmp_path: Path) -> None:
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    for folder in (whole, broken):
        folder.mkdir()
    said = trained(*interchanged(sft(make_tiny_lm("gpt2"), tiny_tokenizer, -0.1), whole))
    with pytest.raises(KeyError, match="power"):
        trained(*interchanged(sft(make_tiny_lm("gpt2"), tiny_tokenizer, -0.1), broken), StopAt(3))
    assert trained(*interchanged(sft(make_tiny_lm("gpt2"), tiny_tokenizer, -0.1), broken)) == said != []


def reward(model: Any, tokenizer: Any) -> tuple[Any, RLHFDataModule]:
    torch.manual_seed(1)
    rankings = [Comparison(f"w{3 + n}", ["w4 w5", f"w{6 + n}", "w7"], [1, 3, 2]) for n in range(20)]
    module = RewardModule(ScalarHeadModel.from_causal_lm(model), partial(torch.optim.SGD, lr=0.1))
    return module, RLHFDataModule("reward", tokenizer, rankings, rankings[:3], batch_size=4, seed=5)


class Noisy(LanguageModelModule):
    """Draws in eval mode too."""

    def loss(self, batch: Any) -> Any:
        loss, statistics = super().loss(batch)
        return loss + 0 * torch.rand(()), statistics


def noisy(model: Any, tokenizer: Any) -> tuple[Any, RLHFDataModule]:
    module, data = sft(model, tokenizer, 0.1, None)
    return Noisy(module.model, module.optimizer_factory), data


@pytest.mark.parametrize("make", [partial(sft, lr=0.1), noisy, reward])
def test_watching_changes_no_weight_no_mode_and_no_metric(
    make: Callable[..., Any], make_tiny_lm: Any, tiny_tokenizer: Any, tmp_path: Path
) -> None:
    """With dropout, which draws from the global random state."""
    left = []
    for watched in (True, False):
        folder = tmp_path / str(watched)
        folder.mkdir()
        module, data = make(make_tiny_lm("gpt2"), tiny_tokenizer)
        trained(module, folder, data, epochs=2, watched=watched)
        lines = [line.split(",") for line in (folder / "metrics.csv").read_text().splitlines()]
        kept = [place for place, name in enumerate(lines[0]) if not name.startswith("time/")]
        modes = [each.training for each in module.modules()]
        left.append((module.state_dict(), [[line[place] for place in kept] for line in lines], modes, torch.rand(3)))
    (weights, *rest, drawn), (other_weights, *other_rest, other_drawn) = left
    assert all(torch.equal(weights[name], other_weights[name]) for name in weights)
    assert rest == other_rest
    assert torch.equal(drawn, other_drawn)


@pytest.mark.parametrize(("long", "warned"), [(1, False), (2, True)])
def test_many_cut_responses_of_rankings_are_said(
    long: int, warned: bool, make_tiny_lm: Any, tiny_tokenizer: Any, tmp_path: Path
) -> None:
    """Of 20 responses one or two lose their end; another is as long as the limit with its end."""
    texts = [["w4 w5 w6 w7" if n < long else "w4 w5 w6" if n == 9 else "w8", "w9"] for n in range(10)]
    rankings = [Comparison(f"w{3 + n}", each, [1, 2]) for n, each in enumerate(texts)]
    module = RewardModule(ScalarHeadModel.from_causal_lm(make_tiny_lm("gpt2")), partial(torch.optim.SGD, lr=0.0))
    data = RLHFDataModule("reward", tiny_tokenizer, rankings, batch_size=4, max_response_tokens=4)
    said = trained(module, tmp_path, data)
    assert len(said) == warned
    if warned:
        assert "10% of the ranked responses (2 of 20) were cut at 4 tokens" in said[0]
        assert "teaches PPO not to end" in said[0]
        assert "missing_eos_penalty" in said[0]
