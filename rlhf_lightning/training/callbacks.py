"""Callbacks and the logger of the pipeline: progress, metrics.csv, sample tables."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import lightning as L
from transformers import PreTrainedTokenizerBase

from rlhf_lightning.generation.sample import response_texts
from rlhf_lightning.runs.files import put_in_place
from rlhf_lightning.training.metrics_file import batches_done


class SampleTable(L.Callback):
    """Appends a few rollouts of PPO to ``samples.jsonl`` every so many iterations.

    Args:
        path: The file.
        tokenizer: Of the policy.
        every_n_iterations: How often.
        rows: How many episodes each time.
    """

    def __init__(
        self, path: Path, tokenizer: PreTrainedTokenizerBase, every_n_iterations: int = 10, rows: int = 4
    ) -> None:
        self.tokenizer = tokenizer
        self.path, self.every_n_iterations, self.rows = path, every_n_iterations, rows

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Drop what an interrupted run wrote after its last checkpoint."""
        if self.path.exists() and trainer.is_global_zero:
            lines = self.path.read_text(encoding="utf-8").splitlines(keepends=True)
            done = batches_done(trainer)
            kept = [line for line in lines if line.endswith("\n") and json.loads(line)["iteration"] < done]
            unfinished = self.path.with_suffix(".unfinished")
            unfinished.write_text("".join(kept), encoding="utf-8")
            put_in_place(unfinished, self.path)

    def on_train_batch_end(self, trainer: L.Trainer, pl_module: L.LightningModule, *_: Any) -> None:
        """Write where it is time to."""
        iteration = batches_done(trainer) - 1
        experience = getattr(pl_module, "latest", None)
        if experience is None or iteration % self.every_n_iterations or not trainer.is_global_zero:
            return
        texts = response_texts(self.tokenizer, experience.rollout)
        with self.path.open("a", encoding="utf-8") as file:
            for row in range(min(self.rows, len(texts))):
                sample = {
                    "iteration": iteration,
                    "prompt": experience.rollout.prompts.texts[row],
                    "response": texts[row],
                    "score": round(float(experience.scores[row]), 4),
                }
                file.write(json.dumps(sample, ensure_ascii=False) + "\n")


class KeepEpochs(L.Callback):
    """Writes the model after every epoch (InstructGPT, section 3.5 and appendix C.1, chooses among them).

    Args:
        folder: Gets one folder per epoch: ``1``, ``2``, ...
        export: Writes the model to a folder.
    """

    def __init__(self, folder: Path, export: Callable[[Path], None]) -> None:
        self.folder, self.export = folder, export

    def on_train_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Write the epoch that just ended."""
        self.export(self.folder / str(trainer.current_epoch + 1))
