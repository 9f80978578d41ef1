"""Automatic measures of a model beside preference: continuations that a function judges, and choices by likelihood."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain, islice
from typing import Any, TypeAlias

import torch
from lightning.fabric.utilities import move_data_to_device
from torch import nn
from transformers import PreTrainedTokenizerBase

from rlhf_lightning.algorithms.batch import LMBatch, PromptBatch
from rlhf_lightning.arguments import Count, NonNegativeFloat, checked
from rlhf_lightning.data.examples import LMExample
from rlhf_lightning.data.loader import collate_lm, padded
from rlhf_lightning.generation.sample import SamplingOptions, response_texts, token_id
from rlhf_lightning.generation.sampling_batches import OWN_LOOP, Sampler, even_batch_size
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


def run_probe(
    model: nn.Module,
    tokenizer: PreTrainedTokenizerBase,
    probe: Continuation | Choice,
    batch_size: int = 128,
    seed: int = 0,
    sampler: Sampler = OWN_LOOP,
) -> Outcomes:
    """What a model does on a probe, item by item; the seed is that of sampling, which the sampler does."""
    batches = probe_batches(probe, batch_size)
    answers = [probe_answers(model, tokenizer, *batch, seed, sampler) for batch in batches]
    return probe_outcomes([probe], batches, answers)[probe.name]


def probe_batches(probe: Continuation | Choice, batch_size: int = 128) -> list[tuple[range, Continuation | Choice]]:
    """The numbers of a probe's items, in batches as of `even_batch_size`, each with the probe."""
    items = range(len(probe.contexts if isinstance(probe, Choice) else probe.prompts))
    size = even_batch_size(len(items), batch_size)
    return [(items[start : start + size], probe) for start in range(0, len(items), size)]


@torch.no_grad()
def probe_answers(
    model: nn.Module,
    tokenizer: PreTrainedTokenizerBase,
    items: range,
    probe: Continuation | Choice,
    seed: int = 0,
    sampler: Sampler = OWN_LOOP,
) -> list[Any]:
    """What a model says to items of a probe: the continuation of each, or 1 where it chooses right and 0 where not."""
    if isinstance(probe, Choice):
        return _choices(model, tokenizer, probe, items)
    pad, device = token_id(tokenizer.pad_token_id), next(model.parameters()).device
    options = SamplingOptions.from_tokenizer(tokenizer, probe.max_new_tokens, probe.temperature)
    part = [probe.prompts[item] for item in items]
    ids, mask = padded(_read(tokenizer, part), pad, left=True)
    prompts = move_data_to_device(PromptBatch(ids, mask, torch.tensor(items), part), device)
    texts = response_texts(tokenizer, sampler(model, prompts, options, (seed,)))
    return texts if probe.stop is None else [text.split(probe.stop)[0].strip() for text in texts]


def probe_outcomes(
    probes: Sequence[Continuation | Choice],
    batches: Sequence[tuple[range, Continuation | Choice]],
    answers: Sequence[list[Any]],
) -> dict[str, Outcomes]:
    """The measures of probes, by name, from the answers to all their batches."""
    found = {}
    for probe in probes:
        said = [*chain(*(own for (_, of), own in zip(batches, answers, strict=True) if of is probe))]
        found[probe.name] = {"accuracy": said} if isinstance(probe, Choice) else dict(probe.judge(said))
    return found


def _choices(model: nn.Module, tokenizer: PreTrainedTokenizerBase, probe: Choice, items: range) -> list[float]:
    pad, device = token_id(tokenizer.pad_token_id), next(model.parameters()).device
    pairs = [(probe.contexts[item], end) for item in items for end in probe.endings[item]]
    rows = choice_rows(tokenizer, pairs)
    means: list[float] = []
    for start in range(0, len(rows), len(items)):
        batch: LMBatch = move_data_to_device(collate_lm(rows[start : start + len(items)], pad), device)
        log_probs = causal_log_probs(model, batch.input_ids, batch.mask, batch.loss_mask)
        means += (log_probs.sum(1) / batch.loss_mask[:, 1:].sum(1)).tolist()
    likelihoods, correct = iter(means), list[float]()
    for item in items:
        choices = list(islice(likelihoods, len(probe.endings[item])))
        correct.append(float(choices.index(max(choices)) == probe.right[item]))
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
