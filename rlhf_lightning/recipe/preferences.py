"""What step evaluate asks besides its main judge: on which prompts, at which temperature, and whom."""

from collections.abc import Collection, Iterator, Mapping, Sequence
from difflib import get_close_matches
from itertools import islice
from typing import Any

from rlhf_lightning.data.examples import PromptExample
from rlhf_lightning.data.records import Prompt, prompt_fields
from rlhf_lightning.evaluation.comparison_judge import compares, preferences
from rlhf_lightning.evaluation.policies import PolicySamples
from rlhf_lightning.evaluation.preferences import (
    breakdown,
    head_to_head,
    judge_agreement,
    length_groups,
    part_results,
    value_groups,
)
from rlhf_lightning.evaluation.tables import JUDGE
from rlhf_lightning.generation.rewards import text_scores
from rlhf_lightning.recipe.context import BASE, CURATE, FEW_SHOT, Context
from rlhf_lightning.recipe.inputs import records_lacking, rows_of
from rlhf_lightning.recipe.kept import KeptPolicies
from rlhf_lightning.recipe.rewards import reward_of
from rlhf_lightning.runs.folders import PipelineError

TEST, LEAST, MOST = "test", 1, 7
"""The split whose prompts are asked unless a set names another, and the ends of the Likert scale."""
FIELDS = ("source", "use_case")
"""What win rates are broken down by where `evaluate.breakdown` is null and the records have it."""


def temperature_of(options: Mapping[str, Any], policy: str) -> float:
    """The temperature at which a policy is sampled."""
    temperature: float = (options.get("temperatures") or {}).get(policy, options["temperature"])
    return temperature


def evaluation_prompts(context: Context, options: Mapping[str, Any]) -> tuple[list[Prompt], dict[str, set[int]]]:
    """The records that are asked, and for each set of `evaluate.prompt_sets` the places of its own among them.

    Raises:
        PipelineError: When no record belongs to a set.
    """
    sets = options["prompt_sets"] or {}
    if not sets:
        return context.records("prompts", TEST)[: options["num_prompts"]], {}
    members: dict[str, list[tuple[str, int]]] = {}
    for name, chosen in sets.items():
        split, limit = chosen.get("split", TEST), chosen.get("num_prompts")
        records = context.records("prompts", split)
        places = _matching(records if limit else records[: options["num_prompts"]], chosen)
        members[name] = [(split, place) for place in places][:limit]
        if not members[name]:
            raise PipelineError(_empty(name, chosen, options["num_prompts"]))
    asked = sorted({member for own in members.values() for member in own})
    numbers = {member: number for number, member in enumerate(asked)}
    records = [context.records("prompts", split)[place] for split, place in asked]
    return records, {name: {numbers[member] for member in own} for name, own in members.items()}


class FurtherJudges:
    """Everybody who says something of responses besides the main judge.

    Args:
        context: Models and settings of the run.
        options: The step's settings.
    """

    def __init__(self, context: Context, options: Mapping[str, Any]) -> None:
        self.context, self.options, self.baseline = context, options, options["baseline"]
        judges = (options["judges"] or {}).items()
        made: dict[str, Any] = {name: reward_of(context, judge, tokens=False) for name, judge in judges}
        self.comparing = {name: judge for name, judge in made.items() if compares(judge)}
        self.scoring = {name: judge for name, judge in made.items() if name not in self.comparing}
        self.thresholds: Mapping[str, Sequence[float]] = options["likert"] or {}
        self.metadata = context.build(options["metadata"]) if options["metadata"] else None

    def say_temperatures(self, step: str, policies: Sequence[str]) -> None:
        """Say which policies are sampled at temperature 0, and what that means."""
        if frozen := [name for name in policies if temperature_of(self.options, name) == 0]:
            said = "at temperature 0 nothing is sampled: there is no KL to the reference"
            self.context.say(step, f"{', '.join(frozen)}: {said}")

    def judge(self, samples: PolicySamples, prompts: Sequence[str], main: Any) -> None:
        """Fill in the scores of the further judges, Likert scores and metadata of a policy."""
        texts = prompts, samples.responses
        samples.judges = {name: text_scores(judge, *texts) for name, judge in self.scoring.items()}
        for name, judge in {JUDGE: main, **self.scoring}.items():
            if (ends := self.thresholds.get(name)) is not None:
                scores = samples.scores if name == JUDGE else samples.judges[name]
                samples.likert[name] = [float(LEAST + sum(score >= end for end in ends)) for score in scores]
            elif callable(getattr(judge, "likert", None)):
                samples.likert[name] = _on_scale(name, judge.likert(*texts), len(prompts))
        samples.metadata = self.metadata(*texts) if self.metadata else {}

    def compare(self, step: str, kept: KeptPolicies, names: Sequence[str], prompts: Sequence[str]) -> None:
        """Ask those who compare about every policy beside the baseline, from where it was interrupted."""
        responses = {name: kept.measured[name][0].responses for name in names}
        for judge, asked in self.comparing.items():
            for name in names:
                said = kept.said.setdefault((judge, name), [])
                own, against = (responses[policy][len(said) :] for policy in (name, self.baseline))
                with self.context.heartbeat.during(f"{judge} compares {name} with {self.baseline}"):
                    for batch in preferences(asked, prompts[len(said) :], own, against):
                        kept.add_preferences(judge, name, batch)
                kept.measured[name][0].preferences[judge] = said
                if unread := said.count(None):
                    self.context.say(
                        step,
                        f"{judge} gave no verdict on {unread} of the {len(said)} pairs of {name}, which do not count",
                    )


def preference_results(
    samples: Mapping[str, PolicySamples],
    options: Mapping[str, Any],
    prompts: Sequence[PromptExample],
    sets: Mapping[str, Collection[int]],
) -> dict[str, Any]:
    """What the metrics of the step have besides those of each policy alone.

    Args:
        samples: Samples of each policy on the prompts.
        options: The step's settings.
        prompts: The prompts.
        sets: Numbers of the prompts of each set.

    Raises:
        PipelineError: When no prompt of a set is left.
    """
    baseline, texts = options["baseline"], [prompt.text for prompt in prompts]
    places = {name: [n for n, prompt in enumerate(prompts) if prompt.index in own] for name, own in sets.items()}
    if empty := [name for name, own in places.items() if not own]:
        raise PipelineError(f"evaluate.prompt_sets.{empty[0]}: every prompt of it is too long. Name another one.")
    fields = [getattr(text, "fields", {}) for text in texts]
    by = options["breakdown"] or [field for field in FIELDS if any(own.get(field) for own in fields)]
    groups = {field: value_groups([own.get(field) for own in fields]) for field in by}
    groups["prompt_length"] = length_groups([len(prompt.prompt_ids) for prompt in prompts])
    return {
        "baseline": baseline,
        "prompts": len(prompts),
        "temperatures": {name: temperature_of(options, name) for name in samples},
        "head_to_head": head_to_head(samples, texts),
        "prompt_sets": {name: part_results(samples, baseline, texts, own) for name, own in places.items()},
        "breakdown": breakdown(samples, baseline, texts, groups),
        "judge_agreement": judge_agreement(samples, baseline, texts),
        "no_verdict": {
            name: {judge: said.count(None) for judge, said in own.preferences.items()}
            for name, own in samples.items()
            if own.preferences
        },
    }


def preferences_lacking(context: Context, options: Mapping[str, Any]) -> Iterator[str]:
    """Names of policies and judges that there are not, sets without a prompt, fields that no record has."""
    judges = [JUDGE, *(options["judges"] or {})]
    policies = [*options["policies"], BASE, FEW_SHOT]
    for setting, known in (("temperatures", policies), ("likert", judges)):
        for name in options[setting] or {}:
            if name not in known:
                near = get_close_matches(name, known, 1)
                meant = f" Did you mean {near[0]}?" if near else ""
                kind = "policies" if known is policies else "judges"
                yield f"{setting}.{name} is none of the {kind} ({', '.join(dict.fromkeys(known))}).{meant}"
    for name, ends in (options["likert"] or {}).items():
        if sorted({*ends}) != list(ends):
            yield f"likert.{name} must be six scores that rise, from which a response is worth 2, 3, .. 7; got {ends}."
    sets = options["prompt_sets"] or {}
    for split in dict.fromkeys(chosen.get("split", TEST) for chosen in sets.values()):
        yield from records_lacking(context, "prompts", split) if split != TEST else ()
    for name, chosen in sets.items():
        yield from _set_lacking(context, name, chosen, options["num_prompts"])
    for field in options["breakdown"] or ():
        rows = islice(rows_of(context, "prompts", TEST), options["num_prompts"])
        if CURATE not in context.coming and not any(field in prompt_fields(row) for row in rows):
            yield f"breakdown names {field}, which no test prompt has as a field. Mend the name, or leave it out."


def _set_lacking(context: Context, name: str, chosen: Mapping[str, Any], count: int) -> Iterator[str]:
    rows = rows_of(context, "prompts", chosen.get("split", TEST))
    looked_at = rows if chosen.get("num_prompts") else islice(rows, count)
    try:
        found = CURATE in context.coming or next(_matching(looked_at, chosen), None) is not None
    except ValueError:  # a RecordError, which is said of the records
        return
    if not found:
        yield _empty(name, chosen, count)


def _matching(records: Any, chosen: Mapping[str, Any]) -> Iterator[int]:
    """Places of the records of a set."""
    wanted = {
        name: value if isinstance(value, list) else [value] for name, value in (chosen.get("where") or {}).items()
    }
    for place, record in enumerate(records):
        fields = prompt_fields(record)
        if all(fields.get(name) in values for name, values in wanted.items()):
            yield place


def _empty(name: str, chosen: Mapping[str, Any], count: int) -> str:
    among = "the prompts" if chosen.get("num_prompts") else f"the first {count} prompts"
    where = ", ".join(f"{field}={value}" for field, value in (chosen.get("where") or {}).items())
    return (
        f"prompt_sets.{name}: none of {among} of split {chosen.get('split', TEST)} has {where or 'a text'}. Mend the "
        f"field or the value; prompt_sets.{name}.num_prompts looks through all of them."
    )


def _on_scale(name: str, values: Any, count: int) -> list[float]:
    """What a judge gave as Likert scores."""
    scores = [float(value) for value in values]
    if len(scores) != count or not all(LEAST <= score <= MOST for score in scores):
        raise PipelineError(
            f"evaluate.judges.{name}: its likert must give a number from {LEAST} to {MOST} for each of "
            f"{count} responses."
        )
    return scores
