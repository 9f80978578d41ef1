"""How well reward models predict labelers from whom they have not learned (InstructGPT, appendix E.2)."""

import json
import shutil
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, TypeAlias

from rlhf_lightning.data.records import Comparison
from rlhf_lightning.evaluation.intervals import first_places
from rlhf_lightning.evaluation.ranking import ranking_results
from rlhf_lightning.parallel.processes import on_rank_zero
from rlhf_lightning.runs.files import write_json
from rlhf_lightning.runs.folders import PipelineError

FOLDS = 5
"""Groups of labelers (InstructGPT, appendix E.2)."""
TRAINING, HELD_OUT = "training_groups", "held_out_group"

Keep: TypeAlias = Callable[[Comparison], bool]
Scores: TypeAlias = list[list[float]]


def cross_validate(
    train: Sequence[Comparison],
    validation: Sequence[Comparison],
    field: str,
    folder: Path,
    fold_scores: Callable[[Path, Keep], Scores],
) -> dict[str, dict[str, Any]]:
    """Train on all groups of labelers but one, in turn, and measure each model on the same validation rankings.

    Source: InstructGPT, appendix E.2: 72.4 % on the groups trained on, 69.6 % on the group held out.

    Args:
        train: Training rankings, which the groups are made of.
        validation: Validation rankings; those of labelers who have no ranking in ``train`` are left out.
        field: The field of a ranking that names its labeler: ``labeler`` or ``source``.
        folder: The folder where each fold trains; scores of a finished fold are kept there and not made again.
        fold_scores: Trains a reward model in a folder on the rankings of ``train`` for which a function is true, and
            returns its scores of the responses of every validation ranking.

    Returns:
        Tables as those of `ranking_results`, intervals over prompts: ``training_groups`` and
        ``held_out_group``, over all folds, and ``held_out_group_1`` and so on, which name their ``members``.

    Raises:
        PipelineError: When the field is unknown or empty, names one labeler only, or there is nothing to measure on.
    """
    if field not in ("labeler", "source"):
        raise PipelineError(f"folds must be labeler or source, got {field!r}.")
    names = [getattr(ranking, field) for ranking in validation]
    groups = labeler_groups([getattr(ranking, field) for ranking in train], field)
    known = {name for group in groups for name in group}
    rows = [place for place, name in enumerate(names) if name in known]
    if not rows:
        raise PipelineError(
            f"folds={field} measures on validation rankings of those who ranked the training prompts, and there are "
            "none. Give data.source.files.comparisons.validation; collected ones are collect.prompts.validation."
        )
    clusters = first_places([str(ranking.prompt) for ranking in validation])
    scores = [
        _kept_scores(folder / str(number), fold_scores, partial(_outside, field, group))
        for number, group in enumerate(groups)
    ]

    def measured(chosen: Sequence[tuple[int, int]]) -> dict[str, Any]:
        rankings = [validation[row] for _, row in chosen]
        found = ranking_results(
            [own.completions for own in rankings],
            [own.ranks for own in rankings],
            [""] * len(chosen),
            [scores[fold][row] for fold, row in chosen],
            [clusters[row] for _, row in chosen],
        )
        return found.get("all", {})

    held_out = {fold: [(fold, row) for row in rows if names[row] in group] for fold, group in enumerate(groups)}
    others = [(fold, row) for fold, group in enumerate(groups) for row in rows if names[row] not in group]
    tables = {TRAINING: measured(others), HELD_OUT: measured([pair for own in held_out.values() for pair in own])}
    for fold, group in enumerate(groups):
        tables[f"{HELD_OUT}_{fold + 1}"] = {**measured(held_out[fold]), "members": group}
    return tables


def labeler_groups(names: Sequence[str | None], field: str = "labeler", count: int = FOLDS) -> list[list[str]]:
    """Those who ranked, in groups with about as many rankings each; the same rankings give the same groups.

    Args:
        names: Who made each ranking.
        field: What the names are, for the messages.
        count: Groups; where there are fewer names, each is a group of its own.

    Raises:
        PipelineError: When a ranking has no name, or all have the same.

    Examples:
        >>> labeler_groups(["ann", "bob", "ann", "cem", "ann", "dan"], count=2)
        [['ann'], ['bob', 'cem', 'dan']]
    """
    rankings = Counter(name for name in names if name is not None)
    unnamed = len(names) - rankings.total()
    if unnamed:
        raise PipelineError(
            f"folds={field} needs the field '{field}' in every ranking, and {unnamed} of {len(names)} have none. Name "
            "its column in the 'columns' of the source, or leave those rankings out."
        )
    if len(rankings) < 2:
        raise PipelineError(f"folds={field} needs two {field}s or more, the rankings have {list(rankings)}.")
    groups: list[list[str]] = [[] for _ in range(min(count, len(rankings)))]
    for name in sorted(rankings, key=lambda name: (-rankings[name], name)):
        min(groups, key=lambda group: sum(rankings[own] for own in group)).append(name)
    return groups


def outcome(tables: Mapping[str, Mapping[str, Any]], field: str) -> str:
    """The two accuracies in one sentence."""
    shown = []
    for name in (TRAINING, HELD_OUT):
        if own := tables[name].get("accuracy"):
            shown.append(f"{name.replace('_', ' ')} {own['value']:.1%} ({own['low']:.1%} .. {own['high']:.1%})")
    return f"cross-validation by {field}: {', '.join(shown) or 'nothing but ties'}"


def _outside(field: str, group: Sequence[str], ranking: Comparison) -> bool:
    return getattr(ranking, field) not in group


def _kept_scores(place: Path, fold_scores: Callable[[Path, Keep], Scores], keep: Keep) -> Scores:
    """The scores of a fold, made where they are not kept yet."""
    done = place / "scores.json"
    if on_rank_zero(done.exists):
        scores: Scores = json.loads(done.read_text(encoding="utf-8"))
        return scores
    (place / "checkpoints").mkdir(parents=True, exist_ok=True)
    scores = fold_scores(place, keep)
    write_json(done, scores)
    shutil.rmtree(place / "checkpoints", ignore_errors=True)  # five more models' worth of them
    return scores
