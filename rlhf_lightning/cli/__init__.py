"""The command line: composes the configuration, builds what it describes, runs the pipeline; Hydra, nowhere else."""

from rlhf_lightning.cli.command import check_processes, main, run
from rlhf_lightning.cli.configuration import CONFIG_DIR, composed, resolved
from rlhf_lightning.cli.sweep import SweepSummary

__all__ = ["CONFIG_DIR", "SweepSummary", "check_processes", "composed", "main", "resolved", "run"]
