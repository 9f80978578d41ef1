"""Scores as the mean over the response: every pass, rollouts, exported folders, rewards that read text."""

import pytest
import torch
from safetensors.torch import save_file
from transformers import AutoModel

from rlhf_lightning.algorithms.batch import PromptBatch, Rollout
from rlhf_lightning.generation.rewards import response_scores
from rlhf_lightning.generation.text_reward import TextReward
from rlhf_lightning.models.adapter_export import export_adapter
from rlhf_lightning.models.export import export_causal_lm, export_scalar_model, head_state
from rlhf_lightning.models.lora import with_adapters
from rlhf_lightning.models.scalar_head import HEAD_FILE, ScalarHeadModel, load_scalar_model
from rlhf_lightning.models.shared_prefix import cached_scores, separate_scores, tree_scores

from ..modules.test_reward import comparison_batch, ragged_case
from .test_recompute import scalar_model

PROMPTS, RESPONSES = [[3, 4, 5], [6, 7]], [[8, 9, 1], [10, 1]]


def pooled_model(family="Llama"):
    model = scalar_model(family)
    model.pooling = "mean"
    model.bias.fill_(0.25)
    return model


def mean_score(model, prompt, response):
    """One row, nothing padded; the mean by hand."""
    values = model(torch.tensor([prompt + response]))[0, len(prompt) :].tolist()
    return sum(values) / len(values)


def rollout():
    prompt_ids, response_ids = torch.tensor([[3, 4, 5], [0, 6, 7]]), torch.tensor([[8, 9, 1], [10, 1, 0]])
    mask = torch.tensor([[True] * 3, [True, True, False]])
    prompts = PromptBatch(prompt_ids, torch.tensor([[True] * 3, [False, True, True]]), torch.arange(2), ["", ""])
    return Rollout(prompts, response_ids, mask, torch.zeros(2, 3), torch.ones(2, dtype=torch.bool))


@pytest.mark.parametrize("scores_of", [cached_scores, tree_scores, separate_scores])
@pytest.mark.parametrize("family", ["GPT-2", "Llama", "Qwen 3"])
def test_every_pass_gives_the_mean_over_the_response(family, scores_of):
    model = pooled_model(family)
    prompts, responses, ranks = ragged_case((5, 2, 3))
    batch = comparison_batch(prompts, responses, ranks)
    scores = scores_of(model, batch).detach()
    for row, prompt in enumerate(prompts):
        for number, response in enumerate(responses[row]):
            assert float(scores[row, number]) == pytest.approx(mean_score(model, prompt, response), abs=1e-5)
    assert (scores[~batch.mask] == 0).all()


def test_rollouts_are_scored_the_same(tiny_tokenizer):
    model = pooled_model()
    expected = [mean_score(model, *pair) for pair in zip(PROMPTS, RESPONSES, strict=True)]
    with torch.no_grad():
        assert response_scores(model, rollout(), tiny_tokenizer).tolist() == pytest.approx(expected, abs=1e-5)


@pytest.mark.parametrize("kind", ["gpt2", "llama"])
def test_the_folder_says_so(make_tiny_lm, kind, tiny_tokenizer, tmp_path):
    """A class of transformers would look at the last token, so the head has a file of its own."""
    causal_lm = make_tiny_lm(kind)
    model = ScalarHeadModel.from_causal_lm(causal_lm, "mean")
    model.bias.fill_(0.25)
    export_scalar_model(model, causal_lm.config, tiny_tokenizer, tmp_path / "model")
    assert (tmp_path / "model" / HEAD_FILE).exists()
    read = load_scalar_model(str(tmp_path / "model"))
    assert read.pooling == "mean"
    with torch.no_grad():
        found = response_scores(read, rollout(), tiny_tokenizer)
        torch.testing.assert_close(found, response_scores(model, rollout(), tiny_tokenizer), atol=1e-5, rtol=0)
    AutoModel.from_pretrained(tmp_path / "model")
    expected = mean_score(model, [3, 4], [8, 9, 1])
    reward = TextReward(str(tmp_path / "model"))
    assert reward.row([{"role": "user", "content": "w3 w4"}], "w8 w9")["input_ids"] == [3, 4, 8, 9, 1]
    assert reward(["w3 w4"], ["w8 w9"]) == [pytest.approx(expected, abs=1e-5)]
    with pytest.raises(ValueError, match="mean over a response, which a template does not show"):
        TextReward(str(tmp_path / "model"), template="{response}")


def test_an_adapter_says_so(make_tiny_lm, tiny_tokenizer, tmp_path):
    pytest.importorskip("peft")
    causal_lm = make_tiny_lm("llama")
    export_causal_lm(causal_lm, tiny_tokenizer, tmp_path / "base")
    model = with_adapters(ScalarHeadModel.from_causal_lm(causal_lm, "mean"), rank=2)
    export_adapter(model, causal_lm, tiny_tokenizer, str(tmp_path / "base"), tmp_path / "adapter")
    read = load_scalar_model(str(tmp_path / "adapter"))
    assert read.pooling == "mean"
    with torch.no_grad():
        torch.testing.assert_close(
            response_scores(read, rollout(), tiny_tokenizer), response_scores(model, rollout(), tiny_tokenizer)
        )


def test_a_folder_of_a_newer_kind_is_refused(make_tiny_lm, tiny_tokenizer, tmp_path):
    causal_lm = make_tiny_lm("llama")
    model = ScalarHeadModel.from_causal_lm(causal_lm, "mean")
    export_scalar_model(model, causal_lm.config, tiny_tokenizer, tmp_path / "model")
    save_file(head_state(model), tmp_path / "model" / HEAD_FILE, metadata={"pooling": "median"})
    with pytest.raises(ValueError, match="pooling=median; last and mean are known"):
        load_scalar_model(str(tmp_path / "model"))
