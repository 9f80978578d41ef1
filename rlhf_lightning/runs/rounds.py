"""Names of the rounds of a run: the first one is the run itself, a later one lies within it."""

import re
from pathlib import Path

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


def later_rounds(run: Path) -> dict[int, Path]:
    """The folders of a run's rounds after the first one, by number and in order."""
    found = {int(named[1]): folder for folder in run.glob(f"{ROUND}*") if (named := _LATER.search(folder.as_posix()))}
    return dict(sorted(found.items()))


def run_name(folder: Path) -> str:
    """What people call the run in a folder, a later round with the run that it is of.

    Examples:
        >>> run_name(Path("runs/mine/round-2")), run_name(Path("runs/mine"))
        ('mine, round 2', 'mine')
    """
    named = _LATER.search(folder.as_posix())
    return f"{folder.parent.name}, round {named[1]}" if named else folder.name
