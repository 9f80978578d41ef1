"""Every family is right in all that shares work, on rows shorter and longer than its window, or refused in a sentence.

With `WRITE_MODELS_PAGE=1` in the environment, and slow tests too, it writes the table of docs/models.md.
"""

import os
import re
import warnings
from functools import partial
from pathlib import Path

import pytest
import torch
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from transformers import AutoModelForSequenceClassification, PreTrainedTokenizerFast

from rlhf_lightning.algorithms.batch import ComparisonBatch, PromptBatch
from rlhf_lightning.generation.decoding import (
    CachedDecoder,
    Decoder,
    GroupedDecoder,
    InPlaceDecoder,
    PaddedDecoder,
    decoder,
)
from rlhf_lightning.generation.sample import SamplingOptions, response_log_probs, sample_responses
from rlhf_lightning.models.architecture import check_causal, rope_limit, unwindowed_tokens
from rlhf_lightning.models.export import check_scalar_export, export_causal_lm, export_scalar_model
from rlhf_lightning.models.loading import load_causal_lm
from rlhf_lightning.models.scalar_head import HEAD_FILE, ScalarHeadModel, load_scalar_model
from rlhf_lightning.models.shared_prefix import cached_scores, separate_scores, tree_scores
from rlhf_lightning.modules.reward import RewardModule

from .families import FAMILIES, VOCABULARY, make_family

PAGE = Path(__file__).parents[2] / "docs" / "models.md"
QUICK = ("GPT-2", "OPT, projected (350m)", "GPT-NeoX, Pythia", "Falcon, alibi", "Llama", "Mistral", "Qwen 3", "Gemma 2")
QUICK += ("Phi 3, longrope", "Mamba", "Jamba", "BERT", "GPT-Neo, local layers", "Cohere")
EVERY = [pytest.param(name, marks=[] if name in QUICK else pytest.mark.slow) for name in FAMILIES]
DECODERS = {
    InPlaceDecoder: "in buffers",
    PaddedDecoder: "in buffers",
    CachedDecoder: "in a cache",
    GroupedDecoder: "a cache per prompt length",
    Decoder: "without a cache",
}
SHORT, LONG = ((3, 2, 1, 3), 3), ((3, 12, 9, 2, 11, 5), 12)
"""Tokens of each prompt and of a response: below the windows of 8 tokens and the ropes of 16, and above both."""
TOLERANCE = 2e-5


def tokenizer():
    words = Tokenizer(WordLevel({f"w{number}": number for number in range(VOCABULARY)}, unk_token="w2"))
    return PreTrainedTokenizerFast(tokenizer_object=words, pad_token="w0", eos_token="w1", bos_token="w2")


def prompt_batch(lengths, padding=0):
    width = max(lengths) + padding
    mask = torch.arange(width) >= width - torch.tensor(lengths).unsqueeze(1)
    ids = torch.zeros(len(lengths), width, dtype=torch.long)
    generator = torch.Generator().manual_seed(0)
    for row, length in enumerate(lengths):
        ids[row, width - length :] = torch.randint(3, VOCABULARY, (length,), generator=generator)
    return PromptBatch(ids, mask, torch.arange(len(lengths)), [""] * len(lengths))


def comparison_batch(prompt, response):
    generator = torch.Generator().manual_seed(prompt)
    prompts, responses = [prompt, max(1, prompt - 3)], [[response, max(1, response - 2), response], [response, 1, 1]]
    prompt_mask = torch.arange(prompt) >= prompt - torch.tensor(prompts).unsqueeze(1)
    mask = torch.arange(response) < torch.tensor(responses).unsqueeze(2)
    ids = torch.randint(3, VOCABULARY, (2, prompt), generator=generator)
    response_ids = torch.randint(3, VOCABULARY, (2, 3, response), generator=generator)
    ranks = torch.tensor([[1, 2, 3]] * 2)
    return ComparisonBatch(ids * prompt_mask, prompt_mask, response_ids * mask, mask, ranks, [""] * 2)


@torch.no_grad()
def alone(model, prompt, response):
    """Log-probabilities of a response from the model itself: one row, no mask, no positions, no cache."""
    logits = model(input_ids=torch.cat([prompt, response])[None], use_cache=False).logits[0].log_softmax(-1)
    return logits[len(prompt) - 1 : -1].gather(1, response.unsqueeze(1)).squeeze(1)


def sampled(model, lengths, new):
    """Sample, with padding of two widths; both ways to the log-probabilities are those of each row alone."""
    options = SamplingOptions(new, tuple(range(5, VOCABULARY, 5)), 0)
    rollout = sample_responses(model, prompt_batch(lengths), options)
    wide = sample_responses(model, prompt_batch(lengths, padding=4), options)
    again = response_log_probs(model, rollout)
    assert torch.equal(wide.response_ids, rollout.response_ids), "padding changes what is sampled"
    assert new < 12 or len(set(rollout.response_mask.sum(1).tolist())) > 2, "no row left the batch before another"
    for row, mask in enumerate(rollout.response_mask):
        prompt = rollout.prompts.prompt_ids[row][rollout.prompts.prompt_mask[row]]
        expected = alone(model, prompt, rollout.response_ids[row][mask])
        for found in (rollout.log_probs, wide.log_probs, again):
            torch.testing.assert_close(found[row][mask], expected, atol=TOLERANCE, rtol=0)


def scored(module, prompt, response):
    """Scores of the module and their gradients are those of each row alone; the pass that was taken."""
    batch, model = comparison_batch(prompt, response), module.model
    scores, expected = module.scores(batch), []
    for row in range(2):
        ids = batch.prompt_ids[row][batch.prompt_mask[row]]
        for tokens, mask in zip(batch.response_ids[row], batch.response_mask[row], strict=True):
            hidden = model.backbone(input_ids=torch.cat([ids, tokens[mask]])[None], use_cache=False).last_hidden_state
            expected.append(hidden[0, -1] @ model.head.weight[0])
    expected = torch.stack(expected).view(2, 3)
    torch.testing.assert_close(scores, expected, atol=TOLERANCE, rtol=0)
    weights = list(model.parameters())
    pairs = [torch.autograd.grad(values.square().sum(), weights, allow_unused=True) for values in (scores, expected)]
    slopes = [(found, wanted) for found, wanted in zip(*pairs, strict=True) if wanted is not None]
    largest = max(float(wanted.abs().max()) for _, wanted in slopes)
    for found, wanted in slopes:
        torch.testing.assert_close(found, wanted, atol=TOLERANCE * largest, rtol=0)
    return module.taken


def sampling(model):
    """The column on sampling."""
    sampled(model, *SHORT)
    words = DECODERS[type(decoder(model, prompt_batch([1]), 1))]
    limit = rope_limit(model.config)
    if limit is None:
        sampled(model, *LONG)
        return words
    with pytest.raises(ValueError, match=f"changes the frequencies of its rotary embedding .* above {limit}"):
        sampled(model, *LONG)
    return f"{words}; rows over {limit} refused"


def sharing(model):
    """The column on the scores of several responses to a prompt."""
    torch.manual_seed(0)
    module = RewardModule(ScalarHeadModel.from_causal_lm(model), partial(torch.optim.SGD, lr=0.1))
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        taken = [scored(module, *lengths) for lengths in ((3, 1), (4, 3), (6, 2))]
    words = [str(warning.message) for warning in said if "does not support a shared prefix" in str(warning.message)]
    assert bool(words) == (set(taken) == {separate_scores})
    limit, window = rope_limit(model.config), unwindowed_tokens(model.config)
    if limit is None:
        taken.append(scored(module, 20, 9))
        taken.append(scored(module, 3, 1))
    else:
        with pytest.raises(ValueError, match="changes the frequencies of its rotary embedding"):
            scored(module, 20, 9)
    if set(taken) == {separate_scores}:
        return "a row each"
    if window is not None:
        assert taken == [tree_scores, cached_scores, cached_scores, separate_scores, tree_scores]
        return "shared within the window"
    assert set(taken) == {tree_scores}
    torch.testing.assert_close(
        cached_scores(module.model, comparison_batch(6, 2)), module.scores(comparison_batch(6, 2))
    )
    return "shared" if limit is None else f"shared; rows over {limit} refused"


@torch.no_grad()
def folders(model, folder):
    """The column on the folder of a reward model; the policy's is tried as well."""
    ids = prompt_batch([12] * 2).prompt_ids
    export_causal_lm(model, tokenizer(), folder / "policy")
    policy = load_causal_lm(str(folder / "policy"))
    found, expected = (own(input_ids=ids, use_cache=False).logits for own in (policy, model))
    torch.testing.assert_close(found, expected, atol=TOLERANCE, rtol=0)
    reward = ScalarHeadModel.from_causal_lm(model).eval()
    reward.bias += 1.5
    classifier = check_scalar_export(reward, model.config, tokenizer())
    export_scalar_model(reward, model.config, tokenizer(), folder / "reward")
    scores = reward(ids)
    torch.testing.assert_close(load_scalar_model(str(folder / "reward"))(ids), scores, atol=TOLERANCE, rtol=0)
    assert (folder / "reward" / HEAD_FILE).exists() == (classifier is None)
    if classifier is None:
        return "body and `scalar_head.safetensors`"
    plain = AutoModelForSequenceClassification.from_pretrained(folder / "reward").eval()
    padded = torch.nn.functional.pad(ids, (0, 3))
    found = plain(input_ids=padded, attention_mask=padded != 0).logits[:, 0] + plain.config.reward_bias
    torch.testing.assert_close(found, scores[:, -1], atol=TOLERANCE, rtol=0)
    return f"`{type(plain).__name__}`"


def row_of(name, folder):
    """The row of a family in the table; an `AssertionError` where anything is wrong without a word."""
    try:
        model = make_family(name)
        check_causal(model)
    except ValueError as refusal:
        return f"| {name} | refused: {str(refusal).split('. ')[0]} | | |"
    try:
        reward = sharing(model), folders(model, folder)
    except ValueError as refusal:
        reward = f"refused: {str(refusal).split('. ')[0]}", ""
    return f"| {name} | {sampling(model)} | {reward[0]} | {reward[1]} |"


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
@pytest.mark.parametrize("name", EVERY)
def test_a_family_is_right_or_refused(name, tmp_path):
    row, page = row_of(name, tmp_path), PAGE.read_text(encoding="utf-8")
    if os.environ.get("WRITE_MODELS_PAGE"):
        old = rf"^\| {re.escape(name)} \|.*$"
        page = re.sub(old, lambda _: row, page, flags=re.M) if re.search(old, page, re.M) else f"{page}{row}\n"
        PAGE.write_text(page, encoding="utf-8")
    assert row in page.splitlines()


def test_every_family_has_its_row():
    rows = [line.split(" | ")[0].removeprefix("| ") for line in PAGE.read_text().splitlines() if line.startswith("| ")]
    assert rows == ["Family", *FAMILIES]
