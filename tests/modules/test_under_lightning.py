"""What Lightning's Trainer, tuner and command line ask of a module, with expected numbers by hand."""

import sys
from functools import partial
from typing import Any

import lightning as L
import pytest
import torch
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.tuner import Tuner
from torch import Tensor, nn

from rlhf_lightning.data.datamodule import RLHFDataModule
from rlhf_lightning.models.scalar_head import ScalarHeadModel
from rlhf_lightning.modules.language_model import LanguageModelModule
from rlhf_lightning.modules.ppo import PPOModule
from rlhf_lightning.modules.reward import RewardModule

pytestmark = pytest.mark.filterwarnings("ignore:.*LeafSpec.*", "ignore:.*smaller than the logging interval.*")
ADAM = partial(torch.optim.Adam, lr=1e-2)
SURE = 50.0


class Successor(nn.Module):
    """After w5 it says w6; any other token is exp(-50) times as likely."""

    def __init__(self) -> None:
        super().__init__()
        self.logit = nn.Parameter(torch.tensor(SURE))

    def forward(self, input_ids: Tensor) -> Tensor:
        return self.logit * nn.functional.one_hot((input_ids + 1) % 40, 40)


class Numbers(nn.Module):
    """Scores a token by its number."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(()))

    def forward(self, input_ids: Tensor) -> Tensor:
        return self.weight * input_ids.float()


@pytest.fixture
def trainer(tmp_path: Any) -> L.Trainer:
    return trainer_in(tmp_path)


def trainer_in(folder: Any, **options: Any) -> L.Trainer:
    quiet = {"logger": False, "enable_progress_bar": False, "enable_model_summary": False, "accelerator": "cpu"}
    return L.Trainer(**{**quiet, "max_epochs": 1, "enable_checkpointing": False, "default_root_dir": folder, **options})


def test_a_language_model_is_tested_scored_and_sampled(trainer: L.Trainer, tiny_tokenizer: Any) -> None:
    rows = [{"prompt": "w5", "response": "w6 w7"}, {"prompt": "w8", "response": "w8"}]
    data = RLHFDataModule("sft", tiny_tokenizer, test=rows, batch_size=2, max_response_tokens=3)
    module = LanguageModelModule(Successor(), ADAM)
    (figures,) = trainer.test(module, data, verbose=False)
    # Of five targets the two ends and the second w8 come as a surprise.
    assert figures == {"test/loss": pytest.approx(3 * SURE / 5, abs=1e-4)}
    samples = [sample for batch in trainer.predict(module, data) or [] for sample in batch]
    assert [tuple(sample) for sample in samples] == [("w5", "w6 w7 w8", None), ("w8", "w9 w10 w11", None)]
    (log_probs,) = trainer.predict(module, data.test_dataloader()) or []
    torch.testing.assert_close(log_probs, torch.tensor([-SURE, -2 * SURE]))
    rows_of_ids = [{"input_ids": torch.tensor([5, 6, 9]), "labels": torch.tensor([-100, 6, 9])}]
    loader = torch.utils.data.DataLoader(rows_of_ids, num_workers=0)
    torch.testing.assert_close((trainer.predict(module, loader) or [])[0], torch.tensor([-SURE]))
    with pytest.raises(ValueError, match=r"samples are made with the tokenizer of the data: .*RLHFDataModule"):
        trainer_in(trainer.default_root_dir).predict(module, data.predict_dataloader())


def test_a_reward_model_is_tested_and_scores(trainer: L.Trainer, tiny_tokenizer: Any) -> None:
    rows = [
        {"prompt": "w5", "completions": ["w9", "w7", "w30"], "ranks": [1, 2, 3]},
        {"prompt": "w5 w6", "completions": ["w20", "w3"], "ranks": [1, 2]},
    ]
    data = RLHFDataModule("reward", tiny_tokenizer, test=rows, batch_size=2, max_response_tokens=1)  # without an end
    module = RewardModule(Numbers(), ADAM, shared_prefix=False)
    (figures,) = trainer.test(module, data, verbose=False)
    assert figures["test/accuracy"] == pytest.approx(2 / 4)  # 9 > 7 and 20 > 3, but neither 9 nor 7 > 30
    pairs = torch.tensor([2.0, -21.0, -23.0, 17.0])
    losses = -nn.functional.logsigmoid(pairs)
    assert figures["test/loss"] == pytest.approx(float((losses[:3].mean() + losses[3]) / 2), abs=1e-5)
    assert trainer.predict(module, data) == [[[9.0, 7.0, 30.0], [20.0, 3.0]]]


def test_a_policy_is_tested_and_answers_with_scores(trainer: L.Trainer, tiny_tokenizer: Any) -> None:
    def last_number(responses: list[str], bonus: list[float]) -> list[float]:
        return [int(text.split()[-1][1:]) + more for text, more in zip(responses, bonus, strict=True)]

    rows = [{"prompt": "w5", "bonus": 0.5}, {"prompt": "w9 w9", "bonus": 0.0}]
    data = RLHFDataModule("ppo", tiny_tokenizer, test=rows, batch_size=1)
    models = (Successor(), Successor(), last_number, Numbers())
    module = PPOModule(*models, tiny_tokenizer, ADAM, ADAM, max_new_tokens=3, ema_decay=None)
    samples = [sample for batch in trainer.predict(module, data) or [] for sample in batch]
    assert [tuple(sample) for sample in samples] == [("w5", "w6 w7 w8", 8.5), ("w9 w9", "w10 w11 w12", 12.0)]
    assert trainer.test(module, data, verbose=False) == [{"test/score": pytest.approx((8.5 + 12) / 2)}]


def test_ppo_counts_the_steps_of_both_optimizers(tmp_path: Any, tiny_tokenizer: Any) -> None:
    rows = [{"prompt": f"w{n}"} for n in range(5, 25)]
    models = (Successor(), Successor(), lambda responses: [float(len(text)) for text in responses], Numbers())
    module = PPOModule(*models, tiny_tokenizer, ADAM, ADAM, max_new_tokens=2, num_minibatches=2, num_ppo_epochs=3)
    trainer = trainer_in(tmp_path, max_steps=2 * 12)  # an iteration has 2 optimizers * 3 epochs * 2 minibatches
    trainer.fit(module, RLHFDataModule("ppo", tiny_tokenizer, rows, batch_size=4))
    assert (int(module.iteration), trainer.global_step) == (2, 24)


@pytest.mark.parametrize("stage", ["validation", "test"])
def test_several_sets_have_figures_of_their_own(trainer: L.Trainer, tiny_tokenizer: Any, stage: str) -> None:
    def loaders(kind: Any, rows: list[Any]) -> list[Any]:
        sets = [RLHFDataModule(kind, tiny_tokenizer, test=[row], max_response_tokens=1) for row in rows]
        for data in sets:
            data.setup("test")
        return [data.test_dataloader() for data in sets]

    run: Any = trainer.validate if stage == "validation" else trainer.test
    texts = [{"prompt": "w5", "response": response} for response in ("w6", "w8")]
    found: dict[str, float] = {}
    for figures in run(LanguageModelModule(Successor(), ADAM), loaders("sft", texts), verbose=False):
        found |= figures
    assert found == {f"{stage}/loss/dataloader_idx_0": pytest.approx(0), f"{stage}/loss/dataloader_idx_1": SURE}

    ranks = [{"prompt": "w5", "completions": ["w9", "w7"], "ranks": ranks} for ranks in ([1, 2], [2, 1])]
    module = RewardModule(Numbers(), ADAM, shared_prefix=False)
    run(module, loaders("reward", ranks), verbose=False)
    shown = {name: float(value) for name, value in trainer.callback_metrics.items() if "accuracy" in name}
    expected = {f"{kind}/dataloader_idx_{number}": 1.0 - number for kind in ("", "/all") for number in (0, 1)}
    assert shown == {f"{stage}/accuracy{name}": value for name, value in expected.items()}

    models = (Successor(), Successor(), lambda responses: [float(text[-1]) for text in responses], Numbers())
    policy = PPOModule(*models, tiny_tokenizer, ADAM, ADAM, max_new_tokens=2, ema_decay=None)
    run(policy, loaders("ppo", [{"prompt": "w5"}, {"prompt": "w6"}]), verbose=False)
    scores = [float(trainer.callback_metrics[f"{stage}/score/dataloader_idx_{number}"]) for number in (0, 1)]
    assert scores == [7.0, 8.0]


def test_validation_is_not_called_test(trainer: L.Trainer, tiny_tokenizer: Any) -> None:
    rows = [{"prompt": "w5", "response": "w6"}]
    data = RLHFDataModule("sft", tiny_tokenizer, rows, rows)
    module = LanguageModelModule(Successor(), ADAM)
    trainer.test(module, data.__class__("sft", tiny_tokenizer, test=rows), verbose=False)
    assert [figures.keys() for figures in trainer.validate(module, data, verbose=False)] == [{"validation/loss"}]


def test_the_tuner_finds_a_learning_rate_and_the_next_fit_begins_with_it(tmp_path: Any, tiny_tokenizer: Any) -> None:
    rows = [{"prompt": f"w{n}", "response": f"w{n + 1}"} for n in range(5, 25)]
    data = RLHFDataModule("sft", tiny_tokenizer, rows, rows, batch_size=4, num_batches=40)
    table = nn.Sequential(nn.Embedding(40, 40))
    module, trainer = LanguageModelModule(table, ADAM), trainer_in(tmp_path)
    before = {name: value.clone() for name, value in table.state_dict().items()}
    found = Tuner(trainer).lr_find(module, data, num_training=30, min_lr=2e-4)
    assert found is not None
    assert module.lr == found.suggestion() != 1e-2
    assert all(torch.equal(value, before[name]) for name, value in table.state_dict().items())
    trainer.fit(module, data)
    assert trainer.optimizers[0].param_groups[0]["lr"] == module.lr


def test_lr_is_the_factorys_and_a_head_keeps_its_own(tiny_gpt2: Any) -> None:
    module = RewardModule(ScalarHeadModel.from_causal_lm(tiny_gpt2), torch.optim.AdamW, head_lr=0.5)
    assert module.lr == 1e-3  # torch's own
    module.lr = 0.25
    (optimizer,) = module.build_optimizers()
    assert [group["lr"] for group in optimizer.param_groups] == [0.25, 0.5]
    closed = RewardModule(Numbers(), lambda weights: torch.optim.SGD(weights, lr=0.1))
    with pytest.raises(TypeError, match=r"lr=0\.3: the optimizer's factory takes no lr and stays at 0\.1\. Give one"):
        closed.lr = 0.3
    assert closed.lr == 0.1


class Described(RewardModule):
    """As people write for LightningCLI: what can be typed."""

    def __init__(self, rate: float = 0.125, micro_batch_size: int = 1) -> None:
        super().__init__(
            Numbers(), partial(torch.optim.SGD, lr=rate), micro_batch_size=2 * micro_batch_size, shared_prefix=False
        )


class Rankings(RLHFDataModule):
    def __init__(self) -> None:
        from tests_tokenizer import TOKENIZER

        rows = [{"prompt": f"w{n}", "chosen": "w9", "rejected": "w7"} for n in range(5, 9)]
        super().__init__("reward", TOKENIZER, rows, batch_size=2)


@pytest.mark.filterwarnings("ignore:.*exists and is not empty")
def test_a_subclass_under_lightning_cli(tmp_path: Any, tiny_tokenizer: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("jsonargparse")
    from lightning.pytorch.cli import LightningCLI

    monkeypatch.setattr(sys, "argv", ["cli.py"])
    monkeypatch.setenv("JSONARGPARSE_DEPRECATION_WARNINGS", "off")
    monkeypatch.setitem(sys.modules, "tests_tokenizer", type("Module", (), {"TOKENIZER": tiny_tokenizer}))

    def fitted(epochs: int, *arguments: str) -> Any:
        quiet = {"logger": False, "enable_progress_bar": False, "enable_model_summary": False, "accelerator": "cpu"}
        options = {**quiet, "max_epochs": epochs, "default_root_dir": tmp_path}
        options["callbacks"] = [ModelCheckpoint(tmp_path, save_last=True)]
        return LightningCLI(
            Described,
            Rankings,
            trainer_defaults=options,
            save_config_callback=None,
            seed_everything_default=1,
            args=["fit", *arguments],
        )

    first = fitted(1, "--model.rate=0.25", "--model.micro_batch_size=3")
    assert first.model.hparams.micro_batch_size == 6
    assert first.model.hparams.head_lr is None
    saved = torch.load(tmp_path / "last.ckpt", weights_only=True)["hyper_parameters"]
    assert {name: value for name, value in saved.items() if name[0] != "_"} == {"rate": 0.25, "micro_batch_size": 3}
    again = Described.load_from_checkpoint(tmp_path / "last.ckpt", weights_only=True)
    assert (again.lr, again.hparams.micro_batch_size) == (0.25, 6)
    second = fitted(2, f"--ckpt_path={tmp_path}/last.ckpt")
    assert (second.model.lr, second.trainer.global_step) == (0.25, 4)
