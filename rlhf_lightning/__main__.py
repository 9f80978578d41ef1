"""``python -m rlhf_lightning``."""

from rlhf_lightning.cli import main

main()
