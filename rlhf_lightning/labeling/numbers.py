"""What a labeling says so far: who did what, how far labelers agree, how they judge planted items and policies."""

import json
from collections.abc import Callable, Hashable, Iterable, Sequence
from statistics import fmean, median
from typing import Any

from rlhf_lightning.data.records import Comparison, decided_pairs
from rlhf_lightning.evaluation.agreement import COMPARISONS, FLAGS, agreement, krippendorff_alpha, order_counts
from rlhf_lightning.evaluation.intervals import Interval, first_places, known_interval, mean_interval, share_interval
from rlhf_lightning.evaluation.table_3 import TABLE_3
from rlhf_lightning.labeling.store import Answer, LabelStore
from rlhf_lightning.labeling.tasks import FIELDS

_FURTHER = ("toxicity", "relative_toxicity", "continuity")


def labeling_numbers(store: LabelStore, batch: str | None = None) -> dict[str, Any]:
    """All of it: `progress`, `labelers`, `agreement`, `screening` and `policies`.

    Args:
        store: The store.
        batch: Of these tasks alone.
    """
    answers = store.answers(batch)
    return {
        "progress": store.progress(batch),
        "labelers": labeler_counts(answers),
        "agreement": label_agreement(answers),
        "screening": screening(answers),
        "policies": policy_numbers(answers),
    }


def labeler_counts(answers: Iterable[Answer]) -> dict[str, dict[str, Any]]:
    """Per labeler `answers`, `skipped` among them, `median_seconds` and the answers of each kind of task."""
    return {
        labeler: {
            "answers": len(own),
            "skipped": sum(answer.skipped for answer in own),
            "median_seconds": median(answer.seconds for answer in own),
            "kinds": {kind: len(of_kind) for kind, of_kind in _grouped(own, lambda a: a.task.kind).items()},
        }
        for labeler, own in sorted(_grouped(answers, lambda answer: answer.labeler).items())
    }


def label_agreement(answers: Iterable[Answer]) -> dict[str, Any]:
    """How far labelers agree on tasks that several did, screening items and what was skipped left out.

    Pairs are those that their ranks order, or overall quality where there are no ranks.

    Returns:
        `tasks`, how many several labelers did; `agreement`, `pairs` and `by_labelers` as `evaluation.agreement` has
        them, the first None where no pair tells; `alpha`, Krippendorff's, of ranks (ordinal), of overall quality
        (interval) and of each field (nominal), None where it is not defined.
    """
    tasks = _grouped(_judgements(answers), lambda answer: answer.task.id)
    shared = [own for own in tasks.values() if len(own) > 1]
    rankings = [
        Comparison(answer.task.prompt or "", answer.task.responses, ranks, answer.labeler)
        for own in shared
        for answer in own
        if (ranks := ranks_of(answer)) is not None and all(text.strip() for text in answer.task.responses)
    ]
    try:
        found: dict[str, Any] = {**agreement(rankings)}
    except ValueError:  # no two order the same two responses
        found = {"agreement": None, "pairs": 0, "by_labelers": []}
    levels = {"ranks": "ordinal", "likert": "interval", **dict.fromkeys(FIELDS, "nominal")}
    alphas = {name: _alpha(shared, name, level) for name, level in levels.items()}
    return {"tasks": len(shared), **found, "alpha": alphas}


def screening(answers: Iterable[Answer]) -> dict[str, dict[str, Any]]:
    """Per labeler how far they agree with the right answers of planted items (InstructGPT, appendix B.1).

    Returns:
        Per labeler `items`, how many they did; `flags` and `comparisons`, intervals of the share of fields, and of
        pairs that neither ties, on which they agree, None where there is none; `passes`, whether those that are there
        reach the paper's cut-offs, None where none is.
    """
    planted = [answer for answer in answers if answer.task.planted is not None]
    return {labeler: _screened(own) for labeler, own in sorted(_grouped(planted, lambda a: a.labeler).items())}


def policy_numbers(answers: Iterable[Answer], baseline: str | None = None) -> dict[str, dict[str, Any]]:
    """What people say of each policy's responses in evaluations, with intervals over prompts.

    Args:
        answers: Answers; those to evaluations count.
        baseline: The policy that the others are compared with; None: nobody wins.

    Returns:
        Per policy `responses`, how often one was judged; `table_3`, overall quality and the fields, and further
        scales (`toxicity`, ...) by name, those that were asked; `win_rate` against the baseline's responses of the
        same task and labeler by ranks, or by overall quality where there are none, ties half; None where nobody saw
        both.
    """
    judged = [a for a in _judgements(answers) if a.task.kind == "evaluation" and a.task.policies]
    clusters = first_places([json.dumps(answer.task.prompt, sort_keys=True) for answer in judged])
    policies = dict.fromkeys(name for answer in judged for name in answer.task.policies if name is not None)
    return {policy: _policy(policy, judged, clusters, baseline) for policy in policies}


def ranks_of(answer: Answer) -> list[int] | None:
    """The ranks of an answer, or those that overall quality gives; None where neither was asked.

    Examples:
        >>> from rlhf_lightning.labeling.tasks import Task
        >>> task = Task("", "evaluation", "b", "p", ["x", "y", "z"])
        >>> ranks_of(Answer(task, "ann", {"likert": [4, 7, 4]}, [0, 1, 2], 9.0, 0.0))
        [2, 1, 2]
    """
    if "ranks" in answer.answer or "likert" not in answer.answer:
        return answer.answer.get("ranks")
    likert = answer.answer["likert"]
    levels = sorted({*likert}, reverse=True)
    return [1 + levels.index(value) for value in likert]


def _policy(policy: str, judged: Sequence[Answer], clusters: Sequence[int], baseline: str | None) -> dict[str, Any]:
    places = [
        (answer, place, cluster)
        for answer, cluster in zip(judged, clusters, strict=True)
        for place, author in enumerate(answer.task.policies)
        if author == policy
    ]
    own = [cluster for *_, cluster in places]

    def interval(name: str) -> Interval | None:
        mean = share_interval if name in FIELDS else mean_interval
        return known_interval([_said(answer, name, place) for answer, place, _ in places], own, mean)

    outcomes: dict[int, list[float]] = {}
    for answer, place, cluster in places:
        if (ranks := ranks_of(answer)) is not None and baseline != policy:
            others = [other for other, author in enumerate(answer.task.policies) if author == baseline]
            outcomes.setdefault(cluster, []).extend(_outcome(ranks[place], ranks[other]) for other in others)
    won = [fmean(own) for own in outcomes.values() if own]  # a prompt counts once, however many have seen it
    return {
        "responses": len(places),
        "table_3": {name: interval(name) for name in TABLE_3},
        **{name: found for name in _FURTHER if (found := interval(name)) is not None},
        "win_rate": share_interval(won) if won else None,
    }


def _outcome(rank: int, other: int) -> float:
    return 0.5 if rank == other else float(rank < other)


def _screened(answers: Sequence[Answer]) -> dict[str, Any]:
    flags: list[tuple[float, int]] = []
    pairs: list[tuple[float, int]] = []
    for number, answer in enumerate(answers):
        key = answer.task.planted or {}
        for place, fields in enumerate(key.get("fields", [])):
            said = {name: _said(answer, name, place) for name, right in fields.items() if right is not None}
            flags += [(float(value == fields[name]), number) for name, value in said.items() if value is not None]
        ranks = ranks_of(answer)
        if ranks is not None and "ranks" in key:
            alike, opposed = order_counts({*decided_pairs(ranks)}, {*decided_pairs(key["ranks"])})
            pairs += [(1.0, number)] * alike + [(0.0, number)] * opposed
    found = {
        name: share_interval(*zip(*values, strict=True)) if values else None
        for name, values in (("flags", flags), ("comparisons", pairs))
    }
    cut_offs = {"flags": FLAGS, "comparisons": COMPARISONS}
    reached = [value["value"] >= cut_offs[name] for name, value in found.items() if value is not None]
    return {"items": len(answers), **found, "passes": all(reached) if reached else None}


def _judgements(answers: Iterable[Answer]) -> list[Answer]:
    return [a for a in answers if a.task.responses and a.task.planted is None and not a.skipped]


def _said(answer: Answer, name: str, place: int) -> Any:
    """What was said of a response; None where it was not asked, or the question did not arise."""
    if name == "ranks":
        values: Any = ranks_of(answer)
    elif name in FIELDS:
        values = [fields.get(name) for fields in answer.answer.get("fields", [])]
    else:
        values = answer.answer.get(name)
    return values[place] if values else None


def _alpha(tasks: Sequence[Sequence[Answer]], name: str, level: str) -> float | None:
    """Alpha over the responses of all tasks; None where there is nothing to compare, or everything is the same."""
    units = [
        [_said(answer, name, place) for answer in own] for own in tasks for place in range(len(own[0].task.responses))
    ]
    try:
        return krippendorff_alpha(units, level)
    except ValueError:
        return None


def _grouped(answers: Iterable[Answer], key: Callable[[Answer], Hashable]) -> dict[Any, list[Answer]]:
    groups: dict[Any, list[Answer]] = {}
    for answer in answers:
        groups.setdefault(key(answer), []).append(answer)
    return groups
