import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from rlhf_lightning.algorithms.functional import token_log_probs
from rlhf_lightning.models import log_probs as module
from rlhf_lightning.models import padding
from rlhf_lightning.models.forward import token_logits
from rlhf_lightning.models.log_probs import causal_log_probs, linear_log_probs
from rlhf_lightning.models.padding import position_ids

IDS = torch.tensor([[3, 4, 5, 6, 7]])


class Plain(torch.nn.Module):
    """Maps ids and mask to logits, with nothing of transformers in sight."""

    def __init__(self, model):
        super().__init__()
        self.model = model

    def forward(self, input_ids, attention_mask, position_ids):
        return self.model(input_ids, attention_mask=attention_mask, position_ids=position_ids).logits


def test_logits_of_any_module(tiny_lm):
    mask = torch.ones_like(IDS, dtype=torch.bool)
    for model in (tiny_lm, Plain(tiny_lm)):
        torch.testing.assert_close(token_logits(model, IDS, mask, position_ids(mask)), tiny_lm(IDS).logits)


# The head in chunks


def by_hand(hidden, weight, target, temperature):
    logits = [sum(h * w for h, w in zip(hidden, row, strict=True)) / temperature for row in weight]
    return logits[target] - math.log(sum(map(math.exp, logits)))


@given(st.integers(1, 7), st.integers(1, 9), st.integers(0, 10**6), st.sampled_from([1.0, 0.5, 3.0]))
def test_log_probs_by_hand(tokens, vocabulary, seed, temperature):
    generator = torch.Generator().manual_seed(seed)
    hidden = torch.randn(tokens, 3, generator=generator, dtype=torch.float64)
    weight = torch.randn(vocabulary, 3, generator=generator, dtype=torch.float64)
    targets = torch.randint(vocabulary, (tokens,), generator=generator)
    found = linear_log_probs(hidden, weight, targets, temperature).tolist()
    for row, target, value in zip(hidden.tolist(), targets.tolist(), found, strict=True):
        assert value == pytest.approx(by_hand(row, weight.tolist(), target, temperature), abs=1e-12)


@pytest.mark.parametrize("kept", [0, 2**25], ids=["computed again", "kept"])
@pytest.mark.parametrize("chunk", [1, 22, 2**22])
@pytest.mark.parametrize("columns", [1, 11, 8], ids=["as on a CPU", "a multiple already", "filled up"])
def test_gradients_are_those_of_finite_differences(monkeypatch, kept, chunk, columns):
    monkeypatch.setattr(module, "_sizes", lambda _: module._Sizes(chunk, kept, columns))
    generator = torch.Generator().manual_seed(0)
    hidden = torch.randn(5, 3, generator=generator, dtype=torch.float64, requires_grad=True)
    weight = torch.randn(11, 3, generator=generator, dtype=torch.float64, requires_grad=True)
    targets = torch.tensor([0, 10, 3, 3, 7])
    # Twice: the second pass finds nothing kept.
    assert torch.autograd.gradcheck(lambda h, w: linear_log_probs(h, w, targets, 0.7), (hidden, weight))
    loss = linear_log_probs(hidden, weight, targets).sum()
    first, second = (torch.autograd.grad(loss, (hidden, weight), retain_graph=True) for _ in range(2))
    for one, other in zip(first, second, strict=True):
        torch.testing.assert_close(one, other)


def test_chunks_change_nothing(monkeypatch):
    generator = torch.Generator().manual_seed(1)
    hidden, weight = torch.randn(40, 8, generator=generator), torch.randn(100, 8, generator=generator)
    targets = torch.randint(100, (40,), generator=generator)
    expected = token_log_probs(hidden @ weight.t(), targets)
    for chunk in (1, 250, 10**6):
        monkeypatch.setattr(module, "CHUNK", chunk)
        torch.testing.assert_close(linear_log_probs(hidden, weight, targets), expected, atol=1e-5, rtol=1e-5)


def test_the_result_is_the_same_bit_for_bit_with_and_without_gradient():
    generator = torch.Generator().manual_seed(2)
    hidden = torch.randn(40, 8, generator=generator, requires_grad=True)
    weight, targets = torch.randn(100, 8, generator=generator), torch.randint(100, (40,), generator=generator)
    with torch.no_grad():
        without = linear_log_probs(hidden, weight, targets)
    assert torch.equal(linear_log_probs(hidden, weight, targets), without)


def test_sixteen_bits_are_normalised_in_thirty_two():
    generator = torch.Generator().manual_seed(3)
    hidden = torch.randn(6, 8, generator=generator, dtype=torch.bfloat16, requires_grad=True)
    weight = torch.randn(50, 8, generator=generator, dtype=torch.bfloat16)
    targets = torch.arange(6)
    found = linear_log_probs(hidden, weight, targets)
    assert found.dtype == torch.float32
    torch.testing.assert_close(found, (hidden @ weight.t()).float().log_softmax(1)[targets, targets])
    found.sum().backward()
    assert hidden.grad.dtype == torch.bfloat16


def test_no_tokens_are_no_log_probs():
    hidden = torch.zeros(0, 3, requires_grad=True)
    found = linear_log_probs(hidden, torch.zeros(4, 3), torch.zeros(0, dtype=torch.long))
    assert found.shape == (0,)
    found.sum().backward()


# Models


def ragged(seed=0):
    generator = torch.Generator().manual_seed(seed)
    ids = torch.randint(3, 40, (4, 9), generator=generator)
    mask = torch.arange(9) < torch.tensor([[9], [6], [4], [8]])
    counts = mask & (torch.rand(4, 9, generator=generator) < 0.5)
    return ids, mask, counts


def plain_form(model, ids, mask, counts, temperature=1.0):
    logits = token_logits(model, ids, mask, position_ids(mask))[:, :-1] / temperature
    return torch.where(counts[:, 1:], token_log_probs(logits, ids[:, 1:]), 0.0)


@pytest.mark.parametrize("temperature", [1.0, 0.5])
@pytest.mark.parametrize("side", ["right", "left"])
def test_the_fast_path_equals_the_plain_form(tiny_lm, temperature, side):
    ids, mask, counts = ragged()
    if side == "left":
        ids, mask, counts = ids.flip(1), mask.flip(1), counts.flip(1)
    results = []
    for log_probs in (
        causal_log_probs(tiny_lm, ids, mask, counts, temperature),
        causal_log_probs(Plain(tiny_lm), ids, mask, counts, temperature),
        plain_form(tiny_lm, ids, mask, counts, temperature),
    ):
        tiny_lm.zero_grad()
        (log_probs * torch.arange(8)).sum().backward()
        results.append((log_probs, [parameter.grad.clone() for parameter in tiny_lm.parameters()]))
    assert counts[:, 1:].sum() > 5
    for log_probs, gradients in results[:2]:
        torch.testing.assert_close(log_probs, results[2][0], atol=1e-5, rtol=1e-5)
        for own, expected in zip(gradients, results[2][1], strict=True):
            torch.testing.assert_close(own, expected, atol=1e-5 * float(expected.abs().max()) + 1e-8, rtol=1e-5)


def test_the_head_runs_where_tokens_count_and_nowhere_else(tiny_lm):
    ids, mask, counts = ragged()
    causal_log_probs(tiny_lm, ids, mask, counts)  # the first call tries the head
    widths = []
    tiny_lm.lm_head.register_forward_hook(lambda *_: widths.append("the model's own head ran"))
    causal_log_probs(tiny_lm, ids, mask, counts)
    assert not widths


def test_a_head_that_caps_its_logits_is_not_bypassed(make_tiny_lm):
    from transformers import Gemma2Config, Gemma2ForCausalLM

    config = Gemma2Config(
        vocab_size=40,
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=8,
        final_logit_softcapping=0.5,
        pad_token_id=0,
        initializer_range=0.2,
    )
    torch.manual_seed(0)
    model = Gemma2ForCausalLM(config).eval()
    ids, mask, counts = ragged()
    own = causal_log_probs(model, ids, mask, counts)
    torch.testing.assert_close(own, plain_form(model, ids, mask, counts))
    assert own.abs().max() < math.log(40) + 1.0  # the cap keeps all tokens about equally likely


# Groups of similar length


@pytest.mark.parametrize("small", [1, 10**6], ids=["groups", "one group"])
def test_rows_of_any_length_in_any_order(tiny_lm, monkeypatch, small):
    """Against one pass per row; the gradients too."""
    monkeypatch.setitem(padding.SMALL, "cpu", small)
    lengths = [3, 9, 2, 9, 5, 8]
    ids = torch.arange(len(lengths) * 9).view(len(lengths), 9) % 30 + 3
    mask = torch.arange(9) < torch.tensor(lengths).unsqueeze(1)
    counts = mask & (torch.arange(9) >= 1) & (ids % 4 > 0)
    found = causal_log_probs(tiny_lm, ids, mask, counts)
    own = torch.autograd.grad(found.pow(2).sum(), list(tiny_lm.parameters()))
    expected = torch.zeros_like(found)
    for row, length in enumerate(lengths):
        alone = tiny_lm(ids[row : row + 1, :length]).logits[0, :-1].log_softmax(-1)
        picked = alone.gather(1, ids[row, 1:length].unsqueeze(1)).squeeze(1)
        expected[row, : length - 1] = torch.where(counts[row, 1:length], picked, 0)
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-5)
    theirs = torch.autograd.grad(expected.pow(2).sum(), list(tiny_lm.parameters()))
    for a, b in zip(own, theirs, strict=True):
        torch.testing.assert_close(a, b, atol=1e-4, rtol=1e-4)
