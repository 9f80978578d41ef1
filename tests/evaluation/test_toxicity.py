"""Toxicity by hashed TF-IDF: what scikit-learn says, from arrays alone, and close to Perspective on groups."""

import csv
import gzip
import importlib.util
import io
import sys
from pathlib import Path

import numpy as np
import pytest
from scipy import stats

from rlhf_lightning.evaluation.toxicity import SHIPPED, ToxicityModel

REPOSITORY = Path(__file__).parents[2]
SAMPLES = REPOSITORY.parent / "shared" / "data" / "evals" / "openai_samples" / "real_toxicity_samples.csv.gz"
TEXTS = [
    "You are a fool, and a LIAR!",
    "what a lovely morning it is",
    "the train leaves at 7:45, I think",
    "shut up, shut up you stupid liar",
    "Thank you for the flowers.",
    "fools\tand\n\nliars, all of them…",
    "I",
    "naïve café über-liar",
]
SCORES = [0.9, 0.05, 0.1, 0.95, 0.02, 0.8, 0.1, 0.6]
OTHERS = [
    "a stupid train",
    "LOVELY flowers; lovely!",
    "x",
    "!!!",
    "日本語 テキスト",
    " you  a\u2003fool ",
    "_ under_score 12",
]


@pytest.fixture(scope="module")
def fitting():
    pytest.importorskip("sklearn", reason="needs the extra eval")
    spec = importlib.util.spec_from_file_location("fit_toxicity", REPOSITORY / "scripts" / "fit_toxicity.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def fitted(fitting):
    # So few buckets that many pieces share one.
    pipeline = fitting.pipeline(words=16, characters=64).fit(TEXTS, SCORES)
    return pipeline, fitting.model_of(pipeline, TEXTS)


def test_it_says_what_scikit_learn_says(fitted):
    pipeline, model = fitted
    expected = np.clip(pipeline.predict(TEXTS + OTHERS), 0, 1)
    assert model(TEXTS + OTHERS) == pytest.approx(expected.tolist(), abs=1e-6)
    assert len({round(score, 3) for score in expected}) > 10


def test_what_is_stored_is_what_was_fitted(fitting, fitted, tmp_path):
    _, model = fitted
    fitting.save(model, tmp_path / "model.npz")
    assert ToxicityModel.load(tmp_path / "model.npz")(OTHERS) == pytest.approx(model(OTHERS), abs=1e-3)
    with np.load(tmp_path / "model.npz", allow_pickle=False) as held:
        assert held["weights"].dtype == np.float16


def test_by_hand():
    # One bucket for all words, one for all n-grams. "a" has one word, and the n-grams " a", "a " and " a ". Each kind
    # has one bucket, of length 1 after scaling: .25 + .5 - .125.
    model = ToxicityModel(np.array([0.5, -0.125]), np.array([3, 1]), words=1, texts=4, intercept=0.25)
    assert model(["a"]) == pytest.approx([0.625])
    assert model(["!"]) == pytest.approx([0.125])  # n-grams, and no word
    assert model(["", " \n"]) == [0.0, 0.0]
    assert model([]) == []


def test_scores_stay_between_zero_and_one():
    for weight, score in ((5.0, 1.0), (-5.0, 0.0)):
        assert ToxicityModel(np.array([weight, 0.0]), np.array([1, 1]), 1, 2, 0.5)(["a"]) == [score]


def test_it_takes_a_list_of_texts():
    with pytest.raises(ValueError, match="texts must be a list"):
        ToxicityModel.load()("you fool")


def test_the_model_of_the_package(monkeypatch):
    monkeypatch.setitem(sys.modules, "sklearn", None)
    rude, kind = ToxicityModel.load()(["You are a stupid idiot, shut up!", "Thank you for the lovely flowers."])
    assert kind < 0.2
    assert rude > 0.7
    assert SHIPPED.stat().st_size < 500_000


def test_a_file_that_is_none(tmp_path):
    with pytest.raises(ValueError, match=r"no model of toxicity at .*none\.npz; fit one with scripts/fit_toxicity.py"):
        ToxicityModel.load(tmp_path / "none.npz")
    (tmp_path / "text.npz").write_text("weights")
    np.savez(tmp_path / "part.npz", weights=np.zeros(2))
    np.savez(tmp_path / "object.npz", weights=np.array([{}]), counts=[1], words=1, texts=1, intercept=0.0)
    np.savez(tmp_path / "sizes.npz", weights=np.zeros(3), counts=[1, 2], words=1, texts=1, intercept=0.0)
    np.save(tmp_path / "array.npy", np.zeros(3))
    for name in ("text.npz", "part.npz", "object.npz", "sizes.npz", "array.npy"):
        with pytest.raises(ValueError, match=rf"{name} holds no model of toxicity"):
            ToxicityModel.load(tmp_path / name)


def test_it_is_close_to_perspective_on_the_released_samples(fitting):
    if not SAMPLES.exists():
        pytest.skip("the released samples are not here")
    rows = list(csv.DictReader(io.StringIO(gzip.decompress(SAMPLES.read_bytes()).decode(), newline="")))
    perspective = np.array([float(row["toxicity"]) for row in rows])
    scores = np.array(ToxicityModel.load()([row["sample"] for row in rows]))
    toxic = scores[perspective >= 0.5]
    rest = scores[perspective < 0.5]
    # The area under the curve is the share of pairs in which the toxic one has more.
    assert stats.mannwhitneyu(toxic, rest).statistic / (len(toxic) * len(rest)) >= 0.92
    groups = [f"{row['model_type']}|{row['prompt_type']}" for row in rows]
    means = [fitting.group_means(each.tolist(), groups) for each in (scores, perspective)]
    assert len(means[0]) == 36
    assert np.corrcoef(*means)[0, 1] > 0.9
