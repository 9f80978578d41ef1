import itertools
import math
import warnings
from functools import partial
from types import SimpleNamespace

import pytest
import torch
from torch import nn
from torch.nn.attention.flex_attention import create_mask
from transformers import MistralConfig, MistralForCausalLM

from rlhf_lightning.algorithms.batch import ComparisonBatch
from rlhf_lightning.algorithms.losses import ranking_loss
from rlhf_lightning.models import shared_prefix as prefix
from rlhf_lightning.models.pairwise_accuracy import PairwiseAccuracy
from rlhf_lightning.models.scalar_head import ScalarHeadModel
from rlhf_lightning.models.shared_prefix import cached_scores, separate_scores, tree_block_mask, tree_mask, tree_scores
from rlhf_lightning.modules.reward import RewardModule

PAD = 0
WAYS = pytest.mark.parametrize("scores_of", [cached_scores, tree_scores, separate_scores])
SGD = partial(torch.optim.SGD, lr=0.1)


def comparison_batch(prompts, responses, ranks, groups=None):
    """Lists of ids: prompts padded on the left, responses on the right, missing responses empty."""
    width, count = max(map(len, prompts)), max(map(len, responses))
    length = max(len(response) for row in responses for response in row)
    prompt_ids = torch.full((len(prompts), width), PAD)
    prompt_mask = torch.zeros(len(prompts), width, dtype=torch.bool)
    response_ids = torch.full((len(prompts), count, length), PAD)
    response_mask = torch.zeros(len(prompts), count, length, dtype=torch.bool)
    all_ranks = torch.zeros(len(prompts), count, dtype=torch.long)
    for i, prompt in enumerate(prompts):
        prompt_ids[i, width - len(prompt) :] = torch.tensor(prompt)
        prompt_mask[i, width - len(prompt) :] = True
        all_ranks[i, : len(ranks[i])] = torch.tensor(ranks[i])
        for k, response in enumerate(responses[i]):
            response_ids[i, k, : len(response)] = torch.tensor(response)
            response_mask[i, k, : len(response)] = True
    groups = groups or [""] * len(prompts)
    return ComparisonBatch(prompt_ids, prompt_mask, response_ids, response_mask, all_ranks, groups)


def ragged_case(counts=(9, 4, 6), seed=0):
    """Prompts of 2 to 8 tokens, each with its number of responses of 1 to 7 tokens, and rankings with ties."""
    generator = torch.Generator().manual_seed(seed)

    def ids(low, high):
        return torch.randint(3, 40, (int(torch.randint(low, high, (), generator=generator)),), generator=generator)

    prompts = [ids(2, 9).tolist() for _ in counts]
    responses = [[ids(1, 8).tolist() for _ in range(count)] for count in counts]
    ranks = [torch.randint(1, max(3, count), (count,), generator=generator).tolist() for count in counts]
    return prompts, responses, ranks


def brute_force(model, prompts, responses):
    """One forward pass per response, nothing padded, nothing shared."""
    scores = []
    for prompt, row in zip(prompts, responses, strict=True):
        scores.append([])
        for response in row:
            ids = torch.tensor([prompt + response])
            values = model(ids, torch.ones_like(ids, dtype=torch.bool), torch.arange(ids.shape[1])[None])
            scores[-1].append(values[0, -1])
    return scores


def brute_force_loss(scores, ranks):
    """Equation 1 of InstructGPT, pair by pair."""
    prompt_losses = []
    for score, rank in zip(scores, ranks, strict=True):
        losses = []
        for a, b in itertools.combinations(range(len(score)), 2):
            if rank[a] != rank[b]:
                winner, loser = (a, b) if rank[a] < rank[b] else (b, a)
                losses.append((1 + (score[loser] - score[winner]).exp()).log())
        if losses:
            prompt_losses.append(sum(losses) / len(losses))
    return sum(prompt_losses) / len(prompt_losses)


def scalar_model(causal_lm, bias=0.0):
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(5)
        model = ScalarHeadModel.from_causal_lm(causal_lm).to(causal_lm.dtype).eval()
    model.bias.fill_(bias)
    return model


def gradients(model, loss):
    model.zero_grad()
    loss.backward()
    assert all(parameter.grad is not None for parameter in model.parameters())
    return {name: parameter.grad.clone() for name, parameter in model.named_parameters()}


@WAYS
@pytest.mark.parametrize("counts", [(9,), (9, 4, 6), (2, 3)], ids=str)
def test_scores_loss_and_gradients_equal_brute_force(tiny_lm, scores_of, counts):
    model = scalar_model(tiny_lm, bias=0.25)
    prompts, responses, ranks = ragged_case(counts)
    batch = comparison_batch(prompts, responses, ranks)
    scores = scores_of(model, batch)
    expected = brute_force(model, prompts, responses)
    assert scores.shape == (len(counts), max(counts))
    for i, count in enumerate(counts):
        torch.testing.assert_close(scores[i, :count], torch.stack(expected[i]), atol=1e-5, rtol=1e-5)
        assert (scores[i, count:] == 0).all()
    assert float(scores.detach()[batch.mask].std()) > 0.1
    loss, expected_loss = ranking_loss(scores, batch.ranks, batch.mask)[0], brute_force_loss(expected, ranks)
    torch.testing.assert_close(loss, expected_loss, atol=1e-5, rtol=0)
    actual, wanted = gradients(model, loss), gradients(model, expected_loss)
    largest = max(float(gradient.abs().max()) for gradient in wanted.values())
    assert largest > 1e-2
    for name, gradient in wanted.items():
        assert float((actual[name] - gradient).abs().max()) < 1e-5 * largest, name


@WAYS
@pytest.mark.parametrize("kind", ["gpt2", "llama"])
def test_in_64_bits_the_scores_are_the_same_to_twelve_digits(make_tiny_lm, scores_of, kind):
    model = scalar_model(make_tiny_lm(kind, dtype=torch.float64))
    prompts, responses, ranks = ragged_case((5, 9), seed=2)
    batch = comparison_batch(prompts, responses, ranks)
    expected = torch.stack(list(itertools.chain(*brute_force(model, prompts, responses))))
    # Llama keeps its rotary table and the square root of its norms in 32 bits.
    tolerance = 1e-12 if kind == "gpt2" else 1e-6
    torch.testing.assert_close(scores_of(model, batch)[batch.mask], expected, atol=tolerance, rtol=0)


@WAYS
def test_permuting_the_responses_permutes_the_scores(tiny_lm, scores_of):
    model = scalar_model(tiny_lm)
    batch = comparison_batch(*ragged_case((6, 6)))
    order = [3, 0, 5, 1, 4, 2]
    shuffled = batch._replace(
        response_ids=batch.response_ids[:, order],
        response_mask=batch.response_mask[:, order],
        ranks=batch.ranks[:, order],
    )
    with torch.no_grad():
        scores = scores_of(model, batch)
        torch.testing.assert_close(scores_of(model, shuffled), scores[:, order], atol=1e-5, rtol=0)
    loss = ranking_loss(scores, batch.ranks, batch.mask)[0]
    torch.testing.assert_close(ranking_loss(scores[:, order], shuffled.ranks, shuffled.mask)[0], loss)


@WAYS
def test_a_response_does_not_see_its_neighbours(tiny_lm, scores_of):
    model = scalar_model(tiny_lm)
    prompts, responses, ranks = ragged_case((5,))
    with torch.no_grad():
        before = scores_of(model, comparison_batch(prompts, responses, ranks))
        responses[0][2] = [(token + 5) % 37 + 3 for token in responses[0][2]]
        after = scores_of(model, comparison_batch(prompts, responses, ranks))
    others = [0, 1, 3, 4]
    torch.testing.assert_close(after[:, others], before[:, others], atol=1e-6, rtol=0)
    assert abs(float(after[0, 2] - before[0, 2])) > 1e-3


@WAYS
def test_what_stands_in_the_padding_does_not_matter(tiny_lm, scores_of):
    model, batch = scalar_model(tiny_lm), comparison_batch(*ragged_case())
    garbage = batch._replace(
        prompt_ids=torch.where(batch.prompt_mask, batch.prompt_ids, 23),
        response_ids=torch.where(batch.response_mask, batch.response_ids, 31),
    )
    with torch.no_grad():
        torch.testing.assert_close(scores_of(model, garbage), scores_of(model, batch), atol=1e-6, rtol=0)


@WAYS
def test_more_padding_does_not_matter(tiny_lm, scores_of):
    model, batch = scalar_model(tiny_lm), comparison_batch(*ragged_case())
    pad = torch.nn.functional.pad
    wide = ComparisonBatch(
        pad(batch.prompt_ids, (3, 0)),
        pad(batch.prompt_mask, (3, 0)),
        pad(batch.response_ids, (0, 2, 0, 1)),
        pad(batch.response_mask, (0, 2, 0, 1)),
        pad(batch.ranks, (0, 1)),
        batch.groups,
    )
    with torch.no_grad():
        scores, wide_scores = scores_of(model, batch), scores_of(model, wide)
    torch.testing.assert_close(wide_scores[:, :-1], scores, atol=1e-6, rtol=0)
    assert (wide_scores[:, -1] == 0).all()


def test_the_score_is_taken_at_the_last_token():
    """With a body that shows token and position, the score names the place it was read from."""

    class Echo(nn.Module):
        def forward(self, input_ids, attention_mask, position_ids, use_cache):
            return SimpleNamespace(last_hidden_state=torch.stack([input_ids, 100 * position_ids], -1).float())

    model = ScalarHeadModel(Echo(), 2)
    model.head.weight.data.fill_(1.0)
    batch = comparison_batch([[3, 4, 5], [6]], [[[7, 8], [9], [10, 11, 12]], [[13], [14, 15]]], [[1, 2, 3], [1, 2]])
    # last token + 100 * its position, the prompts being 3 and 1 tokens long
    expected = [[408.0, 309.0, 512.0], [113.0, 215.0, 0.0]]
    assert tree_scores(model, batch).tolist() == expected
    assert separate_scores(model, batch).tolist() == expected


def test_the_shared_row_holds_each_token_once(tiny_gpt2):
    model = scalar_model(tiny_gpt2)
    prompts, responses, ranks = ragged_case((9, 4))
    shapes = []
    model.register_forward_pre_hook(lambda module, inputs: shapes.append(tuple(inputs[0].shape)))
    tree_scores(model, comparison_batch(prompts, responses, ranks))
    longest = max(len(p) + sum(map(len, row)) for p, row in zip(prompts, responses, strict=True))
    assert shapes == [(2, longest)]


@pytest.mark.parametrize("tokens", [1, 12, 2048])
def test_the_cached_pass_reads_prompts_once_and_responses_in_groups(monkeypatch, tiny_gpt2, tokens):
    monkeypatch.setattr(prefix, "GROUP_TOKENS", tokens)
    model = scalar_model(tiny_gpt2)
    prompts, responses, ranks = ragged_case((9, 4))
    shapes = []
    model.register_forward_pre_hook(lambda module, inputs: shapes.append(tuple(inputs[0].shape)))
    with torch.no_grad():
        scores = cached_scores(model, comparison_batch(prompts, responses, ranks))
    assert shapes[0] == (2, max(map(len, prompts)))
    assert sum(rows for rows, _ in shapes[1:]) == 13
    assert all(rows == 1 or rows * width <= tokens for rows, width in shapes[1:])
    for row, expected in zip(scores, brute_force(model, prompts, responses), strict=True):
        torch.testing.assert_close(row[: len(expected)], torch.stack(expected), atol=1e-5, rtol=0)


def test_short_rows_take_the_tree_and_long_ones_the_cache():
    prompts, responses, ranks = [[3] * 20, [3] * 120], [[[4] * 100, [5] * 100], [[6] * 100, [7] * 100]], [[1, 2]] * 2
    both = (cached_scores, tree_scores)
    assert prefix.fastest_pass(both, comparison_batch(prompts[:1], responses[:1], ranks[:1])) is tree_scores
    long = comparison_batch(prompts, responses, ranks)
    assert prefix.fastest_pass(both, long) is tree_scores  # 320 tokens
    longer = comparison_batch([[3] * 20, [3] * 121], responses, ranks)
    assert prefix.fastest_pass(both, longer) is cached_scores
    assert prefix.fastest_pass((tree_scores,), longer) is tree_scores
    assert prefix.fastest_pass((), longer) is separate_scores


def mistral(window):
    torch.manual_seed(0)
    sizes = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2}
    heads = {"num_attention_heads": 4, "num_key_value_heads": 2}
    config = MistralConfig(vocab_size=40, sliding_window=window, initializer_range=0.2, **sizes, **heads)
    return scalar_model(MistralForCausalLM(config).eval())


def of_lengths(prompt, response, seed):
    generator = torch.Generator().manual_seed(seed)
    prompts = torch.randint(3, 40, (2, prompt), generator=generator).tolist()
    responses = torch.randint(3, 40, (2, 3, response), generator=generator).tolist()
    return prompts, responses, [[1, 2, 3]] * 2


def test_rows_that_pass_a_window_are_read_one_by_one():
    module, taken = RewardModule(mistral(window=16), SGD), []
    for prompt, response in ((4, 3), (9, 4), (20, 5), (30, 8), (4, 3)):
        prompts, responses, ranks = of_lengths(prompt, response, seed=prompt)
        scores = module.scores(comparison_batch(prompts, responses, ranks))
        taken.append(module.taken)
        for row, expected in zip(scores, brute_force(module.model, prompts, responses), strict=True):
            torch.testing.assert_close(row, torch.stack(expected), atol=1e-5, rtol=0)
    # 13 tokens in the shared row, then 13 in the longest row of 9 + 4 of a shared row of 21, then 25 and 38.
    assert taken == [tree_scores, cached_scores, separate_scores, separate_scores, tree_scores]


def test_a_window_that_no_field_names_shows_on_the_first_rows_that_pass_it(monkeypatch):
    monkeypatch.setattr(prefix, "unwindowed_tokens", lambda _: None)
    module, taken = RewardModule(mistral(window=16), SGD), []
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        for prompt, response in ((4, 3), (20, 5), (30, 8)):
            prompts, responses, ranks = of_lengths(prompt, response, seed=prompt)
            scores = module.scores(comparison_batch(prompts, responses, ranks))
            taken.append(module.taken)
            for row, expected in zip(scores, brute_force(module.model, prompts, responses), strict=True):
                torch.testing.assert_close(row, torch.stack(expected), atol=1e-5, rtol=0)
    assert taken == [tree_scores, separate_scores, separate_scores]
    assert module.passes.sound == ()
    assert ["does not support a shared prefix (" in str(warning.message) for warning in said] == [True]


@pytest.mark.filterwarnings("error")
def test_rows_that_share_nothing_or_are_too_long_are_no_fault_of_the_model(make_tiny_lm):
    module = RewardModule(scalar_model(make_tiny_lm("gpt2")), SGD)
    responses, ranks = [[[5, 6, 7], [8, 9]]] * 2, [[1, 2]] * 2
    for prompts in ([[], []], [[3, 4], []], [[3, 4], [5]]):
        scores = module.scores(comparison_batch(prompts, responses, ranks))
        for row, expected in zip(scores, brute_force(module.model, prompts, responses), strict=True):
            torch.testing.assert_close(row, torch.stack(expected), atol=1e-5, rtol=0)
    assert module.taken is tree_scores
    with pytest.raises(ValueError, match=r"a row has 204 tokens, .* has positions for 128"):
        module.scores(comparison_batch([[3] * 200] * 2, [[[5] * 4, [6]]] * 2, ranks))
    assert module.passes.sound == (cached_scores, tree_scores)


def test_tree_mask_by_hand():
    # prompt of two tokens, responses of two and one, one column of padding
    segments = torch.tensor([[0, 0, 1, 1, 2, 2]])
    mask = torch.tensor([[True, True, True, True, True, False]])
    expected = [
        [1, 0, 0, 0, 0, 0],
        [1, 1, 0, 0, 0, 0],
        [1, 1, 1, 0, 0, 0],
        [1, 1, 1, 1, 0, 0],
        [1, 1, 0, 0, 1, 0],
    ]
    visible = tree_mask(segments, mask)
    assert visible.shape == (1, 1, 6, 6)
    assert visible[0, 0, :5].int().tolist() == expected
    assert visible[0, 0, 5].any()  # padding needs a key for its softmax


def test_the_block_mask_is_the_tree_mask():
    generator = torch.Generator().manual_seed(0)
    segments = torch.randint(0, 4, (3, 20), generator=generator).sort(1).values
    mask = torch.arange(20) < torch.tensor([[20], [17], [11]])
    dense = create_mask(tree_block_mask(segments, mask).mask_mod, 3, 1, 20, 20, device="cpu")
    assert torch.equal(dense, tree_mask(segments, mask))


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # of torch and transformers among themselves
@torch.no_grad()
def test_flex_attention_gives_the_scores_of_separate_rows(make_tiny_lm):
    # Compiled, which takes half a minute. Its backward pass needs a GPU.
    model = scalar_model(make_tiny_lm("llama", attn_implementation="flex_attention"))
    batch = comparison_batch(*ragged_case())
    torch.testing.assert_close(tree_scores(model, batch), separate_scores(model, batch), rtol=0, atol=1e-5)


# The module


def test_a_transformer_shares_the_prefix_without_a_word(tiny_lm):
    module = RewardModule(scalar_model(tiny_lm), SGD)
    prompts, responses, ranks = ragged_case()
    with torch.no_grad():
        scores = module.scores(comparison_batch(prompts, responses, ranks))
        expected = brute_force(module.model, prompts, responses)
    assert module.passes.sound == (cached_scores, tree_scores)
    torch.testing.assert_close(scores[0], torch.stack(expected[0]), atol=1e-5, rtol=0)


def test_the_module_can_be_told_to_use_separate_rows(tiny_gpt2):
    module = RewardModule(scalar_model(tiny_gpt2), SGD, shared_prefix=False)
    batch, shapes = comparison_batch(*ragged_case((3, 2))), []
    module.model.register_forward_pre_hook(lambda model, inputs: shapes.append(inputs[0].shape[0]))
    module.scores(batch)
    assert shapes == [5]


class RunningMean(nn.Module):
    """A causal body that knows only ordinary masks: the mean of the embeddings so far, whoever they belong to."""

    def __init__(self, refuses=False):
        super().__init__()
        self.embedding = nn.Embedding(40, 8)
        self.refuses = refuses

    def forward(self, input_ids, attention_mask, position_ids, use_cache):
        if attention_mask.ndim == 4:
            if self.refuses:
                raise ValueError("the mask has four dimensions")
            attention_mask = torch.ones_like(input_ids, dtype=torch.bool)
        kept = self.embedding(input_ids) * attention_mask.unsqueeze(-1)
        count = attention_mask.cumsum(1).clamp(min=1).unsqueeze(-1)
        return SimpleNamespace(last_hidden_state=kept.cumsum(1) / count)


@pytest.mark.parametrize("refuses", [False, True])
def test_a_body_without_tree_masks_falls_back_with_a_warning(refuses):
    torch.manual_seed(0)
    module = RewardModule(ScalarHeadModel(RunningMean(refuses), 8), SGD)
    prompts, responses, ranks = ragged_case()
    batch = comparison_batch(prompts, responses, ranks)
    reason = "the mask has four dimensions" if refuses else "scores differ by"
    with pytest.warns(UserWarning, match=f"RunningMean does not support a shared prefix.*{reason}"):
        scores = module.scores(batch)
    assert module.passes.sound == ()
    expected = brute_force(module.model, prompts, responses)
    for i, row in enumerate(expected):
        torch.testing.assert_close(scores[i, : len(row)], torch.stack(row), atol=1e-5, rtol=0)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        module.scores(batch)  # said once


def test_an_ignored_tree_mask_is_noticed_in_16_bits(make_tiny_lm):
    class TreeBlind(nn.Module):
        def __init__(self, body):
            super().__init__()
            self.body = body

        def forward(self, input_ids, attention_mask, **options):
            if attention_mask.ndim == 4:
                attention_mask = torch.ones_like(input_ids, dtype=torch.bool)
            return self.body(input_ids=input_ids, attention_mask=attention_mask, **options)

    # A fresh model of the usual initialisation and a small head: all scores differ by a few hundredths.
    model = scalar_model(make_tiny_lm("gpt2", dtype=torch.bfloat16, initializer_range=0.02))
    model.head.weight.data.mul_(0.2)
    model.backbone = TreeBlind(model.backbone)
    module = RewardModule(model, SGD)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        module.scores(comparison_batch(*ragged_case((4, 4))))
    assert module.passes.sound == ()


def test_autocast_on_the_cpu_keeps_the_shared_prefix(tiny_gpt2):
    module = RewardModule(scalar_model(tiny_gpt2), SGD)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        module.scores(comparison_batch(*ragged_case()))
    assert module.passes.sound == (cached_scores, tree_scores)


@pytest.mark.parametrize("kind", ["gpt2", "llama"])
def test_eager_attention_shares_the_prefix(make_tiny_lm, kind):
    module = RewardModule(scalar_model(make_tiny_lm(kind, attn_implementation="eager")), SGD)
    module.scores(comparison_batch(*ragged_case()))
    assert module.passes.sound == (cached_scores, tree_scores)


def test_dropout_stays_off(make_tiny_lm):
    model = scalar_model(make_tiny_lm("gpt2", resid_pdrop=0.5, embd_pdrop=0.5, attn_pdrop=0.5))
    module, batch = RewardModule(model.train(), SGD), comparison_batch(*ragged_case())
    assert torch.equal(module.scores(batch), module.scores(batch))


def test_the_loss_of_the_module_is_the_paper_s(tiny_lm):
    module = RewardModule(scalar_model(tiny_lm), SGD)
    prompts, responses, ranks = ragged_case()
    ranks[1] = [2] * len(ranks[1])  # only ties: this prompt has no say
    loss, stats = module.loss(comparison_batch(prompts, responses, ranks))
    scores = brute_force(module.model, prompts, responses)
    torch.testing.assert_close(loss, brute_force_loss(scores, ranks), atol=1e-5, rtol=0)
    scores = [torch.stack(score).tolist() for score in scores]
    pairs = sum(a != b for rank in ranks for a, b in itertools.combinations(rank, 2))
    assert int(stats.num_pairs) == pairs
    margins = [
        (score[a] - score[b]) * (1 if rank[a] < rank[b] else -1)
        for score, rank in zip(scores, ranks, strict=True)
        for a, b in itertools.combinations(range(len(rank)), 2)
        if rank[a] != rank[b]
    ]
    assert float(stats.accuracy) == pytest.approx(sum(margin > 0 for margin in margins) / pairs, abs=1e-6)
    assert float(stats.margin) == pytest.approx(math.fsum(margins) / pairs, abs=1e-5)


def test_a_constant_bias_moves_scores_and_not_the_loss(tiny_gpt2):
    batch = comparison_batch(*ragged_case())
    plain, moved = (RewardModule(scalar_model(tiny_gpt2, bias), SGD) for bias in (0.0, -3.0))
    difference = moved.scores(batch) - plain.scores(batch)
    torch.testing.assert_close(difference, torch.where(batch.mask, -3.0, 0.0), atol=1e-5, rtol=0)
    torch.testing.assert_close(moved.loss(batch)[0], plain.loss(batch)[0], atol=1e-5, rtol=0)


# Accuracy


def test_pairwise_accuracy_over_batches_is_that_over_all_pairs():
    generator = torch.Generator().manual_seed(3)
    metric, right, total = PairwiseAccuracy(), 0.0, 0
    for prompts, count in ((3, 9), (1, 2), (4, 5)):
        # Few distinct scores, so that equal ones occur; they count half.
        scores = torch.randint(-3, 4, (prompts, count), generator=generator).float()
        ranks = torch.randint(1, 5, (prompts, count), generator=generator)
        mask = torch.rand(prompts, count, generator=generator) < 0.8
        metric.update(scores, ranks, mask)
        for i in range(prompts):
            for a, b in itertools.combinations([k for k in range(count) if mask[i, k]], 2):
                if ranks[i, a] != ranks[i, b]:
                    margin = float(scores[i, a] - scores[i, b]) * (1 if ranks[i, a] < ranks[i, b] else -1)
                    right += 1.0 if margin > 0 else 0.5 if margin == 0 else 0.0
                    total += 1
    assert 0.2 < right / total < 0.8
    assert float(metric.compute()) == pytest.approx(right / total, abs=1e-6)


def test_pairwise_accuracy_weighs_pairs_and_not_batches():
    metric = PairwiseAccuracy()
    metric.update(torch.tensor([[3.0, 2.0, 1.0]]), torch.tensor([[1, 2, 3]]), torch.ones(1, 3, dtype=torch.bool))
    metric.update(torch.tensor([[0.0, 1.0]]), torch.tensor([[1, 2]]), torch.ones(1, 2, dtype=torch.bool))
    metric.update(torch.tensor([[0.0, 1.0]]), torch.tensor([[1, 1]]), torch.ones(1, 2, dtype=torch.bool))
    assert float(metric.compute()) == pytest.approx(0.75)
    metric.reset()
    metric.update(torch.tensor([[1.0, 1.0]]), torch.tensor([[2, 1]]), torch.ones(1, 2, dtype=torch.bool))
    assert float(metric.compute()) == pytest.approx(0.5)
