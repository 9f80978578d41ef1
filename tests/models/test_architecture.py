from types import SimpleNamespace

import pytest
import torch
from safetensors.torch import load_file
from transformers import (
    AutoModel,
    BertConfig,
    BertLMHeadModel,
    GPT2Config,
    GPT2ForSequenceClassification,
    LlamaConfig,
    MistralConfig,
)

from rlhf_lightning.algorithms.functional import token_log_probs
from rlhf_lightning.models.architecture import check_causal, check_length, rope_limit, unwindowed_tokens
from rlhf_lightning.models.export import check_scalar_export, export_scalar_model
from rlhf_lightning.models.log_probs import causal_log_probs
from rlhf_lightning.models.lora import ppo_models
from rlhf_lightning.models.plain_head import has_plain_head
from rlhf_lightning.models.scalar_head import HEAD_FILE, ScalarHeadModel, load_scalar_model

from .families import make_family

IDS = torch.tensor([[3, 4, 5, 6, 7]])


@pytest.mark.parametrize(
    ("family", "tokens"),
    [
        *[("GPT-2", None), ("Qwen 2", None), ("Mistral", 8), ("Qwen 2, window", 8), ("Gemma 3 text", 8)],
        *[("GPT-OSS", 8), ("GPT-Neo, local layers", 8), ("Llama 4 text", 8), ("RecurrentGemma", 8)],
    ],
)
def test_a_window_is_found_whatever_the_field_is_called(family, tokens):
    assert unwindowed_tokens(make_family(family).config) == tokens


def test_the_window_within_a_configuration_of_several_models():
    config = MistralConfig(sliding_window=24)
    assert unwindowed_tokens(config) == 24
    config.sliding_window = None
    assert unwindowed_tokens(config) is None
    assert unwindowed_tokens(None) is None


def test_ropes_that_depend_on_the_longest_row():
    per_layer = {"full_attention": {"rope_type": "dynamic", "factor": 2.0, "rope_theta": 1e4}}
    per_layer["sliding_attention"] = {"rope_type": "default", "rope_theta": 1e4}
    config = LlamaConfig(max_position_embeddings=32)
    config.rope_parameters = per_layer
    assert (rope_limit(config), rope_limit(GPT2Config())) == (32, None)
    model = make_family("Phi 3, longrope")
    check_length(model, 16)
    with pytest.raises(ValueError, match=r"a row has 17 tokens, and Phi3ForCausalLM changes .* above 16 .*Set the"):
        check_length(model, 17)
    check_length(make_family("Llama, yarn"), 60)


@pytest.mark.parametrize("family", ["GPT-2", "OPT", "Llama"])
def test_rows_longer_than_learned_positions(family):
    model = make_family(family)
    limit = model.config.max_position_embeddings
    check_length(model, limit, learned=True)
    if family == "Llama":
        check_length(model, limit + 1, learned=True)  # its positions are computed
        return
    with pytest.raises(ValueError, match=rf"a row has {limit + 1} tokens, .*{type(model).__name__} has positions for"):
        check_length(model, limit + 1, learned=True)
    with pytest.raises(ValueError, match=rf"a prompt of 3 tokens and max_new_tokens={limit},.* Set max_new_tokens"):
        check_length(model, limit + 3, learned=True, new=limit)
    with pytest.raises(IndexError):
        model(torch.zeros(1, limit + 3, dtype=torch.long))


@pytest.mark.parametrize("training", [False, True])
def test_a_model_that_passes_is_left_in_its_mode(tiny_lm, training):
    tiny_lm.train(training)
    check_causal(tiny_lm)
    assert all(module.training == training for module in tiny_lm.modules())


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_model_that_looks_ahead_is_a_sentence(dtype):
    sizes = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4}
    torch.manual_seed(0)
    fresh = BertLMHeadModel(BertConfig(vocab_size=40, **sizes)).eval()  # of the usual, small weights
    model = fresh if dtype == torch.float32 else make_family("BERT, is_decoder").to(dtype)
    model.config.is_decoder = False
    for layer in model.bert.encoder.layer:
        layer.attention.self.is_causal = False
    with pytest.raises(
        ValueError, match=r"BertLMHeadModel is no causal language model: a token changes .*is_decoder=true"
    ):
        check_causal(model)


def test_broken_weights_are_a_sentence(tiny_lm):
    next(tiny_lm.parameters()).data.fill_(float("nan"))
    with pytest.raises(ValueError, match="logits that are not finite"):
        check_causal(tiny_lm)


def test_positions_that_begin_elsewhere_are_a_sentence():
    with pytest.raises(ValueError, match=r"RobertaForCausalLM .* does not count positions from 0; .* another family"):
        check_causal(make_family("RoBERTa, is_decoder"))


# Logits that are capped


def test_a_cap_counts_once_logits_have_grown_into_it():
    """The first logits are far below the cap, and what was found of the head then is kept for the run."""
    model = make_family("Gemma 2")
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(0.01)
    mask = torch.ones_like(IDS, dtype=torch.bool)
    causal_log_probs(model, IDS, mask, mask)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(1000.0)
        logits = model(IDS).logits
    assert float(logits.abs().max()) > 2.5  # of a cap of 3
    expected = token_log_probs(logits[:, :-1], IDS[:, 1:])
    torch.testing.assert_close(causal_log_probs(model, IDS, mask, mask).detach(), expected, atol=1e-5, rtol=0)


@pytest.mark.parametrize("family", ["GPT-2", "OPT", "Llama", "Gemma 3 text", "Mixtral"])
@pytest.mark.parametrize("bits", ["32", "16", "mixed"])
def test_a_head_without_a_cap_is_read_in_chunks_in_any_precision(family, bits):
    model = make_family(family)
    if bits == "16":
        model.bfloat16()
    with torch.autocast("cpu", torch.bfloat16, enabled=bits == "mixed"):
        assert has_plain_head(model, torch.device("cpu"))


# Vocabularies


@pytest.mark.parametrize("rank", [0, 2])
def test_a_reward_model_reads_tokens_that_only_the_policy_has(make_tiny_lm, rank):
    policy, reward = make_tiny_lm("gpt2", vocab_size=64), ScalarHeadModel.from_causal_lm(make_tiny_lm("llama", seed=1))
    expected = reward(IDS)
    models = ppo_models(policy, reward, rank=rank)
    for name in ("reward", "value"):
        torch.testing.assert_close(models[name](IDS), expected)
        scores = models[name](torch.tensor([[3, 63, 5, 40]]))
        assert bool(scores.isfinite().all())
        # Rows that stand for no text are alike: the mean of the others.
        torch.testing.assert_close(models[name](torch.tensor([[3, 41, 5, 63]])), scores)
        rows = models[name].backbone.get_input_embeddings().weight
        torch.testing.assert_close(rows[63], rows[:40].mean(0))


def test_the_head_of_scores_has_the_width_of_the_last_hidden_states():
    model = ScalarHeadModel.from_causal_lm(make_family("OPT, projected (350m)"))
    assert (model.head.in_features, model.backbone.config.hidden_size) == (16, 32)
    assert model(IDS).shape == (1, 5)
    with pytest.raises(ValueError, match="Llama4ForCausalLM does not tell its body from its head"):
        ScalarHeadModel.from_causal_lm(make_family("Llama 4 text"))


# Folders of reward models


def first_token(own, input_ids, attention_mask=None, **_):
    return SimpleNamespace(logits=own.score(own.transformer(input_ids).last_hidden_state[:, 0]))


def last_column(own, input_ids, attention_mask=None, **_):
    return SimpleNamespace(logits=own.score(own.transformer(input_ids).last_hidden_state[:, -1]))


@torch.no_grad()
@pytest.mark.parametrize("pooled", [first_token, last_column, None])
def test_a_classifier_with_other_scores_is_no_folder_for_ours(monkeypatch, tmp_path, tiny_gpt2, tiny_tokenizer, pooled):
    if pooled is None:
        build = GPT2ForSequenceClassification.__init__

        def deeper(own, config):
            build(own, config)
            own.dense = torch.nn.Linear(4, 4)

        monkeypatch.setattr(GPT2ForSequenceClassification, "__init__", deeper)
    else:
        monkeypatch.setattr(GPT2ForSequenceClassification, "forward", pooled)
    model = ScalarHeadModel.from_causal_lm(tiny_gpt2).eval()
    model.bias += 2.5
    assert check_scalar_export(model, tiny_gpt2.config, tiny_tokenizer) is None
    before = model.backbone.config.to_dict()
    export_scalar_model(model, tiny_gpt2.config, tiny_tokenizer, tmp_path / "reward")
    assert model.backbone.config.to_dict() == before
    assert {HEAD_FILE, "README.md", "model.safetensors", "tokenizer.json"} <= {
        f.name for f in (tmp_path / "reward").iterdir()
    }
    head = load_file(tmp_path / "reward" / HEAD_FILE)
    hidden = AutoModel.from_pretrained(tmp_path / "reward").eval()(IDS).last_hidden_state
    torch.testing.assert_close(
        hidden @ head["weight"][0] + head["bias"], model(IDS), atol=1e-5, rtol=0
    )  # as README says
    torch.testing.assert_close(load_scalar_model(str(tmp_path / "reward"))(IDS), model(IDS), atol=1e-5, rtol=0)
