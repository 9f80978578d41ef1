"""Simulated labelers: the form of rankings, noise, and how far they agree."""

import dataclasses
import itertools
import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rlhf_lightning.sandbox.labelers import Labeler, make_labelers
from rlhf_lightning.sandbox.truth import WEIGHTS, true_utility
from rlhf_lightning.sandbox.world import generate_prompts, respond

PROMPT = "what does the cat eat ? answer :"
EXACT = Labeler("exact", WEIGHTS, noise=0.0)


FLAWS = ([], ["mistake"], ["rambling"], ["rude"], ["off_task"], ["mistake", "rude"])


def mixed_responses(count: int) -> list[tuple[str, list[str]]]:
    """Prompts with one flawless response and one for each way to fail, as unlike as samples of a tuned policy."""
    return [
        (record.prompt, [respond(random.Random(record.prompt), record.prompt, flaws) for flaws in FLAWS])
        for record in generate_prompts(count, "labelers")
    ]


def test_an_exact_labeler_follows_the_truth():
    responses = [
        "",
        "the cat eats milk .",
        "the cat eats milk . go away .",
        "the cat eats tea .",
        "the cat eats milk .",
    ]
    assert EXACT.rank(PROMPT, responses) == [4, 1, 2, 3, 1]


def test_ties_do_not_chain():
    # Only conciseness matters to this labeler: each word above the eight of the task costs 1 / 6.
    weights = {**dict.fromkeys(WEIGHTS, 0.0), "concise": 1.0}
    responses = [f"the cat eats milk .{more}" for more in (" it sang the", " it sang the box", " it sang the box now")]
    assert Labeler("brief", weights, noise=0.0, tie_threshold=0.2).rank(PROMPT, responses[:2]) == [1, 1]
    assert Labeler("brief", weights, noise=0.0, tie_threshold=0.2).rank(PROMPT, responses) == [1, 1, 2]
    assert Labeler("brief", weights, noise=0.0, tie_threshold=0.1).rank(PROMPT, responses) == [1, 2, 3]
    assert Labeler("brief", weights, noise=0.0, tie_threshold=9.0).rank(PROMPT, responses) == [1, 1, 1]


@given(st.lists(st.sampled_from(["", "milk .", "tea .", "the cat eats milk .", "go away ."]), min_size=1, max_size=9))
def test_ranks_are_dense_and_identical_responses_tie(responses):
    for labeler in make_labelers(2, seed=4):
        ranks = labeler.rank(PROMPT, responses)
        assert set(ranks) == set(range(1, max(ranks) + 1))
        for (one, first), (other, second) in itertools.combinations(zip(responses, ranks, strict=True), 2):
            assert one != other or first == second


def test_noise_depends_on_labeler_prompt_and_response_only():
    first, second = make_labelers(2, seed=1)
    assert first.score(PROMPT, "milk .") == make_labelers(9, seed=1)[0].score(PROMPT, "milk .")
    clone = dataclasses.replace(first, name=second.name)
    assert clone.score(PROMPT, "milk .") != first.score(PROMPT, "milk .")


def test_labelers_differ_and_have_names_of_their_own():
    training, held_out = make_labelers(20, seed=0), make_labelers(20, seed=1)
    assert len({labeler.name for labeler in (*training, *held_out)}) == 40
    assert len({tuple(labeler.weights.items()) for labeler in (*training, *held_out)}) == 40
    assert make_labelers(5, seed=0) == training[:5]


def test_an_unknown_prompt_is_refused():
    with pytest.raises(ValueError, match="no use case"):
        EXACT.rank("sing .", ["a", "b"])


def test_agreement_is_near_that_of_people():
    """InstructGPT, section 3.4: training labelers agree with each other on 72.6 % of the pairs."""
    labelers = make_labelers(8)
    agreed = compared = true = judged = 0
    for prompt, responses in mixed_responses(120):
        rankings = [labeler.rank(prompt, responses) for labeler in labelers[:4]]
        worth = [true_utility(prompt, response) for response in responses]
        for i, j in itertools.combinations(range(len(responses)), 2):
            signs = [(ranks[i] > ranks[j]) - (ranks[i] < ranks[j]) for ranks in rankings]
            for one, other in itertools.combinations(signs, 2):
                compared += bool(one and other)
                agreed += bool(one and other) and one == other
            sign = (worth[i] < worth[j]) - (worth[i] > worth[j])
            judged += sum(bool(sign and other) for other in signs)
            true += sum(bool(sign) and sign == other for other in signs)
    # A little above 0.726, which is calibrated on samples of a model: these responses differ more than those.
    assert 0.72 < agreed / compared < 0.84
    assert 0.72 < true / judged < 0.92
