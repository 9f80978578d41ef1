"""A self-check for models, data and settings: everything that silently goes wrong in RLHF, tried on your own."""

from rlhf_lightning.checks.result import CheckResult
from rlhf_lightning.checks.run import check, check_table
from rlhf_lightning.checks.subject import Subject

__all__ = ["CheckResult", "Subject", "check", "check_table"]
