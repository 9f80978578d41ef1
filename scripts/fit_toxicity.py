"""Fits the package's model of toxicity on the Perspective scores of RealToxicityPrompts.

    python scripts/fit_toxicity.py rtp_perspective.train.jsonl.gz toxicity.npz --samples real_toxicity_samples.csv.gz

Each row of the first file has `prompt` and `continuation` with `text` and `toxicity`. With --samples, the samples that
were released with the InstructGPT paper and their Perspective scores, it leaves out rows with the same prompts and
prints how well the model does on them.
"""

import argparse
import csv
import gzip
import io
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from statistics import fmean
from zlib import crc32

import numpy as np
from rich.console import Console
from sklearn.feature_extraction.text import CountVectorizer, TfidfVectorizer
from sklearn.linear_model import Ridge
from sklearn.metrics import roc_auc_score
from sklearn.model_selection import GroupKFold, cross_val_predict
from sklearn.pipeline import FeatureUnion, Pipeline

from rlhf_lightning.evaluation.toxicity import LENGTHS, ToxicityModel

TOXIC = 0.5
# These and the lengths of n-grams by cross-validation on RealToxicityPrompts, none of it on the released samples.
ALPHA = 0.5
WORDS, CHARACTERS = 2**15, 2**17


def hashed(counter: CountVectorizer, size: int) -> TfidfVectorizer:
    """TF-IDF of the buckets of what a vectorizer counts."""
    pieces: Callable[[str], list[str]] = counter.build_analyzer()

    def buckets(text: str) -> list[str]:
        return [str(crc32(piece.encode(errors="surrogatepass")) % size) for piece in pieces(text)]

    names = {str(bucket): bucket for bucket in range(size)}
    return TfidfVectorizer(analyzer=buckets, vocabulary=names, sublinear_tf=True)


def pipeline(words: int = WORDS, characters: int = CHARACTERS) -> Pipeline:
    """Words and character n-grams, then ridge regression."""
    counters = {
        "words": hashed(CountVectorizer(token_pattern=r"\w+"), words),
        "characters": hashed(CountVectorizer(analyzer="char_wb", ngram_range=LENGTHS), characters),
    }
    ridge = Ridge(alpha=ALPHA, solver="sparse_cg", tol=1e-5)
    return Pipeline([("pieces", FeatureUnion(list(counters.items()))), ("ridge", ridge)])


def model_of(fitted: Pipeline, texts: Sequence[str]) -> ToxicityModel:
    """The package's model of a pipeline that was fitted on these texts."""
    vectorizers = [one for _, one in fitted["pieces"].transformer_list]
    rarity = np.concatenate([one.idf_ for one in vectorizers])
    # idf = 1 + ln((1 + texts) / (1 + count)), so that the counts come back as whole numbers.
    counts = np.rint((1 + len(texts)) / np.exp(rarity - 1) - 1).astype(int)
    words = len(vectorizers[0].idf_)
    return ToxicityModel(fitted["ridge"].coef_, counts, words, len(texts), float(fitted["ridge"].intercept_))


def save(model: ToxicityModel, path: Path) -> None:
    """Write a model to a file, its weights in half precision."""
    with path.open("wb") as file:
        np.savez_compressed(
            file,
            weights=model.weights.astype(np.float16),
            counts=model.counts.astype(np.uint16 if model.texts < 2**16 else np.uint32),
            words=model.words,
            texts=model.texts,
            intercept=model.intercept,
        )


def main() -> None:
    """Fit, measure, write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("rows", type=Path, help="RealToxicityPrompts with Perspective scores, JSON lines")
    parser.add_argument("out", type=Path, help="the model, .npz")
    parser.add_argument("--samples", type=Path, help="real_toxicity_samples.csv of the release")
    options = parser.parse_args()
    console = Console(soft_wrap=True, highlight=False)
    samples = list(csv.DictReader(io.StringIO(read(options.samples), newline=""))) if options.samples else []
    known = {row["context"].strip() for row in samples}
    rows = [json.loads(line) for line in read(options.rows).split("\n") if line]
    kept = [row for row in rows if row["prompt"]["text"].strip() not in known]
    console.print(f"{len(kept)} of {len(rows)} rows; the others have prompts of the samples")
    parts = [(place, row[name]) for place, row in enumerate(kept) for name in ("prompt", "continuation")]
    parts = [(place, part) for place, part in parts if part["toxicity"] is not None]
    texts, scores = [part["text"] for _, part in parts], np.array([part["toxicity"] for _, part in parts])
    folds = GroupKFold(4)
    guessed = cross_val_predict(pipeline(), texts, scores, groups=[place for place, _ in parts], cv=folds)
    console.print(f"AUC at {TOXIC} in cross-validation: {roc_auc_score(scores >= TOXIC, guessed):.4f}")
    save(model_of(pipeline().fit(texts, scores), texts), options.out)
    console.print(f"{options.out}: {options.out.stat().st_size:,} bytes, {len(texts):,} texts")
    if samples:
        measure(ToxicityModel.load(options.out), samples, console)


def measure(model: ToxicityModel, samples: Sequence[dict[str, str]], console: Console) -> None:
    """Print what the model makes of the released samples, beside Perspective."""
    perspective = [float(row["toxicity"]) for row in samples]
    scores = model([row["sample"] for row in samples])
    groups = [f"{row['model_type']}|{row['prompt_type']}" for row in samples]
    ours, theirs = (group_means(each, groups) for each in (scores, perspective))
    auc = roc_auc_score(np.array(perspective) >= TOXIC, scores)
    console.print(f"AUC at {TOXIC} on {len(samples)} released samples: {auc:.4f}")
    console.print(f"correlation of the means of {len(ours)} groups: {np.corrcoef(ours, theirs)[0, 1]:.4f}")
    console.print(f"mean: {np.mean(scores):.3f}, Perspective {np.mean(perspective):.3f}")


def group_means(scores: Sequence[float], groups: Sequence[str]) -> list[float]:
    """The mean of each group, in the order in which they come first."""
    found: dict[str, list[float]] = {}
    for score, group in zip(scores, groups, strict=True):
        found.setdefault(group, []).append(score)
    return [fmean(values) for values in found.values()]


def read(path: Path) -> str:
    """The text of a file, compressed or not."""
    data = path.read_bytes()
    return (gzip.decompress(data) if path.suffix == ".gz" else data).decode()


if __name__ == "__main__":
    main()
