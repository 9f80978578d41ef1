"""Step evaluate: every policy on the same held-out prompts, and what judges, metadata and probes say of it."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache, partial
from itertools import chain
from pathlib import Path
from typing import Any, ClassVar

from lightning.fabric.utilities import move_data_to_device

from rlhf_lightning.data.loader import collate_lm, collate_prompts
from rlhf_lightning.evaluation.policies import (
    PolicySamples,
    joined_samples,
    policy_results,
    pretraining_loss,
    sample_policy,
    token_losses,
    write_samples,
)
from rlhf_lightning.evaluation.probes import probe_answers, probe_batches, probe_outcomes
from rlhf_lightning.evaluation.tables import JUDGE, REWARD
from rlhf_lightning.generation.engines import make_sampler
from rlhf_lightning.generation.sampling_batches import even_batch_size
from rlhf_lightning.models.precision import trainer_precision
from rlhf_lightning.parallel.processes import Share, by_turns, sharing
from rlhf_lightning.recipe.context import BASE, FEW_SHOT, Context
from rlhf_lightning.recipe.judges import (
    EvaluateSettings,
    evaluation_lacking,
    few_shot_prefix,
    judge_fingerprints,
    judge_record,
    judge_settings,
    main_judge,
    policies_of,
    will_be,
)
from rlhf_lightning.recipe.kept import KeptPolicies
from rlhf_lightning.recipe.people import AsksPeople
from rlhf_lightning.recipe.preferences import FurtherJudges, evaluation_prompts, preference_results, temperature_of
from rlhf_lightning.recipe.rated_by_people import rated, raters
from rlhf_lightning.recipe.rewards import reward_of, reward_steps
from rlhf_lightning.runs.folders import read_stage
from rlhf_lightning.training.progress import progress_bar

PROMPTS, PROBES, TEXT = "prompts", "probes", "text"


@dataclass(frozen=True)
class Evaluation(AsksPeople):
    """Samples, judges and measures every policy that ``evaluate.policies`` names and that can be loaded."""

    schema = EvaluateSettings
    all_processes: ClassVar[bool] = True
    samples: ClassVar[bool] = True
    reported: ClassVar[bool] = True
    record_kinds: ClassVar[tuple[str, ...]] = ("prompts", "text", "demonstrations")

    def parents(self, context: Context) -> dict[str, str]:
        """The policies, the reference, the reward model and the judges of steps, as far as they are there."""
        options = context.config[self.name]
        wanted = [*policies_of(options), options["reference"], REWARD, *([] if options[JUDGE] else [JUDGE])]
        wanted += [step for judge in judge_settings(options).values() for step in reward_steps(context, judge).values()]
        return {name: name for name in wanted if name != FEW_SHOT and context.available(name)}

    def models(self, context: Context) -> dict[str, str]:
        """Those, and the base model where it is prompted."""
        few_shot = {FEW_SHOT: BASE} if FEW_SHOT in context.config[self.name]["policies"] else {}
        return {**self.parents(context), **few_shot}

    def identity(self, context: Context) -> dict[str, Any]:
        """With all that judges, also what is no model of a step."""
        identity, judges = super().identity(context), judge_fingerprints(context, context.config[self.name])
        return {**identity, "parents": identity["parents"] | judges}

    def lacks(self, context: Context) -> Iterator[str]:
        """Baseline, reference, prompts, judges, and policies that are no names at all."""
        return evaluation_lacking(context, context.config[self.name])

    def run(self, context: Context, folder: Path) -> dict[str, Any]:
        """Write ``samples.json``, all responses with what was found on each.

        Returns:
            ``policies``; ``judge``: its name and whether it trained one of the policies; `preference_results`; `rated`.
        """
        judge = main_judge(context, self.name)
        tests = cache(lambda: _Tests(context, context.config[self.name], reward_of(context, judge)))
        with trainer_precision(context.config["trainer"], context.device):
            work = partial(self._evaluate, context, folder, judge, tests)
            return sharing(work, lambda part: tests().measure(part), prepare=tests)

    def _evaluate(
        self, context: Context, folder: Path, judge: Any, prepared: Callable[[], "_Tests"], share: Share
    ) -> dict[str, Any]:
        options, people = context.config[self.name], raters(context, self.name, folder)
        names = [name for name in policies_of(options) if will_be(context, name, options)]
        if out := [name for name in policies_of(options) if name not in names]:
            context.say(self.name, f"left out, as there is no model or no few_shot_prefix: {', '.join(out)}")
        tests = prepared()
        context.report_dropped(self.name, folder, tests.tokenization.tally)
        tests.further.say_temperatures(self.name, names)
        tests.further.demonstrate(folder, tests.questions)
        kept = KeptPolicies(folder / "measured.unfinished", {"step": read_stage(folder)["fingerprint"]})
        rows = {name: sum(len(batch[0]) for batch in chain(*tests.of(name).values())) for name in names}
        done = sum(rows[name] for name in names if name in kept.measured)
        with progress_bar(context.heartbeat, self.name, sum(rows.values()), done) as (bar, task):
            for name in names:
                bar.update(task, figures=name)
                kept.of(name, partial(tests.measured, name, share, partial(bar.advance, task)))
        tests.further.compare(self.name, kept, names, tests.questions)
        samples = {name: kept.measured[name][0] for name in names}
        said = rated(people, samples, tests.prompts, options["baseline"])
        losses = {name: loss for name in names if (loss := kept.measured[name][1]) is not None}
        write_samples(folder, tests.questions, tests.sets, samples)
        results = policy_results(samples, options["baseline"], losses, tests.questions)
        further = preference_results(samples, options, tests.prompts, tests.sets)
        kept.path.unlink(missing_ok=True)
        return {"policies": results, JUDGE: judge_record(context, judge, names), **further, **said}


class _Tests:
    """What every policy goes through.

    Args:
        context: Models, prompts and texts of the run.
        options: The step's settings.
        judge: Whose scores make the win rates.
    """

    def __init__(self, context: Context, options: Mapping[str, Any], judge: Any) -> None:
        self.context, self.options, self.judge = context, options, judge
        self.reference = context.causal_lm(options["reference"])
        self.reward = context.scalar_model(REWARD) if context.available(REWARD) else None
        self.further = FurtherJudges(context, options)
        self.sampler = make_sampler(**context.config["generation"])
        self.probes: Sequence[Any] = context.build(options["probes"]) if options["probes"] else []
        self.tokenization = context.tokenization
        self.tokenization.tally.part = "test"
        self.prompts, self.sets = evaluation_prompts(context, options, self.tokenization)
        self.questions = [prompt.text for prompt in self.prompts]
        size = even_batch_size(len(self.prompts), options["batch_size"])
        texts = context.records("text", "test", required=False)[: options["num_texts"]]
        blocks = self.tokenization.texts(texts, context.config["data"]["lengths"]["block_size"])
        self.batches: dict[str, Sequence[Any]] = {  # of each, the first field has a row for every prompt, item or block
            PROMPTS: context.batches(self.prompts, collate_prompts, size),
            PROBES: [*chain(*map(probe_batches, self.probes))],
            TEXT: context.batches(blocks, collate_lm, even_batch_size(len(blocks), 32)),
        }
        self.loaded: dict[str, Any] = {}

    def of(self, name: str) -> dict[str, Sequence[Any]]:
        """The batches that a policy goes through, by their kind; one that is shown examples answers prompts alone."""
        return {kind: own for kind, own in self.batches.items() if kind == PROMPTS or name != FEW_SHOT}

    def measured(self, name: str, share: Share, advance: Callable[[int], None]) -> tuple[PolicySamples, float | None]:
        """Responses of a policy with what was found on each, and its loss on text, where there is some.

        Args:
            name: The policy, by the names of `Context.model_path`, or ``prompted``.
            share: Measures parts with all processes.
            advance: Called with the number of rows that are done: prompts, items of probes, blocks of text.
        """
        jobs = [(name, kind, number) for kind, batches in self.of(name).items() for number in range(len(batches))]
        found: dict[str, list[Any]] = {kind: [] for kind in self.batches}
        for (_, kind, number), result in zip(jobs, by_turns(share, jobs), strict=True):
            advance(len(self.batches[kind][number][0]))
            found[kind].append(result)
        samples = joined_samples(found[PROMPTS])
        if name == FEW_SHOT:
            return samples, None
        samples.probes |= probe_outcomes(self.probes, self.batches[PROBES], found[PROBES])
        return samples, pretraining_loss(chain(*found[TEXT])) if found[TEXT] else None

    def measure(self, part: tuple[str, str, int]) -> Any:
        """A batch of prompts, of a probe or of text on a policy: its name, which of those, and its number."""
        (name, kind, number), context, options = part, self.context, self.options
        few_shot = name == FEW_SHOT
        prefix = few_shot_prefix(context, options) if few_shot else None
        if name not in self.loaded:
            self.loaded.clear()  # before there are two
            self.loaded[name] = context.causal_lm(BASE if few_shot else name)
            context.check_lengths(self.loaded[name], name, prefix or "")
        policy, batch = self.loaded[name], self.batches[kind][number]
        if kind == TEXT:
            return token_losses(policy, [batch])
        if kind == PROBES:
            return probe_answers(policy, context.tokenizer, batch[0], batch[1], context.seed, self.sampler)
        samples = sample_policy(
            policy,
            self.reference,
            [move_data_to_device(batch, policy.device)],
            context.tokenizer,
            judge=self.judge,
            reward=self.reward,
            sampler=self.sampler,
            max_new_tokens=self.tokenization.max_response_tokens,
            temperature=temperature_of(options, name),
            seed=context.seed,
            prefix=prefix,
            stop=options["base_stop"] if name in (BASE, FEW_SHOT) else None,
        )
        return self.further.judge(samples, batch.texts, self.judge)
