"""Folders of adapters: PEFT reads ours and we read PEFT's, with the same logits."""

import json
from pathlib import Path
from typing import Any

import peft
import pytest
import torch
from peft import AutoPeftModelForCausalLM, AutoPeftModelForSequenceClassification, LoraConfig, PeftModel
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import AutoModel, AutoModelForCausalLM, AutoModelForSequenceClassification

from rlhf_lightning.generation.text_reward import TextReward
from rlhf_lightning.models import adapter_export
from rlhf_lightning.models.adapter_export import check_form, export_trained
from rlhf_lightning.models.loading import fit_to_tokenizer, load_causal_lm
from rlhf_lightning.models.lora import add_adapters, has_adapters, with_adapters
from rlhf_lightning.models.scalar_head import ScalarHeadModel, load_scalar_model
from rlhf_lightning.runs.identity import model_fingerprint
from rlhf_lightning.tokenization.endings import end_token_ids
from rlhf_lightning.tokenization.loading import load_tokenizer

pytestmark = pytest.mark.filterwarnings("ignore:.*is_gradient_checkpointing.*:FutureWarning")  # peft 0.21
IDS = torch.arange(24).view(2, 12) % 30 + 3


@torch.no_grad()
def logits(model: Any) -> Tensor:
    found: Tensor = model(input_ids=IDS).logits
    return found


def close(found: Tensor, expected: Tensor) -> None:
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-5)


@torch.no_grad()
def disturb(model: Any) -> None:
    """As training would."""
    generator = torch.Generator().manual_seed(4)
    for parameter in model.parameters():
        if parameter.requires_grad:
            parameter += 0.1 * torch.randn(parameter.shape, generator=generator)


@pytest.fixture
def base(tiny_lm: Any, tiny_tokenizer: Any, tmp_path: Path) -> Path:
    """The folder of a model."""
    tiny_lm.save_pretrained(tmp_path / "start")
    tiny_tokenizer.save_pretrained(tmp_path / "start")
    return tmp_path / "start"


def trained(base: Path) -> Any:
    model = load_causal_lm(str(base))
    add_adapters(model, rank=4)
    disturb(model)
    return model


@pytest.mark.parametrize("form", ["adapter", "both"])
def test_peft_reads_the_adapter_of_a_policy(form: str, base: Path, tiny_tokenizer: Any, tmp_path: Path) -> None:
    model = trained(base)
    export_trained(model, model, tiny_tokenizer, tmp_path / "base", form, tmp_path / "model_ema")
    folder = tmp_path / ("model_ema" if form == "adapter" else "adapter_ema")
    plain = AutoModelForCausalLM.from_pretrained(base)
    expected = logits(model)
    assert not torch.allclose(logits(plain), expected, atol=1e-2)
    close(logits(PeftModel.from_pretrained(plain, str(folder)).eval()), expected)
    close(logits(AutoPeftModelForCausalLM.from_pretrained(str(folder)).eval()), expected)
    close(logits(load_causal_lm(str(folder))), expected)
    if form == "both":
        close(logits(AutoModelForCausalLM.from_pretrained(tmp_path / "model_ema")), expected)
    named = json.loads((folder / "adapter_config.json").read_text())["base_model_name_or_path"]
    assert named == str(base)
    assert not (tmp_path / "base").exists()
    assert load_tokenizer(str(folder)).get_vocab() == tiny_tokenizer.get_vocab()


@pytest.mark.parametrize("form", ["adapter", "both"])
def test_peft_reads_the_adapter_and_the_head_of_a_reward_model(
    form: str, base: Path, tiny_tokenizer: Any, tmp_path: Path
) -> None:
    start = load_causal_lm(str(base))
    model = with_adapters(ScalarHeadModel.from_causal_lm(start), rank=4)
    disturb(model)
    model.bias.fill_(0.75)
    expected = model(IDS)[:, -1].detach()
    export_trained(model, start, tiny_tokenizer, tmp_path / "base", form, tmp_path / "model")
    folder = tmp_path / ("model" if form == "adapter" else "adapter")
    again = load_scalar_model(str(folder))
    close(again(IDS)[:, -1].detach(), expected)
    assert float(again.bias) == 0.75
    tuned = AutoPeftModelForSequenceClassification.from_pretrained(str(folder), num_labels=1).eval()
    close(logits(tuned)[:, 0] + 0.75, expected)
    plain = AutoModelForSequenceClassification.from_pretrained(base, num_labels=1)
    close(logits(PeftModel.from_pretrained(plain, str(folder)).eval())[:, 0] + 0.75, expected)
    texts = [tiny_tokenizer.decode(row) for row in IDS]
    own, other = TextReward(str(folder)), TextReward(str(base.parent / "model"))
    assert own(texts, ["w3", "w4"]) == pytest.approx(other(texts, ["w3", "w4"]), abs=1e-5)


def test_a_start_that_no_folder_holds_is_written_beside(base: Path, tiny_tokenizer: Any, tmp_path: Path) -> None:
    first = trained(base)
    export_trained(first, first, tiny_tokenizer, tmp_path / "none", "adapter", tmp_path / "first")
    second = trained(tmp_path / "first")  # merged at its start
    expected = logits(second)
    step = tmp_path / "step"
    export_trained(second, second, tiny_tokenizer, step / "base", "adapter", step / "model")
    close(logits(AutoModelForCausalLM.from_pretrained(step / "base")), logits(first))
    close(logits(AutoPeftModelForCausalLM.from_pretrained(str(step / "model")).eval()), expected)
    step.rename(tmp_path / "moved")  # the run's folder went elsewhere
    close(logits(load_causal_lm(str(tmp_path / "moved" / "model"))), expected)


def test_a_vocabulary_that_grew_is_in_the_base(base: Path, tiny_tokenizer: Any, tmp_path: Path) -> None:
    tiny_tokenizer.add_tokens(["w40", "w41"])
    start = fit_to_tokenizer(load_causal_lm(str(base)), tiny_tokenizer)
    model = with_adapters(ScalarHeadModel.from_causal_lm(start), rank=2)
    add_adapters(start, rank=2)
    for part, name in ((start, "sft"), (model, "reward")):
        disturb(part)
        export_trained(part, start, tiny_tokenizer, tmp_path / name / "base", "adapter", tmp_path / name / "model")
    ids = torch.tensor([[3, 41, 4], [40, 5, 41]])
    tuned = AutoPeftModelForCausalLM.from_pretrained(str(tmp_path / "sft" / "model")).eval()
    close(tuned(input_ids=ids).logits, start(input_ids=ids).logits)
    score = AutoPeftModelForSequenceClassification.from_pretrained(str(tmp_path / "reward" / "model")).eval()
    close(score(input_ids=ids).logits[:, 0], model(ids)[:, -1])
    close(load_scalar_model(str(tmp_path / "reward" / "model"))(ids), model(ids))


def test_a_head_without_a_class_of_transformers(
    make_tiny_lm: Any, tiny_tokenizer: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(adapter_export, "check_scalar_export", lambda *_: None)
    make_tiny_lm("llama").save_pretrained(tmp_path / "start")
    start = load_causal_lm(str(tmp_path / "start"))
    model = with_adapters(ScalarHeadModel.from_causal_lm(start), rank=2)
    disturb(model)
    model.bias.fill_(-0.5)
    export_trained(model, start, tiny_tokenizer, tmp_path / "base", "adapter", tmp_path / "model")
    close(load_scalar_model(str(tmp_path / "model"))(IDS), model(IDS))
    body = PeftModel.from_pretrained(AutoModel.from_pretrained(tmp_path / "start"), str(tmp_path / "model"))
    head = load_file(tmp_path / "model" / "scalar_head.safetensors")
    hidden = body.eval()(input_ids=IDS).last_hidden_state
    close((hidden @ head["weight"].T)[..., 0] + head["bias"], model(IDS))


def foreign(base: Path, folder: Path, **options: Any) -> Any:
    """As any user of PEFT would make it."""
    model = AutoModelForCausalLM.from_pretrained(base)
    names = ["c_attn", "c_fc"] if model.config.model_type == "gpt2" else ["q_proj", "down_proj"]
    conv = model.config.model_type == "gpt2"
    config = LoraConfig(
        **{
            "r": 3,
            "lora_alpha": 5,
            "target_modules": names,
            "task_type": "CAUSAL_LM",
            "fan_in_fan_out": conv,
            **options,
        }
    )
    tuned = peft.get_peft_model(model, config)
    disturb(tuned)
    tuned.save_pretrained(str(folder))
    return tuned.eval()


@pytest.mark.parametrize(
    "options",
    [{}, {"use_rslora": True}, {"use_dora": True}, {"init_lora_weights": "pissa"}],
    ids=["plain", "rslora", "dora", "pissa"],
)
def test_an_adapter_of_plain_peft_is_read(options: Any, base: Path, tmp_path: Path) -> None:
    expected = logits(foreign(base, tmp_path / "theirs", **options))
    model = load_causal_lm(str(tmp_path / "theirs"))
    assert not has_adapters(model)
    close(logits(model), expected)
    tokenizer = load_tokenizer(str(tmp_path / "theirs"))  # it has none of its own
    assert end_token_ids(tokenizer) == (1,)


@pytest.mark.parametrize("named", ["relative to here", "relative to the adapter"])
def test_a_relative_base_is_found(named: str, base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    expected = logits(foreign(base, tmp_path / "theirs"))
    monkeypatch.chdir(tmp_path if named == "relative to here" else "/")
    name_base(tmp_path / "theirs", "start" if named == "relative to here" else "../start")
    close(logits(load_causal_lm(str(tmp_path / "theirs"))), expected)


def name_base(folder: Path, base: str | None, **settings: Any) -> None:
    file = folder / "adapter_config.json"
    content = json.loads(file.read_text())
    file.write_text(json.dumps({**content, "base_model_name_or_path": base, **settings}))


def test_saved_embeddings_of_a_grown_vocabulary_are_taken(make_tiny_lm: Any, tmp_path: Path) -> None:
    base = make_tiny_lm("llama", tie_word_embeddings=False)
    base.save_pretrained(tmp_path / "start")
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "start")
    model.resize_token_embeddings(44, mean_resizing=False)
    config = LoraConfig(
        r=2, target_modules=["q_proj"], modules_to_save=["embed_tokens", "lm_head"], task_type="CAUSAL_LM"
    )
    tuned = peft.get_peft_model(model, config)
    disturb(tuned)
    tuned.save_pretrained(str(tmp_path / "theirs"), save_embedding_layers=False)
    again = load_causal_lm(str(tmp_path / "theirs"))
    assert again.config.vocab_size == 44
    close(logits(again), logits(tuned.eval()))


def test_a_changed_base_is_another_model(base: Path, tmp_path: Path, make_tiny_lm: Any) -> None:
    foreign(base, tmp_path / "theirs")
    before = model_fingerprint(str(tmp_path / "theirs"))
    assert model_fingerprint(str(tmp_path / "theirs")) == before
    make_tiny_lm("gpt2", seed=8).save_pretrained(base)
    assert model_fingerprint(str(tmp_path / "theirs")) != before


def test_adapters_that_are_refused(base: Path, tmp_path: Path) -> None:
    folder = tmp_path / "theirs"
    foreign(base, folder)
    state = load_file(folder / "adapter_model.safetensors")

    def refused(sentence: str, error: type[Exception] = ValueError) -> None:
        with pytest.raises(error, match=sentence):
            load_causal_lm(str(folder))

    name_base(folder, str(tmp_path / "gone"))
    refused(r"belongs to the model .*gone, which is not here.*set base_model_name_or_path", FileNotFoundError)
    name_base(folder, None)
    refused("names no model; set base_model_name_or_path")
    name_base(folder, str(base), peft_type="IA3")
    refused("an adapter of type IA3; only LORA")
    name_base(folder, str(base), peft_type="LORA", layer_replication=[[0, 1]])
    refused("has layer_replication, which cannot be merged")
    name_base(folder, str(base), layer_replication=None)
    save_file({f"{name}x": value for name, value in state.items()}, folder / "adapter_model.safetensors")
    refused(r"does not fit .*start: it lacks \['.*and has \['.*Set base_model_name_or_path")
    (folder / "adapter_model.safetensors").rename(folder / "adapter_model.bin")
    refused("no adapter_model.safetensors, and a pickle is not read")
    (folder / "model.safetensors").touch()
    refused("holds both a model and an adapter")


@pytest.mark.filterwarnings("ignore:.*tie_word_embeddings.*", "ignore:.*save_embedding_layers.*")
@pytest.mark.parametrize(
    "options",
    [{"target_modules": ["q_proj", "lm_head"]}, {"target_modules": ["embed_tokens"]}],
)
def test_an_adapter_that_parts_tied_weights_is_refused(options: Any, make_tiny_lm: Any, tmp_path: Path) -> None:
    make_tiny_lm("llama", tie_word_embeddings=True).save_pretrained(tmp_path / "start")
    foreign(tmp_path / "start", tmp_path / "theirs", **options)
    with pytest.raises(ValueError, match="which are tied in its model"):
        load_causal_lm(str(tmp_path / "theirs"))


@pytest.mark.filterwarnings("ignore:.*tie_word_embeddings.*", "ignore:.*save_embedding_layers.*")
def test_a_head_of_its_own_parts_from_the_embedding(make_tiny_lm: Any, tiny_tokenizer: Any, tmp_path: Path) -> None:
    make_tiny_lm("llama", tie_word_embeddings=True).save_pretrained(tmp_path / "start")
    expected = logits(foreign(tmp_path / "start", tmp_path / "theirs", modules_to_save=["lm_head"]))
    model = load_causal_lm(str(tmp_path / "theirs"))
    close(logits(model), expected)
    export_trained(model, model, tiny_tokenizer, tmp_path / "base", "merged", tmp_path / "model")
    close(logits(AutoModelForCausalLM.from_pretrained(tmp_path / "model")), expected)


def test_forms_are_checked_before_work() -> None:
    check_form("curate", {})
    check_form("sft", {"export": "both", "lora": {"rank": 2}})
    with pytest.raises(ValueError, match=r"ppo\.export=adapter needs adapters, but ppo\.lora\.rank is 0"):
        check_form("ppo", {"export": "adapter", "lora": {"rank": 0}})
