"""The recipe: every stage, in order, from the artifacts of the ones before it."""

import json
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

import lightning as L
import yaml
from rich.console import Console
from rich.markup import escape
from transformers import PreTrainedModel

from rlhf_lightning.evaluation.report import write_report
from rlhf_lightning.generation.engines import make_sampler
from rlhf_lightning.models.export import export_causal_lm
from rlhf_lightning.models.loading import fit_to_tokenizer
from rlhf_lightning.models.lora import actors
from rlhf_lightning.parallel.processes import destroy_process_group, on_rank_zero
from rlhf_lightning.recipe.check import check_run
from rlhf_lightning.recipe.collect import collect_comparisons
from rlhf_lightning.recipe.context import Inputs
from rlhf_lightning.recipe.cross_validation import Keep
from rlhf_lightning.recipe.curate import curate_records
from rlhf_lightning.recipe.evaluate import evaluate_policies
from rlhf_lightning.recipe.memory_plan import PLANNED, available_memory, plan_stages, plan_view, with_remedies
from rlhf_lightning.recipe.reward import train_reward_model
from rlhf_lightning.runs.files import write_json, write_lines
from rlhf_lightning.runs.folders import STAGES, PipelineError, Progress, Runs, begin_stage, complete_stage, read_stage
from rlhf_lightning.runs.secrets import redacted
from rlhf_lightning.training.callbacks import KeepEpochs, SampleTable
from rlhf_lightning.training.fit import fit_stage
from rlhf_lightning.training.progress import StageProgress, progress_bar


class Pipeline:
    """Runs the stages that the configuration names; finished ones are skipped, half-done ones go on.

    Args:
        config: Resolved, plain types; one entry per stage and shared group.
        build: Builds the object that a node with ``_target_`` describes, given further keyword arguments.
        runs: Where artifacts are.
        console: Where progress and tables go.

    Raises:
        PipelineError: When a stage is unknown.
    """

    def __init__(
        self, config: Mapping[str, Any], build: Callable[..., Any], runs: Runs, console: Console | None = None
    ) -> None:
        named = config["stages"]
        self.stages: list[str] = [named] if isinstance(named, str) else named
        unknown = [stage for stage in self.stages if stage not in (*STAGES, "check")]
        if unknown:
            raise PipelineError(f"stages names {', '.join(unknown)}; the stages are {', '.join(STAGES)}, and check.")
        self.config, self.build, self.runs = config, build, runs
        self.console = console or Console()
        self.seed: int = config["seed"]
        self.inputs = Inputs(config, build, runs)
        self._told: set[str] = set()

    def run(self) -> dict[str, Any]:
        """Run everything; returns the metrics of every stage that the configuration names."""
        metrics: dict[str, Any] = {}
        if "check" in self.stages:
            folder = self.runs.folder("check")
            metrics["check"] = on_rank_zero(lambda: check_run(self.inputs, folder, self.build, self.console))
        for stage in (stage for stage in STAGES if stage in self.stages):
            if stage == "collect" and self.inputs.brings("comparisons"):
                self._say(stage, "skipped: the data option brings rankings of its own")
                continue
            metrics[stage] = self._run_stage(stage)
        destroy_process_group()
        return metrics

    def plan(self) -> None:
        """Print the memory that each named stage which trains needs; nothing is built."""
        available = available_memory(self.inputs.device)
        for plan in plan_stages(self.inputs, self.stages):
            if available is not None and plan.peak.total > available:
                plan = with_remedies(self.inputs, plan, available)
            self.console.print(plan_view(plan, available))

    def _run_stage(self, stage: str) -> Any:
        run = {
            "pretrain": self.pretrain,
            "curate": lambda _, folder: curate_records(self.inputs, folder, self.build, self.console),
            "sft": self.sft,
            "ppo_init": self.sft,
            "collect": self.collect,
            "reward": self.reward,
            "judge": self.reward,
            "ppo": self.ppo,
            "ppo_ptx": self.ppo,
            "evaluate": self.evaluate,
        }[stage]
        folder = self.runs.folder(stage)
        if on_rank_zero(lambda: self._begin(stage, folder)) == "complete":
            self._say(stage, f"complete already, skipped ({folder})")
            metrics = read_stage(folder)["metrics"]
        else:
            L.seed_everything(self.seed, workers=True, verbose=False)
            start = time.perf_counter()
            metrics = run(stage, folder) if stage in PLANNED else on_rank_zero(lambda: run(stage, folder))
            self._say_malformed(stage)
            seconds = time.perf_counter() - start
            on_rank_zero(lambda: complete_stage(folder, metrics, seconds, self.seed))
            self._say(stage, f"done in {seconds:.0f} s ({folder})")
        if stage == "evaluate":
            on_rank_zero(self._report)
        return metrics

    def _begin(self, stage: str, folder: Path) -> Progress:
        progress = begin_stage(folder, self.inputs.identity(stage), self.config["overwrite"])
        if progress != "complete":
            text = yaml.safe_dump(redacted(self.config), sort_keys=False)
            (folder / "config.yaml").write_text(text, encoding="utf-8")
        return progress

    def pretrain(self, stage: str, folder: Path) -> dict[str, float]:
        """Train the base model on text."""
        model = fit_to_tokenizer(self.build(self.config["model"]["causal_lm"]), self.inputs.tokenizer)
        return self._train_lm(stage, folder, model, "text")

    def sft(self, stage: str, folder: Path) -> dict[str, float]:
        """Fine-tune the base model on demonstrations."""
        model = self.inputs.causal_lm("base", residual_dropout=self.config[stage]["residual_dropout"])
        return self._train_lm(stage, folder, model, "demonstrations")

    def collect(self, stage: str, folder: Path) -> dict[str, Any]:
        """Sample responses and have them ranked."""
        options = self.config[stage]
        if not options["labelers"]:
            raise PipelineError("collect.labelers is null; name an object that ranks responses, or bring rankings.")
        policies = {name: self.inputs.causal_lm(name) for name in options["policies"]}
        labelers = self.build(options["labelers"])
        metrics: dict[str, Any] = {}
        for split, count in options["prompts"].items():
            prompts = self.inputs.records("prompts", split, required=split == "train")[:count]
            kept = folder / f"ranked.{split}.unfinished"
            with progress_bar(self.console) as bar:
                task = bar.add_task(stage, total=len(prompts), figures=f"prompts for {split}")
                comparisons, dropped = collect_comparisons(
                    policies,
                    self.inputs.tokenization,
                    prompts,
                    labelers,
                    seed=self.seed,
                    progress=partial(bar.advance, task),
                    kept=kept,
                    **options["sampling"],
                )
            write_lines(folder / f"comparisons.{split}.jsonl", [asdict(comparison) for comparison in comparisons])
            kept.unlink(missing_ok=True)
            metrics[split] = {"prompts": len(comparisons), "dropped": dropped}
        return metrics

    def reward(self, stage: str, folder: Path) -> dict[str, Any]:
        """Train a reward model on rankings, put demonstrations at mean 0, and measure it."""
        fit, say = partial(self._fit, stage), partial(self._say, stage)
        return train_reward_model(self.inputs, stage, folder, self.build, fit, say)

    def ppo(self, stage: str, folder: Path) -> dict[str, float]:
        """Train the policy against the reward model."""
        options, inputs = self.config[stage], self.inputs
        module = self.build(
            options["module"],
            **self._actors(options),
            tokenizer=inputs.tokenizer,
            sampler=make_sampler(self.config["generation"]["engine"], **self.config["generation"]["options"]),
            max_new_tokens=inputs.tokenization.max_response_tokens,
            seed=self.seed,
        )
        samples = SampleTable(folder / "samples.jsonl", inputs.tokenizer)
        metrics: dict[str, float] = self._fit(stage, folder, module, "ppo", "prompts", samples)
        export_causal_lm(module.policy, inputs.tokenizer, folder / "model")
        if module.ema is not None:
            with module.ema.applied(module.policy):
                export_causal_lm(module.policy, inputs.tokenizer, folder / "model_ema")
        return metrics

    def _actors(self, options: Mapping[str, Any]) -> dict[str, Any]:
        policy, reward = self.inputs.causal_lm(options["init"]), self.inputs.scalar_model("reward")
        at_start = options["reference"] == "init"
        reference = None if at_start else self.inputs.causal_lm(options["reference"])
        return actors(policy, reward, reference, **options["lora"])

    def evaluate(self, stage: str, folder: Path) -> dict[str, Any]:
        """Compare the policies on held-out prompts."""
        return evaluate_policies(
            self.inputs,
            folder,
            self._judge(stage),
            self.build,
            self.console,
            partial(self._say_dropped, stage, folder),
        )

    def _judge(self, stage: str) -> Any:
        if self.config[stage]["judge"]:
            return self.build(self.config[stage]["judge"])
        if self.inputs.available("judge"):
            return self.inputs.scalar_model("judge")
        self._say(stage, "no judge: the reward model that trained the policies judges them; mind over-optimisation")
        return self.inputs.scalar_model("reward")

    def _train_lm(self, stage: str, folder: Path, model: PreTrainedModel, records: str) -> dict[str, float]:
        module = self.build(self.config[stage]["module"], model=model)
        dtype = self.config[stage].get("export_dtype")
        export = partial(export_causal_lm, model, self.inputs.tokenizer, dtype=dtype)
        kept = [KeepEpochs(folder / "epochs", export)] if self.config[stage].get("keep_epochs") else []
        metrics = self._fit(stage, folder, module, "pretrain" if records == "text" else "sft", records, *kept)
        export(folder / "model")
        return metrics

    def _fit(
        self,
        stage: str,
        folder: Path,
        module: L.LightningModule,
        task: str,
        records: str,
        *callbacks: L.Callback,
        keep: Keep | None = None,
    ) -> dict[str, Any]:
        data = self.inputs.datamodule(stage, task, records, keep)
        make_trainer = partial(self.build, self.config["trainer"])
        progress = StageProgress(stage, self.console)
        say = partial(self._say, stage)
        metrics = fit_stage(
            module, data, folder, make_trainer, [progress, *callbacks], say, **self.config[stage]["fit"]
        )
        self._say_dropped(stage, folder, data.dropped)
        return metrics

    def _report(self) -> None:
        """Over every finished stage that this run made or built on."""
        found = {stage: self.runs.find(stage) for stage in STAGES}
        stages = {stage: folder for stage, folder in found.items() if folder is not None}
        report = write_report(self.runs.root / self.runs.run, stages)
        self._say("report", str(report))

    def _say_dropped(self, stage: str, folder: Path, dropped: Mapping[str, int]) -> None:
        if dropped:
            write_json(folder / "dropped.json", dropped)
            self._say(stage, f"left out: {json.dumps(dropped)}")

    def _say_malformed(self, stage: str) -> None:
        malformed: dict[str, list[str]] = getattr(self.inputs.data, "malformed", {})
        for file in [file for file in malformed if file not in self._told]:
            self._told.add(file)
            self._say(stage, f"malformed rows: {len(malformed[file])}, now in {file}, the first: {malformed[file][0]}")

    def _say(self, stage: str, message: str) -> None:
        self.console.print(f"[bold]{stage:<9}[/] {escape(message)}")
