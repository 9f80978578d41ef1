"""On a GPU: the numbers of the CPU, the ratio of 1, graphs, flex attention, and the recipe from end to end.

Skipped where there is none; GPU_TESTS_ON=cpu runs them there, to try the tests themselves.
"""

import copy
import os
from functools import partial
from pathlib import Path
from typing import Any

import lightning as L
import pytest
import torch
from hydra import compose, initialize_config_dir
from torch import Tensor, nn

from rlhf_lightning.algorithms.batch import ComparisonBatch, LMBatch, PromptBatch
from rlhf_lightning.cli import CONFIG_DIR, run
from rlhf_lightning.generation.sample import SamplingOptions, response_log_probs, sample_responses
from rlhf_lightning.models.lora import ppo_models
from rlhf_lightning.models.scalar_head import ScalarHeadModel
from rlhf_lightning.models.shared_prefix import cached_scores, separate_scores, tree_scores
from rlhf_lightning.modules.language_model import LanguageModelModule
from rlhf_lightning.modules.ppo import PPOModule
from rlhf_lightning.modules.reward import RewardModule
from rlhf_lightning.runs.files import read_json

DEVICE = os.environ.get("GPU_TESTS_ON") or ("cuda" if torch.cuda.is_available() else "")
ADAM = partial(torch.optim.Adam, lr=1e-3)
needs_cuda = pytest.mark.skipif(DEVICE != "cuda", reason="flex attention has no backward pass on a CPU")
pytestmark = [
    pytest.mark.skipif(not DEVICE, reason="there is no GPU that torch can use"),
    pytest.mark.filterwarnings("ignore"),  # a GPU's machine has its own versions, and they their own warnings
]
QUIET = {"logger": False, "enable_progress_bar": False, "enable_model_summary": False, "enable_checkpointing": False}


def to(batch: Any, device: str) -> Any:
    return type(batch)(*(part.to(device) if isinstance(part, Tensor) else part for part in batch))


def rows(count: int, width: int, seed: int = 0) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    ids = torch.randint(3, 40, (count, width), generator=generator)
    lengths = torch.randint(2, width + 1, (count, 1), generator=generator)
    return ids, torch.arange(width) < lengths


def prompts(count: int = 8, width: int = 9) -> PromptBatch:
    ids, mask = rows(count, width)
    return PromptBatch(ids * mask.flip(1), mask.flip(1), torch.arange(count), [""] * count)


def comparisons() -> ComparisonBatch:
    ids, mask = rows(3, 7)
    response_ids, response_mask = (part.view(3, 4, 6) for part in rows(12, 6, seed=1))
    ranks = torch.tensor([[1, 2, 3, 4], [2, 1, 1, 3], [4, 3, 2, 1]])
    asked = mask.flip(1)
    return ComparisonBatch(ids * asked, asked, response_ids * response_mask, response_mask, ranks, [""] * 3)


def trainer(device: str, **options: Any) -> L.Trainer:
    accelerator = "gpu" if device == "cuda" else "cpu"
    return L.Trainer(accelerator=accelerator, devices=1, max_epochs=1, **QUIET, **options)


def gradients(module: L.LightningModule, batch: Any, device: str, precision: Any = "32-true") -> dict[str, Tensor]:
    """What one step of Lightning's Trainer leaves, by name."""
    module, found = copy.deepcopy(module), {}

    class Keep(L.Callback):
        def on_before_optimizer_step(self, *_: Any) -> None:
            found.update({name: gradient(parameter) for name, parameter in module.named_parameters()})

    batches = torch.utils.data.DataLoader([batch], batch_size=None)
    trainer(device, precision=precision, callbacks=[Keep()]).fit(module, batches)
    return found


def gradient(parameter: nn.Parameter) -> Tensor:
    return torch.zeros(()) if parameter.grad is None else parameter.grad.detach().float().cpu().clone()


def assert_close(found: dict[str, Tensor], expected: dict[str, Tensor], part: float) -> None:
    assert found.keys() == expected.keys()
    for name, values in expected.items():
        assert float((found[name] - values).norm()) <= part * float(values.norm()) + 1e-6, name


@pytest.mark.parametrize(("precision", "part"), [("32-true", 1e-4), ("bf16-mixed", 0.1)])
@pytest.mark.parametrize("packing", [False, True])
def test_sft_has_the_gradient_of_the_cpu(tiny_lm: Any, packing: bool, precision: str, part: float) -> None:
    ids, mask = rows(6, 12)
    module, batch = LanguageModelModule(tiny_lm, ADAM, packing=packing), LMBatch(ids, mask, mask & (ids > 0))
    batch.loss_mask[:, 0] = False
    assert_close(gradients(module, batch, DEVICE, precision), gradients(module, batch, "cpu"), part)


@pytest.mark.parametrize(("precision", "part"), [("32-true", 1e-4), ("bf16-mixed", 0.1)])
@pytest.mark.parametrize("shared", [False, True])
def test_a_reward_model_has_the_gradient_of_the_cpu(tiny_lm: Any, shared: bool, precision: str, part: float) -> None:
    module = RewardModule(ScalarHeadModel.from_causal_lm(tiny_lm), ADAM, shared_prefix=shared)
    assert_close(gradients(module, comparisons(), DEVICE, precision), gradients(module, comparisons(), "cpu"), part)


@torch.no_grad()
@pytest.mark.parametrize("graphs", [False, True])
@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_responses_are_those_of_the_cpu(tiny_lm: Any, temperature: float, graphs: bool) -> None:
    options = SamplingOptions(12, 1, 0, temperature)
    expected = sample_responses(tiny_lm, prompts(), options, (5,))
    model = copy.deepcopy(tiny_lm).to(DEVICE)
    found = sample_responses(model, to(prompts(), DEVICE), options, (5,), cuda_graphs=graphs)
    assert found.response_ids.cpu().equal(expected.response_ids)
    assert found.response_mask.cpu().equal(expected.response_mask)
    own = response_log_probs(model, found, temperature or 1.0)
    torch.testing.assert_close(own, found.log_probs, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("precision", ["32-true", "bf16-mixed"])
@pytest.mark.parametrize("options", [{}, {"packing": True}, {"offload_frozen": True}, {"lora": 4}])
def test_ppo_learns(tmp_path: Path, tiny_lm: Any, tiny_tokenizer: Any, options: dict[str, Any], precision: Any) -> None:
    reward = ScalarHeadModel.from_causal_lm(copy.deepcopy(tiny_lm))
    nn.init.normal_(reward.head.weight)
    models = ppo_models(copy.deepcopy(tiny_lm), reward, rank=options.get("lora", 0))
    module = PPOModule(
        **models,
        tokenizer=tiny_tokenizer,
        optimizer=ADAM,
        value_optimizer=ADAM,
        sampler=partial(sample_responses, cuda_graphs=True),
        max_new_tokens=8,
        num_minibatches=2,
        ptx_coef=0.1,
        **{name: value for name, value in options.items() if name != "lora"},
    )
    ids, mask = rows(4, 12)
    text = LMBatch(ids, mask, mask & (torch.arange(12) > 0))
    before = copy.deepcopy(module.policy.state_dict())
    batches = torch.utils.data.DataLoader([{"prompts": prompts(), "pretrain": text}] * 2, batch_size=None)
    training = trainer(DEVICE, precision=precision, default_root_dir=tmp_path)
    training.fit(module, batches)
    assert any(not torch.equal(values.cpu(), before[name]) for name, values in module.policy.state_dict().items())
    if precision == "32-true":
        assert float(training.callback_metrics["update/first_ratio_deviation"]) == 0


@needs_cuda
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_flex_attention_reads_a_tree_as_separate_rows(make_tiny_lm: Any, dtype: torch.dtype) -> None:
    found = []
    for kernel, scores in (("flex_attention", tree_scores), ("sdpa", cached_scores), ("sdpa", separate_scores)):
        lm = make_tiny_lm("llama", head_dim=16, attn_implementation=kernel)
        model = ScalarHeadModel.from_causal_lm(lm).to(DEVICE, dtype)
        with torch.no_grad():
            model.head.weight.copy_(torch.linspace(-1, 1, model.head.weight.numel()).view_as(model.head.weight))
        values = scores(model, to(comparisons(), DEVICE))
        values.square().sum().backward()
        grads = {name: gradient(parameter) for name, parameter in model.named_parameters()}
        found.append({**grads, "scores": values.detach().float().cpu()})
    part = 1e-4 if dtype == torch.float32 else 0.1
    assert_close(found[0], found[2], part)
    assert_close(found[1], found[2], part)


def test_the_recipe_from_end_to_end(tmp_path: Path) -> None:
    overrides = [
        *("debug=fast", "experiment=demo", "model.size=small", "data.lengths.max_response_tokens=8", "run=gpu"),
        *(["trainer=gpu", "generation.cuda_graphs=true"] if DEVICE == "cuda" else []),
        f"paths.runs={tmp_path}",
    ]
    with initialize_config_dir(str(CONFIG_DIR), version_base="1.3"):
        run(compose("config", overrides))
    results = read_json(tmp_path / "gpu" / "report" / "results.json")
    assert set(results["policies"]) >= {"base", "sft", "ppo", "ppo_ptx"}
