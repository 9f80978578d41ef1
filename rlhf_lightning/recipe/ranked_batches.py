"""Batches of prompts, each answered and ranked by one process, whichever it is."""

import random
from collections.abc import Callable, Sequence
from functools import partial
from typing import NamedTuple

from torch import nn

from rlhf_lightning.data.examples import PromptExample
from rlhf_lightning.data.records import Comparison, Prompt
from rlhf_lightning.data.tokenize import Tokenization
from rlhf_lightning.generation.sampling_batches import Sampler
from rlhf_lightning.labeling.labelers import Labeler, ranking
from rlhf_lightning.recipe.distinct_responses import DistinctResponses, sampled_texts


class Batch(NamedTuple):
    """Prompts, the policies that answer each by number, and how they are asked."""

    asked: DistinctResponses
    prompts: list[Prompt]
    examples: list[PromptExample]
    whose: list[list[int]]


def ranked_batch(
    model: Callable[[str], nn.Module],
    tokenization: Tokenization,
    sampler: Sampler,
    labelers: Callable[[], Sequence[Labeler]],
    batch: Batch,
) -> list[Comparison | None]:
    """What a labeler says of the responses to each prompt; None where there is nothing to choose from.

    Args:
        model: The model of each policy.
        tokenization: Tokenizer and length limits, which the policies share.
        sampler: Who samples.
        labelers: Gives the labelers; each prompt goes to one of them, drawn by the seed.
        batch: The prompts.
    """
    asked, found = batch.asked, list[Comparison | None]()
    answers = asked.distinct(partial(sampled_texts, model, tokenization, sampler), batch.examples, batch.whose)
    for prompt, example, texts, own in zip(batch.prompts, batch.examples, answers, batch.whose, strict=True):
        labeler = random.Random(f"{asked.seed}/{example.index}/labeler").choice(labelers())
        by = [asked.policies[turn] for turn in own[: len(texts)]] if len(asked.policies) > 1 else None
        found.append(ranking(labeler, prompt, example.text, texts, by) if len(texts) > 1 else None)
    return found
