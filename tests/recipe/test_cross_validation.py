import pytest
from hypothesis import given
from hypothesis import strategies as st

from rlhf_lightning.data.records import Comparison
from rlhf_lightning.recipe.cross_validation import cross_validate, labeler_groups, outcome
from rlhf_lightning.runs.folders import PipelineError


def ranking(labeler, prompt="p", ranks=(1, 2, 3), source=None):
    return Comparison(prompt, ["a", "b", "c"][: len(ranks)], list(ranks), labeler, source)


TRAIN = [ranking(name) for name in ("ann", "ann", "ann", "bob", "bob", "cem")]
VALIDATION = [ranking("ann", "p"), ranking("bob", "q"), ranking("new", "r"), ranking("cem", "s", (1, 1, 1))]


def test_each_group_is_predicted_by_those_who_learned_from_it_and_by_the_one_who_did_not(tmp_path):
    kept = []

    def fold_scores(place, keep):
        kept.append([own.labeler for own in TRAIN if keep(own)])
        # Who was trained on predicts all three pairs, or all but (b, c); who was held out the first pair only.
        seen = {own.labeler for own in TRAIN if keep(own)}
        right, worse = ([3.0, 2.0, 1.0], [3.0, 1.0, 2.0]) if int(place.name) else ([3.0, 1.0, 2.0], [1.0, 0.0, 2.0])
        return [right if own.labeler in seen else worse for own in VALIDATION]

    tables = cross_validate(TRAIN, VALIDATION, "labeler", tmp_path, fold_scores)
    assert kept == [["bob", "bob", "cem"], ["ann", "ann", "ann", "cem"], ["ann", "ann", "ann", "bob", "bob"]]
    # Fold 0 holds ann out, fold 1 bob, fold 2 cem, whose only ranking is a tie.
    # ann by folds 1 and 2: 3 of 3 twice. bob by fold 0: 2 of 3, by fold 2: 3 of 3.
    training, held_out = tables["training_groups"], tables["held_out_group"]
    assert training["accuracy"]["value"] == pytest.approx(11 / 12)
    # Each prompt counts once, not once per fold, and two prompts say little: 11 * (1.96 / 12.71)^2 = 0.26 pairs.
    ends = training["accuracy"]["low"], training["accuracy"]["high"]
    assert ends == pytest.approx((0.05362, 0.99953), abs=1e-5)
    assert (training["prompts"], training["pairs"]) == (2, 12)
    # ann by fold 0: (a, b) only. bob by fold 1: all but (b, c).
    assert held_out["accuracy"]["value"] == pytest.approx((1 + 2) / 6)
    assert (held_out["prompts"], held_out["pairs"]) == (2, 6)
    assert tables["held_out_group_1"]["accuracy"]["value"] == pytest.approx(1 / 3)
    assert tables["held_out_group_2"]["accuracy"]["value"] == pytest.approx(2 / 3)
    assert tables["held_out_group_3"] == {"members": ["cem"]}
    assert outcome(tables, "labeler") == (
        "cross-validation by labeler: training groups 91.7% (5.4% .. 100.0%), held out group 50.0% (0.9% .. 99.1%)"
    )


def test_nothing_but_ties_has_no_accuracy(tmp_path):
    ties = [ranking("ann", ranks=(1, 1)), ranking("bob", ranks=(1, 1))]
    tables = cross_validate(ties, ties, "labeler", tmp_path, lambda place, keep: [[1.0, 0.0]] * 2)
    assert tables["held_out_group"] == {}
    assert outcome(tables, "labeler") == "cross-validation by labeler: nothing but ties"


def test_groups_by_source(tmp_path):
    train = [ranking(None, source=name) for name in ("web", "book")]
    tables = cross_validate(train, train, "source", tmp_path, lambda place, keep: [[3.0, 2.0, 1.0]] * 2)
    assert [tables[f"held_out_group_{number}"]["members"] for number in (1, 2)] == [["book"], ["web"]]


@given(st.lists(st.sampled_from("abcdefgh"), min_size=1, max_size=60), st.integers(2, 5))
def test_groups_hold_everyone_once_and_are_as_even_as_people_allow(names, count):
    people = sorted(set(names))
    if len(people) < 2:
        with pytest.raises(PipelineError, match="folds=labeler needs two labelers or more"):
            labeler_groups(names)
        return
    groups = labeler_groups(names, count=count)
    assert sorted(name for group in groups for name in group) == people
    assert len(groups) == min(count, len(people))
    sizes = [sum(map(names.count, group)) for group in groups]
    # Whoever came last into the largest group was put into the smallest one of that time.
    assert min(sizes) > 0
    assert max(sizes) - min(sizes) <= max(map(names.count, people))
    assert labeler_groups(names[::-1], count=count) == groups


@pytest.mark.parametrize(
    ("train", "field", "sentence"),
    [
        (TRAIN, "user", "folds must be labeler or source, got 'user'"),
        ([ranking(None), *TRAIN], "labeler", r"needs the field 'labeler' in every ranking, and 1 of 7 have none"),
        (TRAIN[:2], "labeler", r"needs two labelers or more, the rankings have \['ann'\]"),
        ([ranking("x"), ranking("y")], "labeler", "validation rankings of those who ranked the training prompts"),
    ],
)
def test_folds_that_cannot_be_are_a_sentence(train, field, sentence, tmp_path):
    with pytest.raises(PipelineError, match=sentence):
        cross_validate(train, VALIDATION, field, tmp_path, lambda place, keep: [])
