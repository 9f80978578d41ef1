"""What there is to say about rankings: whose responses they are of and who won, how far labelers agree."""

import json
from collections.abc import Mapping, Sequence
from contextlib import suppress
from itertools import combinations
from typing import Any

from rlhf_lightning.data.records import Comparison
from rlhf_lightning.evaluation.agreement import agreement
from rlhf_lightning.evaluation.intervals import first_places, known_interval, share_interval
from rlhf_lightning.evaluation.plots import Legend
from rlhf_lightning.evaluation.report_parts import Head, Part, Section
from rlhf_lightning.evaluation.tables import cell

_BY_POLICY = "by_policy"


def collected_facts(rankings: Sequence[Comparison], dropped: Mapping[str, int]) -> dict[str, Any]:
    """What the metrics of a step say of the rankings that it collected.

    Args:
        rankings: The rankings.
        dropped: Prompts without one, by reason.

    Returns:
        `prompts` and `dropped`; where they keep how they came about, `by_policy`; where a prompt has several,
        `rankings`, their number, and `agreement` of the labelers (`evaluation.agreement`).
    """
    prompts = [json.dumps(each.prompt) for each in rankings]
    facts: dict[str, Any] = {"prompts": len(rankings), "dropped": dict(dropped)}
    if found := by_policy(rankings, first_places(prompts)):
        facts[_BY_POLICY] = found
    if any(each.labeling and "order" in each.labeling for each in rankings):  # people, of whom some share prompts
        facts |= {"prompts": len({*prompts}), "rankings": len(rankings)}
        with suppress(ValueError):  # nobody shares one
            shared = agreement(rankings)
            facts["agreement"] = {**shared["agreement"], "pairs": shared["pairs"]}
    return facts


def by_policy(rankings: Sequence[Comparison], clusters: Sequence[int]) -> dict[str, dict[str, Any]]:
    """Of each policy the share of the responses, and how often one of its own is ranked above one of another policy.

    Args:
        rankings: Rankings; those that do not keep who wrote what do not count.
        clusters: The number of each ranking's prompt.

    Returns:
        By policy `responses`, a share, and `wins` with its interval over prompts, a tie being half a win; None where it
        stood beside no other.

    Examples:
        >>> ranking = Comparison("p", ["a", "b", "c"], [1, 2, 2], labeling={"policies": ["ppo", "sft", "ppo"]})
        >>> {name: (own["responses"], own["wins"]["value"]) for name, own in by_policy([ranking], [0]).items()}
        {'ppo': (0.6666666666666666, 0.75), 'sft': (0.3333333333333333, 0.25)}
    """
    counts: dict[str, int] = {}
    won: dict[str, list[tuple[int, float]]] = {}
    for cluster, ranking in zip(clusters, rankings, strict=True):
        policies = (ranking.labeling or {}).get("policies") or []
        named = [(policy, rank) for policy, rank in zip(policies, ranking.ranks, strict=False) if policy is not None]
        for policy, _ in named:
            counts[policy] = counts.get(policy, 0) + 1
        for (one, rank), (other, against) in combinations(named, 2):
            if one != other:
                first = float(rank < against) + 0.5 * float(rank == against)
                won.setdefault(one, []).append((cluster, first))
                won.setdefault(other, []).append((cluster, 1 - first))
    total = sum(counts.values())
    return {
        policy: {
            "responses": count / total,
            "wins": known_interval(
                [value for _, value in won.get(policy, [])], [place for place, _ in won.get(policy, [])], share_interval
            ),
        }
        for policy, count in sorted(counts.items())
    }


def collected_section(metrics: Mapping[str, Mapping[str, Any]], legend: Legend) -> Section | None:
    """Rankings by policy, of the steps that collected some.

    Args:
        metrics: Those of each step.
        legend: Names of the policies.
    """
    splits = {split: own for step in metrics.values() for split, own in step.items() if isinstance(own, Mapping)}
    rows = [
        [split, legend.label(policy), f"{100 * facts['responses']:.1f}", cell(facts["wins"], 100.0)]
        for split, own in splits.items()
        for policy, facts in own.get(_BY_POLICY, {}).items()
    ]
    heads = [Head("Split", text=True), Head("Policy", text=True), Head("Responses", "%"), Head("Wins", "%")]
    agreed = [
        [split, str(own["prompts"]), str(own["rankings"]), cell(own.get("agreement"), 100.0)]
        for split, own in splits.items()
        if "rankings" in own
    ]
    found = [
        Part("By policy", "How often a response of it is ranked above one of another policy.", heads, rows),
        Part(
            "By people",
            "Agreement: the share of pairs that two labelers order alike, among those that neither ties.",
            [Head("Split", text=True), Head("Prompts"), Head("Rankings"), Head("Agreement", "%")],
            agreed,
        ),
    ]
    parts = [part for part in found if part.rows]
    return Section("rankings", "Rankings", "95 % intervals over prompts.", parts) if parts else None
