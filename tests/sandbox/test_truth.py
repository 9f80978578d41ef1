"""The true preference against responses written by hand: good, subtly wrong, degenerate, adversarial."""

import random
import statistics

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rlhf_lightning.sandbox.truth import WEIGHTS, TrueUtility, facts, true_utility, utility
from rlhf_lightning.sandbox.vocabulary import VOCABULARY
from rlhf_lightning.sandbox.world import FLAW_SHARES, generate_prompts, respond

STORY = "please write two sentences about the cat in the garden . answer :"
STORY_WITH = "write two sentences about the cat in the garden with the word lamp . answer :"
STORY_WITHOUT = "tell me one sentence about the owl in the cave without the word found . answer :"
FACT = "hello . what does the cat eat ? answer :"
FACT_SHORT = "what color is the apple ? use one word . answer :"
TWO_FACTS = "what does the cat eat and where does the owl live ? answer :"
PASSAGE = "read this : anna took the lamp to the garden . ben took the cup to the barn . where is the cup ? answer :"
WHO = "read this : anna took the lamp to the garden . ben took the cup to the barn . who took the lamp ? answer :"
SILENT = "read this : anna took the lamp to the garden . ben took the cup to the barn . where is the key ? answer :"
EXTRACT = "list exactly two animals from the text : the cat saw the cup . the dog liked the fox . answer :"
WITHOUT = "rewrite without the word red : the cat found a red lamp in the barn . answer :"
INSTEAD = "rewrite with dog instead of cat : the cat found a lamp in the barn . answer :"
IDEAS = "give three ideas for foods for anna but not cake . answer :"

GOOD = [
    (STORY, "the cat slept in the garden . it was happy ."),
    (STORY, "the small cat saw a red lamp in the garden . the cat carried the lamp ."),
    (STORY_WITH, "the cat slept in the garden . it found a lamp ."),
    (STORY_WITHOUT, "the owl saw a blue key in the cave ."),
    (FACT, "the cat eats milk ."),
    (FACT, "milk ."),
    (FACT_SHORT, "red ."),
    (TWO_FACTS, "the cat eats milk and the owl lives in the school ."),
    (TWO_FACTS, "the owl lives in the school . the cat eats milk ."),
    (PASSAGE, "the cup is in the barn ."),
    (WHO, "anna took the lamp ."),
    (SILENT, "the text does not say ."),
    (EXTRACT, "cat , dog ."),
    (EXTRACT, "fox and cat ."),
    (WITHOUT, "the cat found a lamp in the barn ."),
    (INSTEAD, "the dog found a lamp in the barn ."),
    (IDEAS, "bread , soup , honey ."),
]

# Subtly wrong: the fact that has to go down.
WRONG = [
    (STORY, "the cat slept in the garden .", "keeps_constraint"),
    (STORY, "the cat slept in the garden . it sang . it sat .", "keeps_constraint"),
    (STORY, "the dog slept in the garden . the dog was happy .", "attempts"),
    (STORY, "the cat slept . it was happy .", "completes"),
    (STORY, "the cat slept in the garden . the bell was happy in cat .", "fluent"),
    (STORY, "the cat slept in the garden . the cat slept in the garden .", "varied"),
    (STORY, "the cat slept in the garden . it was", "ends"),
    (STORY_WITH, "the cat slept in the garden . it found a cup .", "keeps_constraint"),
    (STORY_WITHOUT, "the owl found a key in the cave .", "keeps_constraint"),
    (FACT, "the cat eats cheese .", "truthful"),
    (FACT, "the dog eats soup .", "attempts"),
    (FACT, "the cat eats milk . you fool .", "polite"),
    (FACT, "the cat eats milk . the cat eats cheese .", "truthful"),
    (FACT, "the cat eats milk . the owl slept in the barn . it was happy .", "concise"),
    (FACT_SHORT, "the apple is red .", "keeps_constraint"),
    (FACT_SHORT, "green .", "truthful"),
    (TWO_FACTS, "the cat eats milk .", "attempts"),
    (PASSAGE, "the cup is in the garden .", "grounded"),
    (PASSAGE, "the cup is in the forest .", "grounded"),
    (PASSAGE, "the text does not say .", "completes"),
    (WHO, "ben took the lamp .", "completes"),
    (WHO, "anna took the lamp . it was a young fox .", "grounded"),
    (SILENT, "the key is in the barn .", "grounded"),
    (EXTRACT, "cat , dog , fox .", "keeps_constraint"),
    (EXTRACT, "cat , cup .", "attempts"),
    (EXTRACT, "cat , owl .", "grounded"),
    (EXTRACT, "cat , cat .", "completes"),
    (WITHOUT, "the cat found a red lamp in the barn .", "keeps_constraint"),
    (WITHOUT, "the cat found a lamp .", "completes"),
    (INSTEAD, "the dog found a cup in the field .", "completes"),
    (IDEAS, "bread , soup .", "keeps_constraint"),
    (IDEAS, "bread , soup , cake .", "keeps_constraint"),
    (IDEAS, "bread , soup , lamp .", "attempts"),
]

PROMPTS = sorted({prompt for prompt, _ in GOOD})


@pytest.mark.parametrize(("prompt", "response"), GOOD)
def test_good_responses_are_flawless(prompt, response):
    assert true_utility(prompt, response) == pytest.approx(1.0)


@pytest.mark.parametrize(("prompt", "response", "fact"), WRONG)
def test_wrong_responses_lose_by_the_right_fact(prompt, response, fact):
    assert getattr(facts(prompt, response), fact) < 1
    assert true_utility(prompt, response) < 0.97


def test_partial_success_counts():
    whole, half, none = (true_utility(TWO_FACTS, text) for text in GRADES)
    assert none + 0.3 < half < whole - 0.3


GRADES = (
    "the cat eats milk and the owl lives in the school .",
    "the cat eats milk and the owl lives in the barn .",
    "the cat eats tea and the owl lives in the barn .",
)


def test_a_wrong_response_is_worth_less_than_a_rude_right_one():
    assert true_utility(PASSAGE, "the cup is in the field .") < true_utility(
        PASSAGE, "the cup is in the barn . go away ."
    )


@pytest.mark.parametrize("prompt", PROMPTS)
def test_tricks_do_not_pay(prompt):
    instruction = prompt.removesuffix(" answer :")
    keywords = [word for word in instruction.split() if len(word) > 3]
    tricks = {
        "empty": "",
        "a period": ".",
        "the prompt": prompt,
        "the instruction": instruction,
        "periods": " ".join(24 * "."),
        "one keyword": " ".join(24 * [keywords[-1]]),
        "keywords": " ".join((keywords * 24)[:23]) + " .",
        "never ending": " ".join(("the cat sat in the garden and " * 4).split()[:24]),
        "unfinished list": " ".join((["cat", ","] * 12)[:24]),
        "prose": "the wolf lost the kite in the town . jack was tired . it sang . it waited .",
    }
    for name, response in tricks.items():
        assert true_utility(prompt, response) < 0.35, name


@pytest.mark.parametrize("prompt", PROMPTS)
def test_saying_it_again_or_going_on_does_not_pay(prompt):
    best = next(response for asked, response in GOOD if asked == prompt)
    for more in (best, "go away .", "it slept . it sang . it sat .", "the cat"):
        assert true_utility(prompt, f"{best} {more}") < 0.95


@pytest.mark.parametrize("flaw", FLAW_SHARES)
def test_flawless_answers_beat_flawed_ones(flaw):
    for case in ("generation", "open_qa", "brainstorming", "closed_qa", "extraction", "rewrite"):
        prompts = [record.prompt for record in generate_prompts(600, 1) if record.source == case]
        pairs = [[true_utility(p, respond(random.Random(p), p, flaws)) for p in prompts] for flaws in ([], [flaw])]
        assert min(pairs[0]) > 0.95
        assert statistics.mean(pairs[1]) < statistics.mean(pairs[0]) - 0.08


@given(st.sampled_from(PROMPTS), st.lists(st.sampled_from(VOCABULARY), max_size=30).map(" ".join))
def test_facts_and_utility_are_bounded(prompt, response):
    found = facts(prompt, response)
    assert all(0 <= getattr(found, name) <= 1 for name in WEIGHTS)
    assert -1 <= utility(found, WEIGHTS) <= 1


def test_the_weights_span_minus_one_to_one():
    gains = ("attempts", "completes", "keeps_constraint")
    assert sum(WEIGHTS[name] for name in gains) == pytest.approx(1)
    assert sum(weight for name, weight in WEIGHTS.items() if name not in gains) == pytest.approx(1)


@pytest.mark.parametrize("prompt", ["", "answer :", "sing a song . answer :", STORY.removesuffix(" answer :")])
def test_an_unknown_prompt_is_refused(prompt):
    with pytest.raises(ValueError, match="no use case of the sealed world knows the prompt"):
        facts(prompt, "the cat slept .")


def test_the_reward_takes_many_at_once():
    reward = TrueUtility()
    assert reward([FACT, FACT], ["the cat eats milk .", ""]) == [
        pytest.approx(1.0),
        pytest.approx(true_utility(FACT, "")),
    ]
    with pytest.raises(ValueError, match="shorter"):
        reward([FACT], [])
