"""Whatever scores responses: one finite number for each, asked by name, added up with weights."""

import math
import re
from functools import partial

import numpy as np
import pytest
import torch

from rlhf_lightning.algorithms.batch import PromptBatch, PromptString, Rollout
from rlhf_lightning.data.records import Prompt
from rlhf_lightning.data.tokenize import Tokenization
from rlhf_lightning.generation.function_reward import call_by_name
from rlhf_lightning.generation.rewards import WeightedSum, response_scores, text_scores
from rlhf_lightning.models.scalar_head import ScalarHeadModel

MANY = ["w3 w4"] * 16


@pytest.fixture
def rollout():
    """Two prompts with fields, and responses of two tokens and of one; both end."""
    texts = [
        PromptString("w5", [{"role": "user", "content": "w5"}], {"answer": "w6", "source": None}),
        PromptString("w7 w8", [{"role": "system", "content": "w9"}], {"answer": "w7", "source": "web"}),
    ]
    ids = torch.tensor([[0, 5], [7, 8]])
    prompts = PromptBatch(ids, ids != 0, torch.arange(2), texts)
    responses = torch.tensor([[6, 9, 1], [7, 1, 0]])
    return Rollout(prompts, responses, responses != 0, torch.zeros(2, 3), torch.tensor([True, True]))


def constant(value):
    def rule(responses):
        return value

    return rule


@pytest.mark.parametrize(
    ("value", "sentence"),
    [
        ([1.0], "returned 1 scores for 16 responses. Return 16 numbers"),
        ([1.0] * 17, "returned 17 scores for 16 responses"),
        ([], "returned 0 scores"),
        (1.0, "returned 1.0 for 16 responses"),
        (None, "returned None for 16 responses"),
        ("0123456789abcdef", "returned '0123456789abcdef' for 16"),
        ({number: 1.0 for number in range(16)}, "returned {0: 1.0"),
        ((1.0 for _ in range(16)), "returned <generator"),
        (torch.ones(1), r"returned a Tensor of shape (1,)"),
        (torch.ones(()), r"returned a Tensor of shape ()"),
        (torch.ones(16, 1), r"returned a Tensor of shape (16, 1)"),
        (np.ones((1, 16)), r"returned a ndarray of shape (1, 16)"),
        ([*[1.0] * 3, None, *[1.0] * 12], "gave row 3, the response 'w3 w4', the score None"),
        ([[1.0]] * 16, "gave row 0, the response 'w3 w4', the score [1.0]"),
        (["1.0"] * 16, "gave row 0, the response 'w3 w4', the score '1.0'"),
        ([*[0.0] * 15, math.nan], "gave row 15, the response 'w3 w4', the score nan"),
        ([math.inf] * 16, "gave row 0, the response 'w3 w4', the score inf"),
        ([1e300] * 16, "gave row 0, the response 'w3 w4', the score 1e+300"),
        ([1j] * 16, "gave row 0, the response 'w3 w4', the score 1j"),
        (torch.full((16,), math.nan), "gave row 0, the response 'w3 w4', the score nan"),
    ],
)
def test_one_finite_score_for_each_response(value, sentence):
    with pytest.raises(ValueError, match=rf"test_rewards:constant.<locals>.rule {re.escape(sentence)}"):
        text_scores(constant(value), MANY, MANY)


@pytest.mark.parametrize(
    "value",
    [(1,) * 16, [True] * 16, [np.float32(1)] * 16, [torch.tensor(1)] * 16, torch.ones(16), np.ones(16, dtype=int)],
)
def test_numbers_of_every_kind_are_scores(value):
    assert text_scores(constant(value), MANY, MANY) == [1.0] * 16


def test_an_error_of_the_function_is_its_own():
    def broken(responses):
        raise LookupError("mine")

    with pytest.raises(LookupError, match=r"^'?mine'?$"):
        text_scores(broken, MANY, MANY)


def test_a_function_asks_by_name(rollout, tiny_tokenizer):
    seen = {}

    def score(responses, answer, messages, source, *, weight=2.0):
        seen.update(locals())
        return [weight * (given in said.split()) for said, given in zip(responses, answer, strict=True)]

    assert response_scores(score, rollout, tiny_tokenizer).tolist() == [2.0, 2.0]
    assert seen["responses"] == ["w6 w9", "w7"]
    assert seen["source"] == [None, "web"]
    assert seen["messages"] == [[{"role": "user", "content": "w5"}], [{"role": "system", "content": "w9"}]]
    assert response_scores(partial(score, weight=3.0), rollout, tiny_tokenizer).tolist() == [3.0, 3.0]


def test_a_function_of_trl_gets_all_fields(rollout, tiny_tokenizer):
    def score(prompts, completions, **kwargs):
        assert list(prompts) == ["w5", "w7 w8"]
        assert kwargs["answer"] == ["w6", "w7"]
        return [float(len(text.split())) for text in completions]

    assert response_scores(score, rollout, tiny_tokenizer).tolist() == [2.0, 1.0]


def test_a_function_without_names_gets_prompts_and_responses(rollout):
    assert call_by_name(lambda p, r, /: list(zip(p, r, strict=True)), ["a"], ["b"]) == [("a", "b")]


def test_a_field_that_no_record_has_is_named(rollout, tiny_tokenizer):
    def score(responses, solution, level="easy"):
        return [1.0] * len(responses)

    with pytest.raises(ValueError, match=r"asks for solution, which no record has. There are prompts.*answer, source"):
        response_scores(score, rollout, tiny_tokenizer)


def test_prompts_of_a_data_set_have_the_fields_of_all(tiny_tokenizer):
    records = [Prompt("w3", source="web"), Prompt("w4", user="me", labels={"hard": True})]
    first, second = (example.text for example in Tokenization(tiny_tokenizer).prompts(records))
    assert first == "w3"
    assert first.messages == [{"role": "user", "content": "w3"}]
    assert first.fields == {"user": None, "source": "web", "hard": None}
    assert second.fields == {"user": "me", "source": None, "hard": True}


def test_a_weighted_sum_adds_rewards_of_any_kind(rollout, make_tiny_lm, tiny_tokenizer):
    model = ScalarHeadModel.from_causal_lm(make_tiny_lm("gpt2")).eval()
    words = [float(len(text.split())) for text in ("w6 w9", "w7")]
    reward = WeightedSum([model, lambda responses: [float(len(text.split())) for text in responses]], [0.5, -2.0])
    with torch.no_grad():
        by_model = [float(model(torch.tensor([row]))[0, -1]) for row in ([5, 6, 9, 1], [7, 8, 7, 1])]
        for tokens in (None, 4, 2**14):
            found = response_scores(reward, rollout, tiny_tokenizer, tokens)
            expected = [0.5 * score - 2 * count for score, count in zip(by_model, words, strict=True)]
            assert found.tolist() == pytest.approx(expected, abs=1e-6)
    assert model in list(reward.modules())  # so it moves and freezes with the sum
    for weights in ([1.0], [1.0, math.nan], [1.0, 2.0, 3.0]):
        with pytest.raises(ValueError, match=r"a finite weight for each reward|^weights must be a list"):
            WeightedSum([model, len], weights)
