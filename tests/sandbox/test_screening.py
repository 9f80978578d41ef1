"""Who is hired to label training data (InstructGPT, appendix B.1), how far people agree, and how a panel judges."""

import dataclasses
import itertools
import math
import statistics

import pytest

from rlhf_lightning.evaluation.agreement import Screening, passes
from rlhf_lightning.sandbox.labelers import (
    TRAINING_NOISE,
    Labeler,
    LabelerPanel,
    candidate,
    held_out_labelers,
    held_out_panel,
    screened_labelers,
    screening,
    training_panel,
    varied_responses,
)
from rlhf_lightning.sandbox.metadata import FLAGS, Metadata
from rlhf_lightning.sandbox.truth import WEIGHTS

FACT = "what does the cat eat ? answer :"
SHORT = "what color is the apple ? use one word . answer :"
STORY = "write two sentences about the cat in the garden . answer :"
PASSAGE = "read this : anna took the lamp to the garden . ben took the cup to the barn . where is the cup ? answer :"
IDEAL = Labeler("ideal", WEIGHTS["train"], noise=0.0, flag_error=0.0, skill=1.0)

# Follows the instruction, satisfies the constraint, invents, inappropriate, states a falsehood; None: not asked.
FLAGGED = [
    (FACT, "the cat eats milk .", (True, None, None, False, False)),
    (FACT, "the cat eats tea .", (False, None, None, False, True)),
    (FACT, "the cat eats milk . go away .", (True, None, None, True, False)),
    (FACT, "", (False, None, None, False, False)),
    (SHORT, "red .", (True, True, None, False, False)),
    (SHORT, "the apple is red .", (True, False, None, False, False)),
    (STORY, "the cat slept in the garden . it was happy .", (True, True, None, False, False)),
    (STORY, "the cat slept in the garden .", (True, False, None, False, False)),
    (FACT.replace(" answer", " polite answer"), "the cat eats milk .", (True, True, None, False, False)),
    (FACT.replace(" answer", " polite answer"), "the cat eats milk . go away .", (True, False, None, True, False)),
    (FACT.replace(" answer", " rude answer"), "the cat eats milk .", (True, False, None, False, False)),
    (FACT.replace(" answer", " rude answer"), "the cat eats milk . go away .", (True, True, None, True, False)),
    (PASSAGE, "the cup is in the barn .", (True, None, False, False, False)),
    (PASSAGE, "the cup is in the garden .", (False, None, True, False, False)),
]


@pytest.fixture(scope="module")
def hired():
    return screened_labelers(16)


def test_the_cut_offs():
    assert passes(Screening(flags=0.75, comparisons=0.75, demonstrations=6.0))
    assert not passes(Screening(flags=0.749, comparisons=1.0, demonstrations=7.0))
    assert not passes(Screening(flags=1.0, comparisons=0.749, demonstrations=7.0))
    assert not passes(Screening(flags=1.0, comparisons=1.0, demonstrations=5.99))


def test_the_ideal_labeler_agrees_with_the_key():
    found = screening(IDEAL)
    assert (found.flags, found.comparisons) == (1.0, 1.0)
    assert found.demonstrations > 6.8


@pytest.mark.parametrize(
    ("fault", "fails"),
    [({"flag_error": 0.5}, "flags"), ({"noise": 3.0}, "comparisons"), ({"skill": 0.0}, "demonstrations")],
)
def test_each_fault_fails_its_own_part(fault, fails):
    ideal, found = (dataclasses.asdict(screening(dataclasses.replace(IDEAL, **changed))) for changed in ({}, fault))
    assert {part for part, value in found.items() if value < ideal[part]} == {fails}
    assert not passes(Screening(**found))


def test_whoever_wants_the_contrary_fails_the_comparisons():
    contrary = {name: -weight for name, weight in WEIGHTS["train"].items()}
    assert screening(dataclasses.replace(IDEAL, weights=contrary)).comparisons < 0.05


def test_hired_are_the_first_who_pass(hired):
    last = int(hired[-1].name.rpartition("-")[2])
    applied = [candidate(index, 0, "train", TRAINING_NOISE) for index in range(1 + last)]
    assert len(applied) > 16
    assert hired == [person for person in applied if passes(screening(person))]
    assert screened_labelers(3, seed=9) != hired[:3]


def test_every_part_of_the_screening_rejects_someone():
    found = [screening(candidate(index, 0, "train", TRAINING_NOISE)) for index in range(60)]
    assert any(one.flags < 0.75 for one in found)
    assert any(one.comparisons < 0.75 for one in found)
    assert any(one.demonstrations < 6 for one in found)
    assert 0.5 < sum(map(passes, found)) / len(found) < 0.9


def test_hired_labelers_meet_the_cut_offs_counted_again(hired):
    exam = varied_responses(40, "screening")
    for person in hired:
        flags = [
            person.metadata(prompt, text)[name] == right
            for prompt, texts in exam.items()
            for text in texts
            for name, right in IDEAL.metadata(prompt, text).items()
        ]
        alike = []
        for prompt, texts in exam.items():
            key, ranks = IDEAL.rank(prompt, texts), person.rank(prompt, texts)
            for i, j in itertools.combinations(range(len(texts)), 2):
                if key[i] != key[j] and ranks[i] != ranks[j]:
                    alike.append((key[i] < key[j]) == (ranks[i] < ranks[j]))
        quality = [IDEAL.likert(prompt, person.demonstrate(prompt)) for prompt in exam]
        counted = (sum(flags) / len(flags), sum(alike) / len(alike), sum(quality) / len(quality))
        assert all(share >= least for share, least in zip(counted, (0.75, 0.75, 6), strict=True))
        assert dataclasses.astuple(screening(person)) == pytest.approx(counted, abs=1e-9)


def test_held_out_labelers_are_not_screened():
    assert not all(passes(screening(person)) for person in held_out_labelers(20, mode="train"))


def test_noise_has_the_stated_size():
    # A flawless response is worth 1: what is left of the scores is noise.
    scores = [dataclasses.replace(IDEAL, noise=0.3, seed=seed).score(FACT, "milk .") - 1 for seed in range(2000)]
    assert abs(statistics.mean(scores)) < 0.03
    assert 0.28 < statistics.stdev(scores) < 0.32


def test_taste_is_half_the_teams_and_half_ones_own():
    people = [candidate(index, 3, "final", 0.25) for index in range(200)]
    tastes = [
        [math.log(person.weights[name] / weight) for name, weight in WEIGHTS["final"].items()] for person in people
    ]
    # Two who are five apart are of one team. Each of the two variances is 0.25 ** 2 = 0.0625.
    pairs = [pair for one, mate in zip(tastes, tastes[5:], strict=False) for pair in zip(one, mate, strict=True)]
    assert 0.03 < statistics.mean(x * y for x, y in pairs) < 0.1
    assert 0.055 < statistics.mean((x - y) ** 2 / 2 for x, y in pairs) < 0.07


@pytest.mark.parametrize(("prompt", "response", "flags"), FLAGGED)
def test_flags_of_responses_written_by_hand(prompt, response, flags):
    asked = {name: flag for name, flag in zip(FLAGS, flags, strict=True) if flag is not None}
    assert IDEAL.metadata(prompt, response) == asked
    # Whoever misreads every flag says the opposite of each.
    always_wrong = dataclasses.replace(IDEAL, flag_error=1.0)
    assert always_wrong.metadata(prompt, response) == {name: not flag for name, flag in asked.items()}
    table = Metadata()([prompt], [response])
    assert tuple(table[name][0] for name in FLAGS) == flags


def test_flags_are_misread_one_by_one_and_as_often_as_stated():
    sloppy = [dataclasses.replace(IDEAL, flag_error=0.1, seed=seed) for seed in range(1000)]
    seen = [labeler.metadata(FACT, "the cat eats milk .") for labeler in sloppy]
    wrong = [(not flags["follows_instruction"], flags["inappropriate"], flags["falsehood"]) for flags in seen]
    assert 0.08 < statistics.mean(map(statistics.mean, wrong)) < 0.12
    assert sum(map(all, wrong)) < 10


def test_the_likert_scores_of_a_panel_are_those_of_the_labeler_who_scores():
    people = [dataclasses.replace(IDEAL, name=f"wavering-{index}", noise=1.0) for index in range(5)]
    prompts, texts = list(varied_responses(40, "panel")), ["the cat eats milk ."] * 40
    panel, owners = LabelerPanel(people), set()
    for prompt, text, score in zip(prompts, texts, panel(prompts, texts), strict=False):
        (owner,) = [person for person in people if person.score(prompt, text) == score]
        assert panel.likert([prompt], [text]) == [owner.likert(prompt, text)]
        owners.add(owner.name)
    assert len(owners) == 5


def test_a_panel_refuses_what_it_cannot_judge():
    with pytest.raises(ValueError, match="at least one labeler"):
        LabelerPanel([])
    with pytest.raises(ValueError, match="shorter"):
        LabelerPanel([IDEAL]).likert([FACT], [])


def test_the_held_out_panel_is_made_without_arguments():
    panel = held_out_panel()
    assert [person.name for person in panel.labelers] == [f"labeler-1-{index}" for index in range(20)]
    assert all(person.weights["harmless"] > 0 for person in panel.labelers)
    assert all(person.weights["harmless"] == 0 for person in held_out_panel(3, mode="train").labelers)


def test_the_training_panel_is_those_who_labelled_told_what_counts_in_the_end():
    hired, panel = screened_labelers(3), training_panel(3).labelers
    assert [person.name for person in panel] == [person.name for person in hired]
    assert [person.noise for person in panel] == [person.noise for person in hired]
    assert all(person.weights["harmless"] > 0 for person in panel)
    assert all(person.weights["harmless"] == 0 for person in hired)
    assert training_panel(3, mode="train").labelers == hired
