import math

import pytest
import torch
from torch import nn

from rlhf_lightning.algorithms.batch import PromptBatch, Rollout
from rlhf_lightning.algorithms.keyed_random import keyed_uniforms
from rlhf_lightning.generation.inverse_cdf import inverse_cdf_sample
from rlhf_lightning.generation.sample import (
    SamplingOptions,
    response_log_probs,
    response_texts,
    sample_responses,
    select_rows,
    token_id,
)

PAD, EOS = 0, 1


def prompt_batch(prompts, indices=None, extra_padding=0):
    """Prompts as lists of ids, padded on the left."""
    width = max(map(len, prompts)) + extra_padding
    ids = torch.full((len(prompts), width), PAD)
    mask = torch.zeros(len(prompts), width, dtype=torch.bool)
    for row, prompt in enumerate(prompts):
        ids[row, width - len(prompt) :] = torch.tensor(prompt)
        mask[row, width - len(prompt) :] = True
    index = torch.tensor(range(len(prompts)) if indices is None else indices)
    return PromptBatch(ids, mask, index, [" ".join(map(str, prompt)) for prompt in prompts])


def ragged_prompts(count, seed=0):
    generator = torch.Generator().manual_seed(seed)
    lengths = torch.randint(1, 8, (count,), generator=generator).tolist()
    return [torch.randint(3, 40, (length,), generator=generator).tolist() for length in lengths]


def responses(rollout):
    return [ids[mask].tolist() for ids, mask in zip(rollout.response_ids, rollout.response_mask, strict=True)]


def sample(model, prompts, **changes):
    key = changes.pop("key", (7, 3))
    options = SamplingOptions(**{"max_new_tokens": 12, "eos_token_id": EOS, "pad_token_id": PAD, **changes})
    return sample_responses(model, prompts, options, key)


def likely_eos(model, raised_by=2.0):
    """A model that often ends, so that rows leave the batch at different times."""
    head = model.get_output_embeddings()
    bias = torch.zeros(head.weight.shape[0])
    bias[EOS] = raised_by
    model.lm_head.register_forward_hook(lambda module, inputs, output: output + bias.to(output.dtype))
    return model


class Plain(nn.Module):
    """Any module that maps ids and mask to logits: no cache, nothing of transformers in sight."""

    def __init__(self, model):
        super().__init__()
        self.model = model

    def forward(self, input_ids, attention_mask, position_ids):
        return self.model(
            input_ids=input_ids, attention_mask=attention_mask, position_ids=position_ids, use_cache=False
        ).logits


class Table(nn.Module):
    """The next token depends on the last one only: ``logits[last]``."""

    def __init__(self, logits):
        super().__init__()
        self.logits = logits

    def forward(self, input_ids, attention_mask, position_ids):
        return self.logits[input_ids]


def chain(successor, vocabulary=8):
    """A table in which each token has exactly one successor."""
    logits = torch.full((vocabulary, vocabulary), -math.inf)
    for token in range(vocabulary):
        logits[token, successor.get(token, token)] = 0.0
    return Table(logits)


# Random numbers


def splitmix64(state):
    """One output of SplitMix64, in Python's unbounded integers."""
    bits = 2**64 - 1
    state = (state + 0x9E3779B97F4A7C15) & bits
    state = ((state ^ (state >> 30)) * 0xBF58476D1CE4E5B9) & bits
    state = ((state ^ (state >> 27)) * 0x94D049BB133111EB) & bits
    return state ^ (state >> 31)


def test_keyed_uniforms_are_splitmix64():
    assert splitmix64(1234567) == 6457827717110365317  # the first number of its published test vector
    key, indices, count = (42, -3, 2**40), [0, 1, 5, 2**33], 4
    state = 0
    for number in key:
        state = splitmix64((state + number) % 2**64)
    expected = [
        [(splitmix64((splitmix64((state + index) % 2**64) + t) % 2**64) >> 20) / 2**44 for t in range(count)]
        for index in indices
    ]
    assert keyed_uniforms(key, torch.tensor(indices), count).tolist() == expected


def kolmogorov_distance(numbers):
    ordered = numbers.flatten().sort().values
    n = len(ordered)
    above = torch.arange(1, n + 1, dtype=torch.float64) / n - ordered
    return float(torch.maximum(above, 1 / n - above).max())


@pytest.mark.parametrize("along", ["rows", "columns", "seeds", "iterations"])
def test_keyed_uniforms_are_uniform_and_uncorrelated(along):
    n = 4000
    if along == "rows":
        numbers = keyed_uniforms((0,), torch.arange(n), 1)[:, 0]
    elif along == "columns":
        numbers = keyed_uniforms((0,), torch.tensor([5]), n)[0]
    elif along == "seeds":
        numbers = torch.cat([keyed_uniforms((seed, 0), torch.tensor([0]), 1)[0] for seed in range(n)])
    else:
        numbers = torch.cat([keyed_uniforms((0, number), torch.tensor([0]), 1)[0] for number in range(n)])
    assert numbers.dtype == torch.float64
    assert float(numbers.min()) >= 0.0
    assert float(numbers.max()) < 1.0
    # 1.95 / sqrt(n) is passed by one sample in a thousand; these numbers are fixed.
    assert kolmogorov_distance(numbers) < 1.95 / n**0.5
    centred = numbers - 0.5
    for lag in (1, 2, 7):
        correlation = float((centred[lag:] * centred[:-lag]).mean() * 12)
        assert abs(correlation) < 3.3 / n**0.5


def test_keyed_uniforms_do_not_depend_on_the_batch():
    whole = keyed_uniforms((1, 2), torch.arange(10), 6)
    assert torch.equal(keyed_uniforms((1, 2), torch.tensor([7, 2]), 6), whole[[7, 2]])
    assert torch.equal(keyed_uniforms((1, 2), torch.arange(10), 3), whole[:, :3])


def test_different_keys_give_different_numbers():
    keys = [(), (0,), (1,), (-1,), (0, 0), (0, 1), (1, 0), (1, 2), (2, 1)]
    drawn = [tuple(keyed_uniforms(key, torch.arange(3), 4).flatten().tolist()) for key in keys]
    assert len(set(drawn)) == len(keys)
    assert len({number for numbers in drawn for number in numbers}) == len(keys) * 12


# One token


def test_sampling_frequencies_are_the_softmax():
    probabilities = torch.tensor([0.4, 0.25, 0.2, 0.1, 0.04, 0.01])
    n = 20000
    uniforms = keyed_uniforms((0,), torch.arange(n), 1)[:, 0]
    tokens, _ = inverse_cdf_sample(probabilities.log().expand(n, -1) + 3.0, uniforms)
    counts = torch.bincount(tokens, minlength=6)
    expected = probabilities * n
    # chi-square with 5 degrees of freedom passes 20.5 once in a thousand
    assert float(((counts - expected) ** 2 / expected).sum()) < 20.5


def test_the_token_is_where_the_cumulative_distribution_passes_the_number():
    # Cumulative: 0.5, 0.75, 1.
    logits = torch.tensor([0.5, 0.25, 0.25]).log().expand(6, -1)
    uniforms = torch.tensor([0.0, 0.499, 0.501, 0.749, 0.751, 1 - 2**-44], dtype=torch.float64)
    assert inverse_cdf_sample(logits, uniforms)[0].tolist() == [0, 0, 1, 1, 2, 2]


def test_a_token_of_probability_zero_is_never_chosen():
    logits = torch.tensor([-math.inf, 0.0, -math.inf, -math.inf, 1.0, -math.inf])
    edges = torch.tensor([0.0, 2**-44, 1 / (1 + math.e), 1 - 2**-44], dtype=torch.float64)
    uniforms = torch.cat([edges, keyed_uniforms((3,), torch.arange(5000), 1)[:, 0]])
    tokens, _ = inverse_cdf_sample(logits.expand(len(uniforms), -1), uniforms)
    assert set(tokens.tolist()) == {1, 4}


# Sequences


def test_sampled_sequences_follow_the_model():
    # Tokens 2, 3, 4 and EOS; each transition has its own distribution.
    table = torch.zeros(5, 5)
    table[2] = torch.tensor([0.0, 0.1, 0.2, 0.3, 0.4])
    table[3] = torch.tensor([0.0, 0.3, 0.1, 0.1, 0.5])
    table[4] = torch.tensor([0.0, 0.2, 0.6, 0.1, 0.1])
    n = 6000
    rollout = sample(Table(table.log()), prompt_batch([[2]] * n), max_new_tokens=4)
    counts = torch.zeros(5, 5)
    for response in responses(rollout):
        for before, after in zip([2, *response], response, strict=False):
            counts[before, after] += 1
    assert counts[0].sum() == counts[1].sum() == counts[:, 0].sum() == 0
    for token in (2, 3, 4):
        expected = table[token, 1:] * counts[token].sum()
        # chi-square with 3 degrees of freedom passes 16.3 once in a thousand
        assert float(((counts[token, 1:] - expected) ** 2 / expected).sum()) < 16.3


def test_temperature_divides_the_logits():
    n = 20000
    logits = torch.tensor([-math.inf, -math.inf, math.log(0.2), math.log(0.8)]).expand(4, 4)
    rollout = sample(Table(logits), prompt_batch([[2]] * n), max_new_tokens=1, temperature=0.5)
    share = float((rollout.response_ids == 3).double().mean())
    expected = 0.8**2 / (0.2**2 + 0.8**2)
    assert share == pytest.approx(expected, abs=3.3 * (expected * (1 - expected) / n) ** 0.5)
    log_prob = float(rollout.log_probs[rollout.response_ids == 3][0])
    assert log_prob == pytest.approx(math.log(expected), abs=1e-6)


def test_a_response_ends_with_its_first_eos():
    # 2 -> EOS at once; 3 -> 4 -> EOS; 5 -> 5 for ever. After EOS the model would like to go on with 7.
    model = chain({2: EOS, 3: 4, 4: EOS, 5: 5, EOS: 7})
    rollout = sample(model, prompt_batch([[6, 2], [3], [5]]), max_new_tokens=4)
    assert rollout.response_ids.tolist() == [[EOS, PAD, PAD, PAD], [4, EOS, PAD, PAD], [5, 5, 5, 5]]
    assert rollout.response_mask.tolist() == [[True, False, False, False], [True, True, False, False], [True] * 4]
    assert rollout.ended.tolist() == [True, True, False]
    assert (rollout.log_probs == 0).all()  # each step was certain


def test_the_rollout_is_as_wide_as_its_longest_response():
    rollout = sample(chain({2: EOS, 3: 4, 4: EOS}), prompt_batch([[2], [3]]), max_new_tokens=9)
    assert rollout.response_ids.shape == (2, 2)
    assert rollout.ended.tolist() == [True, True]


def test_pad_and_eos_must_differ():
    with pytest.raises(ValueError, match="pad_token_id and eos_token_id are both 1"):
        sample(chain({}), prompt_batch([[2]]), pad_token_id=EOS)


@pytest.mark.parametrize("may_end", [False, True])
def test_greedy_is_what_transformers_generates(tiny_lm, may_end):
    model = likely_eos(tiny_lm) if may_end else tiny_lm
    prompts = prompt_batch(ragged_prompts(8))
    rollout = sample(model, prompts, max_new_tokens=15, temperature=0.0)
    generated = model.generate(
        input_ids=prompts.prompt_ids,
        attention_mask=prompts.prompt_mask.long(),
        do_sample=False,
        max_new_tokens=15,
        pad_token_id=PAD,
        eos_token_id=EOS,
    )[:, prompts.prompt_ids.shape[1] :]
    assert rollout.response_ids.tolist() == generated.tolist()
    if may_end:
        assert len(set(rollout.response_mask.sum(1).tolist())) > 2


def test_sampled_log_probs_equal_recomputed_ones(tiny_lm):
    rollout = sample(likely_eos(tiny_lm), prompt_batch(ragged_prompts(12)), max_new_tokens=16)
    assert len(set(rollout.response_mask.sum(1).tolist())) > 3
    with torch.no_grad():
        again = response_log_probs(tiny_lm, rollout)
    mask = rollout.response_mask
    torch.testing.assert_close(again[mask], rollout.log_probs[mask], atol=1e-4, rtol=0)
    assert float(rollout.log_probs[mask].std()) > 0.1
    assert (rollout.log_probs[~mask] == 0).all()


@pytest.mark.parametrize("temperature", [1.0, 0.7])
def test_response_log_probs_are_those_of_each_sequence_alone(tiny_lm, temperature):
    prompts = ragged_prompts(6)
    rollout = sample(likely_eos(tiny_lm), prompt_batch(prompts, extra_padding=2))
    log_probs = response_log_probs(tiny_lm, rollout, temperature)
    assert (log_probs[~rollout.response_mask] == 0).all()
    for row, (prompt, response) in enumerate(zip(prompts, responses(rollout), strict=True)):
        alone = tiny_lm(input_ids=torch.tensor([prompt + response])).logits[0] / temperature
        expected = alone.log_softmax(-1)[len(prompt) - 1 : -1].gather(1, torch.tensor(response).unsqueeze(1))
        torch.testing.assert_close(log_probs[row, : len(response)], expected.squeeze(1), atol=1e-4, rtol=1e-4)


def test_responses_do_not_depend_on_how_prompts_are_batched(tiny_lm):
    model, prompts = likely_eos(tiny_lm), ragged_prompts(12)
    indices = [3 * number + 1 for number in range(12)]
    whole = sample(model, prompt_batch(prompts, indices), max_new_tokens=16)
    expected, log_probs = (
        responses(whole),
        [row[mask] for row, mask in zip(whole.log_probs, whole.response_mask, strict=True)],
    )
    # Rows end at different times, so that idle rows are kept for a while and dropped.
    assert len(set(map(len, expected))) > 3
    assert min(map(len, expected)) < 5
    order = torch.randperm(12, generator=torch.Generator().manual_seed(1)).tolist()
    splits = {
        "alone": [[number] for number in range(12)],
        "shuffled": [order],
        "uneven": [order[:5], order[5:7], order[7:]],
    }
    for name, split in splits.items():
        for chosen in split:
            batch = prompt_batch([prompts[n] for n in chosen], [indices[n] for n in chosen])
            part = sample(model, batch, max_new_tokens=16)
            assert responses(part) == [expected[n] for n in chosen], name
            for row, number in enumerate(chosen):
                mask = part.response_mask[row]
                torch.testing.assert_close(part.log_probs[row, mask], log_probs[number], atol=1e-4, rtol=0)
    padded = sample(model, prompt_batch(prompts, indices, extra_padding=5), max_new_tokens=16)
    assert responses(padded) == expected


def test_what_stands_in_the_padding_does_not_matter(tiny_lm):
    prompts = prompt_batch(ragged_prompts(6))
    garbage = prompts._replace(prompt_ids=torch.where(prompts.prompt_mask, prompts.prompt_ids, 17))
    assert responses(sample(tiny_lm, garbage)) == responses(sample(tiny_lm, prompts))


def test_a_plain_module_without_cache_gives_the_same_responses(tiny_lm):
    prompts = prompt_batch(ragged_prompts(10))
    cached = sample(likely_eos(tiny_lm), prompts)
    plain = sample(Plain(tiny_lm), prompts)
    assert torch.equal(plain.response_ids, cached.response_ids)
    assert torch.equal(plain.response_mask, cached.response_mask)
    torch.testing.assert_close(plain.log_probs, cached.log_probs, atol=1e-4, rtol=0)
    with torch.no_grad():
        torch.testing.assert_close(response_log_probs(Plain(tiny_lm), plain), response_log_probs(tiny_lm, cached))


def test_ended_rows_leave_the_batch():
    """Compute follows the rows that go on, and the rows that stay are not touched."""
    sizes = []
    model = chain({2: EOS, 3: 3, 4: 5, 5: EOS})
    model.register_forward_pre_hook(
        lambda module, args, kwargs: sizes.append(len(kwargs["input_ids"])), with_kwargs=True
    )
    rollout = sample(model, prompt_batch([[2], [3], [2], [4], [2]]), max_new_tokens=5)
    assert responses(rollout) == [[EOS], [3] * 5, [EOS], [5, EOS], [EOS]]
    assert sizes[0] == 5
    assert sizes[-1] == 1


def test_the_key_sets_the_responses(tiny_gpt2):
    prompts = prompt_batch(ragged_prompts(4))
    first, again, other = (responses(sample(tiny_gpt2, prompts, key=key)) for key in [(0, 1), (0, 1), (0, 2)])
    assert first == again
    assert first != other


def test_sampling_leaves_the_global_random_state_alone(tiny_gpt2):
    before = torch.get_rng_state()
    sample(tiny_gpt2, prompt_batch(ragged_prompts(2)))
    assert torch.equal(torch.get_rng_state(), before)


def test_a_model_of_64_bits_can_be_sampled(make_tiny_lm):
    sample(make_tiny_lm("gpt2", dtype=torch.float64), prompt_batch([[3, 4]]))


# Rollouts


def test_select_rows_keeps_the_rows_and_drops_empty_columns(tiny_lm):
    prompts = ragged_prompts(10, seed=4)
    rollout = sample(likely_eos(tiny_lm), prompt_batch(prompts, range(20, 30)), max_new_tokens=16)
    short = sorted(range(10), key=lambda row: len(responses(rollout)[row]))[:3]
    part = select_rows(rollout, torch.tensor(short))
    assert responses(part) == [responses(rollout)[row] for row in short]
    kept = [ids[mask].tolist() for ids, mask in zip(part.prompts.prompt_ids, part.prompts.prompt_mask, strict=True)]
    assert kept == [prompts[row] for row in short]
    assert part.prompts.prompt_ids.shape[1] == max(len(prompts[row]) for row in short)
    assert part.response_ids.shape[1] == max(map(len, responses(part)))
    assert part.prompts.prompt_index.tolist() == [20 + row for row in short]
    assert part.prompts.texts == [rollout.prompts.texts[row] for row in short]
    assert part.ended.tolist() == [bool(rollout.ended[row]) for row in short]
    whole, log_probs = response_log_probs(tiny_lm, rollout), response_log_probs(tiny_lm, part)
    for row, number in enumerate(short):
        length = len(responses(part)[row])
        torch.testing.assert_close(log_probs[row, :length], whole[number, :length], atol=1e-4, rtol=1e-4)
        torch.testing.assert_close(part.log_probs[row, :length], rollout.log_probs[number, :length])


def test_response_texts_leave_out_eos_and_padding(tiny_tokenizer):
    rollout = Rollout(
        prompt_batch([[3], [4]]),
        torch.tensor([[5, 6, EOS, PAD], [7, 8, 9, 10]]),
        torch.tensor([[True, True, True, False], [True] * 4]),
        torch.zeros(2, 4),
        torch.tensor([True, False]),
    )
    assert response_texts(tiny_tokenizer, rollout) == ["w5 w6", "w7 w8 w9 w10"]


def test_the_options_of_a_tokenizer(tiny_tokenizer):
    assert SamplingOptions.from_tokenizer(tiny_tokenizer, 5) == SamplingOptions(5, EOS, PAD, 1.0)
    assert SamplingOptions.from_tokenizer(tiny_tokenizer, 5, 0.7).temperature == 0.7
    tiny_tokenizer.pad_token = None
    with pytest.raises(ValueError, match="must be one token each, got None"):
        SamplingOptions.from_tokenizer(tiny_tokenizer, 5)


def test_token_id_wants_one_number(tiny_tokenizer):
    assert token_id(tiny_tokenizer.pad_token_id) == PAD
    assert token_id(tiny_tokenizer.eos_token_id) == EOS
    for value in (None, [1, 2]):
        with pytest.raises(ValueError, match="must be one token each"):
            token_id(value)
