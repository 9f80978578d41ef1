"""Whose response to a prompt is which: policies in turn, or by shares such as mostly SFT and some PPO (3.5)."""

import random
from bisect import bisect
from collections.abc import Iterator, Sequence
from itertools import accumulate


def turns(policies: int, least: int, most: int, shares: Sequence[float] | None, key: str) -> list[int]:
    """The number of the policy that gives each of the K responses to a prompt.

    Args:
        policies: How many there are.
        least: Smallest K.
        most: Largest K; K is uniform between the two.
        shares: Weight of each policy, or None: in turn. A policy with the share s gives s K of the responses, rounded
            up or down by lot, so that over many prompts it gives s of them.
        key: Seed of K and of the lot, another one for each prompt.

    Examples:
        >>> turns(2, 5, 5, None, key="1/7")
        [0, 1, 0, 1, 0]
        >>> turns(2, 8, 8, [3, 1], key="1/7")
        [0, 0, 0, 0, 0, 0, 1, 1]
    """
    count = random.Random(key).randint(least, most)
    if shares is None:
        return [slot % policies for slot in range(count)]
    *ends, total = accumulate(shares)
    offset = random.Random(f"{key}/turns").random()
    return [bisect(ends, (slot + offset) / count * total) for slot in range(count)]


def advance(open_turns: list[int], place: int, policy: int) -> None:
    """Give the place to a turn of the policy, which had the first new response: its other turns stay open.

    Examples:
        >>> open_turns = [0, 0, 1, 1]
        >>> advance(open_turns, 1, policy=1)
        >>> open_turns
        [0, 1, 0, 1]
    """
    open_turns.insert(place, open_turns.pop(open_turns.index(policy, place)))


def shares_lacking(policies: Sequence[str], shares: Sequence[float] | None) -> Iterator[str]:
    """Whether every policy has a share of the responses."""
    if shares is not None and len(shares) != len(policies):
        named = ", ".join(policies) or "none"
        yield f"shares={list(shares)} is not one for each of the policies ({named}). Give each a number, or null."
