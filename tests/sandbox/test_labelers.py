"""Simulated labelers: the form of rankings, noise, screening, and how far they agree."""

import dataclasses
import itertools
import json
import statistics
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rlhf_lightning.data.records import Comparison
from rlhf_lightning.evaluation import agreement
from rlhf_lightning.sandbox.labelers import (
    Labeler,
    LabelerPanel,
    candidate,
    held_out_labelers,
    held_out_panel,
    screened_labelers,
    varied_responses,
)
from rlhf_lightning.sandbox.metadata import Metadata, flags_of, likert_of
from rlhf_lightning.sandbox.truth import WEIGHTS, true_utility

PROMPT = "what does the cat eat ? answer :"
PASSAGE = "read this : anna took the lamp to the garden . ben took the cup to the barn . where is the cup ? answer :"
EXACT = Labeler("exact", WEIGHTS["train"], noise=0.0, flag_error=0.0, skill=1.0)
HIRED = screened_labelers(12)
ANSWERED = varied_responses(60, "tests of labelers")


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
    # Only conciseness matters to this labeler: each word above the nine of the task costs 1 / 6.
    weights = {**dict.fromkeys(WEIGHTS["train"], 0.0), "concise": 1.0}
    responses = [
        f"the cat eats milk .{more}" for more in (" it sang the box", " it sang the box now", " it sang the box now so")
    ]
    assert Labeler("brief", weights, noise=0.0, tie_threshold=0.2).rank(PROMPT, responses[:2]) == [1, 1]
    assert Labeler("brief", weights, noise=0.0, tie_threshold=0.2).rank(PROMPT, responses) == [1, 1, 2]
    assert Labeler("brief", weights, noise=0.0, tie_threshold=0.1).rank(PROMPT, responses) == [1, 2, 3]
    assert Labeler("brief", weights, noise=0.0, tie_threshold=9.0).rank(PROMPT, responses) == [1, 1, 1]


@given(st.lists(st.sampled_from(["", "milk .", "tea .", "the cat eats milk .", "go away ."]), min_size=1, max_size=9))
def test_ranks_are_dense_and_identical_responses_tie(responses):
    for labeler in (candidate(0, 4, "train", 0.25), candidate(1, 4, "train", 0.25)):
        ranks = labeler.rank(PROMPT, responses)
        assert set(ranks) == set(range(1, max(ranks) + 1))
        for (one, first), (other, second) in itertools.combinations(zip(responses, ranks, strict=True), 2):
            assert one != other or first == second


def test_noise_depends_on_labeler_prompt_and_response_only():
    first, second = (candidate(index, 1, "train", 0.25) for index in range(2))
    assert first.score(PROMPT, "milk .") == candidate(0, 1, "train", 0.25).score(PROMPT, "milk .")
    clone = dataclasses.replace(first, name=second.name)
    assert clone.score(PROMPT, "milk .") != first.score(PROMPT, "milk .")


def test_training_and_held_out_labelers_are_different_people():
    held_out = held_out_labelers(12)
    assert len({labeler.name for labeler in (*HIRED, *held_out)}) == 24
    assert len({tuple(labeler.weights.items()) for labeler in (*HIRED, *held_out)}) == 24
    assert screened_labelers(5) == HIRED[:5]
    assert {labeler.team for labeler in HIRED} == {f"team-{number}" for number in range(5)}


def test_an_unknown_prompt_is_refused():
    with pytest.raises(ValueError, match="no use case"):
        EXACT.rank("sing .", ["a", "b"])


def agreement_of(people, answered):
    rankings = [
        Comparison(prompt, texts, person.rank(prompt, texts), person.name)
        for prompt, texts in answered.items()
        for person in people
    ]
    return agreement.agreement(rankings)["agreement"]["value"]


def test_less_noise_is_more_agreement_and_the_key_agrees_most():
    people = [candidate(index, 2, "train", 0.25) for index in range(6)]
    steady = [dataclasses.replace(labeler, noise=labeler.noise / 4) for labeler in people]
    answered = {prompt: texts for prompt, texts in ANSWERED.items() if len(texts) > 1}
    assert agreement_of(steady, answered) > agreement_of(people, answered) + 0.05
    assert agreement_of([EXACT, dataclasses.replace(EXACT, name="the same taste")], answered) == 1.0


@pytest.mark.slow
def test_people_agree_as_much_as_in_the_paper():
    """InstructGPT, section 3.4, on recorded samples of an SFT model (experiment=sandbox, stage collect)."""
    path = Path(__file__).with_name("sft_samples.jsonl")
    rows = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    answered = {row["prompt"]: row["responses"] for row in rows}
    assert agreement_of(screened_labelers(), answered) == pytest.approx(0.726, abs=0.015)
    assert agreement_of(held_out_labelers(20), answered) == pytest.approx(0.773, abs=0.013)


def test_likert_and_metadata():
    assert [likert_of(worth) for worth in (1.0, 0.8, 0.6, 0.4, 0.2, -0.1, -1.0)] == [7, 6, 5, 4, 3, 2, 1]
    assert EXACT.likert(PROMPT, "the cat eats milk .") == 7
    assert EXACT.likert(PROMPT, "go away .") <= 2
    assert EXACT.metadata(PASSAGE, "the cup is in the forest . you fool .") == {
        "follows_instruction": False,
        "hallucination": True,
        "inappropriate": True,
        "falsehood": False,
    }
    assert EXACT.metadata(PASSAGE, "the cup is in the barn .")["hallucination"] is False
    assert flags_of(PROMPT, "the cat eats tea .")["falsehood"] is True
    assert flags_of(PROMPT, "milk .")["satisfies_constraint"] is None
    polite = PROMPT.replace(" answer :", " polite answer :")
    assert [flags_of(polite, text)["satisfies_constraint"] for text in ("milk .", "", "dog dog .")] == [
        True,
        False,
        False,
    ]
    short = PROMPT.replace("?", "? use one word .")
    assert [flags_of(short, text)["satisfies_constraint"] for text in ("milk .", "the cat eats milk .")] == [
        True,
        False,
    ]
    rude = PROMPT.replace(" answer :", " rude answer :")
    assert [flags_of(rude, text)["satisfies_constraint"] for text in ("milk . you fool .", "milk .")] == [True, False]
    slips = dataclasses.replace(EXACT, flag_error=1.0).metadata(PROMPT, "milk .")
    assert slips == {"follows_instruction": False, "inappropriate": True, "falsehood": True}


def test_metadata_of_many():
    table = Metadata()([PROMPT, PASSAGE], ["the cat eats milk .", "the cup is in the cave ."])
    assert table["hallucination"] == [None, 1.0]
    assert table["follows_instruction"] == [1.0, 0.0]
    assert table["inappropriate"] == [0.0, 0.0]
    assert table["likert"][0] == 7.0 > table["likert"][1]


def test_demonstrations_are_as_good_as_the_skill():
    prompts = list(ANSWERED)
    good, poor = (
        [true_utility(p, dataclasses.replace(EXACT, skill=skill).demonstrate(p), "train") for p in prompts]
        for skill in (1.0, 0.0)
    )
    assert statistics.mean(good) > 0.95
    assert statistics.mean(poor) < 0.75


def test_a_panel_gives_each_prompt_to_one_labeler():
    panel = held_out_panel(count=5)
    prompts = list(ANSWERED)[:40]
    texts = [ANSWERED[prompt][0] for prompt in prompts]
    scores = panel(prompts, texts)
    assert panel(prompts[::-1], texts[::-1]) == scores[::-1]
    owners = [
        {labeler.name for labeler in panel.labelers if labeler.score(prompt, text) == score}
        for prompt, text, score in zip(prompts, texts, scores, strict=True)
    ]
    assert all(len(names) == 1 for names in owners)
    assert len(set().union(*owners)) == 5
    alone = LabelerPanel([EXACT])
    assert alone([PROMPT], ["the cat eats milk ."]) == [pytest.approx(1.0)]
