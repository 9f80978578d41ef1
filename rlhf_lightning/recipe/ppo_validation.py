"""What PPO does on validation prompts while it trains: measures, warns of over-optimisation, keeps the best weights."""

import shutil
from collections.abc import Callable, Iterator, Sequence
from contextlib import nullcontext
from functools import partial
from pathlib import Path
from statistics import fmean
from typing import Any

import lightning as L
import torch
from lightning.fabric.utilities import move_data_to_device
from lightning.pytorch.utilities.seed import isolate_rng

from rlhf_lightning.algorithms.batch import PromptBatch
from rlhf_lightning.algorithms.functional import kl_k1
from rlhf_lightning.data.loader import collate_prompts
from rlhf_lightning.evaluation.intervals import first_places
from rlhf_lightning.evaluation.overoptimisation import Overoptimisation
from rlhf_lightning.evaluation.tables import JUDGE
from rlhf_lightning.generation.rewards import FORWARD_TOKENS, Reward, response_scores
from rlhf_lightning.generation.sample import SamplingOptions, response_log_probs
from rlhf_lightning.models.lora import adapters_disabled
from rlhf_lightning.models.offload import offload, on_device_within
from rlhf_lightning.modules.ppo import PPOModule
from rlhf_lightning.parallel.processes import all_gather_objects, on_rank_zero, rank, world_size
from rlhf_lightning.parallel.sharding import unshard
from rlhf_lightning.recipe.context import Context
from rlhf_lightning.recipe.inputs import records_lacking, rows_of
from rlhf_lightning.recipe.rewards import reward_fingerprints, reward_lacking, reward_of, reward_steps
from rlhf_lightning.runs.folders import PipelineError
from rlhf_lightning.training.metrics_file import batches_done
from rlhf_lightning.training.warnings_file import Warnings

VALIDATION_JUDGE = "validation_judge"
"""The setting that names it."""
BEST = "best"
"""What `keep` may be, and the variant of the step's model."""
BATCH = 64
"""Prompts that are answered at once."""
CHECKPOINTS = 3
"""Checkpoints that may be on the disk at once: the last, the one before, and one that is being written."""
_NOISE = -1
"""In the place of the iteration, so that every validation draws the same numbers, and no iteration does."""
KEYS = {
    "score": "validation/score",
    JUDGE: "validation/judge",
    "kl": "validation/kl",
    "length": "validation/length",
}
"""What is logged of a validation."""


def judge_steps(context: Context, step: str) -> dict[str, str]:
    """The parts of the further judge that are models of steps, by their role."""
    judge = context.config[step][VALIDATION_JUDGE]
    return {} if judge is None else reward_steps(context, judge, JUDGE)


def judge_fingerprints(context: Context, step: str) -> dict[str, str]:
    """What every part of the further judge is, by content."""
    judge = context.config[step][VALIDATION_JUDGE]
    return {} if judge is None else reward_fingerprints(context, judge, JUDGE)


def validation_lacking(context: Context, step: str) -> Iterator[str]:
    """What the validation of PPO needs and nothing brings, a sentence each."""
    options = context.config[step]
    judge, prompts = options[VALIDATION_JUDGE], "prompts"
    if options["validate_every"] is None:
        for name in (VALIDATION_JUDGE, "keep", "validation_prompts"):
            if options[name] is not None:
                yield f"{name} is set, but nothing is validated. Set {step}.validate_every, to 5 iterations say."
        return
    yield from records_lacking(context, prompts, "validation")
    if judge is not None:
        yield from reward_lacking(context, VALIDATION_JUDGE, judge, partial(rows_of, context, prompts, "validation"))


class PromptValidation(L.Callback):
    """Every so many iterations of PPO, and as an epoch ends, the policy answers validation prompts with the same noise.

    What is measured is what the step passes on: the moving average of the weights where there is one. Training is the
    same with it and without, bit for bit. Logged are `validation/score`, `validation/kl`, `validation/length`, and
    `validation/judge` where there is a judge. Of several processes each answers a part of the prompts.

    Args:
        batches: Validation prompts; none turns it off.
        every: Iterations between two validations.
        judge: Further judge, which no policy learns from, or None; between validations a model waits on the CPU.
        export: Function that writes the policy to a folder where the best weights are kept, or None.
        folder: The step's folder.
        step: The step's name, whose settings the warning names.
    """

    def __init__(
        self,
        batches: Sequence[PromptBatch],
        every: int,
        judge: Reward | None,
        export: Callable[[Path], None] | None,
        folder: Path,
        step: str,
    ) -> None:
        self.batches, self.every, self.judge, self.export = batches, every, judge, export
        self.folder, self.step = folder, step
        self.watch = Overoptimisation(first_places([str(text) for batch in batches for text in batch.texts]))
        self._done = 0
        self._saved: dict[int, int | None] = {}

    @classmethod
    def of(cls, context: Context, step: str, folder: Path, export: Callable[[Path], None]) -> "PromptValidation":
        """That of a step by its settings; arguments as those of the class."""
        options = context.config[step]
        every, judge = options["validate_every"], options[VALIDATION_JUDGE]
        examples = []
        if every is not None:
            records = context.records("prompts", "validation")[: options["validation_prompts"]]
            examples = context.tokenization.prompts(records)
            if not examples:
                raise PipelineError(
                    f"{step}: all validation prompts are longer than data.lengths.max_prompt_tokens. Raise it, or set "
                    f"{step}.validate_every=null."
                )
        scorer = None if judge is None else reward_of(context, judge)
        offload(scorer)
        return cls(
            context.batches(examples, collate_prompts, BATCH),
            every or 1,
            scorer,
            export if options["keep"] == BEST else None,
            folder,
            step,
        )

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Look whether the best weights so far are where they were put."""
        best = self.watch.best
        if self.export is not None and best is not None and not self._kept(best["iteration"]).is_dir():
            self.watch.best = None
            gone = f"{self._kept(best['iteration'])} is gone, so the best weights are looked for from here on."
            _warn(trainer, "kept", gone)

    def on_train_batch_end(self, trainer: L.Trainer, pl_module: L.LightningModule, *_: Any) -> None:
        """Measure where it is time to; warn; keep the weights where they are the best so far."""
        self._done = done = batches_done(trainer)
        if (
            not self.batches
            or not isinstance(pl_module, PPOModule)
            or (done % self.every and not trainer.is_last_batch)
        ):
            return
        averaged = nullcontext() if pl_module.ema is None else pl_module.ema.applied(pl_module.policy)
        with isolate_rng(), averaged:
            with trainer.precision_plugin.forward_context():
                found = answered(pl_module, self.batches, self.judge)
            if self.watch.add(done, found) and self.export is not None:
                self._keep(done)
        means = {key: fmean(found[name]) for name, key in KEYS.items() if name in found}
        for logger in trainer.loggers:
            logger.log_metrics(means, done - 1)  # also where `log_every` leaves the iteration out
        pl_module.log_dict(means, logger=False, prog_bar=True)
        if self.watch.warns:
            _warn(trainer, JUDGE, self.watch.sentence(self.step))

    def finish(self) -> dict[str, Any]:
        """Put the best weights in place, as `model_best`; which iteration they are of."""
        best = self.watch.best
        if self.export is None or best is None:
            return {}
        on_rank_zero(partial(self._put_in_place, self._kept(best["iteration"])))
        return {"best_iteration": best["iteration"]}

    def state_dict(self) -> dict[str, Any]:
        """The best so far; of what is trained again after a kill nothing is known."""
        if not self.batches:
            return {}
        best = self.watch.best
        known = {**self._saved, self._done: None if best is None else int(best["iteration"])}
        self._saved = dict(list(known.items())[-CHECKPOINTS:])
        return {"best": best, "fallen": self.watch.fallen, "saved": list(self._saved.items())}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on from there."""
        self.watch.best, self.watch.fallen = state_dict["best"], state_dict["fallen"]
        self._saved = dict(state_dict["saved"])

    def _kept(self, iteration: int) -> Path:
        return self.folder / BEST / str(iteration)

    def _keep(self, iteration: int) -> None:
        """Write the weights, and delete those that no checkpoint on the disk calls the best."""
        assert self.export is not None
        self.export(self._kept(iteration) / f"model_{BEST}")
        if rank() == 0:
            known = {str(iteration), *map(str, self._saved.values())}
            for old in self._kept(iteration).parent.iterdir():
                if old.name not in known:
                    shutil.rmtree(old)

    def _put_in_place(self, kept: Path) -> None:
        for model in sorted(kept.iterdir()) if kept.exists() else ():  # else a start before this one did
            shutil.rmtree(self.folder / model.name, ignore_errors=True)
            model.rename(self.folder / model.name)
        shutil.rmtree(kept.parent, ignore_errors=True)


@torch.no_grad()
def answered(module: PPOModule, batches: Sequence[PromptBatch], judge: Reward | None) -> dict[str, list[float]]:
    """What the policy answers to prompts, measured: `KEYS` of each, in order.

    Args:
        module: The module with policy, reference and reward.
        batches: The prompts, the same in all processes, each of which answers every n-th batch.
        judge: Further judge, or None.
    """
    settings = module.hparams
    options = SamplingOptions.from_tokenizer(module.tokenizer, settings.max_new_tokens, settings.temperature)
    scorers = {"score": module.reward, **({} if judge is None else {JUDGE: judge})}
    frozen = (judge, module.reference, module.reward) if settings.offload_frozen else (judge,)
    found: dict[int, dict[str, list[float]]] = {}
    with unshard(module.policy, module.reference, module.reward), on_device_within(module.device, *frozen):
        for number in range(rank(), len(batches), world_size()):
            prompts = move_data_to_device(batches[number], module.device)
            rollout = module.sampler(module.policy, prompts, options, (settings.seed, _NOISE))
            log_probs = response_log_probs(module.policy, rollout, settings.temperature)
            with adapters_disabled(module.reference):
                reference = response_log_probs(module.reference, rollout, settings.temperature)
            with adapters_disabled(module.reward):
                scores = {
                    name: response_scores(scorer, rollout, module.tokenizer, FORWARD_TOKENS)
                    for name, scorer in scorers.items()
                }
            kl, lengths = kl_k1(log_probs, reference).sum(1), rollout.response_mask.sum(1).float()
            scores["score"] = scores["score"] - (settings.missing_eos_penalty or 0.0) * (~rollout.ended)
            figures = {**scores, "kl": kl, "length": lengths}
            found[number] = {name: values.tolist() for name, values in figures.items()}
    every = {number: figures for part in all_gather_objects(found) for number, figures in part.items()}
    return {name: [value for number in sorted(every) for value in every[number][name]] for name in every[0]}


def _warn(trainer: Any, about: str, sentence: str) -> None:
    for callback in trainer.callbacks:
        if isinstance(callback, Warnings):
            callback.warn(about, sentence)
