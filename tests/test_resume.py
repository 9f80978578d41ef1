"""A run that was interrupted and resumed ends with the very weights of one that was not."""

import copy
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import lightning as L
import pytest
import torch
from transformers import get_cosine_with_min_lr_schedule_with_warmup

from rlhf_lightning.data.datamodule import RLHFDataModule
from rlhf_lightning.data.records import Comparison, Demonstration, Prompt, Text
from rlhf_lightning.models.lora import add_adapters, critic_with_adapters, with_adapters
from rlhf_lightning.models.scalar_head import ScalarHeadModel
from rlhf_lightning.modules.language_model import LanguageModelModule
from rlhf_lightning.modules.ppo import PPOModule
from rlhf_lightning.modules.reward import RewardModule
from rlhf_lightning.runs.files import read_metrics
from rlhf_lightning.training import checkpoint as checkpoints
from rlhf_lightning.training.callbacks import SampleTable
from rlhf_lightning.training.checkpoint import BatchCheckpoint
from rlhf_lightning.training.metrics_file import MetricsFile

pytestmark = pytest.mark.filterwarnings(
    "ignore:.*many workers.*",
    "ignore:.*in eval mode.*",
    "ignore:.*LeafSpec.*",
    "ignore:.*no `val_dataloader`.*",
    "ignore:.*`list` across ranks is zero.*",
)
ADAM = partial(torch.optim.Adam, lr=1e-3)
COSINE = partial(get_cosine_with_min_lr_schedule_with_warmup, num_warmup_steps=0, min_lr_rate=0.1)
DEMONSTRATIONS = [Demonstration(f"w{3 + n} w{4 + n}", f"w{5 + n} w{6 + n}") for n in range(20)]
COMPARISONS = [Comparison(f"w{3 + n}", ["w4 w5", f"w{6 + n}", "w7"], [1, 3, 2]) for n in range(20)]
PROMPTS = [Prompt(f"w{3 + n} w{5 + n}") for n in range(20)]
TEXTS = [Text(" ".join(f"w{3 + (n + k) % 30}" for k in range(9))) for n in range(20)]


class KilledError(Exception):
    """Stands for whatever ends a process."""


class KillAt(L.Callback):
    def __init__(self, batch: int) -> None:
        self.batch = batch

    def on_train_batch_start(self, trainer: L.Trainer, *_: Any) -> None:
        if trainer.fit_loop.epoch_loop.total_batch_idx == self.batch:
            raise KilledError


def sft(model: Any, tokenizer: Any) -> tuple[L.LightningModule, RLHFDataModule]:
    torch.manual_seed(1)
    for layer in model.modules():
        if isinstance(layer, torch.nn.Dropout):
            layer.p = 0.2  # draws from the global random state, which must come back too
    module = LanguageModelModule(model, ADAM, COSINE)
    return module, RLHFDataModule("sft", tokenizer, DEMONSTRATIONS, DEMONSTRATIONS[:3], batch_size=6, seed=5)


def reward(model: Any, tokenizer: Any) -> tuple[L.LightningModule, RLHFDataModule]:
    torch.manual_seed(1)
    module = RewardModule(ScalarHeadModel.from_causal_lm(model), ADAM, COSINE)
    return module, RLHFDataModule("reward", tokenizer, COMPARISONS, COMPARISONS[:3], batch_size=6, seed=5)


def ppo(model: Any, tokenizer: Any) -> tuple[L.LightningModule, RLHFDataModule]:
    torch.manual_seed(1)
    scorer = ScalarHeadModel.from_causal_lm(model)
    module = PPOModule(
        model,
        copy.deepcopy(model),
        scorer,
        copy.deepcopy(scorer),
        tokenizer,
        ADAM,
        ADAM,
        partial(torch.optim.lr_scheduler.LinearLR, start_factor=0.1, total_iters=4),
        max_new_tokens=6,
        num_minibatches=2,
        ptx_coef=0.5,
        kl_target=1.0,
        kl_horizon=100,
        seed=5,
    )
    data = RLHFDataModule(
        "ppo", tokenizer, PROMPTS, text=TEXTS, batch_size=6, num_batches=8, text_batch_size=4, block_size=12, seed=5
    )
    return module, data


def sft_with_adapters(model: Any, tokenizer: Any) -> tuple[L.LightningModule, RLHFDataModule]:
    torch.manual_seed(1)
    return sft(with_adapters(model, rank=2), tokenizer)


def reward_with_adapters(model: Any, tokenizer: Any) -> tuple[L.LightningModule, RLHFDataModule]:
    module, data = reward(model, tokenizer)
    return RewardModule(with_adapters(module.model, rank=2), ADAM, COSINE, micro_batch_size=2, head_lr=0.01), data


def ppo_with_adapters(model: Any, tokenizer: Any) -> tuple[L.LightningModule, RLHFDataModule]:
    plain, data = ppo(model, tokenizer)
    torch.manual_seed(1)
    add_adapters(model, rank=2)
    value = critic_with_adapters(plain.reward, rank=2)
    options = {"max_new_tokens": 6, "num_minibatches": 2, "ptx_coef": 0.5, "seed": 5}
    return PPOModule(model, model, plain.reward, value, tokenizer, ADAM, ADAM, **options), data


def fit(
    made: tuple[L.LightningModule, RLHFDataModule],
    folder: Path,
    epochs: int,
    kill_at: int | None = None,
    limit: float = 1.0,
) -> Any:
    module, data = made
    checkpoint = BatchCheckpoint(folder, every_n_batches=1)
    killer = [] if kill_at is None else [KillAt(kill_at)]
    trainer = L.Trainer(
        accelerator="cpu",
        max_epochs=epochs,
        limit_train_batches=limit,
        logger=MetricsFile(folder / "metrics.csv"),
        log_every_n_steps=1,
        callbacks=[checkpoint, SampleTable(folder / "samples.jsonl", data.tokenization.tokenizer, 1), *killer],
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        num_sanity_val_steps=0,
        default_root_dir=folder,
    )
    resume = str(checkpoint.path) if checkpoint.path.exists() else None
    trainer.fit(module, datamodule=data, ckpt_path=resume, weights_only=True)
    return module


@pytest.mark.parametrize(
    ("make", "epochs", "moments", "limit"),
    [
        (sft, 2, (1, 3, 4, 6), 1.0),
        (sft, 3, (1, 3, 4, 7), 3),
        (sft_with_adapters, 2, (1, 4), 1.0),
        (reward, 2, (2, 4, 7), 1.0),
        (reward_with_adapters, 2, (3, 4), 1.0),
        (ppo, 1, (1, 4, 7), 1.0),
        (ppo, 2, (1, 5, 6), 5),
        (ppo_with_adapters, 1, (2, 5), 1.0),
    ],
)
def test_resume_equals_uninterrupted(
    make: Callable[..., Any],
    epochs: int,
    moments: tuple[int, ...],
    limit: float,
    make_tiny_lm: Any,
    tiny_tokenizer: Any,
    tmp_path: Path,
) -> None:
    """Bit for bit: weights, optimizer states, EMA, KL coefficient; killed in the middle and at the end of epochs."""
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    for folder in (whole, broken):
        folder.mkdir()
    unbroken = fit(make(make_tiny_lm("gpt2"), tiny_tokenizer), whole, epochs, limit=limit)
    for moment in moments:
        with pytest.raises(KilledError):
            fit(make(make_tiny_lm("gpt2"), tiny_tokenizer), broken, epochs, kill_at=moment, limit=limit)
    torch.manual_seed(99)  # the resumed run must not depend on what the process did before
    resumed = fit(make(make_tiny_lm("gpt2"), tiny_tokenizer), broken, epochs, limit=limit)

    expected, got = unbroken.state_dict(), resumed.state_dict()
    assert expected.keys() == got.keys()
    assert all(torch.equal(expected[name], got[name]) for name in expected)
    loops = [module.trainer.fit_loop for module in (unbroken, resumed)]
    assert {loop.epoch_loop.batch_progress.total.completed for loop in loops} == {epochs * loops[0].max_batches}
    saved = [torch.load(folder / "last.ckpt", weights_only=True) for folder in (whole, broken)]
    states = [checkpoint["optimizer_states"] for checkpoint in saved]
    if make in (sft_with_adapters, reward_with_adapters):
        learned = {name for name in saved[0]["state_dict"] if "lora_" not in name}
        assert learned == ({"model.head.weight", "model.bias"} if make is reward_with_adapters else set())
    flat = [[value for s in state for p in s["state"].values() for value in p.values()] for state in states]
    assert len(flat[0]) > 10
    assert all(torch.equal(torch.as_tensor(a), torch.as_tensor(b)) for a, b in zip(*flat, strict=True))

    assert figures(whole) == figures(broken)
    if make is ppo:
        assert (whole / "samples.jsonl").read_text() == (broken / "samples.jsonl").read_text()


def figures(folder: Path) -> list[dict[str, Any]]:
    """All rows of metrics.csv, without the times; a cell that has none is another figure."""
    rows = read_metrics(folder / "metrics.csv")
    return [{k: v for k, v in row.items() if not k.startswith("time/")} | {"cells": list(row)} for row in rows]


def no_more() -> None:
    raise KilledError


def before(function: Callable[..., Any], *arguments: Any) -> Any:
    no_more()


def after(function: Callable[..., Any], *arguments: Any) -> Any:
    function(*arguments)
    no_more()


def half(function: Callable[..., Any], path: Path, *arguments: Any) -> Any:
    function(path, *arguments)
    path.write_bytes(path.read_bytes()[:1000])
    no_more()


@pytest.mark.parametrize("number", [2, 4, 8], ids=["in an epoch", "at its end", "at the end"])
@pytest.mark.parametrize(
    ("where", "name", "moment"),
    [
        (L.Trainer, "save_checkpoint", before),
        (L.Trainer, "save_checkpoint", half),
        (L.Trainer, "save_checkpoint", after),
        (MetricsFile, "log_metrics", before),
        (MetricsFile, "log_metrics", after),
        (BatchCheckpoint, "_finish", before),
        (Path, "replace", after),  # between the two renames
        (checkpoints, "put_in_place", after),
    ],
    ids=lambda value: getattr(value, "__name__", value),
)
def test_metrics_are_exact_after_a_kill_at_any_moment(
    where: Any,
    name: str,
    moment: Callable[..., Any],
    number: int,
    monkeypatch: pytest.MonkeyPatch,
    whole_sft: Path,
    make_tiny_lm: Any,
    tiny_tokenizer: Any,
    tmp_path: Path,
) -> None:
    calls, function = [1 if where is Path else 0], getattr(where, name)  # the first checkpoint has none before it

    def killing(*arguments: Any, **options: Any) -> Any:
        meant = where is not Path or Path(arguments[1]).name == checkpoints.BEFORE
        calls[0] += meant
        if not meant or calls[0] != number:
            return function(*arguments, **options)
        owner = arguments[:1] if isinstance(where, type) and where is not Path else ()
        return moment(partial(function, *owner, **options), *arguments[len(owner) :])

    with monkeypatch.context() as patch:
        patch.setattr(where, name, killing)
        with pytest.raises(KilledError):
            fit(sft(make_tiny_lm("gpt2"), tiny_tokenizer), tmp_path, 2, kill_at=8)
    resumed = fit(sft(make_tiny_lm("gpt2"), tiny_tokenizer), tmp_path, 2)
    assert figures(tmp_path) == figures(whole_sft)
    saved = torch.load(whole_sft / "last.ckpt", weights_only=True)["state_dict"]
    assert all(torch.equal(value, saved[name]) for name, value in resumed.state_dict().items())


@pytest.fixture
def whole_sft(make_tiny_lm: Any, tiny_tokenizer: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("whole")
    fit(sft(make_tiny_lm("gpt2"), tiny_tokenizer), folder, 2)
    return folder


def test_checkpoints_load_weights_only_and_are_complete(make_tiny_lm: Any, tiny_tokenizer: Any, tmp_path: Path) -> None:
    fit(ppo(make_tiny_lm("gpt2"), tiny_tokenizer), tmp_path, 1)
    checkpoint = torch.load(tmp_path / "last.ckpt", weights_only=True)
    assert {name.split(".")[0] for name in checkpoint["state_dict"]} == {
        "policy",
        "value",
        "ema",
        "kl_coef",
        "iteration",
    }
    assert int(checkpoint["state_dict"]["iteration"]) == 8
    assert not list(tmp_path.glob("*.unfinished"))
