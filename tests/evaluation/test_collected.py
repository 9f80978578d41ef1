"""What is said of rankings that were collected: whose responses they are of, who won, how far labelers agree."""

import pytest

from rlhf_lightning.data.records import Comparison
from rlhf_lightning.evaluation.collected import by_policy, collected_facts, collected_section
from rlhf_lightning.evaluation.plots import Legend

SFT, PPO = "sft", "ppo"


def ranking(prompt, ranks, policies=None, labeler="ann", **labeling):
    known = {**labeling, **({"policies": policies} if policies else {})}
    texts = [f"{prompt}{number}" for number in range(len(ranks))]
    return Comparison(prompt, texts, ranks, labeler, labeling=known or None)


def test_shares_and_wins_by_policy():
    found = by_policy([ranking("p", [1, 2, 2], [SFT, PPO, SFT]), ranking("q", [2, 1], [SFT, PPO])], [0, 1])
    # Pairs of two policies: p1 loses to p0 and ties with p2, q1 wins. Of five responses two are of PPO.
    assert found[PPO]["responses"] == pytest.approx(2 / 5)
    assert found[PPO]["wins"]["value"] == pytest.approx((0 + 0.5 + 1) / 3)
    assert found[SFT]["wins"]["value"] == pytest.approx((1 + 0.5 + 0) / 3)
    assert found[PPO]["wins"]["low"] < 0.5 < found[PPO]["wins"]["high"]


def test_a_policy_alone_wins_nothing_and_who_is_not_known_does_not_count():
    found = by_policy(
        [ranking("p", [1, 2], [SFT, SFT]), ranking("q", [1, 2]), ranking("r", [1, 2], [SFT, None])], [0, 1, 2]
    )
    assert found == {SFT: {"responses": 1.0, "wins": None}}


def test_rankings_that_keep_nothing_say_what_they_said_before():
    assert collected_facts([ranking("p", [1, 2])] * 2, {"x": 1}) == {"prompts": 2, "dropped": {"x": 1}}


def test_people_who_share_a_prompt_agree_so_far():
    shown = {"order": [0, 1, 2]}
    rankings = [
        ranking("p", [1, 2, 3], **shown),
        ranking("p", [1, 3, 2], labeler="bob", **shown),
        ranking("q", [1, 2, 2], **shown),
    ]
    facts = collected_facts(rankings, {})
    assert (facts["prompts"], facts["rankings"]) == (2, 3)
    assert (facts["agreement"]["value"], facts["agreement"]["pairs"]) == (pytest.approx(2 / 3), 3)
    assert "agreement" not in collected_facts(rankings[1:], {})


def test_the_report_has_them():
    facts = collected_facts([ranking("p", [1, 2], [SFT, PPO], order=[0, 1])], {})
    section = collected_section({"collect": {"train": facts}, "sft": {"train/loss": 1.0}}, Legend({}, {}))
    assert [part.title for part in section.parts] == ["By policy", "By people"]
    assert [(row[0], row[2], row[3]["value"]) for row in section.parts[0].rows] == [
        ("train", "50.0", "0.0"),
        ("train", "50.0", "100"),
    ]
    assert section.parts[1].rows[0][:3] == ["train", "1", "1"]
    assert collected_section({"collect": {"train": {"prompts": 3, "dropped": {}}}}, Legend({}, {})) is None
