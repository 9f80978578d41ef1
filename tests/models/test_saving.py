"""What `save_pretrained` writes is read by transformers alone, with equal numbers."""

import copy
from functools import partial
from typing import Any

import pytest
import torch
from torch import nn
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification, AutoTokenizer

from rlhf_lightning.models.lora import add_adapters, ppo_models
from rlhf_lightning.models.scalar_head import ScalarHeadModel, load_scalar_model
from rlhf_lightning.modules.language_model import LanguageModelModule
from rlhf_lightning.modules.ppo import PPOModule
from rlhf_lightning.modules.reward import RewardModule

SGD = partial(torch.optim.SGD, lr=0.1)
IDS = torch.tensor([[5, 6, 7, 8, 1]])


def logits(model: Any) -> torch.Tensor:
    with torch.no_grad():
        return model.eval()(input_ids=IDS).logits


def test_a_language_model(tiny_lm: Any, tiny_tokenizer: Any, tmp_path: Any) -> None:
    module = LanguageModelModule(tiny_lm, SGD)
    module.save_pretrained(tmp_path / "model", tiny_tokenizer)
    assert torch.equal(logits(AutoModelForCausalLM.from_pretrained(tmp_path / "model")), logits(tiny_lm))
    assert AutoTokenizer.from_pretrained(tmp_path / "model").get_vocab() == tiny_tokenizer.get_vocab()
    module.save_pretrained(str(tmp_path / "model"))  # replaces it
    assert not (tmp_path / "model" / "tokenizer.json").exists()


def shaken(model: nn.Module) -> None:
    for parameter in model.parameters():
        if parameter.requires_grad:
            nn.init.normal_(parameter, std=0.1)


def test_adapters_are_added_to_the_weights(tiny_lm: Any, tmp_path: Any) -> None:
    pytest.importorskip("peft")
    add_adapters(tiny_lm, 2)
    shaken(tiny_lm)
    LanguageModelModule(tiny_lm, SGD).save_pretrained(tmp_path / "model")
    found = logits(AutoModelForCausalLM.from_pretrained(tmp_path / "model"))
    torch.testing.assert_close(found, logits(tiny_lm), atol=1e-5, rtol=1e-5)


def test_a_reward_model(tiny_lm: Any, tiny_tokenizer: Any, tmp_path: Any) -> None:
    model = ScalarHeadModel.from_causal_lm(tiny_lm)
    model.bias.fill_(0.5)
    module = RewardModule(model, SGD)
    module.save_pretrained(tmp_path / "reward", tiny_tokenizer)
    with torch.no_grad():
        score = module.model(IDS)[0, -1]
        found = logits(AutoModelForSequenceClassification.from_pretrained(tmp_path / "reward"))[0, 0]
        torch.testing.assert_close(found, score - 0.5, atol=1e-5, rtol=1e-5)
        torch.testing.assert_close(load_scalar_model(str(tmp_path / "reward"))(IDS)[0, -1], score, atol=1e-5, rtol=1e-5)
    with pytest.raises(ValueError, match=r"a reward model is saved with its tokenizer"):
        module.save_pretrained(tmp_path / "again")


def ppo_of(tokenizer: Any, models: Any, **options: Any) -> PPOModule:
    return PPOModule(**models, tokenizer=tokenizer, optimizer=SGD, value_optimizer=SGD, **options)


@pytest.mark.parametrize("rank", [0, 2])
def test_a_policy_and_its_moving_average(tiny_lm: Any, tiny_tokenizer: Any, tmp_path: Any, rank: int) -> None:
    models: Any = ppo_models(tiny_lm, ScalarHeadModel.from_causal_lm(tiny_lm), rank=rank)
    module = ppo_of(tiny_tokenizer, models, ema_decay=0.5)
    averages = copy.deepcopy(module.policy)
    shaken(module.policy)
    assert module.ema is not None
    module.ema.update(module.policy)
    with torch.no_grad():
        for average, parameter in zip(averages.parameters(), module.policy.parameters(), strict=True):
            average.copy_((average + parameter) / 2)
    module.save_pretrained(tmp_path / "averaged")
    module.save_pretrained(tmp_path / "raw", averaged=False)
    for name, expected in (("averaged", averages), ("raw", module.policy)):
        found = logits(AutoModelForCausalLM.from_pretrained(tmp_path / name))
        torch.testing.assert_close(found, logits(expected), atol=1e-5, rtol=1e-5)
        assert AutoTokenizer.from_pretrained(tmp_path / name).eos_token_id == 1


def test_a_policy_samples_as_it_was_trained(tiny_gpt2: Any, tiny_tokenizer: Any, tmp_path: Any) -> None:
    tiny_gpt2.generation_config.top_k = 5
    models: Any = ppo_models(tiny_gpt2, ScalarHeadModel.from_causal_lm(tiny_gpt2))
    options: Any = {"temperature": 0.5, "max_new_tokens": 7}
    PPOModule(**models, tokenizer=tiny_tokenizer, optimizer=SGD, value_optimizer=SGD, **options).save_pretrained(
        tmp_path
    )
    found = AutoModelForCausalLM.from_pretrained(tmp_path).generation_config
    assert (found.do_sample, found.temperature, found.top_k, found.max_new_tokens) == (True, 0.5, 0, 7)


def test_other_files_are_not_lost(tiny_gpt2: Any, tmp_path: Any) -> None:
    """A trainer's output folder has a config too, and checkpoints beside it."""
    (tmp_path / "config.json").write_text("{}")
    (tmp_path / "checkpoint-500").mkdir()
    with pytest.raises(FileExistsError, match="holds something else than a model"):
        LanguageModelModule(tiny_gpt2, SGD).save_pretrained(tmp_path)
    assert (tmp_path / "checkpoint-500").exists()


def test_a_policy_without_an_average(tiny_gpt2: Any, tiny_tokenizer: Any, tmp_path: Any) -> None:
    models: Any = ppo_models(tiny_gpt2, ScalarHeadModel.from_causal_lm(tiny_gpt2))
    ppo_of(tiny_tokenizer, models, ema_decay=None).save_pretrained(tmp_path / "policy")
    assert torch.equal(logits(AutoModelForCausalLM.from_pretrained(tmp_path / "policy")), logits(tiny_gpt2))


def test_what_cannot_be_saved_is_said(tiny_gpt2: Any, tmp_path: Any) -> None:
    plain = nn.Sequential(nn.Embedding(40, 4), nn.Linear(4, 40))
    with pytest.raises(TypeError, match=r"writes models of transformers, and Sequential is none"):
        LanguageModelModule(plain, SGD).save_pretrained(tmp_path / "plain")
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(FileExistsError, match=r"holds something else than a model, which would be lost"):
        LanguageModelModule(tiny_gpt2, SGD).save_pretrained(tmp_path)
    assert (tmp_path / "notes.txt").read_text() == "mine"
