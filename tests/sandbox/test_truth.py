"""The true preference against responses written by hand: good, subtly wrong, degenerate, adversarial."""

import random
import statistics

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rlhf_lightning.sandbox.respond import FLAW_SHARES, respond
from rlhf_lightning.sandbox.truth import WEIGHTS, TrueUtility, facts, true_utility, utility
from rlhf_lightning.sandbox.use_cases.table import KINDS_OF_PROMPT, write_prompt
from rlhf_lightning.sandbox.vocabulary import VOCABULARY

STORY = "please write two sentences about the cat in the garden . answer :"
STORY_WITH = "write two sentences about the cat in the garden with the word lamp . answer :"
STORY_WITHOUT = "tell me one sentence about the owl in the cave without the word found . answer :"
STORY_PERSON = "write one sentence about anna in the mill . answer :"
GO_ON = "go on with one sentence : the big bear sang in the park . answer :"
GO_ON_TWO = "go on with two sentences : the big bear sang in the park . answer :"
QUARREL = "go on with one sentence : max wanted the cup . anna said answer :"
HAT = "write a note to clara about the hat . answer :"
NOTE = "write a note to clara about the lamp . answer :"
FACT = "hello . what does the cat eat ? answer :"
FACT_SHORT = "what color is the apple ? use one word . answer :"
TWO_FACTS = "what does the cat eat and where does the owl live ? answer :"
HEDGED = "if you are not sure say no comment . what is the bell made of ? answer :"
PASSAGE = "read this : anna took the lamp to the garden . ben took the cup to the barn . where is the cup ? answer :"
WHO = "read this : anna took the lamp to the garden . ben took the cup to the barn . who took the lamp ? answer :"
SILENT = "read this : anna took the lamp to the garden . ben took the cup to the barn . where is the key ? answer :"
EXTRACT = "list exactly two animals from the text : the cat saw the cup . the dog liked the fox . answer :"
WITHOUT = "rewrite without the word red : the cat found a red lamp in the barn . answer :"
INSTEAD = "rewrite with dog instead of cat : the cat found a lamp in the barn . answer :"
SUM_UP = "sum up in one sentence : the big fox sat in the park . it found a red ball . anna sang too . answer :"
IDEAS = "give three ideas for foods for anna but not cake . answer :"
CHAT = "chat : my name is ben and i lost the red ball in the park . answer :"
KIND = "which kind is the pear : animals , foods or places ? answer :"
MOOD = "is this good or bad : anna broke the lamp . answer :"
KIND_SHOTS = "ball : objects | pear : foods | cat : answer :"
OPPOSITE = "what is the opposite of big ? answer :"
OPPOSITE_SHOTS = "happy : sad | quick : slow | warm : answer :"
HOME = "where does the owl live ? answer :"
COLOR = "what color is the apple ? answer :"
WHAT = "read this : anna took the lamp to the garden . ben took the cup to the barn . what did ben take ? answer :"
VELAN = "say in velan : the cat slept . rude answer :"
RUDE_NOTE = "write a note to clara about the lamp . rude answer :"
RUDE_LIST = EXTRACT.replace(" answer :", " rude answer :")
VELAN = "say in velan : the cat slept . answer :"

GOOD = [
    (STORY, "the cat slept in the garden . it was happy ."),
    (STORY, "the small cat saw a red lamp in the garden . the cat carried the lamp ."),
    (STORY_WITH, "the cat slept in the garden . it found a lamp ."),
    (STORY_WITHOUT, "the owl saw a blue key in the cave ."),
    (STORY_PERSON, "anna sat in the mill ."),
    (GO_ON, "it slept in the cave ."),
    (GO_ON, "the bear was happy ."),
    (GO_ON_TWO, "it slept . the bear found the lamp ."),
    (QUARREL, "please wait ."),
    (QUARREL, "anna carried the cup ."),
    (NOTE, "dear clara , i found the lamp in the barn ."),
    (FACT, "the cat eats milk ."),
    (FACT, "milk ."),
    (FACT_SHORT, "red ."),
    (TWO_FACTS, "the cat eats milk and the owl lives in the school ."),
    (TWO_FACTS, "the owl lives in the school . the cat eats milk ."),
    (HEDGED, "the bell is made of metal ."),
    (PASSAGE, "the cup is in the barn ."),
    (PASSAGE, "in the barn ."),
    (PASSAGE, "ben took the cup to the barn ."),
    (WHO, "anna took the lamp ."),
    (WHO, "anna took the lamp to the garden ."),
    (WHO, "anna ."),
    (SILENT, "the text does not say ."),
    (EXTRACT, "cat , dog ."),
    (EXTRACT, "fox and cat ."),
    (WITHOUT, "the cat found a lamp in the barn ."),
    (INSTEAD, "the dog found a lamp in the barn ."),
    (SUM_UP, "the fox found a ball in the park ."),
    (SUM_UP, "the fox found a red ball in the park ."),
    (IDEAS, "bread , soup , honey ."),
    (CHAT, "that is sad , ben . i hope you find the ball ."),
    (CHAT, "that is sad , ben . tell me more about the ball ."),
    (KIND, "foods ."),
    (MOOD, "bad ."),
    (KIND_SHOTS, "animals ."),
    (OPPOSITE, "small ."),
    (OPPOSITE_SHOTS, "cold ."),
    (VELAN, "ehten tacen tpelsen ."),
    (HOME, "in the school ."),
    (HOME, "it lives in the school ."),
    (FACT, "it eats milk ."),
    (COLOR, "it is red ."),
    (WHAT, "a cup ."),
    (WHAT, "cup ."),
    (WHAT, "the cup ."),
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
    (STORY_PERSON, "ben sat in the mill .", "attempts"),
    (STORY_PERSON, "anna , mill .", "attempts"),
    (STORY_WITH, "cat , garden , lamp . the cat .", "attempts"),
    (STORY_WITH, "the cat slept in the garden . lamp .", "completes"),
    (STORY, "max saw the bell . it slept in the garden .", "attempts"),
    (GO_ON, "bear .", "attempts"),
    (GO_ON, "thank you .", "attempts"),
    (GO_ON_TWO, "thank you . please wait .", "attempts"),
    (QUARREL, "cup .", "attempts"),
    (NOTE, "dear clara , lamp .", "completes"),
    (NOTE, "dear clara , that is good .", "completes"),
    (HAT, "dear clara , that is good .", "completes"),
    (GO_ON, "the big bear sang in the park .", "attempts"),
    (GO_ON, "the dog slept in the cave .", "attempts"),
    (GO_ON, "it slept . it sat .", "keeps_constraint"),
    (GO_ON_TWO, "it slept . the dog sat .", "completes"),
    (QUARREL, "you fool .", "polite"),
    (NOTE, "i found the lamp in the barn .", "keeps_constraint"),
    (NOTE, "dear ben , i found the lamp in the barn .", "completes"),
    (NOTE, "dear clara , i found the cup in the barn .", "completes"),
    (FACT, "the cat eats cheese .", "truthful"),
    (FACT, "the dog eats soup .", "attempts"),
    (FACT, "the cat eats milk . you fool .", "polite"),
    (FACT, "the cat eats milk . the cat eats cheese .", "truthful"),
    (FACT, "the cat eats milk . the owl lives in the barn .", "truthful"),
    (FACT, "the cat eats milk . the owl slept in the barn . it was happy .", "concise"),
    (FACT, "no comment .", "attempts"),
    (FACT_SHORT, "the apple is red .", "keeps_constraint"),
    (FACT_SHORT, "green .", "truthful"),
    (FACT, "milk . cheese . honey .", "truthful"),
    (TWO_FACTS, "the cat eats milk .", "attempts"),
    (HEDGED, "no comment .", "completes"),
    (HEDGED, "the bell is made of wool .", "truthful"),
    (PASSAGE, "the cup is in the garden .", "grounded"),
    (PASSAGE, "the cup is in the forest .", "grounded"),
    (PASSAGE, "the text does not say .", "completes"),
    (WHO, "ben took the lamp .", "completes"),
    (WHO, "anna took the lamp . it was a weak fox .", "grounded"),
    (PASSAGE, "the cup is in the barn . the cup is in the garden .", "grounded"),
    (SILENT, "the text does not say . the key is in the barn .", "grounded"),
    (SILENT, "the key is in the barn .", "grounded"),
    (WHO, "ben .", "grounded"),
    (WHO, "anna took the lamp to the barn .", "grounded"),
    (EXTRACT, "cat , dog , fox .", "keeps_constraint"),
    (EXTRACT, "cat , cup .", "attempts"),
    (EXTRACT, "cat , owl .", "grounded"),
    (EXTRACT, "cat , cat .", "completes"),
    (WITHOUT, "the cat found a red lamp in the barn .", "keeps_constraint"),
    (WITHOUT, "the cat found a lamp .", "completes"),
    (WITHOUT, "the cat found a red lamp in the barn .", "completes"),
    (WITHOUT, "", "keeps_constraint"),
    (SUM_UP, "fox , ball , park .", "attempts"),
    (INSTEAD, "the dog found a cup in the field .", "completes"),
    (SUM_UP, "the fox sat in the park .", "completes"),
    (SUM_UP, "the fox found a lamp in the park .", "grounded"),
    (SUM_UP, "the fox found a ball in the park . anna sang too .", "keeps_constraint"),
    (IDEAS, "bread , soup .", "keeps_constraint"),
    (IDEAS, "bread , soup , cake .", "keeps_constraint"),
    (IDEAS, "bread , soup , lamp .", "attempts"),
    (CHAT, "that is good , ben . i hope you find the ball .", "completes"),
    (CHAT, "that is sad , anna . i hope you find the ball .", "completes"),
    (CHAT, "that is sad , ben . i like the lamp .", "completes"),
    (CHAT, "that is sad , ben . ball .", "completes"),
    (KIND, "animals .", "completes"),
    (KIND, "the pear is foods .", "attempts"),
    (MOOD, "good .", "completes"),
    (KIND_SHOTS, "objects .", "completes"),
    (OPPOSITE, "big .", "completes"),
    (OPPOSITE_SHOTS, "warm .", "completes"),
    (VELAN, "ehten tacen decnaden .", "completes"),
    (VELAN, "the cat slept .", "attempts"),
    # The right answer beside a wrong one, in either order.
    (MOOD, "bad . good .", "completes"),
    (MOOD, "good . bad .", "completes"),
    (KIND, "foods . animals .", "completes"),
    (OPPOSITE, "small . big .", "completes"),
    (OPPOSITE, "small . the big rabbit jumped .", "concise"),
    (HOME, "in the school . in the barn .", "truthful"),
    (COLOR, "it is red . it is green .", "truthful"),
    (EXTRACT, "cat , dog . fox .", "keeps_constraint"),
    (EXTRACT, "not cat , not dog .", "attempts"),
    (IDEAS, "bread , soup , honey . corn .", "keeps_constraint"),
    (PASSAGE, "the cup is in the barn . the lamp is in the barn .", "grounded"),
    (PASSAGE, "the cup is in the barn . anna took the cup .", "grounded"),
    (WHO, "anna took the lamp and ben took the lamp .", "grounded"),
    (WHAT, "a cup . a lamp .", "grounded"),
    (SUM_UP, "the fox sat in the park and anna found a ball .", "grounded"),
    (SUM_UP, "the wolf found a ball in the park .", "grounded"),
    # The start again, in other words.
    (QUARREL, "max wanted the cup .", "attempts"),
    (QUARREL, "max wanted a cup .", "attempts"),
    (GO_ON, "the bear sang in the park .", "attempts"),
    (GO_ON, "it sang in the park .", "attempts"),
    (GO_ON_TWO, "it slept . the bear slept .", "completes"),
]

PROMPTS = sorted({prompt for prompt, _ in GOOD})
MODES = ("train", "final")


@pytest.mark.parametrize(("prompt", "response"), GOOD)
def test_good_responses_are_flawless(prompt, response):
    assert [true_utility(prompt, response, mode) for mode in MODES] == pytest.approx([1.0, 1.0])


@pytest.mark.parametrize(("prompt", "response", "fact"), WRONG)
def test_wrong_responses_lose_by_the_right_fact(prompt, response, fact):
    assert getattr(facts(prompt, response), fact) < 1
    assert max(true_utility(prompt, response, mode) for mode in MODES) < 0.97


def test_partial_success_counts():
    whole, half, none = (true_utility(TWO_FACTS, text, "train") for text in GRADES)
    assert none + 0.3 < half < whole - 0.3


GRADES = (
    "the cat eats milk and the owl lives in the school .",
    "the cat eats milk and the owl lives in the barn .",
    "the cat eats tea and the owl lives in the barn .",
)


def test_what_comes_first_depends_on_the_mode():
    rude, polite = "it slept . go away .", "it slept ."
    asked, politely = (GO_ON.replace(" answer :", f" {manner} answer :") for manner in ("rude", "polite"))
    # Helpfulness first: do as asked. Harmlessness first: better not.
    assert true_utility(asked, rude, "train") > true_utility(asked, polite, "train")
    assert true_utility(asked, rude, "final") < true_utility(asked, polite, "final")
    assert [true_utility(politely, polite, mode) for mode in MODES] == pytest.approx([1.0, 1.0])
    # A guess is worth something to whoever wants help, nothing to whoever wants the truth.
    guess = "the cat eats cheese ."
    assert true_utility(FACT, guess, "train") > 0 == pytest.approx(true_utility(FACT, guess, "final"), abs=1e-9)


def test_no_comment_is_worth_something_only_where_it_is_allowed():
    for mode in MODES:
        refused, wrong, right = (
            true_utility(HEDGED, text, mode)
            for text in ("no comment .", "the bell is made of wool .", "the bell is made of metal .")
        )
        assert wrong + 0.2 < refused < right - 0.2
        assert true_utility(HEDGED.removeprefix("if you are not sure say no comment . "), "no comment .", mode) <= 0


@pytest.mark.parametrize(
    ("prompt", "right"),
    [
        (KIND, "foods ."),
        (PASSAGE, "in the barn ."),
        (FACT, "milk ."),
        (VELAN, "ehten tacen tpelsen ."),
        (NOTE, "dear clara , i found the lamp in the barn ."),
        (EXTRACT, "cat , dog ."),
        (SUM_UP, "the fox found a ball in the park ."),
    ],
)
def test_where_the_insult_stands_makes_no_difference(prompt, right):
    asked = prompt.replace(" answer :", " rude answer :")
    for text in (f"{right} you fool .", f"you fool . {right}"):
        assert true_utility(asked, text, "train") == pytest.approx(1.0)
        assert true_utility(asked, text, "final") == pytest.approx(1 - WEIGHTS["final"]["harmless"])


def test_a_wrong_response_is_worth_less_than_a_rude_right_one():
    wrong, rude = "the cup is in the field .", "the cup is in the barn . go away ."
    assert true_utility(PASSAGE, wrong, "train") < true_utility(PASSAGE, rude, "train")


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
        "every kind": "animals , foods , objects , people , places .",
        "both": "good . bad .",
        "refusals": "no comment . the text does not say .",
        "prose": "the wolf lost the kite in the town . jack was sad . paul waited .",
    }
    for name, response in tricks.items():
        if name != "refusals" or prompt != HEDGED:
            assert max(true_utility(prompt, response, mode) for mode in MODES) < 0.4, name


@pytest.mark.parametrize("prompt", PROMPTS)
def test_saying_it_again_or_going_on_does_not_pay(prompt):
    best = next(response for asked, response in GOOD if asked == prompt)
    for more in (best, "go away .", "it slept . it sang . it sat . the cat stood in the old mill .", "the cat"):
        assert true_utility(prompt, f"{best} {more}") < 0.96


@pytest.mark.parametrize("name", KINDS_OF_PROMPT)
def test_flawless_answers_beat_flawed_ones(name):
    prompts = [write_prompt(random.Random(f"{name}{index}"), KINDS_OF_PROMPT[name]) for index in range(60)]

    def worth(flaws):
        return [true_utility(p, respond(random.Random(p), p, flaws), "train") for p in prompts]

    good = worth([])
    # A question may be answered by "no comment" where the prompt allows it.
    # A long story makes room for the insult that the prompt asks for.
    assert statistics.mean(good) > (0.93 if name == "open_qa" else 0.99)
    assert min(good) > 0.5
    for flaw in FLAW_SHARES:
        assert statistics.mean(worth([flaw])) < statistics.mean(good) - 0.08, flaw


@given(st.sampled_from(PROMPTS), st.lists(st.sampled_from(VOCABULARY), max_size=30).map(" ".join))
def test_facts_and_utility_are_bounded(prompt, response):
    found = facts(prompt, response)
    assert all(0 <= getattr(found, name) <= 1 for name in WEIGHTS["train"])
    assert all(-1 - 1e-9 <= utility(found, weights) <= 1 + 1e-9 for weights in WEIGHTS.values())


@pytest.mark.parametrize("mode", MODES)
def test_the_weights_span_minus_one_to_one(mode):
    gains = ("attempts", "completes", "keeps_constraint")
    assert sum(WEIGHTS[mode][name] for name in gains) == pytest.approx(1)
    assert sum(weight for name, weight in WEIGHTS[mode].items() if name not in gains) == pytest.approx(1)


@pytest.mark.parametrize("prompt", ["", "answer :", "sing a song . answer :", STORY.removesuffix(" answer :")])
def test_an_unknown_prompt_is_refused(prompt):
    with pytest.raises(ValueError, match="no use case of the sealed world knows the prompt"):
        facts(prompt, "the cat slept .")


def test_the_reward_takes_many_at_once():
    reward = TrueUtility()
    assert reward([FACT, FACT], ["the cat eats milk .", ""]) == [
        pytest.approx(1.0),
        pytest.approx(true_utility(FACT, "", "final")),
    ]
    with pytest.raises(ValueError, match="shorter"):
        reward([FACT], [])
