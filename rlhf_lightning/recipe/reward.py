"""Stage reward: a reward model on rankings, its accuracy, and its cross-validation over labelers."""

import json
import shutil
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import lightning as L
import torch
from lightning.fabric.utilities import move_data_to_device

from rlhf_lightning.data.loader import collate_comparisons
from rlhf_lightning.data.records import Comparison
from rlhf_lightning.data.tokenize import ComparisonExample
from rlhf_lightning.evaluation.ranking import prompt_accuracies, ranking_results
from rlhf_lightning.models.export import export_scalar_model
from rlhf_lightning.models.scalar_head import ScalarHeadModel
from rlhf_lightning.modules.reward import RewardModule
from rlhf_lightning.parallel.processes import on_rank_zero
from rlhf_lightning.parallel.sharding import unshard
from rlhf_lightning.recipe.context import Inputs
from rlhf_lightning.recipe.cross_validation import Keep, Scores, cross_validate, outcome
from rlhf_lightning.runs.files import write_json


def train_reward_model(
    inputs: Inputs,
    stage: str,
    folder: Path,
    build: Callable[..., Any],
    fit: Callable[..., dict[str, Any]],
    say: Callable[[str], None],
) -> dict[str, Any]:
    """Train a reward model, put demonstrations at mean 0, and measure it; with ``folds`` once more without each group.

    Args:
        inputs: Models and records.
        stage: ``reward`` or ``judge``.
        folder: Gets ``model/``, the accuracy on every prompt of a split, and ``folds/``.
        build: Builds the object that a node with ``_target_`` describes.
        fit: Trains a module, given a folder, the module, the task, the name of the records and which to keep.
        say: Told of the outcome of a cross-validation.

    Returns:
        The last figures of training, and one table of accuracies for each split and for the folds.
    """
    options = inputs.config[stage]
    records = "judge_comparisons" if stage == "judge" else "comparisons"
    start = inputs.causal_lm(options["init"])

    def trained(place: Path, keep: Keep | None = None) -> tuple[RewardModule, dict[str, Any]]:
        module: RewardModule = build(options["module"], model=ScalarHeadModel.from_causal_lm(start))
        return module, fit(place, module, "reward", records, keep=keep)

    def fold_scores(examples: Sequence[ComparisonExample], number: int, keep: Keep) -> Scores:
        place = folder / "folds" / str(number)
        done = place / "scores.json"
        if on_rank_zero(done.exists):
            scores: Scores = json.loads(done.read_text(encoding="utf-8"))
            return scores
        (place / "checkpoints").mkdir(parents=True, exist_ok=True)
        L.seed_everything(inputs.config["seed"], workers=True, verbose=False)
        scores = reward_scores(inputs, trained(place, keep)[0], examples)
        write_json(done, scores)
        shutil.rmtree(place / "checkpoints", ignore_errors=True)  # five more models' worth of them
        return scores

    module, metrics = trained(folder)
    _centre(inputs, module, options["bias_demonstrations"])
    export_scalar_model(module.model, start.config, inputs.tokenizer, folder / "model")
    for split in ("validation", "test"):
        comparisons = inputs.comparisons(records, split)
        if comparisons:
            rankings, examples = _fitting(inputs, comparisons)
            metrics[f"{split}_left_out"] = len(comparisons) - len(rankings)
            metrics[split], by_prompt = _accuracy(inputs, module, rankings, examples)
            write_json(folder / f"{split}.json", by_prompt)
    if options["folds"]:
        train: Any = inputs.datamodule(stage, "reward", records).train
        rankings, examples = _fitting(inputs, inputs.comparisons(records, "validation"))
        metrics["folds"] = cross_validate(train, rankings, options["folds"], partial(fold_scores, examples))
        say(outcome(metrics["folds"], options["folds"]))
    return metrics


@torch.no_grad()
def reward_scores(inputs: Inputs, module: RewardModule, examples: Sequence[ComparisonExample]) -> Scores:
    """Score of every response to every prompt."""
    scores = []
    module.to(inputs.device)
    with unshard(module.model):
        for batch in inputs.batches(examples, collate_comparisons, 16):
            moved = move_data_to_device(batch, inputs.device)
            for own, exists in zip(module.scores(moved), moved.mask, strict=True):
                scores.append(own[exists].tolist())
    return scores


def _centre(inputs: Inputs, module: RewardModule, count: int) -> None:
    """Put the mean score of so many demonstrations at 0 (InstructGPT, section 3.5)."""
    demonstrations = inputs.tokenization.demonstrations(inputs.records("demonstrations", "train")[:count])
    written = [
        ComparisonExample(example.input_ids[: example.loss_start], [example.input_ids[example.loss_start :]], [1], "")
        for example in demonstrations
    ]
    scores = [row[0] for row in reward_scores(inputs, module, written)]
    module.model.bias -= sum(scores) / len(scores)


def _accuracy(
    inputs: Inputs, module: RewardModule, rankings: Sequence[Comparison], examples: Sequence[ComparisonExample]
) -> tuple[dict[str, Any], dict[str, Any]]:
    """The table of accuracies, and the accuracy on every prompt with its group."""
    ranks, groups = [own.ranks for own in rankings], [example.group for example in examples]
    scored = reward_scores(inputs, module, examples)
    results = ranking_results([own.completions for own in rankings], ranks, groups, scored)
    return results, {"groups": groups, "accuracies": prompt_accuracies(ranks, scored)}


def _fitting(inputs: Inputs, rankings: Sequence[Comparison]) -> tuple[list[Comparison], list[ComparisonExample]]:
    """Rankings as records and as tokens; prompts over the length limit have no score and are left out of both alike."""
    tokenization = inputs.tokenization
    fits = [(own, example) for own in rankings for example in tokenization.comparisons([own])]
    return [own for own, _ in fits], [example for _, example in fits]
