"""Names of the rounds of a run: the first one is the run itself, a later one lies within it."""

import re

ROUND = "round-"
_LATER = re.compile(rf"/{ROUND}([2-9]|[1-9]\d+)$")


def rounds_to(run: str) -> list[str]:
    """The names of a run and of its rounds before it, the newest first.

    Examples:
        >>> rounds_to("mine/round-3"), rounds_to("mine")
        (['mine/round-3', 'mine/round-2', 'mine'], ['mine'])
    """
    if (found := _LATER.search(run)) is None:
        return [run]
    first, last = run[: found.start()], int(found[1])
    return [*(f"{first}/{ROUND}{number}" for number in range(last, 1, -1)), first]
