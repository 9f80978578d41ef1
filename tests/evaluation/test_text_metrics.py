"""SQuAD's exact match and F1, BLEU, ROUGE-L, entropy of choices: planted answers, worked out by hand."""

import math
import sys

import numpy as np
import pytest

from rlhf_lightning.evaluation import text_metrics
from rlhf_lightning.evaluation.text_metrics import (
    bleu,
    bleu_interval,
    choice_entropy,
    exact_match,
    normalised_answer,
    rouge_l,
    token_f1,
)

REASON = "needs the extra eval"


@pytest.mark.parametrize(
    ("text", "normalised"),
    [
        ("The Theatre, an art; a-b", "theatre art ab"),
        ("  U.S.\tNavy\n", "us navy"),
        ("“A day”", "“ day”"),  # SQuAD knows the punctuation of ASCII alone
        ("the", ""),
    ],
)
def test_normalised_answers(text, normalised):
    assert normalised_answer(text) == normalised


@pytest.mark.parametrize(
    ("prediction", "references", "exact", "f1"),
    [
        ("The blue whale.", ["blue whale"], 1, 1),
        ("a whale", ["blue whale"], 0, 2 / 3),  # 1 of 1 and 1 of 2
        ("whale whale whale", ["blue whale whale"], 0, 2 / 3),  # 2 of 3 and 2 of 3
        ("red", ["blue", "red fish", "Red!"], 1, 1),
        ("red", ["blue", "red fish"], 0, 2 / 3),
        ("seven", ["7"], 0, 0),
        ("", ["the"], 1, 1),  # neither has a word
        ("", ["whale"], 0, 0),
        ("whale", [""], 0, 0),
    ],
)
def test_answers(prediction, references, exact, f1):
    assert exact_match(prediction, references) == exact
    assert token_f1(prediction, references) == pytest.approx(f1, abs=1e-12)


@pytest.mark.parametrize("metric", [exact_match, token_f1, rouge_l])
@pytest.mark.parametrize("references", [[], "whale"])
def test_references_are_a_list_of_texts(metric, references):
    if metric is rouge_l:
        pytest.importorskip("rouge_score", reason=REASON)
    with pytest.raises(ValueError, match="references must be a list of at least one text, got"):
        metric("whale", references)


@pytest.mark.parametrize(
    ("predictions", "references", "score"),
    [
        (["the cat sat on the mat"], [["the cat sat on the mat"]], 100),
        # Of 5, 4, 3, 2 n-grams 4, 3, 2, 1 are right.
        (["a b c d e"], [["a b c d f"]], 100 * (4 / 5 * 3 / 4 * 2 / 3 * 1 / 2) ** (1 / 4)),
        # All are right, and it is too short: exp(1 - 5 / 4).
        (["a b c d"], [["a b c d e"]], 100 * math.exp(1 - 5 / 4)),
        # Both together: 8 of 9, 6 of 7, 4 of 5, 2 of 3, and 9 words for 10.
        (
            ["a b c d e", "a b c d"],
            [["a b c d f"], ["a b c d e"]],
            100 * math.exp(1 - 10 / 9) * (8 / 9 * 6 / 7 * 4 / 5 * 2 / 3) ** (1 / 4),
        ),
        # The second has two references, the better one counts.
        (["a b c d", "e f g h"], [["a b c d"], ["x", "e f g h"]], 100),
        # No 4-gram is right: half of one counts, as sacrebleu smooths.
        (["a b c d"], [["a b c e"]], 100 * (3 / 4 * 2 / 3 * 1 / 2 * 1 / 2) ** (1 / 4)),
        (["x"], [["a b c d"]], 0),
    ],
)
def test_bleu(predictions, references, score):
    pytest.importorskip("sacrebleu", reason=REASON)
    assert bleu(predictions, references) == pytest.approx(score, abs=1e-9)


def test_the_interval_of_bleu(caplog):
    pytest.importorskip("sacrebleu", reason=REASON)
    assert bleu_interval(["a b c d", "e f g h"], [["a b c d"], ["e f g h"]]) == pytest.approx(
        {"value": 100, "low": 100, "high": 100}
    )
    # One of two right: a quarter of the resamples has the right one alone, a quarter the wrong one alone.
    half = bleu_interval(["a b c d", "x y z w"], [["a b c d"], ["e f g h"]])
    assert half == pytest.approx({"value": 50, "low": 0, "high": 100})
    # A bootstrap by another way, the texts themselves resampled.
    predictions = ["a b c d e", "a b c d", "a c b d e", "b a d c e f"] * 3
    references = [["a b c d f"], ["a b c d e"], ["a b c d e"], ["b a d c f e"]] * 3
    found = bleu_interval(predictions, references, resamples=300, seed=3)
    drawn = np.random.default_rng(3).integers(12, size=(300, 12))
    scores = [bleu([predictions[one] for one in row], [references[one] for one in row]) for row in drawn]
    assert (found["low"], found["high"]) == pytest.approx(tuple(np.percentile(scores, [2.5, 97.5])))
    assert found["low"] < found["value"] < found["high"]
    assert caplog.records == []


@pytest.mark.parametrize(("predictions", "references"), [([], []), (["a"], []), (["a"], [["a"], ["b"]])])
def test_bleu_needs_references_for_each_text(predictions, references):
    with pytest.raises(ValueError, match="BLEU needs as many lists of references as texts"):
        bleu(predictions, references)


def test_bleu_takes_lists_of_references():
    with pytest.raises(ValueError, match="references must be a list of at least one text, got 'a'"):
        bleu(["a"], ["a"])


@pytest.mark.parametrize(
    ("prediction", "references", "score"),
    [
        ("The cats sat.", ["the cat sat down"], 2 * 1 * 0.75 / 1.75),  # stems: 3 of 3 and 3 of 4
        ("sat the cat", ["the cat sat down"], 4 / 7),  # "the cat" in order: 2 of 3 and 2 of 4
        ("down", ["the cat sat", "sat down"], 2 / 3),
        ("dog", ["the cat sat"], 0),
        ("", ["the cat sat"], 0),
    ],
)
def test_rouge(prediction, references, score):
    pytest.importorskip("rouge_score", reason=REASON)
    assert rouge_l(prediction, references) == pytest.approx(score, abs=1e-12)


@pytest.mark.parametrize(
    ("package", "use", "what"),
    [
        ("sacrebleu.metrics", lambda: bleu(["a"], [["a"]]), "BLEU"),
        ("rouge_score.rouge_scorer", lambda: rouge_l("a", ["a"]), "ROUGE-L"),
    ],
)
def test_a_missing_package_names_the_extra(monkeypatch, package, use, what):
    text_metrics._bleu.cache_clear()
    text_metrics._rouge.cache_clear()
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(ImportError, match=rf"{what} needs {package}: pip install 'rlhf-lightning\[eval\]'"):
        use()


@pytest.mark.parametrize(
    ("log_probs", "bits"),
    [
        ([math.log(0.5), math.log(0.5)], 1),
        ([-1000.0, -1000.0], 1),
        ([math.log(0.03), math.log(0.01)], 0.75 * math.log2(4 / 3) + 0.25 * 2),  # 3 to 1
        ([-3.0] * 8, 3),
        ([-5.0, -math.inf], 0),
        ([-5.0], 0),
    ],
)
def test_the_entropy_of_choices(log_probs, bits):
    assert choice_entropy(log_probs) == pytest.approx(bits, abs=1e-12)


@pytest.mark.parametrize("log_probs", [[], [-math.inf, -math.inf], [math.nan, -1.0], [math.inf, 0.0]])
def test_choices_without_a_probability(log_probs):
    with pytest.raises(ValueError, match="needs a finite log-probability, and no nan, got"):
        choice_entropy(log_probs)
