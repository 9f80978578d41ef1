"""What a reward model says of rankings and demonstrations outside of training, in the precision of the trainer."""

from collections.abc import Sequence
from typing import Any, cast

import torch
from lightning.fabric.utilities import move_data_to_device

from rlhf_lightning.data.examples import ComparisonExample
from rlhf_lightning.data.loader import collate_comparisons
from rlhf_lightning.data.records import Comparison
from rlhf_lightning.evaluation.intervals import first_places
from rlhf_lightning.evaluation.ranking import prompt_accuracies, ranking_results
from rlhf_lightning.models.precision import trainer_precision
from rlhf_lightning.models.scalar_head import ScalarHeadModel
from rlhf_lightning.modules.reward import RewardModule
from rlhf_lightning.parallel.sharding import unshard
from rlhf_lightning.recipe.context import Context
from rlhf_lightning.recipe.cross_validation import Scores
from rlhf_lightning.runs.identity import fingerprint

PROMPTS = 16
"""Prompts that are read at once."""


@torch.no_grad()
def reward_scores(context: Context, module: RewardModule, examples: Sequence[ComparisonExample]) -> Scores:
    """Score of every response to every prompt."""
    scores = []
    module.to(context.device)
    with unshard(module.model), trainer_precision(context.config["trainer"], context.device):
        for batch in context.batches(examples, collate_comparisons, PROMPTS):
            moved = move_data_to_device(batch, context.device)
            for row, exists in zip(module.scores(moved), moved.mask, strict=True):
                scores.append(row[exists].tolist())
    return scores


def centre(context: Context, module: RewardModule, count: int) -> None:
    """Put the mean score of so many demonstrations at 0 (InstructGPT, section 3.5)."""
    demonstrations = context.tokenization.demonstrations(context.records("demonstrations", "train")[:count])
    written = [
        ComparisonExample(example.input_ids[: example.loss_start], [example.input_ids[example.loss_start :]], [1], "")
        for example in demonstrations
    ]
    scores = [row[0] for row in reward_scores(context, module, written)]
    cast(ScalarHeadModel, module.model).bias -= sum(scores) / len(scores)


def accuracy(
    context: Context, module: RewardModule, rankings: Sequence[Comparison], examples: Sequence[ComparisonExample]
) -> tuple[dict[str, Any], dict[str, Any]]:
    """The table of accuracies; of every ranking its accuracy, group, where its prompt stands first, and its hash."""
    ranks, groups = [ranking.ranks for ranking in rankings], [example.group for example in examples]
    scores = reward_scores(context, module, examples)
    prompts = first_places([str(ranking.prompt) for ranking in rankings])
    texts = [fingerprint(str(ranking.prompt))[:12] for ranking in rankings]
    read = [context.tokenizer.batch_decode(example.response_ids, skip_special_tokens=True) for example in examples]
    results = ranking_results([ranking.completions for ranking in rankings], ranks, groups, scores, prompts, read)
    return results, {
        "groups": groups,
        "accuracies": prompt_accuracies(ranks, scores),
        "prompts": prompts,
        "texts": texts,
    }


def fitting(context: Context, rankings: Sequence[Comparison]) -> tuple[list[Comparison], list[ComparisonExample]]:
    """Rankings as records and as tokens; prompts over the length limit have no score and are left out of both alike."""
    tokenization = context.tokenization
    fits = [(ranking, example) for ranking in rankings for example in tokenization.comparisons([ranking])]
    return [ranking for ranking, _ in fits], [example for _, example in fits]
