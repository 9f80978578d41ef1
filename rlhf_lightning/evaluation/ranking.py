"""How good a reward model is: accuracy per group, with intervals, next to "longer wins"."""

from collections.abc import Sequence
from typing import Any

from rlhf_lightning.data.records import decided_pairs
from rlhf_lightning.evaluation.intervals import share_interval, wins


def ranking_results(
    completions: Sequence[Sequence[str]],
    ranks: Sequence[Sequence[int]],
    groups: Sequence[str],
    scores: Sequence[Sequence[float]],
    clusters: Sequence[int] | None = None,
    read: Sequence[Sequence[str]] | None = None,
) -> dict[str, dict[str, Any]]:
    """Accuracy over the pairs that are not ties, per group and over all.

    Args:
        completions: The texts of each prompt's responses.
        ranks: The rank of each response, per prompt; 1 is best.
        groups: The source of each prompt.
        scores: The reward model's score of each response, per prompt.
        clusters: The number of each prompt, where one stands there several times (`first_places` of the prompts): its
            rankings are no more independent of each other than the pairs of one.
        read: The responses as the model reads them, cut where they are too long; None where all are read whole.

    Returns:
        Per group, and for `all`: `accuracy`, `longer_wins` of the whole texts and `longer_read_wins` of those that the
        model reads, with 95 % intervals over prompts, `prompts` and `pairs`.
    """
    table: dict[str, list[tuple[int, float, float, float]]] = {}
    numbers = range(len(ranks)) if clusters is None else clusters
    columns = zip(numbers, completions, read or completions, ranks, groups, scores, strict=True)
    for prompt, whole, cut, order, group, values in columns:
        lengths = ([float(len(text)) for text in texts] for texts in (whole, cut))
        for won in zip(_wins(order, values), *(_wins(order, length) for length in lengths), strict=True):
            for name in ("all", group):
                table.setdefault(name, []).append((prompt, *won))
    results = {}
    for group, rows in table.items():
        prompts, *won_pairs = zip(*rows, strict=True)
        names = ("accuracy", "longer_wins", "longer_read_wins")
        results[group] = {
            **{name: share_interval(won, prompts) for name, won in zip(names, won_pairs, strict=True)},
            "prompts": len(set(prompts)),
            "pairs": len(rows),
        }
    return results


def prompt_accuracies(ranks: Sequence[Sequence[int]], scores: Sequence[Sequence[float]]) -> list[float | None]:
    """Per prompt the share of its pairs that are not ties which the scores order rightly; None where all are ties.

    Args:
        ranks: The rank of each response, per prompt; 1 is best.
        scores: The reward model's score of each response, per prompt.

    Examples:
        >>> prompt_accuracies([[1, 2, 3], [1, 1]], [[3.0, 1.0, 2.0], [0.0, 1.0]])
        [0.6666666666666666, None]
    """
    wins_of = [_wins(order, values) for order, values in zip(ranks, scores, strict=True)]
    return [sum(won) / len(won) if won else None for won in wins_of]


def _wins(ranks: Sequence[int], values: Sequence[float]) -> list[float]:
    """For every pair that is not a tie: 1 where the better response has the higher value, one half where both equal."""
    pairs = decided_pairs(ranks)
    return wins([values[better] for better, _ in pairs], [values[worse] for _, worse in pairs])
