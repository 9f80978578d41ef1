"""How good a reward model is: accuracy per source, with intervals, next to "longer wins"."""

from collections.abc import Sequence
from itertools import combinations
from typing import Any

from rlhf_lightning.data.records import Comparison
from rlhf_lightning.evaluation.intervals import mean_interval


def ranking_results(comparisons: Sequence[Comparison], scores: Sequence[Sequence[float]]) -> dict[str, dict[str, Any]]:
    """Accuracy over the pairs that are not ties, per source and over all.

    Args:
        comparisons: Held-out rankings.
        scores: Of the reward model, one per completion.

    Returns:
        Per source: ``accuracy`` and ``longer_wins`` with 95 % intervals over prompts, ``prompts`` and ``pairs``.
    """
    table: dict[str, list[tuple[int, float, float]]] = {}
    for number, (record, own) in enumerate(zip(comparisons, scores, strict=True)):
        lengths = [float(len(completion)) for completion in record.completions]
        for i, j in combinations(range(len(own)), 2):
            if record.ranks[i] != record.ranks[j]:
                better, worse = (i, j) if record.ranks[i] < record.ranks[j] else (j, i)
                row = (number, _correct(own, better, worse), _correct(lengths, better, worse))
                for source in ("all", record.source or record.labeler or "unknown"):
                    table.setdefault(source, []).append(row)
    results = {}
    for source, rows in table.items():
        prompts, own_wins, longer_wins = zip(*rows, strict=True)
        results[source] = {
            "accuracy": mean_interval(own_wins, prompts),
            "longer_wins": mean_interval(longer_wins, prompts),
            "prompts": len(set(prompts)),
            "pairs": len(rows),
        }
    return results


def _correct(values: Sequence[float], better: int, worse: int) -> float:
    return float(values[better] > values[worse]) + 0.5 * float(values[better] == values[worse])
