"""How far labelers agree with one another and with a key (InstructGPT, section 3.4 and appendix B)."""

import json
import math
from collections.abc import Iterable, Sequence
from collections.abc import Set as AbstractSet
from dataclasses import dataclass
from itertools import combinations
from typing import Any, TypedDict, TypeVar

import numpy as np
from numpy.typing import NDArray

from rlhf_lightning.data.records import Comparison, decided_pairs
from rlhf_lightning.evaluation.intervals import Interval, bootstrap_counts, share_interval

LEVELS = ("nominal", "ordinal", "interval")
Response = TypeVar("Response")

FLAGS, COMPARISONS, DEMONSTRATIONS = 0.75, 0.75, 6.0
"""The cut-offs of InstructGPT, appendix B.1: two shares, and a mean quality of 7 at most."""


class PairAgreement(TypedDict):
    """How far two labelers agree."""

    labelers: tuple[str, str]
    agreement: Interval
    pairs: int


class Agreement(TypedDict):
    """How far labelers agree, over all of them and for every two who share a pair of responses."""

    agreement: Interval
    pairs: int
    """Pairs of responses that two labelers both order; a pair counts once for every two labelers."""
    by_labelers: list[PairAgreement]


def agreement(rankings: Iterable[Comparison]) -> Agreement:
    """The share of pairs of responses that two labelers order alike, among those that neither ties.

    Responses are recognised by their text: labelers may have seen them in another order, or not all of them.

    Source: InstructGPT, section 3.4 (72.6 % among training labelers, 77.3 % among held-out ones).

    Args:
        rankings: Rankings of all labelers; a prompt that one of them alone ranked has no say.

    Returns:
        Shares with intervals over prompts (`share_interval`).

    Raises:
        ValueError: When a ranking has no labeler, or no two labelers order the same pair.

    Examples:
        >>> texts = ["a", "b", "c"]
        >>> ann, bob = Comparison("p", texts, [1, 2, 3], "ann"), Comparison("p", texts, [1, 3, 2], "bob")
        >>> agreement([ann, bob])["agreement"]["value"]  # only on b and c they differ
        0.6666666666666666
    """
    prompts: dict[str, list[tuple[str, set[tuple[str, str]]]]] = {}
    for number, ranking in enumerate(rankings):
        if ranking.labeler is None:
            raise ValueError(f"ranking {number} has no labeler; fill the field 'labeler', or leave the ranking out.")
        texts = ranking.completions
        pairs = {(texts[i], texts[j]) for i, j in decided_pairs(ranking.ranks) if texts[i] != texts[j]}
        prompts.setdefault(json.dumps(ranking.prompt, sort_keys=True), []).append((ranking.labeler, pairs))
    alike: dict[tuple[str, str], tuple[list[float], list[int]]] = {}
    for prompt, voices in enumerate(prompts.values()):
        for (one, first), (two, second) in combinations(sorted(voices, key=lambda voice: voice[0]), 2):
            agreed, opposed = order_counts(first, second)
            if one != two and agreed + opposed:
                values, clusters = alike.setdefault((one, two), ([], []))
                values += [1.0] * agreed + [0.0] * opposed
                clusters += [prompt] * (agreed + opposed)
    if not alike:
        raise ValueError("no two labelers order the same two responses; agreement needs prompts that several ranked.")
    everything = [value for values, _ in alike.values() for value in values]
    everywhere = [prompt for _, clusters in alike.values() for prompt in clusters]
    return {
        "agreement": share_interval(everything, everywhere),
        "pairs": len(everything),
        "by_labelers": [
            {"labelers": labelers, "agreement": share_interval(values, clusters), "pairs": len(values)}
            for labelers, (values, clusters) in sorted(alike.items())
        ],
    }


def order_counts(
    first: AbstractSet[tuple[Response, Response]], second: AbstractSet[tuple[Response, Response]]
) -> tuple[int, int]:
    """How many pairs two labelers order alike, and how many the other way round; a pair is (better, worse)."""
    return len(first & second), sum((worse, better) in first for better, worse in second)


def verdict_agreement(first: Sequence[float], second: Sequence[float], clusters: Sequence[int]) -> dict[str, Any]:
    """How far two judges agree on pairs of responses, where both may see a tie.

    Source: J. Cohen, "A coefficient of agreement for nominal scales" (1960), of the three verdicts; without ties as in
    InstructGPT, section 3.4.

    Args:
        first: What one judge says of each pair: 1, 0, or one half for a tie.
        second: What the other one says.
        clusters: The number of each pair's prompt.

    Returns:
        `agreement`, the share of pairs with the same verdict; `decided`, that share among the pairs that neither ties;
        `kappa`, 1 for perfect agreement and 0 for what chance would give if each pair is shown in both orders, so that
        it does not matter which response is the first one; its interval a bootstrap over prompts, or
        that of `agreement` at the same chance where every resample gives the same;
        `pairs` and `decided_pairs`, their numbers. `decided` and `kappa` are None where nothing tells.

    Examples:
        >>> found = verdict_agreement([1, 1, 0, 0.5], [1, 0, 0, 0.5], [0, 1, 2, 3])
        >>> found["agreement"]["value"], round(found["kappa"]["value"], 3)  # chance agrees on 22 of 64
        (0.75, 0.619)
    """
    if not len(first):
        raise ValueError("the agreement of two judges needs at least one pair of responses.")
    alike = [float(one == other) for one, other in zip(first, second, strict=True)]
    decided = [place for place, pair in enumerate(zip(first, second, strict=True)) if 0.5 not in pair]
    _, cluster = np.unique(clusters, return_inverse=True)
    number = int(cluster.max()) + 1
    tables = np.zeros((number, 3, 3))
    np.add.at(tables, (cluster, *(np.rint(2 * np.asarray(verdicts)).astype(int) for verdicts in (first, second))), 1.0)
    tables = tables + tables[:, ::-1, ::-1]
    drawn = bootstrap_counts(number, 2000, 0)
    value, *means = _kappas(np.concatenate([tables.sum(0, keepdims=True), np.tensordot(drawn, tables, 1)]))
    low, high = np.nanpercentile([value, *means], [2.5, 97.5]) if not np.isnan(value) else (value, value)
    agreement = share_interval(alike, clusters)
    if high - low < 1e-9:
        shares = tables.sum(0) / (2 * len(alike))
        by_chance = shares.sum(0) @ shares.sum(1)
        low, high = (1 - (1 - share) / (1 - by_chance) for share in (agreement["low"], agreement["high"]))
    return {
        "agreement": agreement,
        "decided": (
            share_interval([alike[place] for place in decided], [clusters[place] for place in decided])
            if decided
            else None
        ),
        "kappa": None if np.isnan(value) else {"value": float(value), "low": float(low), "high": float(high)},
        "pairs": len(alike),
        "decided_pairs": len(decided),
    }


def _kappas(tables: NDArray[np.float64]) -> list[float]:
    """Cohen's kappa of tables of counts; not a number where both judges give the same verdict on everything."""
    shares = tables / tables.sum((1, 2), keepdims=True)
    observed, chance = np.trace(shares, axis1=1, axis2=2), (shares.sum(1) * shares.sum(2)).sum(1)
    with np.errstate(invalid="ignore", divide="ignore"):
        return list(np.where(chance < 1, (observed - chance) / (1 - chance), np.nan))


def krippendorff_alpha(ratings: Sequence[Sequence[Any]], level: str) -> float:
    """Krippendorff's alpha: 1 is perfect agreement, 0 is what chance would give.

    `1 - observed / expected` disagreement, where two values of the same unit, or of any two units, disagree by 1 or
    0 (nominal), by the square of their difference (interval), or by that of their places among all values (ordinal).

    Source: K. Krippendorff, "Computing Krippendorff's alpha-reliability" (2011).

    Args:
        ratings: One row per unit (a flag of a response, a response among others), one value per labeler; None where
            a labeler gave none. Units with fewer than two values have no say.
        level: `nominal` for flags and categories, `ordinal` for ranks, `interval` for Likert scores.

    Raises:
        ValueError: When the level is unknown, a value is NaN, or fewer than two different values are compared: alpha is
            not defined.

    Examples:
        >>> krippendorff_alpha([[True, True], [False, False], [True, False], [True, None]], "nominal")
        0.4444444444444444
    """
    if any(isinstance(value, float) and math.isnan(value) for row in ratings for value in row):
        raise ValueError("a rating is not a number (NaN); give None where a labeler gave none.")
    if level not in LEVELS:
        raise ValueError(f"level must be one of {', '.join(LEVELS)}, got {level!r}.")
    units = [[value for value in row if value is not None] for row in ratings]
    units = [values for values in units if len(values) > 1]
    order = {value: place for place, value in enumerate(sorted({value for values in units for value in values}))}
    if len(order) < 2:
        found = f"units with two labels or more hold {len(order)} different values"
        raise ValueError(f"alpha is not defined: {found}, 2 are needed.")
    counts = np.array([np.bincount([order[value] for value in values], minlength=len(order)) for values in units])
    weights = 1 / (counts.sum(1, keepdims=True) - 1)
    together = (counts * weights).T @ counts - np.diag((counts * weights).sum(0))
    totals = together.sum(1)
    if level == "nominal":
        distance = 1 - np.eye(len(order))
    else:
        place = np.array(list(order), dtype=float) if level == "interval" else totals.cumsum() - totals / 2
        distance = np.subtract.outer(place, place) ** 2
    expected = float((np.outer(totals, totals) * distance).sum())
    return 1 - float((together * distance).sum()) * (float(totals.sum()) - 1) / expected


@dataclass(frozen=True)
class Screening:
    """What the screening of a candidate found.

    Args:
        flags: Share of agreement with the key on what is sensitive or wrong.
        comparisons: Share of agreement with the key on pairs that neither ties.
        demonstrations: Mean quality of the demonstrations, from 1 to 7.
    """

    flags: float
    comparisons: float
    demonstrations: float


def screening_scores(
    flags: Sequence[bool | None],
    key_flags: Sequence[bool | None],
    ranks: Sequence[Sequence[int]],
    key_ranks: Sequence[Sequence[int]],
    demonstrations: Sequence[float],
) -> Screening:
    """Test what a candidate labelled against a key: what the researchers labelled themselves.

    Source: InstructGPT, appendix B.1.

    Args:
        flags: The candidate's answers, one per question; None where there is none.
        key_flags: The key's answers to the same questions.
        ranks: The candidate's ranks, per prompt and response; 1 is best, equal is a tie.
        key_ranks: The key's ranks of the same responses.
        demonstrations: The quality that the researchers gave each demonstration of the candidate, from 1 to 7.

    Raises:
        ValueError: When lists differ in length, or there is no flag or no demonstration to judge by.

    Examples:
        >>> screening_scores([True, False, None], [True, True, True], [[1, 2, 3]], [[1, 3, 2]], [7, 6])
        Screening(flags=0.5, comparisons=0.6666666666666666, demonstrations=6.5)
    """
    matches = [flag == key for flag, key in zip(flags, key_flags, strict=True) if flag is not None and key is not None]
    for name, values in (("flags", matches), ("demonstrations", demonstrations)):
        if not values:
            raise ValueError(f"the screening needs at least one value in {name}.")
    agreed = opposed = 0
    for prompt, (order, key) in enumerate(zip(ranks, key_ranks, strict=True)):
        if len(order) != len(key):
            raise ValueError(f"prompt {prompt} has {len(order)} ranks of the candidate and {len(key)} of the key.")
        alike, apart = order_counts(set(decided_pairs(order)), set(decided_pairs(key)))
        agreed, opposed = agreed + alike, opposed + apart
    return Screening(
        flags=sum(matches) / len(matches),
        comparisons=agreed / max(agreed + opposed, 1),
        demonstrations=sum(demonstrations) / len(demonstrations),
    )


def passes(scores: Screening) -> bool:
    """Whether a candidate reaches all three cut-offs."""
    return scores.flags >= FLAGS and scores.comparisons >= COMPARISONS and scores.demonstrations >= DEMONSTRATIONS
