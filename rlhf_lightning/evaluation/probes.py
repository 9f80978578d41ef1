"""Automatic measures of a model beside preference: continuations that a function judges, and choices by likelihood."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import TypeAlias

import torch
from lightning.fabric.utilities import move_data_to_device
from torch import nn
from transformers import PreTrainedTokenizerBase

from rlhf_lightning.algorithms.batch import LMBatch, PromptBatch
from rlhf_lightning.arguments import Count, NonNegativeFloat, checked
from rlhf_lightning.data.examples import LMExample
from rlhf_lightning.data.loader import collate_lm, padded
from rlhf_lightning.generation.sample import SamplingOptions, response_texts, token_id
from rlhf_lightning.generation.sampling_batches import OWN_LOOP, Sampler
from rlhf_lightning.models.log_probs import causal_log_probs
from rlhf_lightning.tokenization.encoding import TextEncoder, shared_start

Outcomes: TypeAlias = dict[str, list[float]]
"""What was found, by measure; one number per item."""


@checked
@dataclass(frozen=True)
class Continuation:
    """Texts to go on with; a function judges what the model writes.

    Source: InstructGPT, appendix D (temperature 0, cut at the first newline).

    Args:
        name: Name of the measure.
        prompts: The texts that the model reads.
        judge: The function from all continuations, in order, to the outcomes.
        stop: The word before which a continuation is cut; None lets it run to EOS.
        max_new_tokens: Length limit of a continuation.
        temperature: Sampling temperature; 0 takes the most likely token.
    """

    name: str
    prompts: Sequence[str]
    judge: Callable[[Sequence[str]], Mapping[str, list[float]]]
    stop: str | None = None
    max_new_tokens: Count = 24
    temperature: NonNegativeFloat = 0.0


@dataclass(frozen=True)
class Choice:
    """Which of several endings a model finds most likely, by the mean log-probability per token.

    Context and ending are read as one text, with a space between where neither has white space there, and with a BOS at
    most before it. A token that reaches over their border counts for the ending.

    Source: InstructGPT, appendix D.

    Args:
        name: Name of the measure.
        contexts: The texts that the model reads.
        endings: For each context, the endings to choose from.
        right: For each context, the index of the right one.

    Raises:
        ValueError: When an ending has nothing before it that could make it likely.
    """

    name: str
    contexts: Sequence[str]
    endings: Sequence[Sequence[str]]
    right: Sequence[int]


@torch.no_grad()
def run_probe(
    model: nn.Module,
    tokenizer: PreTrainedTokenizerBase,
    probe: Continuation | Choice,
    batch_size: int = 128,
    seed: int = 0,
    sampler: Sampler = OWN_LOOP,
) -> Outcomes:
    """What a model does on a probe, item by item; the seed is that of sampling, which the sampler does."""
    if isinstance(probe, Choice):
        return {"accuracy": _choices(model, tokenizer, probe, batch_size)}
    pad, device = token_id(tokenizer.pad_token_id), next(model.parameters()).device
    options = SamplingOptions.from_tokenizer(tokenizer, probe.max_new_tokens, probe.temperature)
    texts: list[str] = []
    for start in range(0, len(probe.prompts), batch_size):
        part = list(probe.prompts[start : start + batch_size])
        ids, mask = padded(_read(tokenizer, part), pad, left=True)
        index = torch.arange(start, start + len(part))
        prompts = move_data_to_device(PromptBatch(ids, mask, index, part), device)
        rollout = sampler(model, prompts, options, (seed,))
        texts += response_texts(tokenizer, rollout)
    if probe.stop is not None:
        texts = [text.split(probe.stop)[0].strip() for text in texts]
    return dict(probe.judge(texts))


def _choices(model: nn.Module, tokenizer: PreTrainedTokenizerBase, probe: Choice, batch_size: int) -> list[float]:
    pad, device = token_id(tokenizer.pad_token_id), next(model.parameters()).device
    pairs = [(one, end) for one, endings in zip(probe.contexts, probe.endings, strict=True) for end in endings]
    rows = choice_rows(tokenizer, pairs)
    means: list[float] = []
    for start in range(0, len(rows), batch_size):
        batch: LMBatch = move_data_to_device(collate_lm(rows[start : start + batch_size], pad), device)
        log_probs = causal_log_probs(model, batch.input_ids, batch.mask, batch.loss_mask)
        means += (log_probs.sum(1) / batch.loss_mask[:, 1:].sum(1)).tolist()
    likelihoods, correct = iter(means), []
    for endings, right in zip(probe.endings, probe.right, strict=True):
        choices = list(islice(likelihoods, len(endings)))
        correct.append(float(choices.index(max(choices)) == right))
    return correct


def choice_rows(tokenizer: PreTrainedTokenizerBase, pairs: Sequence[tuple[str, str]]) -> list[LMExample]:
    """Token ids of each context with its ending, of which those of the ending count.

    Raises:
        ValueError: When nothing stands before an ending.
    """
    contexts = _read(tokenizer, [context for context, _ in pairs])
    rows = _read(tokenizer, [context + _between(context, ending) + ending for context, ending in pairs])
    examples = []
    for before, ids, (_, ending) in zip(contexts, rows, pairs, strict=True):
        start = shared_start(before, ids)
        if start == 0:
            raise ValueError(f"nothing stands before the ending {ending!r} that could make it likely; give a context.")
        examples.append(LMExample(ids, start))
    return examples


def _between(context: str, ending: str) -> str:
    apart = not context or context[-1].isspace() or ending[:1].isspace()
    return "" if apart else " "


def _read(tokenizer: PreTrainedTokenizerBase, texts: Sequence[str]) -> list[list[int]]:
    """Token ids of texts that a model goes on with: its BOS, where it has one, and no end."""
    encoder = TextEncoder(tokenizer)
    return [[*encoder.opening, *ids] for ids in encoder.rows([encoder.as_text(text) for text in texts])]
