"""Step reward: rankings of one prompt count together."""

import pytest

from rlhf_lightning.data.examples import ComparisonExample
from rlhf_lightning.data.records import Comparison
from rlhf_lightning.evaluation.intervals import share_interval
from rlhf_lightning.modules.reward import RewardModule
from rlhf_lightning.recipe import reward
from rlhf_lightning.recipe.context import Context


def test_accuracies_have_intervals_over_prompts(monkeypatch: pytest.MonkeyPatch) -> None:
    """Twelve rankings of four prompts; a conversation is known by its messages."""
    talk = [{"role": "user", "content": "p"}]
    rankings = [Comparison(prompt, ["a", "b"], [1, 2]) for prompt in ("p", "q", "r", talk) for _ in range(3)]
    examples = [ComparisonExample([3], [[4], [5]], [1, 2], "g")] * 12
    right = [1.0] * 3 + [0.0] * 3 + [1.0, 1.0, 0.0] * 2
    monkeypatch.setattr(reward, "reward_scores", lambda *_: [[value, 0.5] for value in right])
    table, by_prompt = reward._accuracy(
        Context.__new__(Context), RewardModule.__new__(RewardModule), rankings, examples
    )
    assert (table["all"]["prompts"], table["all"]["pairs"]) == (4, 12)
    assert table["all"]["accuracy"] == share_interval(right, [n // 3 for n in range(12)])
    assert by_prompt["prompts"] == [0] * 3 + [3] * 3 + [6] * 3 + [9] * 3
