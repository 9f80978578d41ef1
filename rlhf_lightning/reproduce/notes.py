"""What was found out after the runs about claims that do not hold; the rules, written before, are with the claims."""

from collections.abc import Mapping

NOTES: Mapping[int, str] = {}
"""By number of the claim: our best explanation."""
