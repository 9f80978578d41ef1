"""The recipe in order, and the run of it: what is complete is skipped, what is half done goes on."""

import time
from collections.abc import Callable, Iterable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import lightning as L
import yaml
from rich.console import Console

from rlhf_lightning.evaluation.tables import EVALUATE, JUDGE, REWARD
from rlhf_lightning.models.device_memory import available_memory
from rlhf_lightning.parallel.processes import destroy_process_group, on_rank_zero
from rlhf_lightning.recipe.benchmarks import Benchmarks
from rlhf_lightning.recipe.check import PPO, Checking
from rlhf_lightning.recipe.collect import Collection
from rlhf_lightning.recipe.context import BASE, COLLECT, CURATE, PRETRAIN, SELECT, Context
from rlhf_lightning.recipe.curate import Curation
from rlhf_lightning.recipe.evaluate import Evaluation
from rlhf_lightning.recipe.language_model import FineTuning, Pretraining
from rlhf_lightning.recipe.look_ahead import as_they_come, check_names, look_ahead
from rlhf_lightning.recipe.memory_plan import plan_view, with_remedies
from rlhf_lightning.recipe.model_cards import write_cards
from rlhf_lightning.recipe.ppo import PolicyOptimization
from rlhf_lightning.recipe.provenance import environment, go_on_in
from rlhf_lightning.recipe.reward import RewardModelling
from rlhf_lightning.recipe.rounds import joined_metrics, rounds_of
from rlhf_lightning.recipe.run_report import run_report
from rlhf_lightning.recipe.select import Selection
from rlhf_lightning.recipe.settings import setting_faults
from rlhf_lightning.recipe.stage import Stage, TrainingStage
from rlhf_lightning.runs.folders import (
    PipelineError,
    Progress,
    Runs,
    begin_stage,
    complete_stage,
    read_stage,
    unless_begun,
)
from rlhf_lightning.runs.lock import being_made
from rlhf_lightning.runs.secrets import redacted
from rlhf_lightning.tokenization.chat import template_date
from rlhf_lightning.training.metrics_file import refuse_non_finite
from rlhf_lightning.training.surroundings import check_trainer

SFT = "sft"
RECIPE: tuple[Stage, ...] = (
    Checking("check", "Self-check", "#7d8590"),
    Pretraining(PRETRAIN, "Pretraining", "#a07e5c"),
    Curation(CURATE, "Curation", "#7d8590"),
    FineTuning(SFT, "SFT", "#3f7fd6"),
    FineTuning("ppo_init", "PPO start", "#8d6fd1", like=SFT),
    Collection(COLLECT, "Comparisons", "#4fa3b8"),
    RewardModelling(JUDGE, "Judge", "#b5568f", like=REWARD, reads="judge_comparisons"),
    RewardModelling(REWARD, "Reward model", "#c0952b"),
    Selection(SELECT, "Selected", "#6b8f3c"),
    PolicyOptimization(PPO, "PPO", "#e0743a"),
    PolicyOptimization("ppo_ptx", "PPO-ptx", "#259a78", like=PPO),
    Evaluation(EVALUATE, "Evaluation", "#7d8590"),
    Benchmarks("benchmarks", "Benchmarks", "#7d8590"),
)
"""The steps, in order."""


class Pipeline:
    """Runs the steps that the configuration names; finished ones are skipped, half-done ones go on.

    Args:
        config: The resolved configuration, plain types; one entry per step and shared group.
        build: Builds the object that a node with ``_target_`` describes, given further keyword arguments.
        runs: Where artifacts are.
        console: Where progress and tables go.
        recipe: The steps that there are, in order; None is `RECIPE`.

    Raises:
        PipelineError: When settings are wrong, a step is unknown, or the trainer is told what the recipe says.
    """

    def __init__(
        self,
        config: Mapping[str, Any],
        build: Callable[..., Any],
        runs: Runs,
        console: Console | None = None,
        recipe: tuple[Stage, ...] | None = None,
    ) -> None:
        recipe = RECIPE if recipe is None else recipe
        if faults := setting_faults(config, recipe, config.get("allowed_targets") or []):
            raise PipelineError("\n".join(faults))
        named = [config["stages"]] if isinstance(config["stages"], str) else config["stages"]
        check_names(named, [stage.name for stage in recipe])
        check_trainer(config["trainer"])
        self.config, self.runs, self.recipe = config, runs, recipe
        self.stages = [stage for stage in recipe if stage.name in named]
        self.earlier: Pipeline | None = None  # of the round before
        steps = {stage.name: stage.leaves for stage in recipe if stage.keeps_artifact}
        self.context = Context(config, build, runs, steps, console)

    def run(self) -> dict[str, Any]:
        """Run everything; returns the metrics of every step, and with several rounds those of each."""
        with self.context.heartbeat.beating():
            rounds, to_make = rounds_of(self) if self.config["rounds"] > 1 else [self], set[str]()
            for each in rounds:
                to_make = each.look_ahead(to_make)
            metrics = [each.run_steps() for each in rounds]
            destroy_process_group()
        return joined_metrics(metrics) if len(rounds) > 1 else metrics[0]

    def run_steps(self) -> dict[str, Any]:
        """Run the steps of this round, when nothing lacks."""
        metrics: dict[str, Any] = {}
        for stage in self.stages:
            reason = stage.not_needed(self.context)
            if reason is not None:
                self.context.say(stage.name, f"skipped: {reason}")
                continue
            with self.context.ending_in_order(stage.name, self.runs.folder(stage.name)):
                self.context.runs = self.runs.before(stage.name, self.context.steps)
                identity = on_rank_zero(partial(self._identity, stage)) if stage.keeps_artifact else {}
                with being_made(self.runs.folder(stage.name)):
                    metrics[stage.name] = self._metrics(stage, identity)
                with being_made(self.runs.folder("report"), wait=60):  # two steps of a run may end at once
                    on_rank_zero(partial(write_cards, self.recipe, stage, self._context_of(stage)))
                    if stage.reported:
                        page = on_rank_zero(partial(run_report, self.recipe, self.runs, self.config))
                        self.context.say("report", page)
        return metrics

    def look_ahead(self, coming: Iterable[str] = ()) -> set[str]:
        """Refuse what could not come to its end, and models that disagree, before the first step.

        What the rounds before are still to make is `coming`; returns that and what this round is to make.
        """
        to_make = on_rank_zero(partial(look_ahead, self.context, self.stages, coming))
        for stage in as_they_come(self.context, self.stages, coming, to_make):
            self._context_of(stage)
        return to_make

    def step(self, name: str) -> Stage:
        """The step of that name."""
        return next(stage for stage in self.recipe if stage.name == name)

    def plan(self) -> None:
        """Print the memory that each named step which trains needs; nothing is built."""
        available = available_memory(self.context.device)
        for stage in self.stages:
            context = self._context_of(stage)
            plan = stage.memory(context, self.config)
            if plan is None:
                continue
            if available is not None and plan.peak.total > available:
                plan_of = partial(stage.memory, context)
                plan = with_remedies(plan, plan_of, stage.levers(self.config), self.config, available)
            self.context.console.print(plan_view(plan, available))

    def _metrics(self, stage: Stage, identity: Mapping[str, Any]) -> Any:
        """Run one step, or read what it left."""
        folder = self.runs.folder(stage.name)
        self.context.heartbeat.note("working", stage.name)
        names = [*stage.parents(self.context).values(), *stage.models(self.context).values()]
        verify = partial(self.context.verify, names, stage.reads_curated)
        if not stage.keeps_artifact:
            on_rank_zero(verify)
            return on_rank_zero(partial(stage.run, self._context_of(stage), folder))
        if on_rank_zero(lambda: self._begin(stage, folder, identity, verify)) == "complete":
            self.context.say(stage.name, f"complete already, skipped ({folder})")
            return read_stage(folder)["metrics"]
        L.seed_everything(self.context.seed, workers=True, verbose=False)
        start = time.perf_counter()
        with unless_begun(folder):
            run = partial(stage.run, self._context_of(stage), folder)
            metrics = run() if stage.all_processes else on_rank_zero(run)
        self.context.report_malformed(stage.name)
        refuse_non_finite(stage.name, metrics)
        seconds = time.perf_counter() - start
        on_rank_zero(lambda: complete_stage(folder, metrics, seconds, self.context.seed))
        self.context.say(stage.name, f"done in {seconds:.0f} s ({folder})")
        return metrics

    def _context_of(self, stage: Stage) -> Context:
        """The context with the tokenizer of the models that the step starts from."""
        models = {role: self._origin(name) for role, name in stage.models(self.context).items()}
        return self.context.for_step(stage.name, models)

    def _origin(self, name: str, after: tuple[str, ...] = ()) -> str:
        """The model whose tokenizer a model has: itself, or what a step that is still to run will start from."""
        step = name.partition("/")[0]
        found = step not in self.context.coming and self.runs.find(step) is not None
        if step in after:
            return self.earlier._origin(name) if self.earlier else BASE
        if step not in self.context.steps or found:
            return name
        return self._origin(next(iter(self.step(step).models(self.context).values()), BASE), (*after, step))

    def _identity(self, stage: Stage) -> dict[str, Any]:
        identity, date = stage.identity(self.context), template_date(self._context_of(stage).tokenizer)
        return {**identity, **({"template_date": date} if date else {})}

    def _begin(self, stage: Stage, folder: Path, identity: Mapping[str, Any], verify: Callable[[], None]) -> Progress:
        about = partial(self.context.about, stage.reads_curated, stage.kinds(self.context))
        progress = begin_stage(folder, identity, self.config["overwrite"], about, verify)
        if progress == "complete":
            return progress
        with unless_begun(folder):
            now = environment(self.config, self.context.device)
            if progress == "half-done" and (remark := go_on_in(folder, now, isinstance(stage, TrainingStage))):
                self.context.say(stage.name, remark)
            text = yaml.safe_dump(redacted(self.config), sort_keys=False)
            (folder / "config.yaml").write_text(text, encoding="utf-8")
        return progress
