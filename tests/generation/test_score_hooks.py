"""Hooks between scores and advantages."""

import math
import statistics

import pytest
import torch

from rlhf_lightning.algorithms.batch import PromptBatch, Rollout
from rlhf_lightning.generation.score_hooks import Clip, LengthPenalty, RunningNormalization, shaped_scores

SCORES = torch.tensor([1.0, -2.0, 5.0])


@pytest.fixture
def rollout():
    """Responses of 1, 3 and 4 tokens."""
    ids = torch.ones(3, 1, dtype=torch.long)
    prompts = PromptBatch(ids, ids.bool(), torch.arange(3), ["a", "b", "c"])
    mask = torch.arange(4) < torch.tensor([[1], [3], [4]])
    return Rollout(prompts, mask.long(), mask, torch.zeros(3, 4), torch.tensor([True, True, False]))


def test_a_length_penalty_and_a_clip(rollout):
    assert LengthPenalty(0.5)(SCORES, rollout).tolist() == [0.5, -3.5, 3.0]
    assert LengthPenalty(0.5, free_tokens=3)(SCORES, rollout).tolist() == [1.0, -2.0, 4.5]
    assert Clip(-1, 2)(SCORES, rollout).tolist() == [1.0, -1.0, 2.0]
    with pytest.raises(ValueError, match="low must be below high, got low=2, high=2"):
        Clip(2, 2)


def test_running_normalisation_is_that_of_all_scores_so_far(rollout):
    hook, seen = RunningNormalization(), []
    for number in range(4):
        scores = SCORES * (number + 1) + number**2
        seen += scores.tolist()
        expected = [(score - statistics.mean(seen)) / statistics.stdev(seen) for score in seen[-3:]]
        assert hook(scores, rollout).tolist() == pytest.approx(expected, abs=1e-5)
        # A hook that was saved and loaded goes on exactly.
        again = RunningNormalization()
        again.load_state_dict(hook.state_dict())
        hook = again
    assert RunningNormalization()(SCORES[:1], rollout).tolist() == [0.0]


def test_hook_then_whitening_then_scale(rollout):
    assert shaped_scores(SCORES, rollout, None, 1.0, False) is SCORES
    assert shaped_scores(SCORES, rollout, Clip(-1, 2), 3.0, False).tolist() == [3.0, -3.0, 6.0]
    clipped = [1.0, -1.0, 2.0]
    mean, deviation = statistics.mean(clipped), statistics.stdev(clipped)
    expected = [2 * (score - mean) / deviation for score in clipped]
    assert shaped_scores(SCORES, rollout, Clip(-1, 2), 2.0, True).tolist() == pytest.approx(expected, abs=1e-6)


@pytest.mark.parametrize(
    "hook", [lambda s, r: s.mean(), lambda s, r: s[:1], lambda s, r: s * math.nan, lambda s, r: s.tolist()]
)
def test_a_hook_returns_one_finite_score_for_each(rollout, hook):
    with pytest.raises(ValueError, match=r"the score_hook made .* of 3 scores; it must return a tensor"):
        shaped_scores(SCORES, rollout, hook, 1.0, False)
