"""What the modules refuse to be built from, or to be trained by, under any trainer."""

import copy
from functools import partial
from pathlib import Path
from typing import Any

import lightning as L
import pytest
import torch
from jaxtyping import config
from lightning.pytorch.callbacks import GradientAccumulationScheduler
from torch.optim.lr_scheduler import LambdaLR
from torch.utils.data import DataLoader

from rlhf_lightning.data.datamodule import RLHFDataModule
from rlhf_lightning.data.examples import ComparisonExample, LMExample, PromptExample
from rlhf_lightning.data.loader import collate_comparisons, collate_lm, collate_prompts
from rlhf_lightning.models.lora import ppo_models
from rlhf_lightning.models.master_weights import check_precision
from rlhf_lightning.models.scalar_head import ScalarHeadModel
from rlhf_lightning.modules.language_model import LanguageModelModule
from rlhf_lightning.modules.ppo import PPOModule
from rlhf_lightning.modules.reward import RewardModule

pytestmark = pytest.mark.filterwarnings("ignore:.*LeafSpec.*", "ignore:.*many workers.*", "ignore:.*`val_dataloader`.*")
SGD = partial(torch.optim.SGD, lr=0.1)


def modules_of(model: Any, tokenizer: Any) -> dict[str, tuple[Any, Any]]:
    """Each kind of module, and a batch of its own."""
    scalar = ScalarHeadModel.from_causal_lm(model)
    models: Any = ppo_models(copy.deepcopy(model), copy.deepcopy(scalar))
    ppo = PPOModule(**models, tokenizer=tokenizer, optimizer=SGD, value_optimizer=SGD, max_new_tokens=4)
    return {
        "language model": (LanguageModelModule(model, SGD), collate_lm([LMExample([3, 4, 1], 1)], 0)),
        "reward": (RewardModule(scalar, SGD), collate_comparisons([ComparisonExample([3], [[5], [6]], [1, 2], "")], 0)),
        "ppo": (ppo, {"prompts": collate_prompts([PromptExample([3], 0, "p")], 0)}),
    }


@pytest.mark.parametrize("kind", ["language model", "reward", "ppo"])
def test_a_model_of_which_nothing_learns_is_refused(kind: str, tiny_gpt2: Any, tiny_tokenizer: Any) -> None:
    module, _ = modules_of(tiny_gpt2, tiny_tokenizer)[kind]
    module.requires_grad_(False)
    with pytest.raises(ValueError, match=r"no weight of this \w+ learns: requires_grad is off for each\. Turn it on"):
        module.build_optimizers()


@pytest.mark.parametrize("kind", ["language model", "reward", "ppo"])
@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"accumulate_grad_batches": 4}, r"accumulate_grad_batches=4 is not the gradient of one large batch.*to 1"),
        ({"callbacks": [GradientAccumulationScheduler({0: 2})]}, r"accumulate_grad_batches=2 is not the gradient"),
        ({"gradient_clip_val": -1.0}, r"gradient_clip_val=-1\.0 must not be below 0"),
    ],
)
def test_a_trainer_that_spoils_the_gradient_is_refused(
    kind: str, options: Any, sentence: str, tiny_gpt2: Any, tiny_tokenizer: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    module, batch = modules_of(tiny_gpt2, tiny_tokenizer)[kind]
    monkeypatch.setattr(type(module), "training_step", lambda *_: pytest.fail("work was spent"))
    trainer = L.Trainer(accelerator="cpu", max_epochs=1, logger=False, enable_checkpointing=False, **options)
    with pytest.raises((ValueError, RuntimeError), match=sentence):
        trainer.fit(module, DataLoader([batch] * 2, batch_size=None))  # type: ignore[arg-type]


@pytest.mark.parametrize("kind", ["language model", "reward", "ppo"])
def test_a_tokenizer_with_more_tokens_than_the_model_is_refused(kind: str, tiny_gpt2: Any, tiny_tokenizer: Any) -> None:
    """As `load_tokenizer` makes one for a model that has no pad token: torch says that an index is out of range."""
    larger = copy.deepcopy(tiny_tokenizer)
    larger.add_tokens(["<added>"])
    row = {"prompt": "w3", "response": "w4", "completions": ["w4", "w5"], "ranks": [1, 2]}
    sentence = r"the tokenizer has 41 tokens, but a GPT2\w+ has rows for 40.*fit_to_tokenizer\(model, tokenizer\)"
    if kind == "ppo":
        with pytest.raises(ValueError, match=sentence):
            modules_of(tiny_gpt2, larger)
        return
    module, _ = modules_of(tiny_gpt2, tiny_tokenizer)[kind]
    data = RLHFDataModule({"language model": "sft", "reward": "reward"}[kind], larger, [row], batch_size=1)
    with pytest.raises(ValueError, match=sentence):
        L.Trainer(max_epochs=1, logger=False).fit(module, data)


def test_a_limit_on_gradients_that_ppo_does_not_read_is_refused(tiny_gpt2: Any, tiny_tokenizer: Any) -> None:
    module, batch = modules_of(tiny_gpt2, tiny_tokenizer)["ppo"]
    trainer = L.Trainer(accelerator="cpu", max_epochs=1, logger=False, gradient_clip_val=1.0)
    with pytest.raises(ValueError, match=r"gradient_clip_val=1\.0 does nothing for PPO.*max_grad_norm=1\.0"):
        trainer.fit(module, DataLoader([batch], batch_size=None))  # type: ignore[arg-type]


def test_accumulation_is_no_matter_to_validation(tiny_gpt2: Any, tiny_tokenizer: Any, tmp_path: Path) -> None:
    module, batch = modules_of(tiny_gpt2, tiny_tokenizer)["reward"]
    trainer = L.Trainer(accelerator="cpu", logger=False, accumulate_grad_batches=4, default_root_dir=tmp_path)
    trainer.validate(module, DataLoader([batch], batch_size=None), verbose=False)  # type: ignore[arg-type]
    assert "validation/loss" in trainer.callback_metrics


def test_scaled_gradients_are_refused() -> None:
    for precision in ("32-true", "bf16-mixed", None, 64):
        check_precision(precision)
    with pytest.raises(ValueError, match=r"precision=16-mixed scales gradients.*use bf16-mixed"):
        check_precision("16-mixed")


@pytest.mark.parametrize("kind", ["language model", "reward"])
def test_what_is_built_already_is_no_factory(kind: str, tiny_gpt2: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(config, "jaxtyping_disable", True)  # users have no checker of types

    def built(*factories: Any) -> Any:
        if kind == "reward":
            return RewardModule(ScalarHeadModel.from_causal_lm(tiny_gpt2), *factories)
        return LanguageModelModule(tiny_gpt2, *factories)

    adam = torch.optim.AdamW(tiny_gpt2.parameters())
    factory = r"functools\.partial\(torch\.optim\."
    with pytest.raises(TypeError, match=rf"optimizer is built already \(AdamW\).*optimizer={factory}AdamW, lr=1e-5"):
        built(adam)
    with pytest.raises(TypeError, match=rf"scheduler is built already \(LambdaLR\).*scheduler={factory}lr_scheduler"):
        built(SGD, LambdaLR(adam, lambda _: 1.0))
    with pytest.raises(TypeError, match=r"optimizer is 'adam', which cannot be called"):
        built("adam")
    assert built(torch.optim.AdamW).build_optimizers()[0].param_groups[0]["lr"] == 1e-3
