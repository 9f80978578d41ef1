"""Steps reward and judge: a reward model on rankings, with demonstrations at mean 0 (InstructGPT, 3.5, C.2)."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, ClassVar, cast

import lightning as L

from rlhf_lightning.evaluation.plots import Curve
from rlhf_lightning.models.adapter_export import export_trained
from rlhf_lightning.models.export import check_scalar_export
from rlhf_lightning.models.loading import freeze
from rlhf_lightning.models.lora import with_adapters
from rlhf_lightning.models.scalar_head import ScalarHeadModel
from rlhf_lightning.modules.reward import RewardModule
from rlhf_lightning.recipe.context import COLLECT, MISSING, SCORES, Context
from rlhf_lightning.recipe.cross_validation import Keep, Scores, cross_validate, outcome
from rlhf_lightning.recipe.memory_plan import StagePlan, rankings_plan
from rlhf_lightning.recipe.ranking_scores import accuracy, centre, fitting, reward_scores
from rlhf_lightning.recipe.reward_settings import RewardSettings
from rlhf_lightning.recipe.stage import TrainingStage
from rlhf_lightning.runs.files import write_json
from rlhf_lightning.training.head_start import HeadStart
from rlhf_lightning.training.progress import progress_bar


@dataclass(frozen=True)
class RewardModelling(TrainingStage):
    """Trains a reward model on rankings: those of step collect where the data option has none."""

    reads: str = "comparisons"

    curves: ClassVar[tuple[Curve, ...]] = (
        Curve("Loss", "nats per pair", {"validation": "validation/loss", "train": "train/loss"}),
        Curve("Accuracy", "share of pairs", {"validation": "validation/accuracy", "train": "train/accuracy"}),
    )
    schema = RewardSettings
    measured_on_rankings: ClassVar[bool] = True
    leaves: ClassVar[str] = SCORES

    def lacks(self, context: Context) -> Iterator[str]:
        """And something that learns."""
        yield from super().lacks(context)
        if context.config[self.name]["freeze_body"] and context.config[self.name]["lora"]["rank"]:
            yield "freeze_body=true leaves the head alone to learn, and lora.rank adds adapters. Set one of the two."

    def parents(self, context: Context) -> dict[str, str]:
        """Where the backbone starts from, and the step that made the rankings."""
        init = {"init": context.config[self.name]["init"] or MISSING}
        return init if context.brings(self.reads) else {**init, "comparisons": COLLECT}

    def records(self, context: Context, split: str) -> list[Any]:
        """The rankings of a split."""
        return context.comparisons(self.reads, split)

    def run(self, context: Context, folder: Path) -> dict[str, Any]:
        """Train, centre, export and measure; with ``folds`` once more without each group of labelers."""
        options = context.config[self.name]
        start = context.causal_lm(options["init"])
        bar = partial(progress_bar, context.heartbeat, self.name, figures="rankings read for the head")
        head = HeadStart(options["head_scale"], options["head_first"], partial(context.say, self.name), bar)

        def fresh() -> tuple[ScalarHeadModel, RewardModule]:
            model = with_adapters(ScalarHeadModel.from_causal_lm(start, options["pooling"]), **options["lora"])
            if options["freeze_body"]:
                freeze(model.backbone)
            return model, cast(RewardModule, context.build(options["module"], model=model))

        model, module = fresh()
        check_scalar_export(model, start.config, context.tokenizer)
        metrics = self.fit(context, folder, module, [head])
        if options["bias_demonstrations"]:
            centre(context, module, options["bias_demonstrations"])
        export_trained(model, start, context.export_tokenizer, folder / "base", options["export"], folder / "model")
        for split in ("validation", "test"):
            comparisons = self.records(context, split)
            if comparisons:
                rankings, examples = fitting(context, comparisons)
                metrics[f"{split}_left_out"] = len(comparisons) - len(rankings)
                metrics[split], by_prompt = accuracy(context, module, rankings, examples)
                write_json(folder / f"{split}.json", by_prompt)
        if options["folds"]:
            train: Any = self.datamodule(context).train
            rankings, examples = fitting(context, self.records(context, "validation"))

            def fold_scores(place: Path, keep: Keep) -> Scores:
                L.seed_everything(context.seed, workers=True, verbose=False)
                _, fold = fresh()
                self.fit(context, place, fold, [head], keep)
                return reward_scores(context, fold, examples)

            metrics["folds"] = cross_validate(train, rankings, options["folds"], folder / "folds", fold_scores)
            context.say(self.name, outcome(metrics["folds"], options["folds"]))
        return metrics

    def memory(self, context: Context, config: Mapping[str, Any]) -> StagePlan:
        """The longest prompts with the most responses."""
        if context.brings(self.reads):
            most = max(len(comparison.ranks) for comparison in context.records(self.reads, "train"))
        else:
            most = int(config[COLLECT]["sampling"]["max_responses"])
        return rankings_plan(context, config, self.name, most)
