"""Who is preferred to whom: every pair of policies, parts of the prompts, and how far judges agree."""

from bisect import bisect_left
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import replace
from itertools import combinations
from typing import Any, Literal, TypedDict

from rlhf_lightning.arguments import Count
from rlhf_lightning.evaluation.agreement import verdict_agreement
from rlhf_lightning.evaluation.intervals import Interval, first_places, known_interval, share_interval, wins
from rlhf_lightning.evaluation.length_control import length_controlled_win_rate
from rlhf_lightning.evaluation.policies import PolicySamples, judge_outcomes, lengthened
from rlhf_lightning.evaluation.tables import JUDGE, REWARD

MOST_GROUPS, OTHERS, UNKNOWN = 20, "(others)", "(unknown)"
"""Values of a field that get a row of their own, the most frequent ones; the row of the rest; that of none."""
Samples = Mapping[str, PolicySamples]


class PromptSet(TypedDict, total=False):
    """Prompts of one distribution: those with some values of fields."""

    split: Literal["validation", "test"]
    where: Mapping[str, Any] | None
    num_prompts: Count | None


def head_to_head(scores: Mapping[str, Sequence[float]], prompts: Sequence[str]) -> dict[str, dict[str, Interval]]:
    """The win rate of every policy against every other one by a judge that scores, a tie as half a win.

    Source: InstructGPT, section 4.1, where 175B InstructGPT is preferred to 175B GPT-3 85 % of the time, and to GPT-3
    with a few-shot prefix 71 %.

    Args:
        scores: Those of each policy's responses, on the same prompts in the same order.
        prompts: The prompts; rows that share one are drawn together.
    """
    clusters = first_places(prompts)
    return {
        one: {other: share_interval(wins(own, against), clusters) for other, against in scores.items() if other != one}
        for one, own in scores.items()
    }


def part_results(samples: Samples, baseline: str, prompts: Sequence[str], places: Sequence[int]) -> dict[str, Any]:
    """Win rates on some of the prompts.

    Args:
        samples: Samples of each policy, on the same prompts in the same order.
        baseline: Policy that win rates are against; it has none.
        prompts: The prompts; rows that share one are drawn together.
        places: Places of those that count.

    Returns:
        `prompts`, their number, and per policy `win_rate`, `length_controlled` and `judges`, the win rates by the
        further judges; those are None where a judge said nothing.
    """
    clusters = first_places([prompts[place] for place in places])
    against = samples[baseline]
    policies = {}
    for name, own in samples.items():
        if name != baseline:
            all_won, longer = wins(own.scores, against.scores), lengthened(own, against)
            won = [all_won[place] for place in places]
            policies[name] = {
                "win_rate": share_interval(won, clusters),
                "length_controlled": length_controlled_win_rate(won, [longer[place] for place in places], clusters),
                "judges": {
                    judge: known_interval([outcomes[place] for place in places], clusters, share_interval)
                    for judge, outcomes in judge_outcomes(own, against).items()
                },
            }
    return {"prompts": len(places), "policies": policies}


def breakdown(
    samples: Samples, baseline: str, prompts: Sequence[str], groups: Mapping[str, Mapping[str, Sequence[int]]]
) -> dict[str, dict[str, Any]]:
    """`part_results` for every group of prompts, such as a use case.

    Args:
        samples: Samples of each policy, on the same prompts in the same order.
        baseline: Policy that win rates are against.
        prompts: The prompts; rows that share one are drawn together.
        groups: By what they are grouped by, the places of each group's prompts; where there is one group alone, which
            is all of them, nothing is said.
    """
    return {
        field: {group: part_results(samples, baseline, prompts, places) for group, places in own.items()}
        for field, own in groups.items()
        if len(own) > 1
    }


def value_groups(values: Sequence[Any]) -> dict[str, list[int]]:
    """Places of each value of a field, the most frequent first; those beyond `MOST_GROUPS` are together.

    Examples:
        >>> value_groups(["chat", None, True, True])
        {'True': [2, 3], 'chat': [0], '(unknown)': [1]}
    """
    texts = [UNKNOWN if value is None else str(value) for value in values]
    groups: dict[str, list[int]] = {text: [] for text, _ in Counter(texts).most_common(MOST_GROUPS)}
    for place, text in enumerate(texts):
        groups.setdefault(text if text in groups else OTHERS, []).append(place)
    return groups


def length_thirds(lengths: Sequence[int]) -> dict[str, list[int]]:
    """Places of the short, the middle and the long third of prompts; fewer groups where many are equally long.

    Examples:
        >>> length_thirds([3, 9, 5, 4, 8, 7])
        {'3 .. 4': [0, 3], '5 .. 7': [2, 5], '8 .. 9': [1, 4]}
    """
    ordered = sorted(lengths)
    ends = sorted({ordered[-(-len(ordered) * third // 3) - 1] for third in (1, 2, 3)})
    groups: list[list[int]] = [[] for _ in ends]
    for place, length in enumerate(lengths):
        groups[bisect_left(ends, length)].append(place)
    return {f"{min(lengths[p] for p in own)} .. {end}": own for end, own in zip(ends, groups, strict=True)}


def judge_agreement(samples: Samples, baseline: str, prompts: Sequence[str]) -> list[dict[str, Any]]:
    """How far every two judges agree on which of two policies' responses is better.

    The judges are the main one (`judge`), the reward model (`reward`) and the further ones; those that compare know of
    pairs with the baseline alone. Pairs of the same text say nothing and do not count.

    Args:
        samples: Samples of each policy, on the same prompts in the same order.
        baseline: The policy that judges who compare were shown beside each other one.
        prompts: The prompts; rows that share one are drawn together.

    Returns:
        Per two judges `judges`, their names, and what `verdict_agreement` says.
    """
    clusters = first_places(prompts)
    said: dict[str, dict[tuple[str, str, int], float]] = {}
    for one, other in combinations(samples, 2):
        pair = (one, other) if other == baseline else (other, one)
        own, against = (samples[policy] for policy in pair)
        verdicts = {JUDGE: wins(own.scores, against.scores), REWARD: wins(own.rewards, against.rewards)}
        scored = own if pair[1] == baseline else replace(own, preferences={})
        for judge, outcomes in {**verdicts, **judge_outcomes(scored, against)}.items():
            for place, outcome in enumerate(outcomes):
                if outcome is not None and own.responses[place] != against.responses[place]:
                    # Of several people the majority.
                    said.setdefault(judge, {})[*pair, place] = (1 + (outcome > 0.5) - (outcome < 0.5)) / 2
    found = []
    for one, other in combinations(said, 2):
        shared = [pair for pair in said[one] if pair in said[other]]
        if shared:
            first, second = ([said[judge][pair] for pair in shared] for judge in (one, other))
            result = verdict_agreement(first, second, [clusters[place] for *_, place in shared])
            found.append({"judges": [one, other], **result})
    return found
