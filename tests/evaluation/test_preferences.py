"""Who is preferred to whom, on three prompts that can be counted."""

import pytest

from rlhf_lightning.evaluation.agreement import verdict_agreement
from rlhf_lightning.evaluation.policies import PolicySamples, policy_results
from rlhf_lightning.evaluation.preferences import (
    MOST_GROUPS,
    breakdown,
    head_to_head,
    judge_agreement,
    length_thirds,
    part_results,
    value_groups,
)

PROMPTS = ["p", "q", "r", "s"]


def samples(scores, people, lengths=(1.0, 1.0, 1.0, 1.0), texts="abcd", said=None):
    own = PolicySamples([*texts], [*lengths], [0.0] * 4, [*scores])
    own.judges = {"people": [*people]}
    own.preferences = {} if said is None else {"model": said}
    return own


POLICIES = {
    "sft": samples([0, 0, 0, 0], [1, 1, 1, 1], said=[0.5] * 4),
    "ppo": samples([1, 0, -1, 1], [2, 1, 0, 0], texts="efgh", said=[1.0, None, 0.0, 1.0]),
    "best": samples([2, 2, 2, 0], [2, 2, 2, 2], lengths=[3.0] * 4, texts="ijkd", said=[1.0, 1.0, 1.0, 0.5]),
}


def test_every_pair_stands_head_to_head():
    found = head_to_head({name: own.scores for name, own in POLICIES.items()}, PROMPTS)
    assert {one: {*row} for one, row in found.items()} == {one: POLICIES.keys() - {one} for one in POLICIES}
    assert found["ppo"]["sft"]["value"] == (1 + 0.5 + 0 + 1) / 4
    assert found["sft"]["ppo"]["value"] == 1 - found["ppo"]["sft"]["value"]
    assert found["best"]["ppo"]["value"] == 3 / 4
    assert found["ppo"]["best"]["low"] == pytest.approx(1 - found["best"]["ppo"]["high"])


def test_a_part_of_the_prompts_has_rates_of_its_own():
    found = part_results(POLICIES, "sft", PROMPTS, [0, 1])
    assert found["prompts"] == 2
    assert found["policies"].keys() == {"ppo", "best"}
    assert found["policies"]["ppo"]["win_rate"]["value"] == 0.75
    assert found["policies"]["ppo"]["judges"]["people"]["value"] == 0.75
    assert found["policies"]["ppo"]["judges"]["model"]["value"] == 1.0, "what it did not say does not count"
    assert found["policies"]["best"]["length_controlled"]["value"] == 1.0
    assert part_results(POLICIES, "sft", PROMPTS, [1])["policies"]["ppo"]["judges"]["model"] is None


def test_groups_are_those_of_the_fields_and_one_alone_says_nothing():
    groups = {"use_case": value_groups(["chat", "chat", "qa", None]), "source": value_groups(["api"] * 4)}
    found = breakdown(POLICIES, "sft", PROMPTS, groups)
    assert found.keys() == {"use_case"}
    assert {group: own["prompts"] for group, own in found["use_case"].items()} == {"chat": 2, "qa": 1, "(unknown)": 1}
    assert found["use_case"]["qa"]["policies"]["ppo"]["win_rate"]["value"] == 0.0


def test_rare_values_are_together_and_equal_lengths_are_not_split():
    values = [number for number in range(MOST_GROUPS + 5) for _ in range(2 if number < MOST_GROUPS else 1)]
    groups = value_groups(values)
    assert len(groups) == MOST_GROUPS + 1
    assert groups["(others)"] == [*range(2 * MOST_GROUPS, 2 * MOST_GROUPS + 5)]
    assert length_thirds([5, 5, 5, 5]) == {"5 .. 5": [0, 1, 2, 3]}
    assert length_thirds([9, 2, 2, 2, 2, 2]) == {"2 .. 2": [1, 2, 3, 4, 5], "9 .. 9": [0]}
    assert length_thirds([4]) == {"4 .. 4": [0]}


def test_judges_agree_where_they_say_the_same_of_two_responses():
    """The main judge and people, pair by pair; the last prompt of best and sft has one text twice."""
    main = {("ppo", "sft"): [1, 0.5, 0, 1], ("best", "sft"): [1, 1, 1], ("ppo", "best"): [0, 0, 0, 1]}
    people = {("ppo", "sft"): [1, 0.5, 0, 0], ("best", "sft"): [1, 1, 1], ("ppo", "best"): [0.5, 0, 0, 0]}
    alike = sum(a == b for pair in main for a, b in zip(main[pair], people[pair], strict=True))
    by = {tuple(own["judges"]): own for own in judge_agreement(POLICIES, "sft", PROMPTS)}
    assert by.keys() == {("judge", "people"), ("judge", "model"), ("people", "model")}
    assert by["judge", "people"]["pairs"] == 11
    assert by["judge", "people"]["agreement"]["value"] == alike / 11 == 8 / 11
    assert by["judge", "people"]["decided"]["value"] == 7 / 9
    assert by["judge", "people"]["decided_pairs"] == 9
    # The model compared with the baseline alone, and said nothing once.
    assert by["judge", "model"]["pairs"] == 6
    assert by["judge", "model"]["agreement"]["value"] == 1.0
    assert by["people", "model"]["agreement"]["value"] == 5 / 6


def test_kappa_is_that_of_scikit_learn():
    metrics = pytest.importorskip("sklearn.metrics", reason="scikit-learn is in the extra eval")
    first, second = [1, 1, 0, 0.5, 1, 0, 0, 0.5, 1, 1], [1, 0, 0, 0.5, 0.5, 0, 1, 0.5, 1, 0]
    found = verdict_agreement(first, second, [*range(10)])
    names = {0: "worse", 0.5: "tie", 1: "better"}
    both = [[names[value] for value in (*said, *(1 - value for value in said))] for said in (first, second)]
    expected = metrics.cohen_kappa_score(*both)  # each pair in both orders
    assert found["kappa"]["value"] == pytest.approx(expected)
    turned = [[1 - value if place % 3 else value for place, value in enumerate(said)] for said in (first, second)]
    assert verdict_agreement(*turned, [*range(10)])["kappa"]["value"] == pytest.approx(expected)
    assert found["kappa"]["low"] < expected < found["kappa"]["high"]


def test_agreement_without_a_decision_or_a_choice_is_none():
    found = verdict_agreement([0.5, 0.5], [0.5, 1.0], [0, 1])
    assert found["decided"] is None
    assert found["agreement"]["value"] == 0.5
    perfect = verdict_agreement([1.0, 1.0, 0.0, 0.0], [1.0, 1.0, 0.0, 0.0], [0, 1, 2, 3])["kappa"]
    # Wilson's bound for 4 of 4 is 4 / (4 + 1.96^2) = .5101, and chance agrees on one half: .0101 / .5.
    assert perfect == {"value": 1.0, "low": pytest.approx(0.0202, abs=1e-4), "high": 1.0}
    # One prompt counts once, whatever its pairs: 1 / (1 + 1.96^2) = .2065, and (.2065 - .5) / .5.
    one = verdict_agreement([1.0, 0.0], [1.0, 0.0], [0, 0])["kappa"]
    assert one == {"value": 1.0, "low": pytest.approx(-0.587, abs=1e-3), "high": 1.0}
    assert verdict_agreement([0.5, 0.5], [0.5, 0.5], [0, 1])["kappa"] is None
    alike = verdict_agreement([1.0, 1.0], [1.0, 1.0], [0, 1])  # in both orders the verdicts are two
    assert alike["kappa"]["value"] == 1.0
    assert alike["decided"]["low"] < 1, "two pairs alone prove little"


def test_the_results_of_a_policy_have_what_was_asked():
    found = policy_results(POLICIES, "sft", {}, PROMPTS)
    assert found["ppo"]["judges"]["model"]["value"] == pytest.approx(2 / 3)
    assert found["sft"]["judges"]["model"]["value"] == 0.5
    assert found["sft"]["length_controlled"] is None
    assert found["ppo"]["length_controlled"]["value"] == pytest.approx(found["ppo"]["win_rate"]["value"], abs=1e-5)
    POLICIES["ppo"].likert["people"] = [7.0, 5.0, 1.0, 3.0]
    POLICIES["ppo"].metadata = {"follows_instruction": [1.0, 1.0, 1.0, 0.0], "rude": [0.0] * 4}
    own = policy_results(POLICIES, "sft", {}, PROMPTS)["ppo"]
    assert own["likert"]["people"]["value"] == 4.0
    assert own["table_3"]["fails_instruction"]["value"] == 0.25
    assert [name for name, value in own["table_3"].items() if value is not None] == ["fails_instruction"]
    assert len(own["table_3"]) == 12
