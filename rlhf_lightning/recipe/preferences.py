"""What step evaluate asks besides its main judge: on which prompts, at which temperature, and whom."""

import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from itertools import islice
from pathlib import Path
from typing import Any

from rlhf_lightning.arguments import did_you_mean
from rlhf_lightning.data.examples import PromptExample
from rlhf_lightning.data.records import PromptText, prompt_fields
from rlhf_lightning.data.sources import FileData
from rlhf_lightning.data.tokenize import Tokenization
from rlhf_lightning.evaluation.comparison_judge import compares, pair_verdicts
from rlhf_lightning.evaluation.policies import PolicySamples
from rlhf_lightning.evaluation.preferences import (
    breakdown,
    head_to_head,
    judge_agreement,
    length_thirds,
    part_results,
    value_groups,
)
from rlhf_lightning.evaluation.tables import EVALUATE, JUDGE
from rlhf_lightning.generation.rewards import text_scores
from rlhf_lightning.labeling.settings import PEOPLE
from rlhf_lightning.parallel.processes import rank
from rlhf_lightning.recipe.context import BASE, CURATE, FEW_SHOT, Context
from rlhf_lightning.recipe.inputs import records_lacking, rows_of
from rlhf_lightning.recipe.kept import KeptPolicies
from rlhf_lightning.recipe.rewards import compares_setting, reward_of
from rlhf_lightning.runs.files import write_json
from rlhf_lightning.runs.folders import PipelineError
from rlhf_lightning.tokenization.chat import ConversationError

TEST, LEAST, MOST = "test", 1, 7
"""The split whose prompts are asked unless a set names another, and the ends of the Likert scale."""
FIELDS = ("source", "use_case")
"""What win rates are broken down by where `evaluate.breakdown` is null and the records have it."""


def temperature_of(options: Mapping[str, Any], policy: str) -> float:
    """The temperature at which a policy is sampled."""
    temperature: float = (options.get("temperatures") or {}).get(policy, options["temperature"])
    return temperature


def evaluation_prompts(
    context: Context, options: Mapping[str, Any], tokenization: Tokenization
) -> tuple[list[PromptExample], dict[str, list[int]]]:
    """The prompts that are asked, and for each set of `evaluate.prompt_sets` the places of its own among them.

    A set of which no prompt is left is left out and said.

    Raises:
        PipelineError: When no record belongs to any set.
    """
    sets, count = options["prompt_sets"] or {}, options["num_prompts"]
    if not sets:
        prompts = tokenization.prompts(context.records("prompts", TEST)[:count])
        _say_learned(context, prompts)
        return prompts, {}
    members: dict[str, set[tuple[str, int]]] = {}
    for name, chosen in sets.items():
        split, limit = chosen.get("split", TEST), chosen.get("num_prompts")
        records = context.records("prompts", split)
        places = islice(_matching(records if limit else records[:count], chosen), limit)
        members[name] = {(split, place) for place in places}
    asked = sorted({member for own in members.values() for member in own})
    if not asked:
        raise PipelineError(f"evaluate.{_empty(next(iter(sets)), sets, count)}")
    prompts = tokenization.prompts([context.records("prompts", split)[place] for split, place in asked])
    found = {
        name: [n for n, prompt in enumerate(prompts) if asked[prompt.index] in own] for name, own in members.items()
    }
    _say_learned(context, prompts)
    for name in [name for name, places in found.items() if not places]:
        context.say(EVALUATE, f"left out: {_empty(name, sets, count)}")
    return prompts, {name: places for name, places in found.items() if places}


def _say_learned(context: Context, prompts: Sequence[PromptExample]) -> None:
    """Say how many prompts are no test, because the records that policies learn from have them too."""
    if not isinstance(context.data, FileData):
        return
    try:
        known = [context.records(kind, "train", required=False) for kind in ("prompts", "demonstrations")]
    except ValueError:  # malformed rows, which are said where they are learned from
        return
    learned = {_asked(record.prompt) for records in known for record in records}
    if seen := sum(_asked(getattr(prompt.text, "messages", prompt.text)) in learned for prompt in prompts):
        context.say(
            EVALUATE,
            f"warning: {seen} of {len(prompts)} prompts are also among the records to learn from (prompts or "
            "demonstrations of the split train), so that they are no test. Ask others (prompts.test.jsonl).",
        )


def _asked(prompt: PromptText) -> str:
    messages = [{"role": "user", "content": prompt}] if isinstance(prompt, str) else prompt
    return json.dumps(messages, sort_keys=True)


class FurtherJudges:
    """Everybody who says something besides the policies and the main judge.

    Args:
        context: Models and settings of the run.
        options: The step's settings.
    """

    def __init__(self, context: Context, options: Mapping[str, Any]) -> None:
        self.context, self.options, self.baseline = context, options, options["baseline"]
        judges = (options["judges"] or {}).items()
        # The first process alone asks those who compare.
        asked = [(name, judge) for name, judge in judges if rank() == 0 or not compares_setting(context, judge)]
        made: dict[str, Any] = {name: reward_of(context, judge, tokens=False) for name, judge in asked}
        self.comparing = {name: judge for name, judge in made.items() if compares(judge)}
        self.scoring = {name: judge for name, judge in made.items() if name not in self.comparing}
        self.thresholds: Mapping[str, Sequence[float]] = options["likert"] or {}
        self.metadata = context.build(options["metadata"]) if options["metadata"] else None

    def say_temperatures(self, step: str, policies: Sequence[str]) -> None:
        """Say which policies are sampled at temperature 0, and what that means."""
        if frozen := [name for name in policies if temperature_of(self.options, name) == 0]:
            said = "at temperature 0 nothing is sampled: there is no KL to the reference"
            self.context.say(step, f"{', '.join(frozen)}: {said}")

    def demonstrate(self, folder: Path, prompts: Sequence[str]) -> None:
        """Write ``demonstrations.json``: what a person wrote for each prompt, null where that is not known.

        Taken from the demonstrations that are not trained on; a data source may also have a method ``demonstrate``.
        """
        written: dict[str, str] = {}
        for split in (TEST, "validation"):
            for record in self.context.records("demonstrations", split, required=False):
                with suppress(ConversationError):  # no template, so nobody was asked this
                    conversation = not isinstance(record.prompt, str)
                    asked = self.context.tokenization.prompt_text(record.prompt) if conversation else record.prompt
                    written.setdefault(asked, record.response)
        ask = getattr(self.context.data, "demonstrate", written.get)
        found = [written.get(str(prompt)) or ask(str(prompt)) for prompt in prompts]
        write_json(folder / "demonstrations.json", found)

    def judge(self, samples: PolicySamples, prompts: Sequence[str], main: Any) -> PolicySamples:
        """Fill in the scores of the further judges, Likert scores and metadata of a batch of samples."""
        texts = prompts, samples.responses
        samples.judges = {name: text_scores(judge, *texts) for name, judge in self.scoring.items()}
        for name, judge in {JUDGE: main, **self.scoring}.items():
            if (ends := self.thresholds.get(name)) is not None:
                scores = samples.scores if name == JUDGE else samples.judges[name]
                samples.likert[name] = [float(LEAST + sum(score >= end for end in ends)) for score in scores]
            elif callable(getattr(judge, "likert", None)):
                samples.likert[name] = _on_scale(name, judge.likert(*texts), len(prompts))
        samples.metadata = self.metadata(*texts) if self.metadata else {}
        return samples

    def compare(self, step: str, kept: KeptPolicies, names: Sequence[str], prompts: Sequence[str]) -> None:
        """Ask those who compare about every policy beside the baseline, from where it was interrupted."""
        responses = {name: kept.measured[name][0].responses for name in names}
        for judge, asked in self.comparing.items():
            for name in names:
                said = kept.said.setdefault((judge, name), [])
                own, against = (responses[policy][len(said) :] for policy in (name, self.baseline))
                with self.context.heartbeat.during(f"{judge} compares {name} with {self.baseline}"):
                    for batch in pair_verdicts(asked, prompts[len(said) :], own, against):
                        kept.add_preferences(judge, name, batch)
                asked_of = [
                    mine != theirs for mine, theirs in zip(responses[name], responses[self.baseline], strict=True)
                ]
                told = [verdict for verdict, was_asked in zip(said, asked_of, strict=True) if was_asked]
                # Of one who never answered, the same text twice is no verdict either.
                kept.measured[name][0].preferences[judge] = [None] * len(said) if {*told} == {None} else said
                if unread := said.count(None):
                    self.context.say(
                        step,
                        f"{judge} gave no verdict on {unread} of the {len(said)} pairs of {name}, which do not count",
                    )


def preference_results(
    samples: Mapping[str, PolicySamples],
    options: Mapping[str, Any],
    prompts: Sequence[PromptExample],
    sets: Mapping[str, Sequence[int]],
) -> dict[str, Any]:
    """What the metrics of the step have besides those of each policy alone.

    Args:
        samples: Samples of each policy on the prompts.
        options: The step's settings.
        prompts: The prompts.
        sets: Places of the prompts of each set.
    """
    baseline, texts = options["baseline"], [prompt.text for prompt in prompts]
    fields = [getattr(text, "fields", {}) for text in texts]
    by = options["breakdown"] or [field for field in FIELDS if any(own.get(field) for own in fields)]
    groups = {field: value_groups([own.get(field) for own in fields]) for field in by}
    groups["prompt_length"] = length_thirds([len(prompt.prompt_ids) for prompt in prompts])
    return {
        "baseline": baseline,
        "prompts": len(prompts),
        "temperatures": {name: temperature_of(options, name) for name in samples},
        "head_to_head": head_to_head({name: own.scores for name, own in samples.items()}, texts),
        "head_to_head_by": {
            judge: head_to_head({name: own.judges[judge] for name, own in samples.items()}, texts)
            for judge in samples[baseline].judges
        },
        "prompt_sets": {name: part_results(samples, baseline, texts, own) for name, own in sets.items()},
        "breakdown": breakdown(samples, baseline, texts, groups),
        "judge_agreement": judge_agreement(samples, baseline, texts),
        "no_verdict": {
            name: {judge: said.count(None) for judge, said in own.preferences.items() if judge != PEOPLE}
            for name, own in samples.items()
            if own.preferences
        },
    }


def preferences_lacking(context: Context, options: Mapping[str, Any]) -> Iterator[str]:
    """Names of policies and judges that there are not, sets without a prompt, fields that no record has."""
    yield from _unknown("temperatures", options, "policies", [*options["policies"], BASE, FEW_SHOT])
    yield from _unknown("likert", options, "judges", [JUDGE, *(options["judges"] or {})])
    for name, ends in (options["likert"] or {}).items():
        if sorted({*ends}) != list(ends):
            yield f"likert.{name} must be six scores that rise, from which a response is worth 2, 3, .. 7; got {ends}."
    sets, people = options["prompt_sets"] or {}, options.get(PEOPLE)
    if people and PEOPLE in (options["judges"] or {}):
        yield "judges.people is the name of those whom evaluate.people asks. Call the judge something else."
    if people and not sets and people["prompts"] > options["num_prompts"]:
        yield (
            f"people.prompts={people['prompts']} are more than the num_prompts={options['num_prompts']} that are "
            "answered. Lower the former or raise the latter."
        )
    for split in dict.fromkeys(chosen.get("split", TEST) for chosen in sets.values()):
        yield from records_lacking(context, "prompts", split) if split != TEST else ()
    if CURATE in context.coming:
        return
    yield from (_empty(name, sets) for name, chosen in sets.items() if not _has_member(context, chosen))
    for field in options["breakdown"] or ():
        if not any(field in prompt_fields(row) for row in rows_of(context, "prompts", TEST)):
            yield f"breakdown names {field}, which no test prompt has as a field. Mend the name, or leave it out."


def _unknown(setting: str, options: Mapping[str, Any], kind: str, known: Sequence[str]) -> Iterator[str]:
    for name in options[setting] or {}:
        if name not in known:
            there = ", ".join(dict.fromkeys(known))
            yield f"{setting}.{name} is none of the {kind} ({there}).{did_you_mean(name, known)}"


def _has_member(context: Context, chosen: Mapping[str, Any]) -> bool:
    """Whether a set has a prompt; records that cannot be read are said where they are looked for."""
    try:
        return next(_matching(rows_of(context, "prompts", chosen.get("split", TEST)), chosen), None) is not None
    except ValueError:
        return True


def _matching(records: Any, chosen: Mapping[str, Any]) -> Iterator[int]:
    """Places of the records of a set."""
    wanted = {
        name: value if isinstance(value, list) else [value] for name, value in (chosen.get("where") or {}).items()
    }
    for place, record in enumerate(records):
        fields = prompt_fields(record)
        if all(fields.get(name) in values for name, values in wanted.items()):
            yield place


def _empty(name: str, sets: Mapping[str, Any], count: int | None = None) -> str:
    """That a set has no prompt, among all of its split or among the first ones."""
    chosen = sets[name]
    among = "the prompts" if count is None else f"the first {count} prompts that are short enough"
    where = ", ".join(f"{field}={value}" for field, value in (chosen.get("where") or {}).items())
    remedy = (
        "Mend the field or the value." if count is None else f"Set prompt_sets.{name}.num_prompts: it looks further."
    )
    return f"prompt_sets.{name}: none of {among} of split {chosen.get('split', TEST)} has {where or 'a text'}. {remedy}"


def _on_scale(name: str, values: Any, count: int) -> list[float]:
    """What a judge gave as Likert scores."""
    scores = [float(value) for value in values]
    if len(scores) != count or not all(LEAST <= score <= MOST for score in scores):
        raise PipelineError(
            f"evaluate.judges.{name}: its likert must give a number from {LEAST} to {MOST} for each of "
            f"{count} responses."
        )
    return scores
