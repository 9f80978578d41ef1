"""Steps reward and judge: a reward model on rankings, with demonstrations at mean 0 (InstructGPT, 3.5, C.2)."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, cast

import lightning as L
import torch
from lightning.fabric.utilities import move_data_to_device

from rlhf_lightning.data.examples import ComparisonExample
from rlhf_lightning.data.loader import collate_comparisons
from rlhf_lightning.data.records import Comparison
from rlhf_lightning.evaluation.intervals import first_places
from rlhf_lightning.evaluation.plots import Curve
from rlhf_lightning.evaluation.ranking import prompt_accuracies, ranking_results
from rlhf_lightning.models.adapter_export import export_trained
from rlhf_lightning.models.export import check_scalar_export
from rlhf_lightning.models.lora import with_adapters
from rlhf_lightning.models.scalar_head import ScalarHeadModel
from rlhf_lightning.modules.reward import RewardModule
from rlhf_lightning.parallel.sharding import unshard
from rlhf_lightning.recipe.context import COLLECT, MISSING, SCORES, Context
from rlhf_lightning.recipe.cross_validation import Keep, Scores, cross_validate, outcome
from rlhf_lightning.recipe.memory_plan import StagePlan, rankings_plan
from rlhf_lightning.recipe.schemas import RewardSettings
from rlhf_lightning.recipe.stage import TrainingStage
from rlhf_lightning.runs.files import write_json


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

        def fresh() -> tuple[ScalarHeadModel, RewardModule]:
            model = with_adapters(ScalarHeadModel.from_causal_lm(start), **options["lora"])
            return model, cast(RewardModule, context.build(options["module"], model=model))

        model, module = fresh()
        check_scalar_export(model, start.config, context.tokenizer)
        metrics = self.fit(context, folder, module)
        if options["bias_demonstrations"]:
            _centre(context, module, options["bias_demonstrations"])
        export_trained(model, start, context.export_tokenizer, folder / "base", options["export"], folder / "model")
        for split in ("validation", "test"):
            comparisons = self.records(context, split)
            if comparisons:
                rankings, examples = _fitting(context, comparisons)
                metrics[f"{split}_left_out"] = len(comparisons) - len(rankings)
                metrics[split], by_prompt = _accuracy(context, module, rankings, examples)
                write_json(folder / f"{split}.json", by_prompt)
        if options["folds"]:
            train: Any = self.datamodule(context).train
            rankings, examples = _fitting(context, self.records(context, "validation"))

            def fold_scores(place: Path, keep: Keep) -> Scores:
                L.seed_everything(context.seed, workers=True, verbose=False)
                _, fold = fresh()
                self.fit(context, place, fold, keep=keep)
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


@torch.no_grad()
def reward_scores(context: Context, module: RewardModule, examples: Sequence[ComparisonExample]) -> Scores:
    """Score of every response to every prompt."""
    scores = []
    module.to(context.device)
    with unshard(module.model):
        for batch in context.batches(examples, collate_comparisons, 16):
            moved = move_data_to_device(batch, context.device)
            for row, exists in zip(module.scores(moved), moved.mask, strict=True):
                scores.append(row[exists].tolist())
    return scores


def _centre(context: Context, module: RewardModule, count: int) -> None:
    """Put the mean score of so many demonstrations at 0 (InstructGPT, section 3.5)."""
    demonstrations = context.tokenization.demonstrations(context.records("demonstrations", "train")[:count])
    written = [
        ComparisonExample(example.input_ids[: example.loss_start], [example.input_ids[example.loss_start :]], [1], "")
        for example in demonstrations
    ]
    scores = [row[0] for row in reward_scores(context, module, written)]
    cast(ScalarHeadModel, module.model).bias -= sum(scores) / len(scores)


def _accuracy(
    context: Context, module: RewardModule, rankings: Sequence[Comparison], examples: Sequence[ComparisonExample]
) -> tuple[dict[str, Any], dict[str, Any]]:
    """The table of accuracies, and the accuracy of every ranking with its group and where its prompt stands first."""
    ranks, groups = [ranking.ranks for ranking in rankings], [example.group for example in examples]
    scores = reward_scores(context, module, examples)
    prompts = first_places([str(ranking.prompt) for ranking in rankings])
    results = ranking_results([ranking.completions for ranking in rankings], ranks, groups, scores, prompts)
    return results, {"groups": groups, "accuracies": prompt_accuracies(ranks, scores), "prompts": prompts}


def _fitting(context: Context, rankings: Sequence[Comparison]) -> tuple[list[Comparison], list[ComparisonExample]]:
    """Rankings as records and as tokens; prompts over the length limit have no score and are left out of both alike."""
    tokenization = context.tokenization
    fits = [(ranking, example) for ranking in rankings for example in tokenization.comparisons([ranking])]
    return [ranking for ranking, _ in fits], [example for _, example in fits]
