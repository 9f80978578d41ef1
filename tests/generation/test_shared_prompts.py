"""Prompts that repeat, or begin alike, are read once: the same responses, from fewer tokens."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch

from rlhf_lightning.algorithms.batch import PromptBatch
from rlhf_lightning.generation.decoding import Decoder, InPlaceDecoder
from rlhf_lightning.generation.sample import SamplingOptions, sample_responses
from rlhf_lightning.generation.shared_prompts import SHARED_TOKENS, shared_tokens

OPTIONS = SamplingOptions(max_new_tokens=6, eos_token_id=1, pad_token_id=0)
PREFIX = [5, 9, 13, 6, 7, 22, 31, 8, 17, 30]
KINDS = ["gpt2", "llama"]


def batch(*prompts: list[int]) -> PromptBatch:
    width = max(map(len, prompts))
    ids = torch.tensor([[0] * (width - len(prompt)) + prompt for prompt in prompts])
    mask = torch.tensor([[column >= width - len(prompt) for column in range(width)] for prompt in prompts])
    return PromptBatch(ids, mask, torch.arange(len(prompts)), [""] * len(prompts))


@contextmanager
def read_tokens(model: Any) -> Iterator[list[int]]:
    """Tokens of each call of the model, padding too."""
    sizes: list[int] = []
    handle = model.register_forward_pre_hook(
        lambda _, args, kwargs: sizes.append(kwargs["input_ids"].numel()), with_kwargs=True
    )
    yield sizes
    handle.remove()


def step_by_step(steps: Decoder, tokens: torch.Tensor) -> torch.Tensor:
    """Logits of every step in the order of the rows, the first row ending after two."""
    found, logits = [], steps.first()
    for step in range(tokens.shape[1]):
        found.append(logits[steps.rows.argsort()])
        logits = steps.next(tokens[steps.rows, step], (steps.rows > 0) | (step != 1))
    return torch.cat(found)


PROMPTS = {
    "one prompt several times": [[4, 5, 6], [7, 8], [4, 5, 6], [4, 5, 6]],
    "a common beginning": [[*PREFIX, 4, 5, 6], [*PREFIX, 7], [*PREFIX, 3, 3]],
    "both": [[*PREFIX, 4, 5, 6], [*PREFIX, 7], [*PREFIX, 4, 5, 6], [*PREFIX, 7, 4]],
    "one is the beginning of the others": [PREFIX, [*PREFIX, 4], [*PREFIX, 5, 6]],
    "all the same": [PREFIX, PREFIX, PREFIX],
    "zeros that are tokens beside padding": [[0, 4, 5], [4, 5], [0, 4, 5]],
}


@pytest.mark.parametrize("prompts", PROMPTS.values(), ids=PROMPTS)
@pytest.mark.parametrize("kind", KINDS)
def test_logits_are_those_of_reading_all(kind: str, prompts: list[list[int]], make_tiny_lm: Callable[..., Any]) -> None:
    model, asked = make_tiny_lm(kind).eval(), batch(*prompts)
    tokens = torch.arange(5 * len(prompts)).view(len(prompts), 5) + 3
    with torch.no_grad():
        expected = step_by_step(Decoder(model, asked, 6), tokens)
        found = step_by_step(InPlaceDecoder(model, asked, 6), tokens)
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-5)


@pytest.mark.parametrize("kind", KINDS)
def test_under_autocast_too(kind: str, make_tiny_lm: Callable[..., Any]) -> None:
    model, asked = make_tiny_lm(kind).eval(), batch(*PROMPTS["both"])
    tokens = torch.arange(20).view(4, 5) + 3
    with torch.no_grad():
        exact = step_by_step(Decoder(model, asked, 6), tokens)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            rough = step_by_step(Decoder(model, asked, 6), tokens)
            found = step_by_step(InPlaceDecoder(model, asked, 6), tokens)
    # No farther from the exact ones than the plain loop in 16 bits, times two.
    assert (found.float() - exact).abs().mean() < 2 * (rough.float() - exact).abs().mean()


def test_tokens_are_read_once(make_tiny_lm: Callable[..., Any]) -> None:
    model = make_tiny_lm("llama").eval()
    sample_responses(model, batch([4, 5]), OPTIONS)  # the decoder is chosen
    with read_tokens(model) as sizes:
        sample_responses(model, batch(*[[*PREFIX, 4, 5, 6]] * 3), OPTIONS)
    assert sizes[:2] == [12, 1]  # all but the last token of one prompt, then that
    with read_tokens(model) as sizes:
        sample_responses(model, batch([*PREFIX, 4, 5, 6], [*PREFIX, 7, 8, 9], [*PREFIX, 7, 8, 9]), OPTIONS)
    assert sizes[:2] == [10, 6]


def test_what_is_shared_is_more_than_a_few_tokens() -> None:
    few = PREFIX[: SHARED_TOKENS - 1]
    assert shared_tokens(*batch([*few, 4], [*few, 5])[:2]) == 0
    assert shared_tokens(*batch([*PREFIX, 4], [*PREFIX, 5])[:2]) == 10
    assert shared_tokens(*batch(PREFIX, PREFIX)[:2]) == 9
    assert shared_tokens(*batch(PREFIX)[:2]) == 0
