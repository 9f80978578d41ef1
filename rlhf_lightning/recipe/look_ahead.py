"""One look over all the named steps before the first one is made: everything that lacks is said at once."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import torch

from rlhf_lightning.arguments import did_you_mean
from rlhf_lightning.data.sources import RECORD_TYPES
from rlhf_lightning.evaluation.tables import EVALUATE, REWARD
from rlhf_lightning.labeling.settings import PEOPLE
from rlhf_lightning.recipe.context import Context
from rlhf_lightning.recipe.inputs import POLICIES, engine_lacking
from rlhf_lightning.recipe.rounds import metric_paths
from rlhf_lightning.recipe.stage import CALLBACKS, LOGGER, Stage, TrainingStage, of_user
from rlhf_lightning.runs.folders import PipelineError, claim_fault, is_complete, read_stage
from rlhf_lightning.runs.identity import plain
from rlhf_lightning.training.surroundings import surroundings_faults

_MEASURES = ("score", "win_rate", "length_controlled", REWARD)
FIGURES = (
    *_MEASURES,
    "kl",
    "length",
    "pretrain_loss",
    "intervals",
    *("judges", "likert", "metadata", "table_3", "probes"),
)
"""What is known of each policy; see `policy_results`."""
_INTERVALS = ("value", "low", "high")


def check_names(named: Sequence[str], steps: Sequence[str]) -> None:
    """Refuse steps that do not exist, with a `PipelineError` that says which was meant.

    Args:
        named: The steps to run.
        steps: Those that there are.
    """
    if not named:
        raise PipelineError(f"stages is empty, so there is nothing to do. Name some of {', '.join(steps)}.")
    if unknown := [str(name) for name in named if name not in steps]:
        meant = "".join(did_you_mean(name, steps) for name in unknown)
        raise PipelineError(f"stages names {', '.join(unknown)}; the stages are {', '.join(steps)}.{meant}")


def look_ahead(context: Context, stages: Sequence[Stage], coming: Iterable[str] = ()) -> set[str]:
    """Refuse a run that could not come to its end, before anything is made, read or loaded.

    Args:
        context: Models, records and settings of the run; it learns which steps are to come.
        stages: The steps to run, in order.
        coming: Steps with an artifact that the rounds before are still to make.

    Returns:
        Those, and the ones of these steps.

    Raises:
        PipelineError: Listing everything that lacks, each with the steps that need it.
    """
    context.report_unread()
    found: dict[str, list[str]] = {key: [] for key in _upstream_lacking(context)}
    found |= {key: [] for key in _devices_lacking(context.config["trainer"])}
    needed: dict[str, Stage] = {}
    to_make = {*coming}
    for stage in as_they_come(context, stages, coming, to_make):
        if stage.not_needed(context) is None:
            needed[stage.name] = stage
            for sentence, about in _lacks(stage, context, to_make):
                found[sentence] = [*found.get(sentence, []), *([about] if about else [])]
    if any(isinstance(needed.get(name), TrainingStage) for name in to_make):
        found |= {key: [] for key in _surroundings_lacking(context)}
    found |= {key: [] for key in _metric_lacking(context, needed)}
    said = [
        f"{', '.join(dict.fromkeys(about))}: {sentence}" if about else sentence for sentence, about in found.items()
    ]
    if said:
        listed = "".join(f"\n  - {sentence}" for sentence in said)
        more = f"{len(said)} things lack or are wrong, and nothing was made:{listed}"
        raise PipelineError(said[0] if len(said) == 1 else more)
    return to_make


def as_they_come(
    context: Context, stages: Sequence[Stage], coming: Iterable[str], to_make: Iterable[str]
) -> Iterator[Stage]:
    """The steps in order; while one is looked at, the context knows which models are to come by then.

    Args:
        context: Models and settings of the run.
        stages: The steps to run, in order.
        coming: Steps that the rounds before are still to make.
        to_make: Those, and the ones of these steps; may grow by the step at hand.
    """
    runs = context.runs
    context.coming = {*coming}
    try:
        for stage in stages:
            context.runs = runs.before(stage.name, context.steps)
            yield stage
            context.coming |= {stage.name} & {*to_make}
    finally:
        context.coming, context.runs = set(), runs


def _lacks(stage: Stage, context: Context, to_make: set[str]) -> Iterator[tuple[str, str]]:
    """What a step lacks, each with its name where the sentence does not say it; it is to be made, unless complete."""
    if stage.keeps_artifact and not context.config["overwrite"]:
        if refused := _refused(stage, context):
            yield refused, ""
        elif is_complete(context.runs.folder(stage.name)):
            return  # what it was made from may be gone
    for sentence in _inputs_lacking(stage, context):
        yield sentence, stage.name
    to_make |= {stage.name} if stage.keeps_artifact else set()


def _refused(stage: Stage, context: Context) -> str | None:
    """Why its folder could not be claimed, as far as the settings tell; parents and records are not known yet."""
    folder = context.runs.folder(stage.name)
    try:
        old = read_stage(folder)
    except PipelineError as error:
        return str(error)
    then = old.get("identity", {}).get("config", {})
    now = plain(context.held(stage.settings(context))) if then else {}
    return claim_fault(folder, old and {**old, "identity": {"config": then}}, {"identity": {"config": now}})


def rate_lacking(stage: Stage, config: Mapping[str, Any]) -> Iterator[str]:
    """Adapters learn at another rate than whole weights: a step with them and one without do not share it."""
    step, other = stage.name, stage.like
    settings, others = config[step], config[other or step]
    ranks, rates = zip(
        *((bool(each["lora"]["rank"]), each["module"]["optimizer"]["lr"]) for each in (settings, others)), strict=True
    )
    if ranks[0] != ranks[1] and rates[0] == rates[1]:
        yield (
            f"{step} has lora.rank={settings['lora']['rank']} and {other} lora.rank={others['lora']['rank']}, but one "
            f"learning rate, which suits one of them alone. Set {step}.module.optimizer.lr."
        )


def _inputs_lacking(stage: Stage, context: Context) -> Iterator[str]:
    yield from rate_lacking(stage, context.config) if stage.like else ()
    yield from engine_lacking(context) if stage.samples else ()
    try:
        yield from stage.lacks(context)
    except PipelineError as error:
        yield str(error)


def _upstream_lacking(context: Context) -> Iterator[str]:
    """Runs that somebody names and that do not exist; a multirun builds on its own name by itself."""
    named, root = context.config["upstream"] or [], context.runs.root
    for run in [named] if isinstance(named, str) else named:
        if run != context.runs.run and not (root / run).is_dir():
            runs = sorted(path.name for path in root.iterdir() if path.is_dir()) if root.is_dir() else []
            yield (
                f"upstream={run}: there is no run {root / run}.{did_you_mean(run, runs)} Mend the name, or set "
                "paths.runs to the folder that holds it."
            )


def _devices_lacking(trainer: Mapping[str, Any]) -> Iterator[str]:
    """An accelerator that is not there, and more devices than there are."""
    name, devices = trainer.get("accelerator"), trainer.get("devices")
    counts = {"cpu": 1, "cuda": torch.cuda.device_count(), "mps": int(torch.backends.mps.is_available())}
    counts["gpu"] = counts["cuda"] or counts["mps"]
    if not isinstance(name, str) or name == "auto":
        return
    there = ", ".join(known for known, count in counts.items() if count)
    if name not in counts:
        yield f"trainer.accelerator={name} is unknown.{did_you_mean(name, counts)} There are {there}, and auto."
    elif not counts[name]:
        yield f"trainer.accelerator={name}: this machine has none that torch can use. There is {there}: trainer=cpu."
    elif name != "cpu":
        wanted = max(devices, default=-1) + 1 if isinstance(devices, list) else devices
        if isinstance(wanted, int) and wanted > counts[name]:
            yield f"trainer.devices={devices}: this machine has {counts[name]} of {name}. Name no more than there are."


def _surroundings_lacking(context: Context) -> Iterator[str]:
    """What a step that trains would be refused with; devices that are not there are said already."""
    node = context.config["trainer"]
    trainer = {name: value for name, value in node.items() if name not in (LOGGER, CALLBACKS)}
    if any(_devices_lacking(node)):
        trainer |= {"accelerator": "cpu", "devices": 1}
    callbacks, loggers = (of_user(context.config, group) for group in (CALLBACKS, LOGGER))
    return surroundings_faults(trainer, callbacks, loggers, context.build)


def _metric_lacking(context: Context, stages: Mapping[str, Stage]) -> Iterator[str]:
    """The paths of `optimized_metric`, as far as they are known before there are metrics."""
    example = "such as evaluate.policies.ppo.win_rate.value or ppo.rollout/score"
    for path in metric_paths(context.config):
        where, (name, *parts) = f"optimized_metric={path}", path.split(".")
        if name not in stages:
            yield f"{where}: {name} is none of the steps that run ({', '.join(stages)}).{did_you_mean(name, stages)}"
        elif not parts:
            yield f"{where} is a step, not a number. Name one of its metrics, {example}."
        elif name == EVALUATE:
            yield from _evaluated_lacking(where, parts, context.config[EVALUATE])
        elif isinstance(stage := stages[name], TrainingStage) and parts[0].startswith("validation"):
            kind = stage.reads
            collected = RECORD_TYPES[kind] is RECORD_TYPES["comparisons"] and not context.brings(kind)
            if not collected and not context.data.has(kind, "validation"):
                yield f"{where}: there are no {kind} for the split validation, so that {name} validates nothing."


def _evaluated_lacking(where: str, parts: Sequence[str], options: Mapping[str, Any]) -> Iterator[str]:
    """A path into the metrics of step evaluate: known are the policies, their figures, and what an interval holds."""
    policies = tuple(options[POLICIES])
    known: list[tuple[str, ...]] = [(POLICIES, "prompts", "head_to_head", "prompt_sets", PEOPLE), policies, FIGURES]
    if parts[0] in ("prompts", PEOPLE):
        return
    if parts[0] == "head_to_head":
        known[2:] = [policies, _INTERVALS]
    elif parts[0] == "prompt_sets":
        known[1:] = [tuple(options["prompt_sets"] or ()), (POLICIES, "prompts")]
        known += [policies, ("win_rate", "length_controlled", "judges")] if parts[2:3] == [POLICIES] else []
    elif parts[2:3] == ["judges"]:
        known += [(*(options["judges"] or ()), *([PEOPLE] if options.get(PEOPLE) else [])), _INTERVALS]
    elif parts[2:3] and parts[2] in _MEASURES:
        known += [_INTERVALS]
    for part, names in zip(parts, known, strict=False):
        if part not in names:
            yield f"{where}: {part} is none of {', '.join(names) or 'none'}.{did_you_mean(part, names)}"
            return
    if len(parts) < len(known):
        yield f"{where} is not a number. Add one of {', '.join(known[len(parts)])}."
