import math
import statistics

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from jaxtyping import TypeCheckError

from rlhf_lightning.algorithms.functional import (
    gae,
    kl_k1,
    kl_k3,
    kl_penalized_rewards,
    masked_mean,
    token_log_probs,
    whiten,
)

NUMBERS = st.floats(-5, 5, width=32)
NAN = float("nan")


@st.composite
def ragged(draw, matrices, min_rows=1, max_rows=4, max_time=6):
    """Row lengths >= 1, the mask that belongs to them, and some matrices of numbers, padding included."""
    lengths = draw(st.lists(st.integers(1, max_time), min_size=min_rows, max_size=max_rows))
    shape = (len(lengths), max(lengths))
    mask = torch.tensor([[t < length for t in range(shape[1])] for length in lengths])
    values = [torch.from_numpy(draw(arrays(np.float64, shape, elements=NUMBERS))) for _ in range(matrices)]
    return lengths, mask, *values


def test_wrong_shapes_and_dtypes_are_refused():
    with pytest.raises(TypeCheckError):
        kl_k1(torch.zeros(2, 3), torch.zeros(2, 4))
    with pytest.raises(TypeCheckError):
        masked_mean(torch.zeros(2), torch.ones(2))
    with pytest.raises(TypeCheckError):
        gae(torch.zeros(2, 3), torch.zeros(2, 3), torch.ones(3, 2, dtype=torch.bool))


# Log-probabilities


def softmax_by_hand(row):
    top = max(row)
    weights = [math.exp(x - top) for x in row]
    total = math.fsum(weights)
    return [weight / total for weight in weights]


@given(arrays(np.float64, (2, 3, 5), elements=st.floats(-20, 20)), st.lists(st.integers(0, 4), min_size=6, max_size=6))
def test_token_log_probs_is_the_log_of_the_softmax(logits, tokens):
    tokens = torch.tensor(tokens).reshape(2, 3)
    result = token_log_probs(torch.from_numpy(logits), tokens)
    for i in range(2):
        for j in range(3):
            expected = math.log(softmax_by_hand(logits[i, j].tolist())[int(tokens[i, j])])
            assert math.isclose(float(result[i, j]), expected, abs_tol=1e-10)


def test_log_probs_of_a_known_distribution():
    logits = torch.tensor([0.5, 0.25, 0.125, 0.125]).log()
    tokens = torch.arange(4)
    expected = [-math.log(2), -2 * math.log(2), -3 * math.log(2), -3 * math.log(2)]
    assert token_log_probs(logits.expand(4, 4), tokens).tolist() == pytest.approx(expected, abs=1e-6)


def test_log_probs_survive_large_logits_and_a_common_shift():
    # exp of these numbers is infinite or 0 in 32 bits; the tolerance is their spacing.
    logits = torch.tensor([[1e3, 1e3 + 1.0], [-1e3, -1e3 + 1.0]])
    expected = [math.log(1 / (1 + math.e)), math.log(math.e / (1 + math.e))]
    assert token_log_probs(logits, torch.tensor([0, 1])).tolist() == pytest.approx(expected, abs=1e-4)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_logits_are_normalised_in_32_bits(dtype):
    logits = torch.linspace(-3, 3, 2000).to(dtype)
    exact = logits.double()
    token = torch.tensor(1234)
    result = token_log_probs(logits, token)
    assert result.dtype == torch.float32
    assert float(result) == pytest.approx(float(exact[1234] - exact.logsumexp(0)), abs=1e-4)


# Masks


@given(arrays(np.float64, (3, 4), elements=NUMBERS), arrays(np.bool_, (3, 4)))
def test_masked_mean_is_the_mean_of_what_counts(values, mask):
    kept = values[mask].tolist()
    expected = math.fsum(kept) / len(kept) if kept else 0.0
    poisoned = torch.from_numpy(np.where(mask, values, np.nan))
    assert float(masked_mean(poisoned, torch.from_numpy(mask))) == pytest.approx(expected, abs=1e-12)


@given(arrays(np.float64, (4, 3), elements=NUMBERS), arrays(np.bool_, (4, 3)), st.integers(1, 3))
def test_masked_means_of_parts_add_up_to_that_of_the_whole(values, mask, cut):
    mask[0, 0] = True
    values, mask = torch.from_numpy(values), torch.from_numpy(mask)
    parts = sum(masked_mean(values[rows], mask[rows], mask.sum()) for rows in (slice(cut), slice(cut, None)))
    assert float(parts) == pytest.approx(float(masked_mean(values, mask)), abs=1e-12)


# Whitening


@given(ragged(1, min_rows=2))
def test_whiten_uses_mean_and_unbiased_variance_of_what_counts(case):
    _, mask, values = case
    kept = values[mask].tolist()
    centre, variance = statistics.fmean(kept), statistics.variance(kept)
    result = whiten(values, mask)
    expected = [(value - centre) / math.sqrt(variance + 1e-8) for value in kept]
    assert result[mask].tolist() == pytest.approx(expected, abs=1e-6)
    assert result[~mask].abs().sum() == 0
    if variance > 1e-2:
        white = result[mask].tolist()
        assert statistics.fmean(white) == pytest.approx(0, abs=1e-9)
        assert statistics.variance(white) == pytest.approx(1, abs=1e-5)


def test_whiten_by_hand():
    # 1, 2, 6: mean 3, squared distances 4 + 1 + 9 = 14, variance 7 with two degrees of freedom.
    values = torch.tensor([[1.0, 2.0], [6.0, 50.0]])
    result = whiten(values, torch.tensor([[True, True], [True, False]]))
    assert result.flatten().tolist() == pytest.approx([-2 / 7**0.5, -1 / 7**0.5, 3 / 7**0.5, 0.0], abs=1e-6)


def test_whiten_takes_the_whole_batch_and_not_each_row():
    values = torch.tensor([[0.0, 1.0], [10.0, 11.0]])
    result = whiten(values, torch.ones(2, 2, dtype=torch.bool))
    assert (result[0] < 0).all()
    assert (result[1] > 0).all()


@given(ragged(1, min_rows=2), st.floats(0.5, 4), NUMBERS)
def test_whiten_forgets_scale_and_shift(case, scale, shift):
    _, mask, values = case
    if float(values[mask].var()) > 1e-2:
        torch.testing.assert_close(whiten(values * scale + shift, mask), whiten(values, mask), atol=1e-5, rtol=0)


def test_whiten_ignores_padding_and_keeps_constants_finite():
    mask = torch.tensor([[True, True, False], [True, False, False]])
    values = torch.tensor([[1.0, 2.0, 0.0], [4.0, 0.0, 0.0]])
    assert torch.equal(whiten(values.masked_fill(~mask, NAN), mask), whiten(values, mask))
    assert whiten(torch.full((2, 3), 3.0), mask).tolist() == [[0.0] * 3] * 2


@pytest.mark.parametrize("count", [0, 1])
def test_whiten_of_fewer_than_two_values_is_nothing(count):
    assert whiten(torch.full((1, 3), 5.0), torch.arange(3)[None] < count).tolist() == [[0.0] * 3]


# KL estimates


def test_k1_is_signed_and_k3_is_not():
    log_probs, reference = torch.tensor([-1.0, -2.0, -1.0]), torch.tensor([-2.0, -1.0, -1.0])
    assert kl_k1(log_probs, reference).tolist() == [1.0, -1.0, 0.0]
    # r - 1 - log r for r = 1/e, e, 1
    expected = [math.exp(-1), math.e - 2, 0.0]
    assert kl_k3(log_probs, reference).tolist() == pytest.approx(expected, abs=1e-6)


@given(arrays(np.float64, (5,), elements=NUMBERS), arrays(np.float64, (5,), elements=NUMBERS))
def test_both_estimates_average_to_the_exact_kl_under_the_policy(policy_logits, reference_logits):
    p, q = softmax_by_hand(policy_logits.tolist()), softmax_by_hand(reference_logits.tolist())
    exact = math.fsum(a * math.log(a / b) for a, b in zip(p, q, strict=True))
    log_p, log_q = torch.tensor(p, dtype=torch.float64).log(), torch.tensor(q, dtype=torch.float64).log()
    weights = torch.tensor(p, dtype=torch.float64)
    assert float((weights * kl_k1(log_p, log_q)).sum()) == pytest.approx(exact, abs=1e-10)
    assert float((weights * kl_k3(log_p, log_q)).sum()) == pytest.approx(exact, abs=1e-10)
    assert (kl_k3(log_p, log_q) >= 0).all()


def test_k3_keeps_its_digits_for_nearby_policies():
    # r - 1 - log r is about x^2 / 2 for r = exp(x); exp(x) - 1 in 32 bits would lose all of it.
    step = torch.tensor([1e-3])
    assert float(kl_k3(torch.zeros(1), step)) == pytest.approx(0.5e-6 + 1e-9 / 6, rel=1e-3)
    assert float(kl_k3(torch.zeros(1), torch.zeros(1))) == 0.0


# Rewards


@given(ragged(1), st.lists(NUMBERS, min_size=4, max_size=4), st.floats(0, 2))
def test_rewards_are_the_penalty_and_the_score_at_the_last_token(case, scores, kl_coef):
    lengths, mask, kl = case
    scores = torch.tensor(scores[: len(lengths)], dtype=torch.float64)
    rewards = kl_penalized_rewards(scores, kl.masked_fill(~mask, NAN), mask, kl_coef)
    for i, length in enumerate(lengths):
        for t in range(mask.shape[1]):
            expected = -kl_coef * float(kl[i, t]) if t < length else 0.0
            expected += float(scores[i]) if t == length - 1 else 0.0
            assert float(rewards[i, t]) == pytest.approx(expected, abs=1e-12)


def test_rewards_of_a_response_of_one_token():
    rewards = kl_penalized_rewards(
        torch.tensor([3.0, 1.0]),
        torch.tensor([[0.5, 7.0], [-1.0, 2.0]]),
        torch.tensor([[True, False], [True, True]]),
        0.1,
    )
    assert rewards.flatten().tolist() == pytest.approx([2.95, 0.0, 0.1, 0.8], abs=1e-6)


def test_the_coefficient_may_be_a_tensor():
    kl, mask = torch.tensor([[1.0, 2.0]]), torch.ones(1, 2, dtype=torch.bool)
    rewards = kl_penalized_rewards(torch.zeros(1), kl, mask, torch.tensor(0.5))
    assert rewards.tolist() == [[-0.5, -1.0]]


# Generalized advantage estimation


def gae_by_averaging(rewards, values, length, discount, gae_lambda):
    """The definition in the paper: the lambda-weighted average of all k-step advantages, not the recursion.

    The k-step advantages that would look beyond the end all equal the one that reaches the end.
    """
    advantages = []
    for t in range(length):
        steps = []
        for k in range(1, length - t + 1):
            total = -values[t] + sum(discount**j * rewards[t + j] for j in range(k))
            if t + k < length:
                total += discount**k * values[t + k]
            steps.append(total)
        weights = [(1 - gae_lambda) * gae_lambda ** (k - 1) for k in range(1, len(steps))]
        weights.append(gae_lambda ** (len(steps) - 1))
        advantages.append(math.fsum(w * s for w, s in zip(weights, steps, strict=True)))
    return advantages


def gae_by_summing(rewards, values, length, discount, gae_lambda):
    """Equation 16: a double loop over one-step errors."""
    after = [*values[1:length], 0.0]
    errors = [rewards[t] + discount * after[t] - values[t] for t in range(length)]
    return [sum((discount * gae_lambda) ** j * errors[t + j] for j in range(length - t)) for t in range(length)]


UNIT = st.one_of(st.just(0.0), st.just(1.0), st.floats(0, 1))


@pytest.mark.parametrize("second_algorithm", [gae_by_averaging, gae_by_summing])
@given(case=ragged(2), discount=UNIT, gae_lambda=UNIT)
def test_gae_agrees_with_a_second_algorithm(second_algorithm, case, discount, gae_lambda):
    lengths, mask, rewards, values = case
    rewards, values = rewards.masked_fill(~mask, NAN), values.masked_fill(~mask, NAN)
    advantages, returns = gae(rewards, values, mask, discount, gae_lambda)
    for i, length in enumerate(lengths):
        expected = second_algorithm(rewards[i].tolist(), values[i].tolist(), length, discount, gae_lambda)
        assert advantages[i, :length].tolist() == pytest.approx(expected, abs=1e-9)
        expected = [a + v for a, v in zip(expected, values[i, :length].tolist(), strict=True)]
        assert returns[i, :length].tolist() == pytest.approx(expected, abs=1e-9)
    assert advantages[~mask].abs().sum() == 0
    assert returns[~mask].abs().sum() == 0


@given(ragged(2), st.floats(0, 1))
def test_lambda_one_is_monte_carlo_minus_the_baseline(case, discount):
    lengths, mask, rewards, values = case
    advantages, returns = gae(rewards, values, mask, discount, 1.0)
    for i, length in enumerate(lengths):
        for t in range(length):
            to_go = sum(discount ** (s - t) * float(rewards[i, s]) for s in range(t, length))
            assert float(returns[i, t]) == pytest.approx(to_go, abs=1e-9)
            assert float(advantages[i, t]) == pytest.approx(to_go - float(values[i, t]), abs=1e-9)


@given(ragged(2), st.floats(0, 1))
def test_lambda_zero_is_the_one_step_error(case, discount):
    lengths, mask, rewards, values = case
    advantages, _ = gae(rewards, values, mask, discount, 0.0)
    for i, length in enumerate(lengths):
        for t in range(length):
            after = float(values[i, t + 1]) if t + 1 < length else 0.0
            expected = float(rewards[i, t]) + discount * after - float(values[i, t])
            assert float(advantages[i, t]) == pytest.approx(expected, abs=1e-9)


def test_gae_by_hand_on_ragged_rows():
    # Row 1, discount 0.5, lambda 0.5: errors 1 + .5 * 4 - 2 = 1 and 3 - 4 = -1; A_1 = -1, A_0 = 1 + .25 * -1.
    # Row 2 is one token: 5 - 1 = 4, whatever stands in the padding behind it.
    advantages, returns = gae(
        torch.tensor([[1.0, 3.0], [5.0, 100.0]]),
        torch.tensor([[2.0, 4.0], [1.0, 100.0]]),
        torch.tensor([[True, True], [True, False]]),
        0.5,
        0.5,
    )
    assert advantages.tolist() == [[0.75, -1.0], [4.0, 0.0]]
    assert returns.tolist() == [[2.75, 3.0], [5.0, 0.0]]


def test_a_perfect_critic_leaves_no_advantage():
    rewards = torch.tensor([[0.5, -1.0, 2.0]])
    values = torch.tensor([[1.5, 1.0, 2.0]])
    advantages, returns = gae(rewards, values, torch.ones(1, 3, dtype=torch.bool), 1.0, 0.95)
    assert advantages.abs().max() < 1e-6
    torch.testing.assert_close(returns, values)
