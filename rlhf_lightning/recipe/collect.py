"""Step collect: sample K responses per prompt and have labelers rank them (InstructGPT, 3.5, A.3, C.2)."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache, partial
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal, NotRequired, TypedDict

from torch import nn

from rlhf_lightning.arguments import AtLeastTwo, Count, Node, NonNegativeFloat, PositiveFloat, checked
from rlhf_lightning.data.labeling import record_row
from rlhf_lightning.data.records import Comparison, Prompt
from rlhf_lightning.data.tokenize import Tokenization
from rlhf_lightning.evaluation.collected import collected_facts
from rlhf_lightning.generation.engines import make_sampler
from rlhf_lightning.generation.sampling_batches import OWN_LOOP, Sampler, even_batch_size
from rlhf_lightning.labeling.labelers import Labeler, Unranked
from rlhf_lightning.labeling.settings import Ranked
from rlhf_lightning.models.precision import trainer_precision
from rlhf_lightning.parallel.processes import Share, by_turns, sharing
from rlhf_lightning.recipe.context import Context
from rlhf_lightning.recipe.distinct_responses import DistinctResponses
from rlhf_lightning.recipe.inputs import collection_lacking, counts_lacking
from rlhf_lightning.recipe.kept import KeptRankings
from rlhf_lightning.recipe.people import AsksPeople
from rlhf_lightning.recipe.ranked_batches import Batch, ranked_batch
from rlhf_lightning.recipe.ranked_by_people import asks_people, ranked, rankers
from rlhf_lightning.recipe.rounds import prompts_of_round, seed_of_round
from rlhf_lightning.recipe.schemas import Keywords, PromptCounts
from rlhf_lightning.recipe.turns import shares_lacking, turns
from rlhf_lightning.runs.files import write_lines
from rlhf_lightning.runs.folders import read_stage
from rlhf_lightning.training.progress import progress_bar

Progress = Callable[[int], None]
Model = Callable[[str], nn.Module]
Labelers = Callable[[], Sequence[Labeler]]
_GIVEN = ("sampler", "seed", "progress", "kept", "share")


class CollectSettings(TypedDict):
    """Group `collect`."""

    policies: list[str]
    labelers: Node | Literal["people", "files"] | None
    people: Ranked
    round: NotRequired[Count]
    prompts: PromptCounts
    sampling: "Annotated[dict[str, Any], Keywords(collect_comparisons, without=_GIVEN)]"


@dataclass(frozen=True)
class Collection(AsksPeople):
    """Samples responses of policies and has them ranked, where the data option has no rankings."""

    schema = CollectSettings

    all_processes: ClassVar[bool] = True
    samples: ClassVar[bool] = True
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
        """Write ``comparisons.<split>.jsonl``; finished batches are kept when interrupted, and while people rank."""
        who = context.config[self.name]["labelers"]
        people, model = [Unranked()] if asks_people(who) else None, cache(context.causal_lm)
        labelers: Labelers = cache(lambda: people or context.build(who))
        sampler = make_sampler(**context.config["generation"])
        with trainer_precision(context.config["trainer"], context.device):
            part = partial(ranked_batch, model, context.tokenization, sampler, labelers)
            return sharing(partial(self._collect, context, folder, model, labelers), part, prepare=labelers)

    def _collect(
        self, context: Context, folder: Path, model: Model, labelers: Labelers, share: Share
    ) -> dict[str, Any]:
        options, people = context.config[self.name], rankers(context, self.name, folder)
        policies = {name: model(name) for name in options["policies"]}
        seed = seed_of_round(context.seed, number := options.get("round", 1))
        belongs_to = {"step": read_stage(folder)["fingerprint"], "seed": seed, **options["sampling"]}
        found = {}
        for split, count in options["prompts"].items():
            prompts = prompts_of_round(context, split, count, number)
            bars = progress_bar(context.heartbeat, self.name, len(prompts), 0, f"prompts for {split}")
            with bars as (bar, task):
                found[split] = collect_comparisons(
                    policies,
                    context.tokenization,
                    prompts,
                    labelers(),
                    seed=seed,
                    share=share,
                    progress=partial(bar.advance, task),
                    kept=KeptRankings(folder / f"ranked.{split}.unfinished", belongs_to),
                    **options["sampling"],
                )
        found = ranked(people, found) if people else found
        for split, (comparisons, _) in found.items():
            write_lines(folder / f"comparisons.{split}.jsonl", map(record_row, comparisons))
            (folder / f"ranked.{split}.unfinished").unlink(missing_ok=True)
        return {split: collected_facts(*own) for split, own in found.items()}


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
    share: Share | None = None,
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
        shares: Weight of each policy among the responses to a prompt (`recipe.turns`); None: in turn (both ours). Of
            several policies a ranking keeps whose each response is.
        sampler: Who samples a batch.
        seed: Seed of K, of sampling and of who ranks what.
        progress: Function that is called with the number of prompts finished since the last call.
        kept: What finished batches are added to, so that an interrupted call with the same arguments goes on after
            them; its result is that of an unbroken one. The caller deletes its file.
        share: Samples and ranks batches with all processes (`parallel.processes.sharing`); None does it here.

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
    here = partial(ranked_batch, policies.__getitem__, tokenization, sampler, lambda: labelers)
    share = share or (lambda batches: [*map(here, batches)])
    asked = DistinctResponses([*policies], rounds, batch_size, temperature, seed)
    dropped = {"prompt too long": len(prompts) - len(examples)} if len(examples) < len(prompts) else {}
    rankings = [] if kept is None else list(kept.rankings)
    progress = progress or (lambda count: None)
    progress(len(rankings))
    whose = partial(turns, len(policies), min_responses, max_responses, shares)
    batches = []
    size = even_batch_size(len(examples), max(1, batch_size // 2))  # these fill a batch of responses, two of each
    for start in range(len(rankings), len(examples), size):
        chunk = examples[start : start + size]
        turns_of = [whose(f"{seed}/{example.index}") for example in chunk]
        batches.append(Batch(asked, [prompts[example.index] for example in chunk], chunk, turns_of))
    for found in by_turns(share, batches):
        rankings += found
        if kept is not None:
            kept.add(found)
        progress(len(found))
    if None in rankings:
        dropped["one distinct response"] = rankings.count(None)
    return [each for each in rankings if each is not None], dropped
