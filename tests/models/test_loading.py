import json
import math

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification, AutoTokenizer, pipeline

from rlhf_lightning.data.tokenize import Tokenization
from rlhf_lightning.evaluation.policies import pretraining_loss, token_losses
from rlhf_lightning.generation.text_reward import TextReward
from rlhf_lightning.models.export import complete_folder, export_causal_lm, export_scalar_model
from rlhf_lightning.models.loading import fit_to_tokenizer, freeze, load_causal_lm, use_fast_kernels
from rlhf_lightning.models.padding import position_ids
from rlhf_lightning.models.scalar_head import ScalarHeadModel, load_scalar_model
from rlhf_lightning.runs.hub import model_folder
from rlhf_lightning.sandbox.world import generate_text
from rlhf_lightning.tokenization.loading import load_tokenizer

GPT2 = {"model_type": "gpt2", "vocab_size": 11, "n_embd": 8, "n_layer": 1, "n_head": 2, "n_positions": 16}
LLAMA = {"model_type": "llama", "vocab_size": 11, "hidden_size": 8, "intermediate_size": 8, "num_hidden_layers": 1}
LLAMA |= {"num_attention_heads": 2, "max_position_embeddings": 16}
IDS = torch.tensor([[3, 4, 5, 6, 7]])


def scalar_model(lm, bias=1.5):
    model = ScalarHeadModel.from_causal_lm(lm).eval()
    model.bias.fill_(bias)
    return model


def token_scores(model, ids):
    mask = torch.ones_like(ids, dtype=torch.bool)
    with torch.no_grad():
        return model(ids, mask, position_ids(mask))


# Loading


@pytest.mark.parametrize("config", [GPT2, LLAMA], ids=["gpt2", "llama"])
def test_a_fresh_model_is_what_its_configuration_says(config):
    model = load_causal_lm(config=config)
    assert model(torch.tensor([[3, 4]])).logits.shape == (1, 2, 11)
    assert model.config.model_type == config["model_type"]
    assert {p.dtype for p in model.parameters()} == {torch.float32}
    assert load_causal_lm(config=config, dtype="bfloat16").dtype == torch.bfloat16
    assert load_causal_lm(config=config, attention="eager").config._attn_implementation == "eager"
    assert "model_type" in config  # not used up


@pytest.mark.parametrize("options", [{}, {"path": "somewhere", "config": GPT2}])
def test_either_path_or_configuration(options):
    with pytest.raises(ValueError, match="needs either 'path' or 'config', got path="):
        load_causal_lm(**options)


def test_residual_dropout_and_no_other(tmp_path):
    model = load_causal_lm(config=GPT2 | {"attn_pdrop": 0.3, "embd_pdrop": 0.3}, residual_dropout=0.2)
    model.save_pretrained(tmp_path)
    again = load_causal_lm(str(tmp_path), residual_dropout=0.1)
    without = load_causal_lm(str(tmp_path))
    for lm, rate in [(model, 0.2), (again, 0.1), (without, 0.0)]:
        dropouts = {name: m.p for name, m in lm.named_modules() if isinstance(m, torch.nn.Dropout)}
        residual = {name for name in dropouts if "resid" in name or "mlp" in name}
        assert len(residual) == 2
        assert {name: rate if name in residual else 0.0 for name in dropouts} == dropouts
    without.train()
    torch.testing.assert_close(without(IDS).logits, without(IDS).logits, rtol=0, atol=0)
    again.train()
    assert not torch.equal(again(IDS).logits, again(IDS).logits)


def test_residual_dropout_where_there_is_none():
    opt = load_causal_lm(
        config={"model_type": "opt", "vocab_size": 40, "hidden_size": 32, "num_attention_heads": 4}
        | {"num_hidden_layers": 1, "ffn_dim": 32, "word_embed_proj_dim": 32, "layerdrop": 0.1}
    )  # its default is .1
    assert (opt.config.dropout, opt.config.layerdrop, opt.config.attention_dropout) == (0.0, 0.0, 0.0)
    opt.train()
    assert torch.equal(opt(IDS).logits, opt(IDS).logits)
    with pytest.raises(ValueError, match=r"residual_dropout is 0.2, but llama models have no .* Set it to 0"):
        load_causal_lm(config=LLAMA, residual_dropout=0.2)
    assert load_causal_lm(config=LLAMA | {"attention_dropout": 0.5}).config.attention_dropout == 0.0


@pytest.mark.parametrize(
    ("size", "low", "high"), [("small", 3e5, 4e5), ("medium", 9e5, 1.2e6), ("large", 2.8e6, 3.5e6)]
)
def test_the_shipped_models_know_their_world(size, low, high):
    model, tokenizer = load_causal_lm(f"sandbox/{size}").eval(), load_tokenizer(f"sandbox/{size}")
    assert low < sum(parameter.numel() for parameter in model.parameters()) < high
    assert {p.dtype for p in model.parameters()} == {torch.float32}
    assert len(tokenizer) == model.config.vocab_size == 323
    assert tokenizer.pad_token_id != tokenizer.eos_token_id
    from rlhf_lightning.data.loader import collate_lm

    examples = Tokenization(tokenizer).texts(generate_text(60, "tests of the shipped model"), 192)
    loss = pretraining_loss(token_losses(model, [collate_lm(examples, tokenizer.pad_token_id)]))
    assert loss < 2.0 < math.log(323) == pytest.approx(5.7777, abs=1e-4)


def test_a_size_that_the_sandbox_does_not_have():
    assert model_folder("sandbox") == model_folder("sandbox/medium")
    assert model_folder("gpt2") == "gpt2"
    with pytest.raises(ValueError, match="no model 'sandbox/huge'; it has sandbox/small, sandbox/medium"):
        load_tokenizer("sandbox/huge")


# Tokenizers


def write_gpt2_files(folder):
    """The two files that came with GPT-2: three letters, a space, and two merges."""
    vocabulary = ["l", "o", "w", "\u0120", "lo", "low", "<|endoftext|>"]
    (folder / "encoder.json").write_text(json.dumps({token: n for n, token in enumerate(vocabulary)}))
    (folder / "vocab.bpe").write_text("#version: 0.2\nl o\nlo w\n", encoding="utf-8")


def test_the_original_gpt2_files(tmp_path):
    write_gpt2_files(tmp_path)
    tokenizer = load_tokenizer(str(tmp_path))
    # lo, w merge; "wo" does not; the space is a token of its own.
    assert tokenizer("low low wo")["input_ids"] == [5, 3, 5, 3, 2, 1]
    assert tokenizer.decode([5, 3, 5]) == "low low"
    assert (tokenizer.eos_token_id, tokenizer.pad_token_id) == (6, 7)
    tokenizer.save_pretrained(tmp_path / "saved")
    again = load_tokenizer(str(tmp_path / "saved"))
    assert again("low low wo")["input_ids"] == [5, 3, 5, 3, 2, 1]
    assert (again.eos_token_id, again.pad_token_id, len(again)) == (6, 7, 8)


def test_a_single_tokenizer_file(tmp_path, tiny_tokenizer):
    tiny_tokenizer.backend_tokenizer.save(str(tmp_path / "tokenizer.json"))
    file = str(tmp_path / "tokenizer.json")
    with pytest.raises(ValueError, match=r"has no EOS token; .*model\.eos"):
        load_tokenizer(file)  # no end is made up
    with pytest.raises(ValueError, match=r"model\.eos names '</s>', which is no token"):
        load_tokenizer(file, eos="</s>")
    tokenizer = load_tokenizer(file, eos="<eos>")
    assert tokenizer("w3 w4")["input_ids"] == [3, 4]
    assert tokenizer.eos_token_id == 1
    assert tokenizer.pad_token_id not in (None, 1)


@pytest.mark.parametrize(
    ("pad", "expected"), [("<pad>", 0), (None, 40), ("<eos>", 40)], ids=["has one", "has none", "EOS"]
)
def test_padding_differs_from_the_end(tmp_path, tiny_tokenizer, pad, expected):
    tiny_tokenizer.pad_token = pad
    tiny_tokenizer.save_pretrained(tmp_path)
    tokenizer = load_tokenizer(str(tmp_path))
    assert (tokenizer.pad_token_id, tokenizer.eos_token_id) == (expected, 1)


def test_a_tokenizer_without_end(tmp_path, tiny_tokenizer):
    tiny_tokenizer.eos_token = None
    tiny_tokenizer.save_pretrained(tmp_path)
    with pytest.raises(ValueError, match=r"has no EOS token; responses could never end\. Name one"):
        load_tokenizer(str(tmp_path))


@pytest.mark.parametrize("tied", [True, False])
def test_new_tokens_start_at_the_mean(make_tiny_lm, tiny_tokenizer, tied):
    model = make_tiny_lm("llama", tie_word_embeddings=tied)
    old_in, old_out = (layer.weight.detach().clone() for layer in (model.model.embed_tokens, model.lm_head))
    tiny_tokenizer.add_special_tokens({"bos_token": "w3", "extra_special_tokens": ["<new>", "<other>"]})
    assert fit_to_tokenizer(model, tiny_tokenizer) is model
    for layer, old in ((model.model.embed_tokens, old_in), (model.lm_head, old_out)):
        assert layer.weight.shape == (42, 32)
        assert torch.equal(layer.weight[:40], old)
        torch.testing.assert_close(layer.weight[40:], torch.stack([sum(old) / 40] * 2))
    assert (model.lm_head.weight is model.model.embed_tokens.weight) == tied
    assert model(torch.tensor([[41]])).logits.shape[-1] == model.config.vocab_size == 42
    for config in (model.config, model.generation_config):
        assert (config.pad_token_id, config.eos_token_id, config.bos_token_id) == (0, 1, 3)


def test_a_vocabulary_of_another_model_gets_no_rows(make_tiny_lm, tiny_tokenizer):
    with pytest.raises(ValueError, match=r"vocabulary of 40 tokens, the model rows for 38: it is another model's"):
        fit_to_tokenizer(make_tiny_lm("llama", vocab_size=38), tiny_tokenizer)


def test_a_model_with_spare_rows_keeps_them(make_tiny_lm, tiny_tokenizer):
    model = fit_to_tokenizer(make_tiny_lm("gpt2", vocab_size=64), tiny_tokenizer)
    assert model.get_input_embeddings().weight.shape[0] == 64


# The scalar head


def test_the_head_starts_with_the_width_of_the_body():
    torch.manual_seed(0)
    weights = torch.cat([ScalarHeadModel(torch.nn.Identity(), 63).head.weight.detach().flatten() for _ in range(400)])
    # 25200 draws of standard deviation 1 / sqrt(64) = 0.125: its own standard error is 0.125 / sqrt(50400) = 0.0006
    assert float(weights.std()) == pytest.approx(0.125, abs=0.0025)
    assert float(weights.mean()) == pytest.approx(0.0, abs=0.0035)


def test_the_body_is_copied_and_the_bias_is_no_parameter(tiny_lm):
    before = tiny_lm(IDS).logits.detach()
    model = ScalarHeadModel.from_causal_lm(tiny_lm)
    assert float(model.bias) == 0.0
    assert "bias" in model.state_dict()
    assert all(name != "bias" for name, _ in model.named_parameters())
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.zero_()
    assert torch.equal(tiny_lm(IDS).logits, before)


def test_the_score_is_the_head_times_the_last_hidden_state_plus_bias(tiny_lm):
    model = scalar_model(tiny_lm)
    hidden = tiny_lm(IDS, output_hidden_states=True).hidden_states[-1][0]
    weight = model.head.weight[0].tolist()
    expected = [sum(w * h for w, h in zip(weight, row, strict=True)) + 1.5 for row in hidden.tolist()]
    assert token_scores(model, IDS)[0].tolist() == pytest.approx(expected, abs=1e-4)


def test_freeze(tiny_gpt2):
    frozen = freeze(tiny_gpt2.train())
    assert not frozen.training
    assert not any(p.requires_grad for p in frozen.parameters())


def test_a_fused_activation_is_the_same_function(make_tiny_lm):
    plain, fused = (
        make_tiny_lm("gpt2", dtype=torch.float64),
        use_fast_kernels(make_tiny_lm("gpt2", dtype=torch.float64)),
    )
    assert [type(module.act) for module in fused.modules() if hasattr(module, "act")] == [torch.nn.GELU] * 2
    logits = [model(IDS).logits for model in (plain, fused)]
    torch.testing.assert_close(logits[1], logits[0], rtol=1e-12, atol=1e-12)
    gradients = [
        torch.autograd.grad(own.log_softmax(-1)[..., 5].sum(), model.parameters())
        for own, model in zip(logits, (plain, fused), strict=True)
    ]
    for own, expected in zip(gradients[1], gradients[0], strict=True):
        torch.testing.assert_close(own, expected, rtol=1e-9, atol=1e-12)


# Export


def test_an_exported_causal_lm_is_the_same(tmp_path, tiny_lm, tiny_tokenizer):
    export_causal_lm(tiny_lm, tiny_tokenizer, tmp_path / "model")
    assert torch.equal(AutoModelForCausalLM.from_pretrained(tmp_path / "model")(IDS).logits, tiny_lm(IDS).logits)
    assert torch.equal(load_causal_lm(str(tmp_path / "model"))(IDS).logits, use_fast_kernels(tiny_lm)(IDS).logits)
    assert AutoTokenizer.from_pretrained(tmp_path / "model")("w3 w4")["input_ids"] == [3, 4]
    assert (tmp_path / "model" / "model.safetensors").exists()


def test_export_in_another_dtype(tmp_path, tiny_gpt2, tiny_tokenizer):
    export_causal_lm(tiny_gpt2, tiny_tokenizer, tmp_path / "model", dtype="bfloat16")
    assert AutoModelForCausalLM.from_pretrained(tmp_path / "model").dtype == torch.bfloat16
    assert tiny_gpt2.dtype == torch.float32


@pytest.fixture
def exported(tmp_path, tiny_lm, tiny_tokenizer):
    """A reward model, and the folder it was written to."""
    model = scalar_model(tiny_lm)
    export_scalar_model(model, tiny_lm.config, tiny_tokenizer, tmp_path / "reward")
    return model, tmp_path / "reward"


@torch.no_grad()
def test_a_classifier_gives_the_score_without_bias(exported, tiny_lm):
    model, folder = exported
    classifier = AutoModelForSequenceClassification.from_pretrained(folder)
    assert classifier.config.reward_bias == 1.5
    assert classifier.config.num_labels == 1
    assert (classifier.config.label2id, classifier.config.id2label) == ({"reward": 0}, {0: "reward"})
    scores = token_scores(model, IDS)[0]
    # The classifier reads the last token that is not padding.
    assert float(classifier(IDS).logits) == pytest.approx(float(scores[-1]) - 1.5, abs=1e-5)
    padded = torch.tensor([[3, 4, 5, 0, 0]])
    logits = classifier(padded, attention_mask=padded != 0).logits
    assert float(logits) == pytest.approx(float(scores[2]) - 1.5, abs=1e-5)
    # What was exported can go on training, and the configuration of the language model is its own.
    assert all(p.device.type == "cpu" for p in model.parameters())
    assert not hasattr(tiny_lm.config, "reward_bias")
    (found,) = pipeline("text-classification", model=str(folder))(["w3 w4 w5"])
    assert found == {"label": "reward", "score": pytest.approx(float(scores[2]) - 1.5, abs=1e-5)}  # not squashed


def test_a_reward_model_survives_the_round_trip(exported):
    model, folder = exported
    use_fast_kernels(model.backbone)
    again = load_scalar_model(str(folder)).eval()
    assert float(again.bias) == 1.5
    assert torch.equal(token_scores(again, IDS), token_scores(model, IDS))
    small = load_scalar_model(str(folder), dtype="bfloat16")
    assert {parameter.dtype for parameter in small.backbone.parameters()} == {torch.bfloat16}
    assert small.head.weight.dtype == torch.float32  # scores keep 32 bits


def test_a_folder_that_is_no_reward_model(tmp_path, tiny_gpt2, tiny_tokenizer):
    export_causal_lm(tiny_gpt2, tiny_tokenizer, tmp_path / "model")
    with pytest.raises(ValueError, match=r"weights of a GPT2ForSequenceClassification: it lacks score\.weight"):
        load_scalar_model(str(tmp_path / "model"))
    with pytest.raises(ValueError, match="is a GPT2LMHeadModel, and a reward must be a sequence classifier"):
        TextReward(str(tmp_path / "model"))


def renamed(state, change):
    return {change(name): value for name, value in state.items()}


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        (lambda name: f"_orig_mod.{name}", r"it lacks lm_head.* and 2\d more, and has besides _orig_mod\."),
        (lambda name: f"base_model.model.{name}", r"has besides base_model\.model\."),
        (lambda name: name.replace("h.1.mlp", "h.1.other"), r"lacks transformer\.h\.1\.mlp\.c_fc\.bias"),
        (lambda name: name.replace(".h.1.", ".h.2."), r"lacks transformer\.h\.1\.attn.*has besides transformer\.h\.2"),
    ],
    ids=["compiled", "adapter", "one part", "another layer"],
)
def test_weights_that_are_not_there_are_named(tmp_path, tiny_gpt2, change, sentence):
    tiny_gpt2.save_pretrained(tmp_path)
    weights = tmp_path / "model.safetensors"
    save_file(renamed(load_file(weights), change), weights, metadata={"format": "pt"})
    with pytest.raises(ValueError, match=sentence):
        load_causal_lm(str(tmp_path))


def test_weights_of_another_shape_are_named(tmp_path, tiny_gpt2):
    tiny_gpt2.save_pretrained(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps({**config, "n_inner": 48}))
    with pytest.raises(ValueError, match=r"has in other shapes transformer\.h\.0\.mlp\.c_fc\.bias"):
        load_causal_lm(str(tmp_path))


@pytest.mark.parametrize(
    ("files", "sentence"),
    [
        ({}, "has no config.json; name the folder that save_pretrained wrote"),
        ({"adapter_config.json": {}}, r"names no model; set base_model_name_or_path"),
        ({"config.json": {"model_type": "t5", "is_encoder_decoder": True}}, r"an encoder-decoder \(t5\); a decoder"),
        ({"config.json": {"model_type": "gpt2", "quantization_config": {"bits": 4}}}, "is quantised, which cannot be"),
        ({"config.json": {"model_type": "gpt2"}, "pytorch_model.bin": {}}, r"and a pickle is not read.*its \.bin"),
    ],
    ids=["empty", "adapter", "T5", "quantised", "bin"],
)
def test_folders_of_another_kind_are_a_sentence(tmp_path, files, sentence):
    for name, content in files.items():
        (tmp_path / name).write_text(json.dumps(content))
    for load in (load_causal_lm, load_scalar_model):
        with pytest.raises(ValueError, match=sentence):
            load(str(tmp_path))


def test_weights_in_several_files_and_behind_links(tmp_path, tiny_lm):
    tiny_lm.save_pretrained(tmp_path / "parts", max_shard_size="8KB")
    assert len(list((tmp_path / "parts").glob("*.safetensors"))) > 1
    (tmp_path / "link").symlink_to(tmp_path / "parts")
    (tmp_path / "links").mkdir()
    for file in (tmp_path / "parts").iterdir():
        (tmp_path / "links" / file.name).symlink_to(file)
    for name in ("parts", "link", "links"):
        state = load_causal_lm(str(tmp_path / name)).state_dict()
        assert all(torch.equal(value, state[key]) for key, value in tiny_lm.state_dict().items())


def test_a_folder_without_a_tokenizer_is_a_sentence(tmp_path, tiny_gpt2):
    tiny_gpt2.save_pretrained(tmp_path)
    with pytest.raises((ValueError, OSError), match=r"tokenizer"):
        load_tokenizer(str(tmp_path))


def test_text_reward_is_the_score_of_the_tokens(exported, tiny_tokenizer):
    model, folder = exported
    prompts, responses = ["w3 w4", "w5", "w6 w7 w8"], ["w9", "w10 w11 w12", "w13"]
    expected = []
    for prompt, response in zip(prompts, responses, strict=True):
        ids = tiny_tokenizer(f"{prompt} {response} <eos>", return_tensors="pt")["input_ids"]
        expected.append(float(token_scores(model, ids)[0, -1]))
    for batch_size in (1, 2, 8):
        reward = TextReward(str(folder), batch_size=batch_size)
        assert reward(prompts, responses) == pytest.approx(expected, abs=1e-5)
    assert reward([], []) == []
    with pytest.raises(ValueError, match="shorter"):
        reward(prompts, responses[:2])


def test_a_folder_is_complete_or_as_before(tmp_path):
    folder = tmp_path / "deep" / "model"
    with complete_folder(folder) as unfinished:
        (unfinished / "a").write_text("old")
        assert not folder.exists()

    def write_half():
        with complete_folder(folder) as unfinished:
            (unfinished / "b").write_text("half")
            raise RuntimeError("disk full")

    with pytest.raises(RuntimeError, match="disk full"):
        write_half()
    assert [(file.name, file.read_text()) for file in folder.iterdir()] == [("a", "old")]
    with complete_folder(folder) as unfinished:
        assert list(unfinished.iterdir()) == []  # nothing of the half
        (unfinished / "c").write_text("new")
    assert [(file.name, file.read_text()) for file in folder.iterdir()] == [("c", "new")]
    assert [child.name for child in folder.parent.iterdir()] == ["model"]


def test_a_name_that_is_neither_here_nor_on_the_hub_says_both():
    with pytest.raises(OSError, match=r"there is no folder 'modles/my' here, and the hub does not give it"):
        load_causal_lm("modles/my")
