import itertools
import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rlhf_lightning.data.records import Comparison, decided_pairs
from rlhf_lightning.evaluation.agreement import (
    Screening,
    agreement,
    krippendorff_alpha,
    passes,
    screening_scores,
)

# K. Krippendorff, "Computing Krippendorff's alpha-reliability" (2011): four labelers, twelve units.
PUBLISHED = [
    [1, 2, 3, 3, 2, 1, 4, 1, 2, None, None, None],
    [1, 2, 3, 3, 2, 2, 4, 1, 2, 5, None, 3],
    [None, 3, 3, 3, 2, 3, 4, 2, 2, 5, 1, None],
    [1, 2, 3, 3, 2, 4, 4, 1, 2, 5, 1, None],
]
TABLES = st.lists(st.lists(st.sampled_from([None, 1, 2, 3, 7]), min_size=2, max_size=4), min_size=1, max_size=6)


def ranking(labeler, ranks, prompt="p", texts="abcdefghi"):
    return Comparison(prompt, list(texts[: len(ranks)]), ranks, labeler)


def test_agreement_by_hand():
    found = agreement(
        [
            ranking("ann", [1, 2, 3]),
            ranking("bob", [1, 1, 2]),
            ranking("cem", [2, 1, 1]),
            ranking("ann", [1, 2], "q"),
            ranking("bob", [1, 2], "q"),
            ranking("dan", [1, 2], "only dan saw this"),
        ]
    )
    # ann and bob: (a, c), (b, c) and that of q, all alike. ann and cem: (a, b) and (a, c), both the other way round.
    # bob and cem: only (a, c), the other way round.
    rows = {row["labelers"]: (row["agreement"]["value"], row["pairs"]) for row in found["by_labelers"]}
    assert rows == {("ann", "bob"): (1.0, 3), ("ann", "cem"): (0.0, 2), ("bob", "cem"): (0.0, 1)}
    assert (found["agreement"]["value"], found["pairs"]) == (0.5, 6)
    # Two prompts with 2 of 5 and 1 of 1 say next to nothing: as 6 * (1.96 / 12.71)^2 = 0.14 independent pairs.
    assert (found["agreement"]["low"], found["agreement"]["high"]) == pytest.approx((0.00904, 0.99096), abs=1e-5)
    # Three pairs of two prompts, all alike: Wilson's interval of 2 of 2, z^2 = 3.8415: 2 / (2 + z^2) .. 1.
    ann_and_bob = found["by_labelers"][0]["agreement"]
    assert (ann_and_bob["low"], ann_and_bob["high"]) == pytest.approx((2 / 5.8415, 1.0), abs=1e-5)


def test_responses_are_known_by_their_text_in_any_order():
    turned = Comparison("p", ["c", "x", "a"], [3, 2, 1], "bob")
    found = agreement([ranking("ann", [1, 2, 3]), turned])
    assert (found["agreement"]["value"], found["pairs"]) == (1.0, 1)
    conversation = [{"role": "user", "content": "p"}]
    talk = [Comparison(conversation, ["a", "b"], ranks, who) for who, ranks in (("ann", [1, 2]), ("bob", [2, 1]))]
    assert agreement(talk)["agreement"]["value"] == 0.0


def test_nobody_agrees_with_themselves_and_a_text_is_not_better_than_itself():
    again = [ranking("ann", [1, 2]), ranking("ann", [2, 1])]
    with pytest.raises(ValueError, match="no two labelers order the same two responses"):
        agreement(again)
    twins = [Comparison("p", ["a", "a"], [1, 2], who) for who in ("ann", "bob")]
    with pytest.raises(ValueError, match="no two labelers"):
        agreement(twins)
    with pytest.raises(ValueError, match="ranking 1 has no labeler; fill the field 'labeler'"):
        agreement([ranking("ann", [1, 2]), ranking(None, [1, 2])])


DENSE = [list(ranks) for ranks in itertools.product((1, 2, 3), repeat=3) if set(ranks) == set(range(1, max(ranks) + 1))]
# Two prompts with three responses, which three labelers rank, or leave alone.
VOICES = st.lists(st.none() | st.sampled_from(DENSE), min_size=6, max_size=6)


@given(VOICES)
def test_agreement_is_a_count_over_all_pairs(ranks):
    places = itertools.product("pq", ("ann", "bob", "cem"))
    rankings = [ranking(who, own, prompt) for (prompt, who), own in zip(places, ranks, strict=True) if own]
    alike = []
    for one, two in itertools.combinations(rankings, 2):
        for i, j in itertools.combinations(range(3), 2):
            signs = [(own.ranks[i] > own.ranks[j]) - (own.ranks[i] < own.ranks[j]) for own in (one, two)]
            if one.prompt == two.prompt and one.labeler != two.labeler and all(signs):
                alike.append(signs[0] == signs[1])
    if alike:
        found = agreement(rankings)
        assert found["agreement"]["value"] == pytest.approx(sum(alike) / len(alike))
        assert found["pairs"] == len(alike) == sum(row["pairs"] for row in found["by_labelers"])
        assert agreement(rankings[::-1])["pairs"] == len(alike)
    else:
        with pytest.raises(ValueError, match="no two labelers"):
            agreement(rankings)


@given(st.lists(st.integers(1, 4), max_size=9))
def test_decided_pairs_are_all_but_the_ties(ranks):
    pairs = decided_pairs(ranks)
    assert all(ranks[better] < ranks[worse] for better, worse in pairs)
    ties = sum(math.comb(ranks.count(rank), 2) for rank in set(ranks))
    assert len(set(pairs)) == len(pairs) == math.comb(len(ranks), 2) - ties


@pytest.mark.parametrize(("level", "alpha"), [("nominal", 0.743), ("ordinal", 0.815), ("interval", 0.849)])
def test_alpha_as_published(level, alpha):
    assert krippendorff_alpha(list(zip(*PUBLISHED, strict=True)), level) == pytest.approx(alpha, abs=5e-4)


def test_alpha_of_flags_by_hand():
    # Ten flags by two labelers, 13 times no and 7 times yes, who differ on 3: 1 - (20 - 1) * 3 / (13 * 7) = 34 / 91.
    flags = [(False, False)] * 5 + [(True, True)] * 2 + [(True, False)] * 2 + [(False, True)]
    assert krippendorff_alpha(flags, "nominal") == pytest.approx(34 / 91)
    assert krippendorff_alpha([("a", "a"), ("b", "b"), ("c", None)], "nominal") == 1.0
    with pytest.raises(ValueError, match=r"not a number \(NaN\); give None"):
        krippendorff_alpha([(1.0, float("nan")), (2.0, 2.0)], "interval")


def alpha_by_pairs(ratings, level):
    """The definition: mean disagreement of pairs within a unit over that of all pairs of values."""
    units = [values for row in ratings if len(values := [value for value in row if value is not None]) > 1]
    everything = [value for values in units for value in values]

    def apart(one, two):
        if level == "nominal":
            return float(one != two)
        if level == "interval":
            return (one - two) ** 2
        low, high = min(one, two), max(one, two)
        between = sum(low <= value <= high for value in everything)
        return (between - (everything.count(low) + everything.count(high)) / 2) ** 2 if one != two else 0.0

    def total(values):
        return sum(apart(values[i], values[j]) for i, j in itertools.permutations(range(len(values)), 2))

    observed = sum(total(values) / (len(values) - 1) for values in units) / len(everything)
    return 1 - observed / (total(everything) / (len(everything) * (len(everything) - 1)))


@pytest.mark.parametrize("level", ["nominal", "ordinal", "interval"])
@given(ratings=TABLES)
def test_alpha_agrees_with_loops_over_pairs(level, ratings):
    compared = {v for row in ratings if sum(v is not None for v in row) > 1 for v in row if v is not None}
    if len(compared) < 2:
        with pytest.raises(ValueError, match=f"alpha is not defined: .* hold {len(compared)} different values"):
            krippendorff_alpha(ratings, level)
        return
    alpha = krippendorff_alpha(ratings, level)
    assert alpha == pytest.approx(alpha_by_pairs(ratings, level), abs=1e-9)
    assert alpha <= 1 + 1e-9
    # Who said it does not matter; ranks and categories do not know how far apart their numbers are.
    assert krippendorff_alpha([row[::-1] for row in ratings][::-1], level) == pytest.approx(alpha, abs=1e-9)
    other = {None: None, 1: 10, 2: 11, 3: 50, 7: 51}
    renamed = krippendorff_alpha([[other[value] for value in row] for row in ratings], level)
    assert level == "interval" or renamed == pytest.approx(alpha, abs=1e-9)


def test_alpha_refuses_a_level_it_does_not_know():
    with pytest.raises(ValueError, match="level must be one of nominal, ordinal, interval, got 'ratio'"):
        krippendorff_alpha([[1, 2]], "ratio")


def test_screening_by_hand():
    found = screening_scores(
        flags=[True, False, True, None],
        key_flags=[True, False, False, True],
        ranks=[[1, 2, 3], [1, 1], [2, 1]],
        key_ranks=[[2, 1, 3], [1, 2], [2, 1]],
        demonstrations=[7, 5, 6, 7],
    )
    # Pairs that neither ties: (a, b) reversed, (a, c) and (b, c) alike, and that of the last prompt.
    assert found == Screening(flags=2 / 3, comparisons=0.75, demonstrations=6.25)
    assert not passes(found)
    assert passes(Screening(0.75, 0.75, 6.0))


def test_whoever_ties_everything_agrees_on_nothing():
    assert screening_scores([True], [True], [[1, 1]], [[1, 2]], [7]).comparisons == 0.0


@pytest.mark.parametrize(
    ("changed", "sentence"),
    [
        ({"flags": [None]}, "at least one value in flags"),
        ({"demonstrations": []}, "at least one value in demonstrations"),
        ({"flags": [True, True]}, "argument 2 is shorter"),
        ({"ranks": [[1, 2], [1, 2]]}, "argument 2 is shorter"),
        ({"ranks": [[1, 2, 3]]}, "prompt 0 has 3 ranks of the candidate and 2 of the key"),
    ],
)
def test_a_screening_of_nothing_or_of_other_things_is_refused(changed, sentence):
    labels = {
        "flags": [True],
        "key_flags": [True],
        "ranks": [[1, 2]],
        "key_ranks": [[1, 2]],
        "demonstrations": [7],
    }
    with pytest.raises(ValueError, match=sentence):
        screening_scores(**{**labels, **changed})
