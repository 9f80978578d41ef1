"""LoRA in every step that trains, through the pipeline: as adapter, merged and both, and from an adapter on."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from hydra import compose, initialize_config_dir
from peft import AutoPeftModelForCausalLM, AutoPeftModelForSequenceClassification
from safetensors.torch import load_file
from torch import Tensor
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification, GenerationConfig

from rlhf_lightning.cli import CONFIG_DIR, run
from rlhf_lightning.models.loading import load_causal_lm
from rlhf_lightning.models.scalar_head import load_scalar_model
from rlhf_lightning.tokenization.loading import load_tokenizer

pytestmark = pytest.mark.filterwarnings(
    "ignore:.*many workers.*",
    "ignore:.*in eval mode.*",
    "ignore:.*LeafSpec.*",
    "ignore:.*logging interval.*",
    "ignore:.*is_gradient_checkpointing.*:FutureWarning",  # peft 0.21
)
TINY = [
    "debug=fast",
    "model=folder",
    "data.source.prompts=40",
    "data.source.demonstrations=40",
    "data.source.text=20",
    "data.source.validation=16",
    "sft.fit.epochs=1",
    "ppo.data.batch_size=8",
    *(f"{step}.module.optimizer.lr=3e-2" for step in ("sft", "reward", "ppo")),
    *(f"{step}.lora.rank=2" for step in ("sft", "reward", "ppo")),
]
IDS = torch.arange(24).view(2, 12) % 30 + 3


def rlhf(folder: Path, *overrides: str) -> float | None:
    with initialize_config_dir(str(CONFIG_DIR), version_base="1.3"):
        return run(compose("config", [f"paths.runs={folder}", *TINY, *overrides]))


@pytest.fixture(params=["gpt2", pytest.param("llama", marks=pytest.mark.slow)])
def start(request: pytest.FixtureRequest, make_tiny_lm: Callable[..., Any], tmp_path: Path) -> Path:
    """A folder with a fresh model that reads the words of the sandbox."""
    tokenizer = load_tokenizer("sandbox")
    context = {"n_positions": 256} if request.param == "gpt2" else {"max_position_embeddings": 256}
    ends = {"eos_token_id": tokenizer.eos_token_id, "pad_token_id": tokenizer.pad_token_id}
    make_tiny_lm(request.param, vocab_size=len(tokenizer), **context, **ends).save_pretrained(tmp_path / "start")
    tokenizer.save_pretrained(tmp_path / "start")
    return tmp_path / "start"


@torch.no_grad()
def logits(model: Any) -> Tensor:
    found: Tensor = model.eval()(input_ids=IDS).logits
    return found


def close(found: Tensor, expected: Tensor) -> None:
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-5)


def base_of(folder: Path) -> Path:
    return Path(json.loads((folder / "adapter_config.json").read_text())["base_model_name_or_path"])


def test_a_reward_model_with_adapters_on_a_base_in_16_bits(start: Path, tmp_path: Path) -> None:
    """Its head has 32 bits, which the check of what can be exported has to see too."""
    shared = [f"model.path={start}", "model.causal_lm.dtype=bfloat16", "reward.init=base"]
    rlhf(tmp_path / "runs", *shared, "stages=[sft,collect,reward]", "reward.export=both")
    folder = tmp_path / "runs" / "default" / "reward"
    assert load_scalar_model(str(folder / "model")).head.weight.dtype == torch.float32
    assert (folder / "adapter" / "adapter_config.json").exists()


@pytest.mark.parametrize("form", ["both", pytest.param("adapter", marks=pytest.mark.slow)])
def test_adapters_and_merged_models_reload_with_equal_logits(form: str, start: Path, tmp_path: Path) -> None:
    forms = [f"{step}.export={form}" for step in ("sft", "reward", "ppo")]
    rlhf(tmp_path, f"model.path={start}", "stages=[sft,collect,reward,ppo]", "run=a", *forms)
    steps, name = tmp_path / "a", "model" if form == "adapter" else "adapter"
    policies = [("sft", ""), ("ppo", ""), ("ppo", "_ema")]
    found = []
    for step, average in policies:
        tuned = logits(AutoPeftModelForCausalLM.from_pretrained(str(steps / step / f"{name}{average}")))
        close(logits(load_causal_lm(str(steps / step / f"{name}{average}"))), tuned)
        if form == "both":
            close(logits(AutoModelForCausalLM.from_pretrained(steps / step / f"model{average}")), tuned)
        found.append(tuned)
    plain = logits(AutoModelForCausalLM.from_pretrained(start))
    assert all(not torch.allclose(one, plain, atol=1e-3) for one in found)
    assert base_of(steps / "sft" / name) == start
    # What ppo starts from is an adapter, which PEFT cannot stack on, or the merged model of sft.
    expected = steps / "ppo" / "base" if form == "adapter" else steps / "sft" / "model"
    assert base_of(steps / "ppo" / name) == base_of(steps / "ppo" / f"{name}_ema") == expected

    reward = steps / "reward" / name
    own, options = load_scalar_model(str(reward)), {"num_labels": 1, "pad_token_id": 0}
    scores = own(IDS)[:, -1].detach()
    tuned = AutoPeftModelForSequenceClassification.from_pretrained(str(reward), **options)
    close(logits(tuned)[:, 0] + own.bias, scores)
    if form == "both":
        merged = AutoModelForSequenceClassification.from_pretrained(steps / "reward" / "model")
        close(logits(merged)[:, 0] + merged.config.reward_bias, scores)
        assert merged.config.label2id == {"reward": 0}


def test_a_run_starts_from_an_adapter_folder(start: Path, tmp_path: Path) -> None:
    rlhf(tmp_path, f"model.path={start}", "stages=[sft]", "run=a", "sft.export=adapter")
    adapter = tmp_path / "a" / "sft" / "model"
    assert not (adapter / "model.safetensors").exists()
    rlhf(tmp_path, f"model.path={adapter}", "stages=[check,sft]", "run=b", "sft.lora.rank=0")
    before, after = (load_file(folder / "model.safetensors") for folder in (start, tmp_path / "b" / "sft" / "model"))
    assert before.keys() == after.keys()
    assert not any(torch.equal(weight, after[name]) for name, weight in before.items())  # all of it learns
    more = ["ppo.init=" + str(adapter), f"reward.init={adapter}", "reward.export=adapter", "ppo.export=merged"]
    rlhf(tmp_path, f"model.path={start}", "stages=[collect,reward,ppo]", "upstream=a", "run=c", *more)
    assert base_of(tmp_path / "c" / "reward" / "model") == tmp_path / "c" / "reward" / "base"


def test_every_epoch_is_an_adapter_too(start: Path, tmp_path: Path) -> None:
    more = ["sft.export=adapter", "sft.keep_epochs=true", "sft.fit.epochs=2"]
    rlhf(tmp_path, f"model.path={start}", "stages=[sft]", "run=a", *more)
    first, last = (logits(load_causal_lm(str(tmp_path / "a" / "sft" / "epochs" / name))) for name in "12")
    assert not torch.allclose(first, last, atol=1e-4)
    close(last, logits(load_causal_lm(str(tmp_path / "a" / "sft" / "model"))))


def test_a_policy_samples_as_it_was_trained(start: Path, tmp_path: Path) -> None:
    theirs = GenerationConfig(do_sample=True, top_k=20, repetition_penalty=1.3, min_p=0.1, top_p=0.7, eos_token_id=1)
    theirs.save_pretrained(start)
    more = ["ppo.init=base", "sft.lora.rank=0", "ppo.export=both"]
    rlhf(tmp_path, f"model.path={start}", "stages=[sft,collect,reward,ppo]", "run=a", *more)
    tokenizer = load_tokenizer("sandbox")
    for name in ("model", "model_ema", "adapter"):
        config = GenerationConfig.from_pretrained(tmp_path / "a" / "ppo" / name)
        assert (config.do_sample, config.temperature, config.top_k, config.top_p) == (True, 1.0, 0, 1.0)
        assert (config.repetition_penalty, config.min_p, config.max_new_tokens) == (None, None, 26)
        assert (config.eos_token_id, config.pad_token_id) == (tokenizer.eos_token_id, tokenizer.pad_token_id)
    sft = GenerationConfig.from_pretrained(tmp_path / "a" / "sft" / "model")
    assert (sft.repetition_penalty, sft.top_k, sft.eos_token_id) == (1.3, 20, tokenizer.eos_token_id)
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "a" / "ppo" / "model")
    options = {"output_scores": True, "output_logits": True, "return_dict_in_generate": True}
    with torch.no_grad():
        output = model.generate(IDS, attention_mask=torch.ones_like(IDS), **options)
    assert 1 < len(output.scores) <= 26
    for processed, raw in zip(output.scores, output.logits, strict=True):
        torch.testing.assert_close(processed.softmax(-1), raw.softmax(-1), atol=1e-6, rtol=1e-6)


def test_adapters_that_could_not_be_written_are_refused_before_the_first_step(start: Path, tmp_path: Path) -> None:
    more = ["stages=[sft,collect,reward,ppo]", "run=a", "ppo.export=adapter", "ppo.lora.rank=0"]
    with pytest.raises(ValueError, match=r"ppo\.export=adapter needs adapters, but ppo\.lora\.rank is 0"):
        rlhf(tmp_path, f"model.path={start}", *more)
    assert not (tmp_path / "a" / "sft").exists()
