import math

import pytest
import torch
from tokenizers import Tokenizer, decoders, models, processors
from torch import nn
from transformers import PreTrainedTokenizerFast

from rlhf_lightning.algorithms.batch import Rollout
from rlhf_lightning.data.examples import LMExample, PromptExample
from rlhf_lightning.data.loader import collate_lm, collate_prompts
from rlhf_lightning.evaluation.policies import (
    PolicySamples,
    _cut,
    _prefixed,
    joined_samples,
    policy_results,
    pretraining_loss,
    sample_policy,
    token_losses,
)
from rlhf_lightning.models.scalar_head import ScalarHeadModel

PROMPTS = [PromptExample([3, 4, 5][: n % 3 + 1], n, f"prompt {n}") for n in range(6)]


class Table(nn.Module):
    """The next token's probabilities depend on the token alone."""

    def __init__(self, rows, vocabulary=40):
        super().__init__()
        self.table = nn.Parameter(torch.full((vocabulary, vocabulary), 1e-30).log())
        with torch.no_grad():
            for token, row in rows.items():
                for following, probability in row.items():
                    self.table[token, following] = math.log(probability)

    def forward(self, input_ids, attention_mask, position_ids):
        return self.table[input_ids]


def by_length(prompts, responses):
    return [float(len(response)) for response in responses]


def by_prompt(prompts, responses):
    return [float(prompt.removeprefix("prompt ")) for prompt in prompts]


def batches(size=4):
    return [collate_prompts(PROMPTS[start : start + size], 0) for start in range(0, len(PROMPTS), size)]


def test_a_policy_has_no_kl_to_itself(tiny_lm, tiny_tokenizer):
    samples = sample_policy(tiny_lm, tiny_lm, batches(), tiny_tokenizer, judge=by_length, max_new_tokens=6)
    assert samples.kl == [0.0] * 6
    assert len(samples.responses) == len(samples.lengths) == 6
    assert samples.scores == [len(response) for response in samples.responses]
    assert samples.rewards == []
    again = sample_policy(tiny_lm, tiny_lm, batches(1), tiny_tokenizer, judge=by_length, max_new_tokens=6)
    assert again.responses == samples.responses
    other = sample_policy(tiny_lm, tiny_lm, batches(), tiny_tokenizer, judge=by_length, max_new_tokens=6, seed=1)
    assert other.responses != samples.responses


def test_kl_and_length_by_hand(tiny_tokenizer):
    prompts = {token: {9: 1.0} for token in (3, 4, 5)}
    policy = Table({**prompts, 9: {10: 0.75, 1: 0.25}, 10: {1: 1.0}})
    reference = Table({**{token: {9: 0.5, 8: 0.5} for token in (3, 4, 5)}, 9: {10: 0.5, 1: 0.5}, 10: {1: 1.0}})
    samples = sample_policy(policy, reference, batches(), tiny_tokenizer, judge=by_length, max_new_tokens=5)
    # log 2 for w9, log(0.75 / 0.5) or log(0.25 / 0.5) after it, 0 for the end after w10
    expected = {"w9 w10": (3.0, math.log(2) + math.log(1.5)), "w9": (2.0, 0.0)}
    assert set(samples.responses) == set(expected)
    for text, length, kl in zip(samples.responses, samples.lengths, samples.kl, strict=True):
        assert (length, kl) == (expected[text][0], pytest.approx(expected[text][1], abs=1e-5))
    greedy = sample_policy(
        policy, reference, batches(), tiny_tokenizer, judge=by_length, max_new_tokens=2, temperature=0.0
    )
    assert greedy.responses == ["w9 w10"] * 6
    assert greedy.lengths == [2.0] * 6  # cut before the end
    assert greedy.kl == [], "one response is no distribution"
    assert policy_results({"greedy": greedy}, "greedy", {})["greedy"]["kl"] is None


def test_the_kl_is_that_of_what_was_sampled(tiny_tokenizer):
    """At temperature 2 probabilities are square roots, normalised: .75 and .25 become .6340 and .3660."""
    prompts = {token: {9: 1.0} for token in (3, 4, 5)}
    policy = Table({**prompts, 9: {10: 0.75, 1: 0.25}, 10: {1: 1.0}})
    reference = Table({**{token: {9: 0.9, 8: 0.1} for token in (3, 4, 5)}, 9: {10: 0.5, 1: 0.5}, 10: {1: 1.0}})
    options = {"judge": by_length, "max_new_tokens": 5, "temperature": 2.0}
    samples = sample_policy(policy, reference, batches(), tiny_tokenizer, **options)
    # The reference gives w9 .9 ** .5 / (.9 ** .5 + .1 ** .5) = .75.
    expected = {
        "w9 w10": -math.log(0.75) + math.log(0.6339746 / 0.5),
        "w9": -math.log(0.75) + math.log(0.3660254 / 0.5),
    }
    assert set(samples.responses) == set(expected)
    assert samples.kl == pytest.approx([expected[text] for text in samples.responses], abs=1e-5)


def test_the_judge_and_the_reward_model_score_the_same_responses(tiny_gpt2, tiny_tokenizer):
    scorers = {"judge": ScalarHeadModel.from_causal_lm(tiny_gpt2).eval(), "reward": by_prompt}
    samples = sample_policy(tiny_gpt2, tiny_gpt2, batches(), tiny_tokenizer, **scorers, max_new_tokens=2)
    assert samples.rewards == [0.0, 1.0, 2.0, 3.0, 4.0, 5.0]
    # The judge reads the prompt's tokens, the response and its end where there is one.
    for example, text, length, score in zip(PROMPTS, samples.responses, samples.lengths, samples.scores, strict=True):
        ids = torch.tensor([[*example.prompt_ids, *tiny_tokenizer(text)["input_ids"], 1]])
        ids = ids[:, : len(example.prompt_ids) + int(length)]
        with torch.no_grad():
            values = scorers["judge"](ids, torch.ones_like(ids, dtype=torch.bool), torch.arange(ids.shape[1])[None])
        assert score == pytest.approx(float(values[0, -1]), abs=1e-5)


def test_pretraining_loss_by_hand():
    model = Table({3: {4: 0.5}, 4: {3: 0.25, 1: 0.125}})
    rows = [LMExample([3, 4, 3, 4, 1], 1), LMExample([4, 3], 1)]
    # log 2 + log 4 + log 2 + log 8 = 7 log 2 in the first row, log 4 in the second, were the tables normalised. They
    # are not: after token 3 (twice) the weights add up to 0.5, after token 4 (three times) to 0.375.
    normaliser = 2 * math.log(0.5) + 3 * math.log(0.375)
    expected = (7 * math.log(2) + 2 * math.log(2) + normaliser) / 5
    assert pretraining_loss(token_losses(model, [collate_lm(rows, 0)])) == pytest.approx(expected, abs=1e-5)
    # Tokens weigh the same, whatever batch they are in.
    assert pretraining_loss(token_losses(model, [collate_lm(rows[:1], 0), collate_lm(rows[1:], 0)])) == pytest.approx(
        expected, abs=1e-5
    )
    assert pretraining_loss(token_losses(model, [])) == 0.0


def test_results_by_hand():
    samples = {
        "sft": PolicySamples(["a", "b"], lengths=[1.0, 3.0], kl=[0.0, 0.0], scores=[0.0, 1.0]),
        "ppo": PolicySamples(["c", "d"], lengths=[2.0, 2.0], kl=[1.0, 2.0], scores=[1.0, 1.0], rewards=[4.0, 6.0]),
    }
    results = policy_results(samples, "sft", {"ppo": 3.25})
    assert list(results) == ["sft", "ppo"]
    assert results["ppo"]["score"] == {"value": 1.0, "low": 1.0, "high": 1.0}
    # A win and a tie of two: Wilson's interval, the roots of (.75 - p)^2 = 1.96^2 p (1 - p) / 2.
    assert results["ppo"]["win_rate"] == pytest.approx({"value": 0.75, "low": 0.197867, "high": 0.973323}, abs=1e-5)
    # Ties are no certain half: the roots of (.5 - p)^2 = 1.96^2 p (1 - p) / 2.
    assert results["sft"]["win_rate"] == pytest.approx({"value": 0.5, "low": 0.094531, "high": 0.905469}, abs=1e-5)
    assert results["ppo"]["reward"] == {"value": 5.0, "low": 4.0, "high": 6.0}
    assert results["sft"]["reward"] is None
    assert (results["ppo"]["kl"], results["ppo"]["length"]) == (1.5, 2.0)
    assert results["ppo"]["intervals"] == {"kl": [1.0, 2.0], "length": [2.0, 2.0]}
    assert results["sft"]["intervals"]["length"] == [1.0, 3.0]
    assert (results["sft"]["pretrain_loss"], results["ppo"]["pretrain_loss"]) == (None, 3.25)


class Counter(nn.Module):
    """After the p-th token of a row comes the word w(5 + p)."""

    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(()))

    def forward(self, input_ids, attention_mask, position_ids):
        return nn.functional.one_hot(position_ids + 6, 40).float() * 50


def test_a_few_shot_prefix_is_read_and_the_response_is_cut(tiny_tokenizer):
    samples = sample_policy(
        Counter(),
        Counter(),
        batches(),
        tiny_tokenizer,
        judge=by_prompt,
        reward=lambda prompts, responses: [float(len(prompt)) for prompt in prompts],
        max_new_tokens=8,
        prefix="w20 w21",
        stop="w12",
    )
    # Prompts of one, two and three tokens after a prefix of two; w12 is the newline and becomes the end.
    assert samples.responses == ["w8 w9 w10 w11", "w9 w10 w11", "w10 w11"] * 2
    assert samples.lengths == [5.0, 4.0, 3.0] * 2
    assert samples.kl == []
    assert samples.scores == [0.0, 1.0, 2.0, 3.0, 4.0, 5.0]
    assert samples.rewards == [8.0] * 6, "the reward model reads the prompt without the prefix"


def test_a_stop_of_several_tokens_and_one_within_a_token(make_pieces):
    """The token with the end of the stop becomes EOS; a newline is found in tokens that have more than it."""
    tokenizer = make_pieces(["a", "b", "\n", ".\n", "c", "d", "e", "f"])
    ids = {name: tokenizer.convert_tokens_to_ids(name) for name in ("a", "b", "\n", ".\n", "c")}

    def cut(stop, *names):
        found = _cut(rollout_of([ids[name] for name in names]), stop, tokenizer)
        return found.response_ids[found.response_mask].tolist()

    assert cut("\n", "a", "\n", "b") == [ids["a"], 1]
    assert cut("\n", "a", ".\n", "b") == [ids["a"], 1]
    assert cut("bc", "a", "b", "c", "a") == [ids["a"], ids["b"], 1]
    assert cut("bc", "a", "c", "b", "a") == [ids[name] for name in "acba"]


@pytest.fixture
def make_pieces():
    """A tokenizer of whole pieces, which writes a BOS before every text."""

    def make(pieces):
        names = ["<pad>", "<eos>", "<unk>", "<s>", *pieces]
        words = Tokenizer(models.BPE({name: number for number, name in enumerate(names)}, [], unk_token="<unk>"))
        words.decoder = decoders.Fuse()
        words.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 3)])
        special = {"pad_token": "<pad>", "eos_token": "<eos>", "unk_token": "<unk>", "bos_token": "<s>"}
        return PreTrainedTokenizerFast(tokenizer_object=words, **special)

    return make


def rollout_of(ids):
    prompts = collate_prompts(PROMPTS[:1], 0)
    row = torch.tensor([ids])
    return Rollout(prompts, row, torch.ones_like(row, dtype=torch.bool), torch.zeros(row.shape), torch.tensor([False]))


def test_a_prefix_and_a_prompt_have_one_bos(make_pieces):
    tokenizer = make_pieces(["a", "b", "c"])
    assert tokenizer("ab")["input_ids"] == [3, 4, 5]
    examples = [PromptExample(tokenizer(text)["input_ids"], n, text) for n, text in enumerate(["a", "bc"])]
    found = _prefixed(collate_prompts(examples, 0), "cc", tokenizer)
    assert found.prompt_ids.tolist() == [[0, 3, 6, 6, 4], [3, 6, 6, 5, 6]]
    assert found.prompt_mask.tolist() == [[False] + [True] * 4, [True] * 5]
    # A template may write the BOS where the tokenizer writes none, and some prompts have none at all.
    tokenizer.backend_tokenizer.post_processor = processors.TemplateProcessing(single="$A", special_tokens=[])
    bare = [PromptExample([4], 0, "a"), PromptExample([3, 5], 1, "b")]
    found = _prefixed(collate_prompts(bare, 0), "cc", tokenizer)
    assert found.prompt_ids.tolist() == [[0, 6, 6, 4], [3, 6, 6, 5]]


def test_further_judges_metadata_and_probes_are_summed_up():
    def samples(scores, judged, flags):
        own = PolicySamples(["x"] * 4, [1.0] * 4, [0.0] * 4, scores)
        own.judges, own.metadata = {"people": judged}, {"rude": flags, "never": [None] * 4}
        own.probes = {"qa": {"right": [1.0, 0.0, 0.0, 0.0]}}
        return own

    found = policy_results(
        {
            "sft": samples([0.0] * 4, [1.0, 1.0, 1.0, 1.0], [None, 1.0, 1.0, 0.0]),
            "ppo": samples([1.0] * 4, [2.0, 0.0, 1.0, 2.0], [0.0, None, None, 1.0]),
        },
        "sft",
        {},
    )
    assert found["ppo"]["judges"]["people"]["value"] == 0.625
    assert found["sft"]["judges"]["people"]["value"] == 0.5
    assert found["sft"]["metadata"]["rude"]["value"] == pytest.approx(2 / 3)
    assert found["ppo"]["metadata"] == {"rude": found["ppo"]["metadata"]["rude"], "never": None}
    assert found["ppo"]["metadata"]["rude"]["value"] == 0.5
    assert found["ppo"]["probes"]["qa"]["right"]["value"] == 0.25
    assert found["ppo"]["metadata"]["rude"]["low"] > 0, "flags have Wilson's interval"


def test_rows_that_share_a_prompt_are_one():
    """Six rows of two prompts: everything is as wide as of the two, and a share as of hardly any."""
    own = PolicySamples(["x"] * 6, [1.0, 1.0, 1.0, 3.0, 3.0, 3.0], [0.0] * 6, [1.0] * 6)
    own.metadata = {"rude": [None, 1.0, 1.0, 0.0, 0.0, None]}
    apart, together = (policy_results({"sft": own}, "sft", {}, prompts)["sft"] for prompts in (None, [*"aaabbb"]))
    assert together["intervals"]["length"] == [1.0, 3.0]
    low, high = apart["intervals"]["length"]
    assert 1.0 < low < high < 3.0
    assert together["metadata"]["rude"]["high"] > 0.99 > apart["metadata"]["rude"]["high"]


def test_batches_are_joined_with_none_where_one_has_nothing():
    parts = [
        PolicySamples(["a"], [1.0], judges={"ann": [2.0]}, metadata={"rude": [1.0]}),
        PolicySamples(["b", "c"], [2.0, 3.0], judges={"ann": [3.0, 4.0]}),
    ]
    assert joined_samples(parts) == PolicySamples(
        ["a", "b", "c"], [1.0, 2.0, 3.0], judges={"ann": [2.0, 3.0, 4.0]}, metadata={"rude": [1.0, None, None]}
    )
