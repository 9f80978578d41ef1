"""The recipe: every stage, in order, from the artifacts of the ones before it."""

import copy
import json
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

import lightning as L
import torch
import yaml
from lightning.fabric.utilities import move_data_to_device
from rich.console import Console
from transformers import PreTrainedModel

from rlhf_lightning.adapters import adapted_critic, add_adapters
from rlhf_lightning.artifacts import (
    STAGES,
    PipelineError,
    Runs,
    begin_stage,
    complete_stage,
    read_stage,
    write_json,
    write_lines,
)
from rlhf_lightning.callbacks import KeepEpochs, SampleTable, StageProgress, progress_bar
from rlhf_lightning.checking import check_run
from rlhf_lightning.collect import collect_comparisons
from rlhf_lightning.data.collate import collate_comparisons
from rlhf_lightning.data.tokens import ComparisonExample
from rlhf_lightning.engines import make_sampler
from rlhf_lightning.evaluating import evaluate_policies
from rlhf_lightning.evaluation.ranking import prompt_accuracies, ranking_results
from rlhf_lightning.evaluation.report import write_report
from rlhf_lightning.export import export_causal_lm, export_scalar_model
from rlhf_lightning.fitting import fit_stage
from rlhf_lightning.inputs import Inputs
from rlhf_lightning.models import ScalarHeadModel, fit_to_tokenizer
from rlhf_lightning.planning import available_memory, plan_stages, plan_view, with_remedies
from rlhf_lightning.stages.reward import RewardModule


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
            metrics["check"] = check_run(self.inputs, self.runs.folder("check"), self.build, self.console)
        for stage in (stage for stage in STAGES if stage in self.stages):
            if stage == "collect" and self.inputs.brings("comparisons"):
                self._say(stage, "skipped: the data option brings rankings of its own")
                continue
            metrics[stage] = self._run_stage(stage)
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
        if begin_stage(folder, self.inputs.identity(stage), self.config["overwrite"]) == "complete":
            self._say(stage, f"complete already, skipped ({folder})")
            if stage == "evaluate":
                self._report()
            return read_stage(folder)["metrics"]
        with (folder / "config.yaml").open("w", encoding="utf-8") as file:
            yaml.safe_dump(dict(self.config), file, sort_keys=False)
        L.seed_everything(self.seed, workers=True, verbose=False)
        start = time.perf_counter()
        metrics = run(stage, folder)
        self._say_malformed(stage)
        seconds = time.perf_counter() - start
        complete_stage(folder, metrics, seconds, self.seed)
        self._say(stage, f"done in {seconds:.0f} s ({folder})")
        if stage == "evaluate":
            self._report()
        return metrics

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
            with progress_bar(self.console) as bar:
                task = bar.add_task(stage, total=len(prompts), figures=f"prompts for {split}")
                comparisons, dropped = collect_comparisons(
                    policies,
                    self.inputs.tokenization,
                    prompts,
                    labelers,
                    seed=self.seed,
                    progress=partial(bar.advance, task),
                    **options["sampling"],
                )
            write_lines(folder / f"comparisons.{split}.jsonl", [asdict(comparison) for comparison in comparisons])
            metrics[split] = {"prompts": len(comparisons), "dropped": dropped}
        return metrics

    def reward(self, stage: str, folder: Path) -> dict[str, Any]:
        """Train a reward model on rankings and put demonstrations at mean 0."""
        options = self.config[stage]
        start = self.inputs.causal_lm(options["init"])
        model = ScalarHeadModel.from_causal_lm(start)
        module: RewardModule = self.build(options["module"], model=model)
        records = "judge_comparisons" if stage == "judge" else "comparisons"
        metrics: dict[str, Any] = self._fit(stage, folder, module, "reward", records)
        demonstrations = self.inputs.records("demonstrations", "train")[: options["bias_demonstrations"]]
        examples = [
            ComparisonExample(
                example.input_ids[: example.loss_start], [example.input_ids[example.loss_start :]], [1], ""
            )
            for example in self.inputs.tokenization.demonstrations(demonstrations)
        ]
        scores = [row[0] for row in self._scores(module, examples)]
        model.bias -= sum(scores) / len(scores)
        export_scalar_model(model, start.config, self.inputs.tokenizer, folder / "model")
        for split in ("validation", "test"):
            comparisons = self.inputs.comparisons(records, split)
            if comparisons:
                # Prompts over the length limit have no score; they are left out of both columns alike.
                tokenization = self.inputs.tokenization
                fits = [(c, e) for c in comparisons for e in tokenization.comparisons([c])]
                metrics[f"{split}_left_out"] = len(comparisons) - len(fits)
                ranks, groups = [c.ranks for c, _ in fits], [example.group for _, example in fits]
                scored = self._scores(module, [example for _, example in fits])
                metrics[split] = ranking_results([c.completions for c, _ in fits], ranks, groups, scored)
                by_prompt = {"groups": groups, "accuracies": prompt_accuracies(ranks, scored)}
                write_json(folder / f"{split}.json", by_prompt)
        return metrics

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
        """The four models of PPO: of their own, or two with adapters."""
        policy, reward = self.inputs.causal_lm(options["init"]), self.inputs.scalar_model("reward")
        at_start = options["reference"] == "init"
        reference = None if at_start else self.inputs.causal_lm(options["reference"])
        if options["lora"]["rank"]:
            add_adapters(policy, **options["lora"])
            value = adapted_critic(reward, **options["lora"])
            return {"policy": policy, "reference": reference or policy, "reward": reward, "value": value}
        reference = reference or copy.deepcopy(policy)
        return {"policy": policy, "reference": reference, "reward": reward, "value": copy.deepcopy(reward)}

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
        self, stage: str, folder: Path, module: L.LightningModule, task: str, records: str, *callbacks: L.Callback
    ) -> dict[str, Any]:
        data = self.inputs.datamodule(stage, task, records)
        make_trainer = partial(self.build, self.config["trainer"])
        progress = StageProgress(stage, self.console)
        say = partial(self._say, stage)
        metrics = fit_stage(
            module, data, folder, make_trainer, [progress, *callbacks], say, **self.config[stage]["fit"]
        )
        self._say_dropped(stage, folder, data.dropped)
        return metrics

    @torch.no_grad()
    def _scores(self, module: RewardModule, examples: Sequence[ComparisonExample]) -> list[list[float]]:
        scores = []
        module.to(self.inputs.device)
        for batch in self.inputs.batches(examples, collate_comparisons, 16):
            moved = move_data_to_device(batch, self.inputs.device)
            for own, exists in zip(module.scores(moved), moved.mask, strict=True):
                scores.append(own[exists].tolist())
        return scores

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
        for path in [path for path in malformed if path not in self._told]:
            self._told.add(path)
            self._say(stage, f"left out {len(malformed[path])} malformed rows, the first: {malformed[path][0]}")

    def _say(self, stage: str, message: str) -> None:
        self.console.print(f"[bold]{stage:<9}[/] {message}")
