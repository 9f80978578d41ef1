"""NaN and infinity stop the run before they spoil the weights, and keep the batch."""

import copy
import math
from functools import partial
from pathlib import Path
from typing import Any

import lightning as L
import pytest
import torch

from rlhf_lightning.cli import composed
from rlhf_lightning.data.datamodule import RLHFDataModule
from rlhf_lightning.data.records import Comparison, Demonstration, Prompt
from rlhf_lightning.models.non_finite import NonFiniteError
from rlhf_lightning.models.scalar_head import ScalarHeadModel
from rlhf_lightning.modules.language_model import LanguageModelModule
from rlhf_lightning.modules.ppo import PPOModule
from rlhf_lightning.modules.reward import RewardModule
from rlhf_lightning.training.fit import QUIET, fit_stage

pytestmark = pytest.mark.filterwarnings(*(f"ignore:{message}" for message in QUIET))
SGD = partial(torch.optim.SGD, lr=0.01)
RECORDS: dict[str, list[Any]] = {
    "sft": [Demonstration(f"w{3 + n}", f"w{5 + n} w{6 + n}") for n in range(12)],
    "reward": [Comparison(f"w{3 + n}", ["w4 w5", f"w{6 + n}", "w7"], [1, 3, 2]) for n in range(12)],
    "ppo": [Prompt(f"w{3 + n}") for n in range(12)],
}


def module_of(task: str, model: Any, tokenizer: Any, **options: Any) -> Any:
    if task == "sft":
        return LanguageModelModule(model, SGD)
    scalar = ScalarHeadModel.from_causal_lm(model)
    if task == "reward":
        return RewardModule(scalar, SGD)
    reward = options.pop("reward", copy.deepcopy(scalar))
    sizes = {"max_new_tokens": 5, "num_minibatches": 2, "ema_decay": None}
    return PPOModule(model, copy.deepcopy(model), reward, scalar, tokenizer, SGD, SGD, **{**sizes, **options})


def fit(task: str, module: Any, tokenizer: Any, folder: Path) -> None:
    data = RLHFDataModule(task, tokenizer, RECORDS[task], batch_size=4, num_batches=3, seed=1)  # type: ignore[arg-type]
    trainer = partial(L.Trainer, accelerator="cpu")
    fit_stage(module, data, folder, trainer, [], lambda _: None, epochs=1, checkpoint_every=1, log_every=1)


def poison_gradient(module: Any, name: str, at: int) -> None:
    """The ``at``-th gradient of the first weight of that model has a NaN."""
    seen = [0]

    def hook(gradient: torch.Tensor) -> torch.Tensor:
        seen[0] += 1
        return gradient * math.nan if seen[0] == at else gradient

    next(getattr(module, name).parameters()).register_hook(hook)


@pytest.mark.parametrize(
    ("task", "model", "what"),
    [("sft", "model", "gradient"), ("reward", "model", "gradient"), ("ppo", "policy", "gradient of the policy")],
)
def test_a_gradient_that_is_nan_stops_before_the_step(
    task: str, model: str, what: str, tiny_gpt2: Any, tiny_tokenizer: Any, tmp_path: Path
) -> None:
    module = module_of(task, tiny_gpt2, tiny_tokenizer)
    poison_gradient(module, model, at=5 if task == "ppo" else 2)
    with pytest.raises(NonFiniteError, match=f"the {what} is not finite") as caught:
        fit(task, module, tiny_tokenizer, tmp_path)
    assert all(parameter.isfinite().all() for parameter in module.parameters())
    (batch,) = tmp_path.glob("fault-batch-*.pt")
    assert str(batch) in str(caught.value)
    assert batch.name == ("fault-batch-2-rank-0.pt" if task != "ppo" else "fault-batch-3-rank-0.pt")
    saved = torch.load(batch, weights_only=True)
    rows = saved["prompts"]["texts"] if task == "ppo" else next(iter(saved.values()))
    assert len(rows) == 4
    assert f"{tmp_path / 'checkpoints' / 'last.ckpt'} is from before it" in str(caught.value)
    checkpoint = torch.load(tmp_path / "checkpoints" / "last.ckpt", weights_only=True)
    assert all(value.isfinite().all() for value in checkpoint["state_dict"].values())


@pytest.mark.parametrize("task", ["sft", "reward"])
def test_a_loss_that_is_infinite_stops(task: str, tiny_gpt2: Any, tiny_tokenizer: Any, tmp_path: Path) -> None:
    module = module_of(task, tiny_gpt2, tiny_tokenizer)
    loss = module.loss
    module.loss = lambda batch: (loss(batch)[0] * math.inf, loss(batch)[1])
    likely = r"the loss is not finite .*; there is no checkpoint yet.* learning rate that is too high"
    with pytest.raises(NonFiniteError, match=likely):
        fit(task, module, tiny_tokenizer, tmp_path)


def test_a_reward_that_is_nan_stops(tiny_gpt2: Any, tiny_tokenizer: Any, tmp_path: Path) -> None:
    module = module_of("ppo", tiny_gpt2, tiny_tokenizer)
    module.reward.head.weight.data.fill_(math.nan)
    with pytest.raises(NonFiniteError, match=r"the reward is not finite \(4 of 4 numbers\).*divides by nothing"):
        fit("ppo", module, tiny_tokenizer, tmp_path)


def test_a_reward_function_that_says_nan_is_named(tiny_gpt2: Any, tiny_tokenizer: Any, tmp_path: Path) -> None:
    module = module_of("ppo", tiny_gpt2, tiny_tokenizer, reward=lambda responses: [math.nan] * len(responses))
    with pytest.raises(ValueError, match=r"gave row 0, the response '.*', the score nan"):
        fit("ppo", module, tiny_tokenizer, tmp_path)


def test_weights_that_are_infinite_stop_at_the_sample(tiny_gpt2: Any, tiny_tokenizer: Any, tmp_path: Path) -> None:
    module = module_of("ppo", tiny_gpt2, tiny_tokenizer)
    next(module.policy.parameters()).data[7] = math.inf
    with pytest.raises(NonFiniteError, match="the sample is not finite"):
        fit("ppo", module, tiny_tokenizer, tmp_path)


def test_minibatches_beyond_stop_kl_are_left_out(tiny_gpt2: Any, tiny_tokenizer: Any, tmp_path: Path) -> None:
    logged: dict[str, float] = {}
    weights = []
    for stop_kl in (1e-9, 1e9):
        module = module_of("ppo", copy.deepcopy(tiny_gpt2), tiny_tokenizer, stop_kl=stop_kl, num_minibatches=4)
        steps = [0]
        original = module.step_clipped
        module.step_clipped = lambda *args, steps=steps, original=original: (steps.append(1), original(*args))
        fit("ppo", module, tiny_tokenizer, tmp_path / str(stop_kl))
        text = (tmp_path / str(stop_kl) / "metrics.csv").read_text()
        logged[str(stop_kl)] = len(steps) - 1
        weights.append("update/left_out" in text)
    # The first minibatch of an iteration is at KL 0; the three after it are left out.
    assert logged == {"1e-09": 3 * 2, "1000000000.0": 3 * 4 * 2}
    assert weights == [True, False]


def test_the_shipped_ppo_stops_at_an_explosion_and_the_papers_does_not() -> None:
    limits = {name: composed([f"ppo={name}"])["ppo"]["module"]["stop_kl"] for name in ("default", "instructgpt")}
    assert limits == {"default": 1.0, "instructgpt": None}
    assert composed([])["ppo_ptx"]["module"]["stop_kl"] == 1.0
    assert composed(["ppo=instructgpt", "ppo_ptx=instructgpt"])["ppo_ptx"]["module"]["stop_kl"] is None


def test_gradients_of_several_batches_are_refused(tiny_gpt2: Any, tiny_tokenizer: Any, tmp_path: Path) -> None:
    module = module_of("sft", tiny_gpt2, tiny_tokenizer)
    data = RLHFDataModule("sft", tiny_tokenizer, RECORDS["sft"], batch_size=4)
    trainer = partial(L.Trainer, accelerator="cpu", accumulate_grad_batches=2)
    with pytest.raises(ValueError, match=r"accumulate_grad_batches=2 is not the gradient of one large batch.*to 1"):
        fit_stage(module, data, tmp_path, trainer, [], print, epochs=1, checkpoint_every=1, log_every=1)
