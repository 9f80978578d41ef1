"""Step collect: sample K responses per prompt and have labelers rank them (InstructGPT, 3.5, A.3, C.2)."""

import random
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Annotated, Any, ClassVar, NotRequired, TypedDict

import torch
from lightning.fabric.utilities import move_data_to_device
from torch import nn

from rlhf_lightning.arguments import AtLeastTwo, Count, Node, NonNegativeFloat, NonNegativeInt, PositiveFloat, checked
from rlhf_lightning.data.examples import PromptExample
from rlhf_lightning.data.loader import collate_prompts
from rlhf_lightning.data.records import Comparison, Prompt
from rlhf_lightning.data.tokenize import Tokenization
from rlhf_lightning.generation.engines import make_sampler
from rlhf_lightning.generation.sample import SamplingOptions, response_texts
from rlhf_lightning.generation.sampling_batches import OWN_LOOP, Sampler
from rlhf_lightning.labeling.labelers import Labeler, ranking
from rlhf_lightning.models.precision import trainer_precision
from rlhf_lightning.recipe.context import Context
from rlhf_lightning.recipe.inputs import collection_lacking, counts_lacking
from rlhf_lightning.recipe.kept import KeptRankings
from rlhf_lightning.recipe.schemas import Keywords
from rlhf_lightning.recipe.stage import Stage
from rlhf_lightning.recipe.turns import advance, shares_lacking, turns
from rlhf_lightning.runs.files import write_lines
from rlhf_lightning.runs.folders import read_stage
from rlhf_lightning.training.progress import progress_bar

Progress = Callable[[int], None]


class PromptCounts(TypedDict):
    """Prompts to ask, by split."""

    train: Count
    validation: NotRequired[NonNegativeInt]
    test: NotRequired[NonNegativeInt]


class CollectSettings(TypedDict):
    """Group `collect`."""

    policies: list[str]
    labelers: Node | None
    prompts: PromptCounts
    sampling: (
        "Annotated[dict[str, Any], Keywords(collect_comparisons, without=('sampler', 'seed', 'progress', 'kept'))]"
    )


@dataclass(frozen=True)
class Collection(Stage):
    """Samples responses of policies and has them ranked, where the data option has no rankings."""

    schema = CollectSettings

    record_kinds: ClassVar[tuple[str, ...]] = ("prompts",)

    def parents(self, context: Context) -> dict[str, str]:
        """The policies."""
        return {name: name for name in context.config[self.name]["policies"]}

    def not_needed(self, context: Context) -> str | None:
        """Rankings that are there already."""
        return "the data option brings rankings of its own" if context.brings("comparisons") else None

    def lacks(self, context: Context) -> Iterator[str]:
        """Policies, prompts and somebody to ask."""
        return collection_lacking(context, context.config[self.name])

    def run(self, context: Context, folder: Path) -> dict[str, Any]:
        """Write ``comparisons.<split>.jsonl``; finished batches are kept when interrupted."""
        options = context.config[self.name]
        policies = {name: context.causal_lm(name) for name in options["policies"]}
        labelers = context.build(options["labelers"])
        belongs_to = {"step": read_stage(folder)["fingerprint"], "seed": context.seed, **options["sampling"]}
        metrics: dict[str, Any] = {}
        for split, count in options["prompts"].items():
            prompts = context.records("prompts", split, required=split == "train")[:count]
            kept = folder / f"ranked.{split}.unfinished"
            bars = progress_bar(context.heartbeat, self.name, len(prompts), 0, f"prompts for {split}")
            with bars as (bar, task), trainer_precision(context.config["trainer"], context.device):
                comparisons, dropped = collect_comparisons(
                    policies,
                    context.tokenization,
                    prompts,
                    labelers,
                    sampler=make_sampler(batch_tokens=context.config["generation"]["batch_tokens"]),
                    seed=context.seed,
                    progress=partial(bar.advance, task),
                    kept=KeptRankings(kept, belongs_to),
                    **options["sampling"],
                )
            write_lines(folder / f"comparisons.{split}.jsonl", [asdict(comparison) for comparison in comparisons])
            kept.unlink(missing_ok=True)
            metrics[split] = {"prompts": len(comparisons), "dropped": dropped}
        return metrics


@checked
def collect_comparisons(
    policies: Mapping[str, nn.Module],
    tokenization: Tokenization,
    prompts: Sequence[Prompt],
    labelers: Sequence[Labeler],
    *,
    min_responses: AtLeastTwo = 4,
    max_responses: AtLeastTwo = 9,
    temperature: NonNegativeFloat = 1.0,
    batch_size: Count = 256,
    rounds: Count = 3,
    shares: Sequence[PositiveFloat] | None = None,
    sampler: Sampler = OWN_LOOP,
    seed: int = 0,
    progress: Progress | None = None,
    kept: KeptRankings | None = None,
) -> tuple[list[Comparison], dict[str, int]]:
    """Sample K responses per prompt from the policies, and let one labeler rank each prompt's.

    Identical responses of a prompt count once and are sampled again, ``rounds`` times at most; a prompt left with one
    response is dropped. Source: InstructGPT, section 3.5 and appendix C.2 (K between 4 and 9).

    Args:
        policies: Models by name.
        tokenization: Tokenizer and length limits, which the policies share.
        prompts: Prompts to ask.
        labelers: Labelers; each prompt goes to one of them, drawn by the seed.
        min_responses: Smallest K, at least 2.
        max_responses: Largest K; K is uniform between the two.
        temperature: Temperature of sampling (ours: 1).
        batch_size: Responses per batch.
        rounds: Times to sample (ours).
        shares: Weight of each policy among the responses to a prompt (`recipe.turns`); None: in turn (both ours).
        sampler: Who samples a batch.
        seed: Seed of K, of sampling and of who ranks what.
        progress: Function that is called with the number of prompts finished since the last call.
        kept: What finished batches are added to, so that an interrupted call with the same arguments goes on after
            them; its result is that of an unbroken one. The caller deletes its file.

    Returns:
        The comparisons, and how many prompts were dropped, by reason.

    Raises:
        ValueError: When there is no such K, or nobody to ask.
    """
    for lacking in (*counts_lacking(min_responses, max_responses), *shares_lacking([*policies], shares)):
        raise ValueError(lacking)
    if not policies or not labelers:
        raise ValueError("collect needs at least one policy and one labeler.")
    examples = tokenization.prompts(prompts)
    sampler = _ResponseSampler(policies, tokenization, temperature, batch_size, sampler)
    dropped = {"prompt too long": len(prompts) - len(examples)} if len(examples) < len(prompts) else {}
    rankings = [] if kept is None else list(kept.rankings)
    for start in range(0, len(examples), batch_size):
        chunk = examples[start : start + batch_size]
        if start >= len(rankings):
            each = partial(turns, len(policies), min_responses, max_responses, shares)
            whose = [each(f"{seed}/{example.index}") for example in chunk]
            answers = zip(chunk, sampler.distinct(chunk, whose, rounds, seed), strict=True)
            ranked = [
                # Where there is one response there is nothing to choose from.
                ranking(random.Random(f"{seed}/{e.index}/labeler").choice(labelers), prompts[e.index], e.text, texts)
                if len(texts) > 1
                else None
                for e, texts in answers
            ]
            rankings += ranked
            if kept is not None:
                kept.add(ranked)
        if progress is not None:
            progress(len(chunk))
    if None in rankings:
        dropped["one distinct response"] = rankings.count(None)
    return [each for each in rankings if each is not None], dropped


@dataclass(frozen=True)
class _ResponseSampler:
    policies: Mapping[str, nn.Module]
    tokenization: Tokenization
    temperature: float
    batch_size: int
    sampler: Sampler

    def distinct(
        self, examples: Sequence[PromptExample], whose: Sequence[list[int]], rounds: int, seed: int
    ) -> list[list[str]]:
        """Different responses to each prompt, of these policies by number, as far as they come up within the rounds."""
        answers: list[list[str]] = [[] for _ in examples]
        for number in range(rounds):
            open_slots = [
                (row, slot, of[slot]) for row, of in enumerate(whose) for slot in range(len(answers[row]), len(of))
            ]
            for which, model in enumerate(self.policies.values()):
                rows = [(row, slot) for row, slot, turn in open_slots if turn == which]
                # Neighbours of similar length need little padding.
                rows.sort(key=lambda pair: len(examples[pair[0]].prompt_ids))
                for start in range(0, len(rows), self.batch_size):
                    part = rows[start : start + self.batch_size]
                    texts = self._sample(model, examples, part, (seed, number, which))
                    for (row, _), text in zip(part, texts, strict=True):
                        if text.strip() and text not in answers[row]:
                            advance(whose[row], len(answers[row]), which)
                            answers[row].append(text)
        return answers

    def _sample(
        self, model: nn.Module, examples: Sequence[PromptExample], rows: Sequence[tuple[int, int]], key: Sequence[int]
    ) -> list[str]:
        tokenizer = self.tokenization.tokenizer
        options = SamplingOptions.from_tokenizer(tokenizer, self.tokenization.max_response_tokens, self.temperature)
        batch = collate_prompts([examples[row] for row, _ in rows], options.pad_token_id)
        index = torch.tensor([examples[row].index * 64 + slot for row, slot in rows])
        prompts = move_data_to_device(batch._replace(prompt_index=index), next(model.parameters()).device)
        return response_texts(tokenizer, self.sampler(model, prompts, options, key))
