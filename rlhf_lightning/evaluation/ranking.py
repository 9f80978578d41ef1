"""How good a reward model is: accuracy per group, with intervals, next to "longer wins"."""

from collections.abc import Sequence
from typing import Any

from rlhf_lightning.algorithms.batch import decided_pairs
from rlhf_lightning.evaluation.intervals import mean_interval


def ranking_results(
    completions: Sequence[Sequence[str]],
    ranks: Sequence[Sequence[int]],
    groups: Sequence[str],
    scores: Sequence[Sequence[float]],
    clusters: Sequence[int] | None = None,
) -> dict[str, dict[str, Any]]:
    """Accuracy over the pairs that are not ties, per group and over all.

    Args:
        completions: Texts, per prompt.
        ranks: 1 is best, per prompt and completion.
        groups: Source of each prompt.
        scores: Of the reward model, per prompt and completion.
        clusters: The number of each prompt, where one stands there several times.

    Returns:
        Per group, and for ``all``: ``accuracy`` and ``longer_wins`` with 95 % intervals over prompts, ``prompts`` and
        ``pairs``.
    """
    table: dict[str, list[tuple[int, float, float]]] = {}
    numbers = range(len(ranks)) if clusters is None else clusters
    for prompt, texts, order, group, own in zip(numbers, completions, ranks, groups, scores, strict=True):
        lengths = [float(len(text)) for text in texts]
        for better, worse in decided_pairs(order):
            row = (prompt, _correct(own, better, worse), _correct(lengths, better, worse))
            for name in ("all", group):
                table.setdefault(name, []).append(row)
    results = {}
    for group, rows in table.items():
        prompts, own_wins, longer_wins = zip(*rows, strict=True)
        results[group] = {
            "accuracy": mean_interval(own_wins, prompts),
            "longer_wins": mean_interval(longer_wins, prompts),
            "prompts": len(set(prompts)),
            "pairs": len(rows),
        }
    return results


def prompt_accuracies(ranks: Sequence[Sequence[int]], scores: Sequence[Sequence[float]]) -> list[float | None]:
    """Per prompt the share of its pairs that are not ties which the scores order rightly; None where all are ties.

    Args:
        ranks: 1 is best, per prompt and completion.
        scores: Of the reward model, per prompt and completion.

    Example:
        >>> prompt_accuracies([[1, 2, 3], [1, 1]], [[3.0, 1.0, 2.0], [0.0, 1.0]])
        [0.6666666666666666, None]
    """
    shares: list[float | None] = []
    for order, own in zip(ranks, scores, strict=True):
        found = [_correct(own, better, worse) for better, worse in decided_pairs(order)]
        shares.append(sum(found) / len(found) if found else None)
    return shares


def _correct(values: Sequence[float], better: int, worse: int) -> float:
    return float(values[better] > values[worse]) + 0.5 * float(values[better] == values[worse])
