"""Sampling batches: what fits into the memory, and that no response depends on them."""

from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import torch
from transformers import LlamaConfig

from rlhf_lightning.algorithms.batch import PromptBatch, Rollout
from rlhf_lightning.data.examples import PromptExample
from rlhf_lightning.data.loader import collate_prompts
from rlhf_lightning.generation import sampling_batches
from rlhf_lightning.generation.engines import make_sampler
from rlhf_lightning.generation.sample import SamplingOptions, response_log_probs, sample_responses
from rlhf_lightning.generation.sampling_batches import SamplingBatches, in_scoring_batches, rows_within
from rlhf_lightning.models.lora import add_adapters

OPTIONS = SamplingOptions(9, 1, 0)
SMOLLM2 = LlamaConfig(
    vocab_size=49_152, hidden_size=576, num_hidden_layers=30, num_attention_heads=9, num_key_value_heads=3
)


def prompts() -> PromptBatch:
    """Of 1 to 7 tokens; the first comes three times."""
    examples = [
        PromptExample([3 + (7 * row + n) % 30 for n in range(1 + row % 7)], row, f"p{row}") for row in range(12)
    ]
    return collate_prompts([examples[row] for row in (0, 5, 0, *range(1, 12), 0)], 0)


class Counting:
    """Our loop, which keeps how many rows and columns it was asked for."""

    def __init__(self) -> None:
        self.sizes: list[tuple[int, int]] = []

    def __call__(self, model: Any, asked: PromptBatch, *others: Any) -> Rollout:
        self.sizes.append((len(asked.texts), asked.prompt_ids.shape[1]))
        return sample_responses(model, asked, *others)


@pytest.mark.parametrize("tokens", [1, 40, 100])
def test_responses_do_not_depend_on_the_batches(tiny_lm: Any, tokens: int) -> None:
    counting = Counting()
    whole = sample_responses(tiny_lm, prompts(), OPTIONS, (3, 1))
    parts = SamplingBatches(counting, tokens)(tiny_lm, prompts(), OPTIONS, (3, 1))
    assert sum(rows for rows, _ in counting.sizes) == 15
    assert all(rows == 1 or rows * (width + 9) <= tokens for rows, width in counting.sizes)
    assert len(counting.sizes) > 1
    for name in ("response_ids", "response_mask", "ended"):
        assert torch.equal(getattr(parts, name), getattr(whole, name)), name
    torch.testing.assert_close(parts.log_probs, whole.log_probs, atol=1e-6, rtol=1e-6)
    assert parts.prompts.prompt_index.tolist() == prompts().prompt_index.tolist()
    assert len({tuple(parts.response_ids[row].tolist()) for row in (0, 2, 14)}) > 1, "a prompt is answered anew"


def test_what_fits_is_one_batch_and_left_as_it_is(tiny_gpt2: Any) -> None:
    counting = Counting()
    SamplingBatches(counting, 15 * 16)(tiny_gpt2, prompts(), OPTIONS, (0,))
    assert counting.sizes == [(15, 7)]
    whole, own = (each(tiny_gpt2, prompts(), OPTIONS, (0,)) for each in (sample_responses, make_sampler()))
    assert torch.equal(whole.log_probs, own.log_probs)


def test_the_loop_is_bounded_by_the_memory_and_other_engines_see_to_it_themselves(
    tiny_gpt2: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    row = 16 * 2 * 2 * 32 * 4 + 24 * 40  # 16 tokens, keys and values of 2 layers of width 32; logits of 40 tokens
    monkeypatch.setattr(sampling_batches, "available_memory", lambda device: 4 * (5 * row))
    counting = Counting()
    monkeypatch.setattr(sampling_batches, "sample_responses", counting)
    SamplingBatches(counting)(tiny_gpt2, prompts(), OPTIONS, (0,))
    assert counting.sizes[0] == (5, 7)
    assert len(counting.sizes) == 3
    other = Counting()
    SamplingBatches(other)(tiny_gpt2, prompts(), OPTIONS, (0,))
    assert other.sizes == [(15, 7)]


def test_512_episodes_of_1024_tokens_fit_into_16_gib() -> None:
    """Keys and values of all together would be 24 GiB: 2 x 30 layers x 3 heads x 64 numbers x 4 bytes a token."""
    assert 512 * 1024 * 2 * 30 * 3 * 64 * 4 > 22 * 2**30
    rows = rows_within(SMOLLM2, 4, 1024, 16 * 2**30)
    assert 80 < rows < 90
    assert rows * 1024 * 2 * 30 * 3 * 64 * 4 < 4 * 2**30


def test_equal_prompts_stay_in_one_batch(tiny_gpt2: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """As in collect, where each prompt is asked K times: it is read once."""
    examples = [PromptExample([4 + row, 5, 6], row, f"p{row}") for row in range(3)]
    asked = collate_prompts([examples[row % 3] for row in range(9)], 0)
    seen: list[set[int]] = []

    def sampler(model: Any, part: PromptBatch, *others: Any) -> Rollout:
        seen.append({int(row[0]) for row in part.prompt_ids})
        return sample_responses(model, part, *others)

    SamplingBatches(sampler, 3 * 12)(tiny_gpt2, asked, OPTIONS, (0,))
    assert sorted(map(sorted, seen)) == [[4], [5], [6]]


def test_adapters_count_in_every_batch(tiny_llama: Any) -> None:
    add_adapters(tiny_llama.double(), rank=2)
    for name, weight in tiny_llama.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(weight, std=0.3)
    whole, parts = (
        each(tiny_llama, prompts(), OPTIONS, (1,)) for each in (sample_responses, SamplingBatches(tokens=40))
    )
    assert torch.equal(parts.response_ids, whole.response_ids)
    torch.testing.assert_close(parts.log_probs, whole.log_probs, atol=1e-6, rtol=1e-6)


@pytest.mark.parametrize("tokens", [1, 30, 10_000])
def test_figures_do_not_depend_on_scoring_batches(make_tiny_lm: Callable[..., Any], tokens: int) -> None:
    model = make_tiny_lm("llama")
    rollout = sample_responses(model, prompts(), OPTIONS, (2,))
    figure = partial(response_log_probs, model)
    torch.testing.assert_close(in_scoring_batches(rollout, figure, tokens), figure(rollout), atol=1e-6, rtol=1e-6)
    lengths = in_scoring_batches(rollout, lambda part: part.lengths.float(), tokens)
    assert lengths.tolist() == rollout.lengths.tolist()


def test_wrong_numbers_are_refused() -> None:
    with pytest.raises(ValueError, match="batch_tokens must be"):
        make_sampler(batch_tokens=0)
