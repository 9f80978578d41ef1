"""What was found out after the runs about claims that do not hold; the rules, written before, are with the claims."""

from collections.abc import Mapping
from dataclasses import dataclass


@dataclass(frozen=True)
class Note:
    """Our best explanation.

    Args:
        failed: The conditions that were not met when it was written; where others are not, it is not shown.
        text: What we think.
    """

    failed: tuple[str, ...]
    text: str


NOTES: Mapping[int, Note] = {}
"""By number of the claim."""
