"""Warnings about a training, said once each; `warnings.json` keeps them."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import lightning as L

from rlhf_lightning.parallel.processes import rank
from rlhf_lightning.runs.files import write_json


class Warnings(L.Callback):
    """Says each warning once, also over a resume, and writes all of them to a file.

    Args:
        path: The file.
        say: Function that tells the user.
    """

    def __init__(self, path: Path, say: Callable[[str], None]) -> None:
        self.path, self.say = path, say
        self.said: dict[str, str] = {}

    def warn(self, about: str, sentence: str) -> None:
        """Say it, unless something about the same was said before."""
        if about not in self.said:
            self.said[about] = sentence
            self.say(f"warning: {sentence}")
            self._write()

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Forget what an interrupted run said after its last checkpoint: it will be seen again."""
        self._write()

    def state_dict(self) -> dict[str, Any]:
        """What was said."""
        return {"said": dict(self.said)}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on from there."""
        self.said = dict(state_dict["said"])

    def _write(self) -> None:
        if rank() == 0 and (self.said or self.path.exists()):
            write_json(self.path, list(self.said.values()))
