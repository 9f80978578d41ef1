import itertools
import json
import math
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from rlhf_lightning.algorithms.functional import gae, kl_k1, kl_k3, kl_penalized_rewards, token_log_probs, whiten
from rlhf_lightning.algorithms.losses import lm_loss, policy_loss, ranking_loss, value_loss

SHARED_GOLDEN = Path(__file__).parents[3] / "shared" / "data" / "golden" / "ppo_and_ranking.json"


def doubles(rows):
    return torch.tensor(rows, dtype=torch.float64)


def mask_of(lengths, width=None):
    return torch.tensor([[t < length for t in range(width or max(lengths))] for length in lengths])


def random_matrices(seed, shape, count):
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(shape, generator=generator, dtype=torch.float64) for _ in range(count)]


LENGTHS = st.lists(st.integers(1, 6), min_size=1, max_size=4)
SEEDS = st.integers(0, 10**6)


# Cross-entropy


@given(LENGTHS, SEEDS)
def test_lm_loss_and_gradient_by_hand(lengths, seed):
    mask, vocabulary = mask_of(lengths), 5
    (logits,) = random_matrices(seed, (*mask.shape, vocabulary), 1)
    logits.requires_grad_()
    targets = torch.randint(vocabulary, mask.shape, generator=torch.Generator().manual_seed(seed))
    loss, stats = lm_loss(token_log_probs(logits, targets), mask)
    loss.backward()
    total = 0.0
    for i, length in enumerate(lengths):
        for t in range(mask.shape[1]):
            weights = [math.exp(x) for x in logits[i, t].tolist()]
            probabilities = [w / sum(weights) for w in weights]
            target = int(targets[i, t])
            counts = t < length
            if counts:
                total -= math.log(probabilities[target])
            for v in range(vocabulary):
                # d(-log p_target) / d logit_v = p_v - [v is the target], over the number of tokens
                expected = (probabilities[v] - (v == target)) / sum(lengths) if counts else 0.0
                assert float(logits.grad[i, t, v]) == pytest.approx(expected, abs=1e-12)
    assert float(loss.detach()) == pytest.approx(total / sum(lengths), abs=1e-10)
    assert int(stats.num_tokens) == sum(lengths)


# Ranking


def ranking_by_combinations(scores, ranks, mask):
    """Loss, number of pairs, accuracy and margin by loops over pairs."""
    prompt_losses, margins = [], []
    for score, rank, exists in zip(scores.tolist(), ranks.tolist(), mask.tolist(), strict=True):
        losses = []
        present = [k for k in range(len(score)) if exists[k]]
        for a, b in itertools.combinations(present, 2):
            if rank[a] == rank[b]:
                continue
            winner, loser = (a, b) if rank[a] < rank[b] else (b, a)
            margin = score[winner] - score[loser]
            losses.append(math.log1p(math.exp(-margin)))
            margins.append(margin)
        if losses:
            prompt_losses.append(math.fsum(losses) / len(losses))
    pairs = len(margins)
    return (
        math.fsum(prompt_losses) / max(len(prompt_losses), 1),
        pairs,
        sum(1.0 if m > 0 else 0.5 if m == 0 else 0.0 for m in margins) / max(pairs, 1),
        math.fsum(margins) / max(pairs, 1),
    )


@st.composite
def rankings(draw):
    """Scores, ranks with ties, and which of the K responses exist, in any column."""
    prompts, width = draw(st.integers(1, 4)), draw(st.integers(2, 6))
    cells = prompts * width
    # Few distinct scores and ranks, so that equal ones are common.
    scores = draw(st.lists(st.integers(-6, 6), min_size=cells, max_size=cells))
    ranks = draw(st.lists(st.integers(1, 4), min_size=cells, max_size=cells))
    mask = draw(st.lists(st.booleans(), min_size=cells, max_size=cells))
    shape = (prompts, width)
    return doubles(scores).reshape(shape) / 2, torch.tensor(ranks).reshape(shape), torch.tensor(mask).reshape(shape)


@given(rankings())
def test_ranking_loss_agrees_with_loops_over_pairs(case):
    scores, ranks, mask = case
    loss, stats = ranking_loss(scores, ranks, mask)
    expected_loss, pairs, accuracy, margin = ranking_by_combinations(scores, ranks, mask)
    assert float(loss) == pytest.approx(expected_loss, abs=1e-10)
    assert int(stats.num_pairs) == pairs
    assert float(stats.accuracy) == pytest.approx(accuracy, abs=1e-10)
    assert float(stats.margin) == pytest.approx(margin, abs=1e-10)


def test_two_responses_are_the_pairwise_loss():
    scores = doubles([[1.0, -0.5], [0.25, 2.0]])
    loss, stats = ranking_loss(scores, torch.tensor([[1, 2], [1, 2]]), mask_of([2, 2]))
    # margins 1.5 and -1.75: (log(1 + e^-1.5) + log(1 + e^1.75)) / 2
    assert float(loss) == pytest.approx((math.log1p(math.exp(-1.5)) + math.log1p(math.exp(1.75))) / 2, abs=1e-12)
    assert float(loss) == pytest.approx((0.2014133 + 1.9102242) / 2, abs=1e-6)
    assert float(stats.accuracy) == 0.5
    assert float(stats.margin) == pytest.approx(-0.125)


def test_three_responses_divide_by_three_pairs():
    # margins 1, 3, 2, all right
    loss, stats = ranking_loss(doubles([[3.0, 2.0, 0.0]]), torch.tensor([[1, 2, 3]]), mask_of([3]))
    assert float(loss) == pytest.approx((0.3132617 + 0.0485874 + 0.1269280) / 3, abs=1e-6)
    assert float(stats.accuracy) == 1.0
    assert float(stats.margin) == pytest.approx(2.0)


def test_ties_are_no_pairs():
    # Two winners against one loser: two pairs, and the winners' scores are never compared.
    loss, stats = ranking_loss(doubles([[1.0, 5.0, 0.0]]), torch.tensor([[1, 1, 2]]), mask_of([3]))
    assert int(stats.num_pairs) == 2
    assert float(loss) == pytest.approx((math.log1p(math.exp(-1)) + math.log1p(math.exp(-5))) / 2, abs=1e-12)


def test_a_prompt_of_ties_does_not_count():
    scores, ranks = doubles([[1.0, 0.0], [3.0, -3.0]]), torch.tensor([[1, 2], [1, 1]])
    together, _ = ranking_loss(scores, ranks, mask_of([2, 2]))
    alone, _ = ranking_loss(scores[:1], ranks[:1], mask_of([2]))
    assert torch.equal(together, alone)


def test_a_batch_of_ties_has_loss_and_gradient_zero():
    scores = doubles([[1.0, -2.0, 0.0], [0.5, 3.0, 0.0]]).requires_grad_()
    loss, stats = ranking_loss(scores, torch.tensor([[1, 1, 0], [2, 2, 0]]), mask_of([2, 2], 3))
    loss.backward()
    assert float(loss.detach()) == 0.0
    assert scores.grad.abs().sum() == 0.0
    assert int(stats.num_pairs) == 0
    assert math.isfinite(float(stats.accuracy))


def test_prompts_weigh_the_same_whatever_their_number_of_pairs():
    scores = doubles([[0.0] * 6, [0.0, 2.0, 0, 0, 0, 0]])
    ranks = torch.tensor([[1, 2, 3, 4, 5, 6], [1, 2, 0, 0, 0, 0]])
    loss, _ = ranking_loss(scores, ranks, mask_of([6, 2]))
    assert float(loss) == pytest.approx((math.log(2) + math.log1p(math.exp(2))) / 2, abs=1e-12)


@given(rankings(), st.randoms(use_true_random=False))
def test_the_order_of_the_responses_does_not_matter(case, random):
    scores, ranks, mask = case
    order = list(range(scores.shape[1]))
    random.shuffle(order)
    loss, stats = ranking_loss(scores, ranks, mask)
    shuffled, shuffled_stats = ranking_loss(scores[:, order], ranks[:, order], mask[:, order])
    torch.testing.assert_close(shuffled, loss)
    torch.testing.assert_close(torch.stack(list(shuffled_stats[1:])), torch.stack(list(stats[1:])))


@given(rankings())
def test_missing_responses_have_no_say(case):
    scores, ranks, mask = case
    other_scores, other_ranks = torch.where(mask, scores, 99.0), torch.where(mask, ranks, 0)
    other_scores.requires_grad_()
    loss, _ = ranking_loss(other_scores, other_ranks, mask)
    loss.backward()
    assert torch.equal(loss.detach(), ranking_loss(scores, ranks, mask)[0])
    assert other_scores.grad[~mask].abs().sum() == 0


@given(rankings())
def test_ranking_gradient_agrees_with_finite_differences(case):
    scores, ranks, mask = case
    assert torch.autograd.gradcheck(lambda s: ranking_loss(s, ranks, mask)[0], scores.requires_grad_())


def test_ranking_loss_survives_extreme_margins():
    scores = torch.tensor([[-200.0, 200.0]], requires_grad=True)
    loss, _ = ranking_loss(scores, torch.tensor([[1, 2]]), mask_of([2]))
    loss.backward()
    assert float(loss.detach()) == pytest.approx(400.0)
    assert scores.grad.tolist() == [[-1.0, 1.0]]


# Policy


def one_token(ratio, old, advantage, clip_range=0.2):
    """Loss, gradient with respect to the log-probability, statistics."""
    old = doubles([[old]])
    log_probs = (old + math.log(ratio)).requires_grad_()
    loss, stats = policy_loss(log_probs, old, doubles([[advantage]]), mask_of([1]), clip_range)
    loss.backward()
    return float(loss.detach()), float(log_probs.grad), stats


@pytest.mark.parametrize(
    ("advantage", "ratio", "loss", "gradient", "cut"),
    [
        (2.0, 1.1, -2.2, -2.2, 0),  # inside the trust region: the plain surrogate, slope -ratio * A
        (2.0, 0.9, -1.8, -1.8, 0),
        (-2.0, 1.1, 2.2, 2.2, 0),
        (-2.0, 0.9, 1.8, 1.8, 0),
        (2.0, 1.5, -2.4, 0.0, 1),  # better, and already too likely: cut
        (2.0, 0.5, -1.0, -1.0, 0),  # better, but less likely: the way back stays open
        (-2.0, 0.5, 1.6, 0.0, 1),  # worse, and already too unlikely: cut
        (-2.0, 1.5, 3.0, 3.0, 0),  # worse, but more likely: the full gradient
        (0.0, 1.5, 0.0, 0.0, 0),
    ],
)
def test_policy_loss_sign_cases(advantage, ratio, loss, gradient, cut):
    actual_loss, actual_gradient, stats = one_token(ratio, -1.0, advantage)
    assert actual_loss == pytest.approx(loss, abs=1e-12)
    assert actual_gradient == pytest.approx(gradient, abs=1e-12)
    assert float(stats.clip_fraction) == cut
    assert float(stats.ratio_deviation) == pytest.approx(abs(ratio - 1), abs=1e-12)
    assert float(stats.approx_kl) == pytest.approx(ratio - 1 - math.log(ratio), abs=1e-12)


@given(LENGTHS, SEEDS, st.sampled_from([0.05, 0.2, 0.5]))
def test_policy_loss_agrees_with_a_loop(lengths, seed, clip_range):
    mask = mask_of(lengths)
    new, old, advantages = random_matrices(seed, mask.shape, 3)
    loss, stats = policy_loss(new, old, advantages, mask, clip_range)
    terms, cut, kl, deviations = [], 0, 0.0, []
    for i, length in enumerate(lengths):
        for t in range(length):
            ratio, advantage = math.exp(float(new[i, t] - old[i, t])), float(advantages[i, t])
            limit = 1 + clip_range if advantage > 0 else 1 - clip_range
            beyond = ratio > limit if advantage > 0 else ratio < limit
            terms.append((limit if beyond else ratio) * advantage)
            cut += beyond
            kl += ratio - 1 - math.log(ratio)
            deviations.append(abs(ratio - 1))
    assert float(loss) == pytest.approx(-math.fsum(terms) / len(terms), abs=1e-10)
    assert float(stats.clip_fraction) == pytest.approx(cut / len(terms), abs=1e-12)
    assert float(stats.approx_kl) == pytest.approx(kl / len(terms), abs=1e-10)
    assert float(stats.ratio_deviation) == pytest.approx(max(deviations), abs=1e-10)


def test_an_unchanged_policy_has_ratio_one_and_the_plain_gradient():
    (log_probs, advantages) = random_matrices(3, (2, 4), 2)
    mask = mask_of([4, 2])
    learning = log_probs.clone().requires_grad_()
    loss, stats = policy_loss(learning, log_probs, advantages, mask)
    loss.backward()
    assert tuple(map(float, stats)) == (0.0, 0.0, 0.0)
    torch.testing.assert_close(learning.grad, torch.where(mask, -advantages / 6, 0.0))


def test_policy_gradient_agrees_with_finite_differences():
    old, advantages, noise = random_matrices(5, (3, 5), 3)
    mask = mask_of([5, 2, 3])
    # Ratios well inside, and well outside on both sides; none near a kink.
    new = (old + torch.where(noise > 0, 0.1, 0.4) * noise.sign()).requires_grad_()
    assert torch.autograd.gradcheck(lambda x: policy_loss(x, old, advantages, mask, 0.2)[0], new)


# Value


@pytest.mark.parametrize(
    ("value", "old", "target", "clip_range", "loss", "gradient", "cut"),
    [
        (1.0, 0.0, 3.0, None, 2.0, -2.0, 0),  # 0.5 * (1 - 3)^2, slope V - R
        (0.1, 0.0, 1.0, 0.2, 0.405, -0.9, 0),  # moved less than the clip
        (1.0, 0.0, 3.0, 0.2, 3.92, 0.0, 1),  # towards the target, further than allowed: 0.5 * (0.2 - 3)^2
        (-1.0, 0.0, 3.0, 0.2, 8.0, -4.0, 0),  # away from the target: the plain error is the larger
        (-1.0, 0.0, -3.0, 0.2, 3.92, 0.0, 1),
        (1.0, 5.0, 0.0, 0.5, 10.125, 0.0, 1),  # the clip is around the old value: 0.5 * 4.5^2
    ],
)
def test_value_loss_cases(value, old, target, clip_range, loss, gradient, cut):
    values = doubles([[value]]).requires_grad_()
    actual, stats = value_loss(values, doubles([[old]]), doubles([[target]]), mask_of([1]), clip_range)
    actual.backward()
    assert float(actual.detach()) == pytest.approx(loss, abs=1e-12)
    assert float(values.grad) == pytest.approx(gradient, abs=1e-12)
    assert float(stats.clip_fraction) == cut


@given(LENGTHS, SEEDS, st.sampled_from([None, 0.125, 0.5]))
def test_value_loss_agrees_with_a_loop(lengths, seed, clip_range):
    mask = mask_of(lengths)
    # Multiples of 1/64, so that no sum is rounded and the count of cut tokens is exact.
    values, old, returns = [(64 * matrix).round() / 64 for matrix in random_matrices(seed, mask.shape, 3)]
    loss, stats = value_loss(values, old, returns, mask, clip_range)
    terms, plain, cut = [], [], 0
    for i, length in enumerate(lengths):
        for t in range(length):
            v, o, r = float(values[i, t]), float(old[i, t]), float(returns[i, t])
            plain.append((v - r) ** 2)
            near = v if clip_range is None else min(max(v, o - clip_range), o + clip_range)
            terms.append(max(plain[-1], (near - r) ** 2))
            cut += terms[-1] > plain[-1]
    assert float(loss) == pytest.approx(0.5 * math.fsum(terms) / len(terms), abs=1e-10)
    assert float(stats.clip_fraction) == pytest.approx(cut / len(terms), abs=1e-12)


def test_rounding_is_not_counted_as_clipping():
    generator = torch.Generator().manual_seed(0)
    values, old, returns = (0.1 * torch.rand(1, 1000, generator=generator) for _ in range(3))
    _, stats = value_loss(values, old, returns, mask_of([1000]), 0.2)
    assert float(stats.clip_fraction) == 0.0


# What all token losses share


def lm_of(x, a, b, mask, num_tokens):
    log_probs = token_log_probs(torch.stack([x, a, b], -1), torch.zeros(mask.shape, dtype=torch.long))
    return lm_loss(log_probs, mask, num_tokens)[0]


def policy_of(x, a, b, mask, num_tokens):
    return policy_loss(x, a, b, mask, 0.2, num_tokens)[0]


def value_of(x, a, b, mask, num_tokens):
    return value_loss(x, a, b, mask, 0.2, num_tokens)[0]


TOKEN_LOSSES = pytest.mark.parametrize("loss_of", [lm_of, policy_of, value_of])


@TOKEN_LOSSES
@given(lengths=st.lists(st.integers(1, 6), min_size=3, max_size=5), seed=SEEDS, cut=st.integers(1, 2))
def test_micro_batches_add_up_to_the_whole(loss_of, lengths, seed, cut):
    mask = mask_of(lengths)
    x, a, b = random_matrices(seed, mask.shape, 3)
    whole_x, parts_x = x.clone().requires_grad_(), x.clone().requires_grad_()
    whole = loss_of(whole_x, a, b, mask, None)
    whole.backward()
    total = 0.0
    for rows in (slice(0, cut), slice(cut, None)):
        part = loss_of(parts_x[rows], a[rows], b[rows], mask[rows], mask.sum())
        part.backward()
        total += float(part.detach())
    assert total == pytest.approx(float(whole.detach()), abs=1e-12)
    torch.testing.assert_close(parts_x.grad, whole_x.grad, atol=1e-14, rtol=1e-12)


@TOKEN_LOSSES
@given(lengths=LENGTHS, seed=SEEDS)
def test_padding_changes_nothing(loss_of, lengths, seed):
    mask = mask_of(lengths)
    inputs = random_matrices(seed, mask.shape, 3)
    wide_mask = mask_of(lengths, mask.shape[1] + 2)
    garbage = random_matrices(seed + 1, wide_mask.shape, 3)
    wide = []
    for matrix, noise in zip(inputs, garbage, strict=True):
        noise = 7 * noise
        noise[wide_mask] = matrix[mask]
        wide.append(noise)
    x, wide_x = inputs[0].requires_grad_(), wide[0].requires_grad_()
    loss, wide_loss = loss_of(*inputs, mask, None), loss_of(*wide, wide_mask, None)
    loss.backward()
    wide_loss.backward()
    torch.testing.assert_close(wide_loss, loss, atol=1e-12, rtol=0)
    torch.testing.assert_close(wide_x.grad[wide_mask], x.grad[mask], atol=1e-12, rtol=0)
    assert wide_x.grad[~wide_mask].abs().sum() == 0


def test_padding_does_not_enter_the_policy_statistics():
    log_probs, old = doubles([[-1.0, -50.0]]), doubles([[-1.0, 0.0]])
    _, stats = policy_loss(log_probs, old, doubles([[1.0, 1.0]]), mask_of([1], 2))
    assert tuple(map(float, stats)) == (0.0, 0.0, 0.0)


def test_statistics_carry_no_gradient():
    x = doubles([[0.5, 1.0]]).requires_grad_()
    zeros, mask = torch.zeros_like(x), mask_of([2])
    for statistics in (
        policy_loss(x, zeros, zeros + 1, mask)[1],
        value_loss(x, zeros, zeros + 1, mask)[1],
        ranking_loss(x, torch.tensor([[1, 2]]), mask)[1],
    ):
        assert not any(value.requires_grad for value in statistics)


# Numbers from other people's code: verl (GAE, policy and value loss, KL), TRL (whitening), Open-Assistant (ranking)

GOLDEN_PPO = {
    "lengths": [4, 3],
    "log_probs": [
        [-0.2932522559381568, -0.4749166063113814, -1.6591026351543792, -2.7060043146287183],
        [-4.516292978088247, -2.4284544657230556, -0.653722451707965, 0.0],
    ],
    "old_log_probs": [
        [-0.2922949586861976, -0.08191940010345539, -1.6593075656619143, -2.663490755136557],
        [-4.1513933830194505, -1.854016624044696, -0.7660946775654821, 0.0],
    ],
    "ref_log_probs": [
        [0.45152020709351137, 0.027730457187294888, -0.8766742467409867, -2.5224044125998906],
        [-4.887901517507338, -1.664352187967713, -0.8975672352488023, 0.0],
    ],
    "values": [
        [-0.29073686792031256, -1.5104938493006739, -0.3695991987546289, -0.4661033938663185],
        [-0.7234013989322037, -1.63495040068347, 1.405113246425767, 0.0],
    ],
    "new_values": [
        [-1.2981831273412088, -1.2016359650649346, 0.23492257948496154, -0.7895306526374031],
        [-0.5413089276608761, -1.3951282811124281, 0.9594052696957792, 0.0],
    ],
    "scores": [-0.20863141090054665, 0.9381656155065431],
    "kl_coef": 0.05,
    "discount": 1.0,
    "gae_lambda": 1.0,
    "clip_range": 0.1,
    "value_clip_range": 0.3,
    "expect": {
        "rewards": [
            [0.03719075828898545, 0.005482492864537514, 0.03913166594604638, -0.20157709377371333],
            [-0.03682540672439436, 0.009483221803849152, 0.931591987622377, 0.0],
        ],
        "advantages": [
            [0.17096469124616864, 1.3535309143375445, 0.2071537709269619, 0.26452630009260514],
            [1.6276512016340359, 2.5760256101096966, -0.4735212588033899, 0.0],
        ],
        "returns": [
            [-0.11977217667414392, -0.1569629349631294, -0.16244542782766697, -0.20157709377371336],
            [0.9042498027018322, 0.9410752094262265, 0.931591987622377, 0.0],
        ],
        "whitened_trl": [
            [-0.6078671586425649, 0.5030314185314446, -0.5738712636629704, -0.5199757102686108],
            [0.7605390584301643, 1.6514386634009108, -1.2132950077883737, 0.0],
        ],
        "policy_loss": -0.5136760187466436,
        "clip_fraction": 0.0,
        "value_loss": 0.7556976354373283,
        "value_clip_fraction": 0.2857142853061225,
        "kl_k1_mean": -0.33744239548479354,
        "kl_k3_mean": 0.20079533556146684,
    },
}
GOLDEN_RANKING = [
    {
        "scores_best_first": [[-0.17737755614120676, -1.4303367512871044, -0.779558638550991, -1.3897427426875542]],
        "loss": 0.5277546978710954,
    },
    {
        "scores_best_first": [
            [-0.41572827790699657, 0.2579321535519922, 1.2189684112032877, -0.6878180962237443],
            [
                -0.9378343317779422,
                2.138491627099347,
                -0.019353617481658304,
                -0.5731650555053636,
                1.364834533013742,
                -0.2677115359890639,
                0.5058729869399375,
            ],
            [0.9099451716711308, -0.210578392268013, -1.488653840745474],
            [0.6483813145228348, -0.19304592860636122],
        ],
        "loss": 0.6062682869246317,
    },
]


def check_ppo(case):
    expect, mask = case["expect"], mask_of(case["lengths"])
    new, old, reference = (doubles(case[name]) for name in ("log_probs", "old_log_probs", "ref_log_probs"))
    values, new_values, scores = (doubles(case[name]) for name in ("values", "new_values", "scores"))
    rewards = kl_penalized_rewards(scores, kl_k1(old, reference), mask, case["kl_coef"])
    advantages, returns = gae(rewards, values, mask, case["discount"], case["gae_lambda"])
    results = {"rewards": rewards, "advantages": advantages, "returns": returns}
    if sum(case["lengths"]) > 1:
        results["whitened_trl"] = whiten(advantages, mask)
    for name, result in results.items():
        torch.testing.assert_close(result, doubles(expect[name]), atol=1e-7, rtol=0, msg=lambda m, n=name: f"{n}: {m}")
    # The other implementation was given the advantages as they are, before whitening.
    loss, policy = policy_loss(new, old, advantages, mask, case["clip_range"])
    error, value = value_loss(new_values, values, returns, mask, case["value_clip_range"])
    kl = kl_k1(new, reference)[mask].mean(), kl_k3(new, reference)[mask].mean()
    names = ("policy_loss", "clip_fraction", "value_loss", "value_clip_fraction", "kl_k1_mean", "kl_k3_mean")
    numbers = (loss, policy.clip_fraction, error, value.clip_fraction, *kl)
    assert dict(zip(names, map(float, numbers), strict=True)) == pytest.approx(
        {name: expect[name] for name in names}, abs=1e-6
    )


def check_ranking(case):
    rows = case["scores_best_first"]
    width = max(map(len, rows))
    scores = doubles([row + [0.0] * (width - len(row)) for row in rows])
    mask = mask_of([len(row) for row in rows])
    ranks = torch.where(mask, torch.arange(1, width + 1), 0)
    assert float(ranking_loss(scores, ranks, mask)[0]) == pytest.approx(case["loss"], abs=1e-10)


def test_a_ppo_case_of_other_implementations():
    check_ppo(GOLDEN_PPO)


@pytest.mark.parametrize("case", GOLDEN_RANKING, ids=["one prompt", "ragged K"])
def test_ranking_cases_of_other_implementations(case):
    check_ranking(case)


def test_all_cases_of_other_implementations():
    if not SHARED_GOLDEN.exists():
        pytest.skip(f"the golden numbers are not beside this checkout: {SHARED_GOLDEN.name}")
    golden = json.loads(SHARED_GOLDEN.read_text(encoding="utf-8"))
    assert golden["ppo"]
    assert golden["ranking"]
    for case in golden["ppo"]:
        check_ppo(case)
    for case in golden["ranking"]:
        check_ranking(case)
