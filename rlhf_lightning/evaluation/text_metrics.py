"""How well a text agrees with references, and how evenly probability is spread over choices.

Exact match and F1 are SQuAD's, BLEU is sacrebleu's, ROUGE-L is rouge-score's with its stemmer. All are shares in [0, 1]
but BLEU, which is in [0, 100], as its users know it.
"""

import re
import string
from collections import Counter
from collections.abc import Sequence
from functools import cache
from itertools import zip_longest
from typing import Any

import numpy as np
from scipy.special import entr, log_softmax

from rlhf_lightning.evaluation.intervals import Interval
from rlhf_lightning.runs.extras import needs_extra

_ARTICLES = re.compile(r"\b(a|an|the)\b")
_NO_PUNCTUATION = str.maketrans("", "", string.punctuation)


def normalised_answer(text: str) -> str:
    """The text in lower case, without punctuation, articles and superfluous spaces.

    Source: the evaluation script of SQuAD (Rajpurkar et al. 2016).

    Examples:
        >>> normalised_answer("The  U.S. Navy!")
        'us navy'
    """
    return " ".join(_ARTICLES.sub(" ", text.lower().translate(_NO_PUNCTUATION)).split())


def exact_match(prediction: str, references: Sequence[str]) -> float:
    """1 where the normalised text is one of the references, else 0.

    Args:
        prediction: The text.
        references: The right answers; one is enough.

    Raises:
        ValueError: When there are no references.

    Examples:
        >>> exact_match("the Navy.", ["Army", "navy"])
        1.0
    """
    return max(float(normalised_answer(prediction) == normalised_answer(each)) for each in _some(references))


def token_f1(prediction: str, references: Sequence[str]) -> float:
    """Harmonic mean of the precision and the recall of normalised words, by the best reference.

    An answer without words agrees with a reference without words alone.

    Args:
        prediction: The text.
        references: The right answers.

    Raises:
        ValueError: When there are no references.

    Examples:
        >>> token_f1("a red red car", ["red bus", "red car"])  # 2 of 3 words, and 2 of 2
        0.8
    """
    return max(_f1(prediction, each) for each in _some(references))


def _f1(prediction: str, reference: str) -> float:
    said, right = normalised_answer(prediction).split(), normalised_answer(reference).split()
    if not said or not right:
        return float(said == right)
    return 2 * (Counter(said) & Counter(right)).total() / (len(said) + len(right))


def bleu(predictions: Sequence[str], references: Sequence[Sequence[str]]) -> float:
    """BLEU of all texts together, by sacrebleu with its defaults (13a tokens, exponential smoothing).

    Source: Post, "A call for clarity in reporting BLEU scores" (2018).

    Args:
        predictions: The texts.
        references: One or more references for each.

    Raises:
        ValueError: When there are no texts, or not as many lists of references, or an empty one.
        ImportError: When the extra `eval` is missing.
    """
    _check_pairs(predictions, references)
    # sacrebleu wants the first references of all texts, then the second ones; None where there is none.
    return float(_bleu().corpus_score(list(predictions), [list(one) for one in zip_longest(*references)]).score)


def bleu_interval(
    predictions: Sequence[str],
    references: Sequence[Sequence[str]],
    resamples: int = 1000,
    seed: int = 0,
    clusters: Sequence[int] | None = None,
) -> Interval:
    """`bleu` with a 95 % percentile-bootstrap interval over texts; arguments and errors as there.

    Args:
        predictions: The texts.
        references: One or more references for each.
        resamples: Number of bootstrap samples.
        seed: Seed of the bootstrap.
        clusters: The number of each text's cluster, which is drawn as a whole; as in `mean_interval`.
    """
    value = bleu(predictions, references)
    scorer = _bleu(effective_order=True)  # of single sentences alone, whose counts are the same; else it warns
    sentences = [scorer.sentence_score(one, list(own)) for one, own in zip(predictions, references, strict=True)]
    sums = np.array([[*one.counts, *one.totals, one.sys_len, one.ref_len] for one in sentences], dtype=int)
    if clusters is not None:
        sums = np.array([sums[np.asarray(clusters) == each].sum(0) for each in dict.fromkeys(clusters)])
    drawn = np.random.default_rng(seed).integers(len(sums), size=(resamples, len(sums)))
    orders = scorer.max_ngram_order
    scores = [
        scorer.compute_bleu(row[:orders], row[orders:-2], row[-2], row[-1], smooth_method="exp").score
        for row in sums[drawn].sum(1).tolist()
    ]
    low, high = np.percentile(scores, [2.5, 97.5])
    return {"value": value, "low": float(low), "high": float(high)}


def rouge_l(prediction: str, references: Sequence[str]) -> float:
    """F-measure of the longest common subsequence of stemmed words, by the best reference.

    Source: Lin, "ROUGE: a package for automatic evaluation of summaries" (2004).

    Args:
        prediction: The text.
        references: The summaries by people.

    Raises:
        ValueError: When there are no references.
        ImportError: When the extra `eval` is missing.
    """
    return float(_rouge().score_multi(list(_some(references)), prediction)["rougeL"].fmeasure)


def choice_entropy(log_probs: Sequence[float]) -> float:
    """Entropy of the choice in bits: 1 for two choices of equal probability, 0 where one has all.

    `H = -sum_i P_i log2 P_i` over the probabilities of the choices, which are made to add up to 1.

    Source: InstructGPT, appendix D (Winogender, CrowS-Pairs).

    Args:
        log_probs: The log-probability of each whole choice, in nats; `-inf` where it cannot be.

    Raises:
        ValueError: When there are no choices, or none has a probability.

    Examples:
        >>> choice_entropy([-7.0, -7.0])
        1.0
    """
    values = np.asarray(log_probs, dtype=float)
    if len(values) == 0 or not np.isfinite(values.max()):
        raise ValueError(f"the entropy of choices needs a finite log-probability, and no nan, got {list(log_probs)}.")
    return float(entr(np.exp(log_softmax(values))).sum() / np.log(2))


def _some(references: Sequence[str]) -> Sequence[str]:
    if isinstance(references, str) or not references:
        raise ValueError(f"references must be a list of at least one text, got {references!r}.")
    return references


def _check_pairs(predictions: Sequence[str], references: Sequence[Sequence[str]]) -> None:
    if not predictions or len(predictions) != len(references):
        raise ValueError(
            f"BLEU needs as many lists of references as texts, and one at least; got {len(references)} for "
            f"{len(predictions)}."
        )
    for each in references:
        _some(each)


@cache
def _bleu(effective_order: bool = False) -> Any:
    with needs_extra("BLEU", "eval"):
        from sacrebleu.metrics.bleu import BLEU
    return BLEU(effective_order=effective_order)


@cache
def _rouge() -> Any:
    with needs_extra("ROUGE-L", "eval"):
        from rouge_score.rouge_scorer import RougeScorer
    return RougeScorer(["rougeL"], use_stemmer=True)
