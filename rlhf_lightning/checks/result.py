"""How a check ends."""

from dataclasses import dataclass
from typing import Literal

from torch import Tensor

Outcome = Literal["pass", "fail", "error", "skipped"]
"""`error` is an exception on the way, so that nothing was compared."""


class CheckFailedError(Exception):
    """Something is wrong; the message says what was measured."""


class CheckSkippedError(Exception):
    """There is nothing to check; the message says what is missing."""


@dataclass(frozen=True)
class CheckResult:
    """One row of the table.

    Args:
        name: The check's name.
        outcome: The way it ended.
        measured: The finding, in words.
        meaning: The meaning of a pass.
        remedy: Advice after a failure.
        seconds: Time that it took.
    """

    name: str
    outcome: Outcome
    measured: str
    meaning: str
    remedy: str
    seconds: float


def close(found: Tensor, expected: Tensor, tolerance: float, what: str) -> str:
    """Compare two ways to the same numbers: `CheckFailedError` where they differ by more, or by what is no number."""
    difference = found.detach().float().cpu() - expected.detach().float().cpu()
    gap = float(difference.abs().max()) if found.numel() else 0.0
    if not gap <= tolerance:
        raise CheckFailedError(f"{what} differ by up to {gap:.3g}, more than {tolerance:.1g}")
    return f"{what} differ by at most {gap:.1g}"


def demand(condition: bool, otherwise: str) -> None:
    """Raise `CheckFailedError` with a sentence unless the condition holds."""
    if not condition:
        raise CheckFailedError(otherwise)
