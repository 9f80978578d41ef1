"""Rounds: collect, reward and the policy again, with rankings of the newest policy (InstructGPT, 3.1).

Round 1 lies in the run's folder, round n in ``round-<n>`` within it. A later round has the settings of the first one,
but for those that `settings_of_round` says. What it does not make it reads from the rounds before it.
"""

from collections.abc import Mapping, Sequence
from copy import copy
from typing import TYPE_CHECKING, Annotated, Any, Literal, TypedDict, TypeVar

from annotated_types import Ge, Gt, Le, Lt

from rlhf_lightning.evaluation.tables import JUDGE, REWARD
from rlhf_lightning.recipe.context import COLLECT, WRITES, Context
from rlhf_lightning.recipe.rewards import INIT
from rlhf_lightning.recipe.stage import Stage, TrainingStage
from rlhf_lightning.runs.folders import PipelineError, Runs

if TYPE_CHECKING:
    from rlhf_lightning.recipe.pipeline import Pipeline

ROUNDS, LATER, LAST = "rounds", "later_rounds", "last"
"""Settings: how many rounds, and what is so in those after the first; the start that is the policy of the last one."""
METRIC, _POLICIES, _SHARES = "optimized_metric", "policies", "shares"
T = TypeVar("T")
RoundCount = Annotated[int, Ge(1), Le(100)]
"""How many rounds; the paper has a few, and each has folders and a look ahead of its own."""


class LaterRounds(TypedDict):
    """Node `later_rounds`."""

    start: Literal["init", "last"]
    share: Annotated[float, Gt(0), Lt(1)]


def repeated(recipe: Sequence[Stage]) -> list[Stage]:
    """The steps that every round makes: from collect on, but for the judge, who does not change while others do."""
    names = [stage.name for stage in recipe]
    first = names.index(COLLECT) if COLLECT in names else len(names)
    return [stage for stage in recipe[first:] if stage.name != JUDGE]


def newest_policy(stages: Sequence[Stage]) -> Stage | None:
    """The last of the steps that trains a policy, whose responses the next round ranks."""
    trained = [stage for stage in repeated(stages) if isinstance(stage, TrainingStage) and stage.leaves == WRITES]
    return trained[-1] if trained else None


def check_rounds(config: Mapping[str, Any], stages: Sequence[Stage], given: bool) -> None:
    """Refuse rounds that would be the same thing again, with a `PipelineError`.

    Args:
        config: The resolved configuration.
        stages: The steps that it names, in order.
        given: Whether the data option brings rankings.
    """
    where = f"{ROUNDS}={config[ROUNDS]}"
    if given:
        raise PipelineError(
            f"{where}: the data option brings rankings of its own, so that nothing is collected and every round would "
            f"learn from the same. Take them out of the data option, or {ROUNDS}=1."
        )
    if COLLECT not in (stage.name for stage in stages):
        raise PipelineError(
            f"{where}: without step {COLLECT} no round has rankings of its own. Add it to stages, or {ROUNDS}=1."
        )
    if (most := config[REWARD]["data"].get("max_train")) is not None:
        raise PipelineError(
            f"{where}: {REWARD}.data.max_train={most} takes the first rankings, so those of later rounds would not be "
            "learned from. Set it to null, and collect.prompts.train to how many a round has."
        )
    if newest_policy(stages) is None:
        raise PipelineError(
            f"{where}: no step of stages trains a policy, whose responses the next round would rank. Add one, such as "
            f"ppo_ptx, or {ROUNDS}=1."
        )


def settings_of_round(config: Mapping[str, Any], stages: Sequence[Stage], number: int) -> dict[str, Any]:
    """The configuration of a round.

    In a later one the newest policy of the round before joins those whose responses are ranked, and the prompts are the
    next ones. With ``later_rounds.start=last`` the policies start from that one; what the KL penalty pulls to stays.

    Args:
        config: That of the run.
        stages: The steps that it names, in order.
        number: Which round, from 1.
    """
    changed: dict[str, Any] = {METRIC: _metrics_of(config, stages, number) or None}
    newest = newest_policy(stages)
    if number == 1 or newest is None:
        return {**config, **changed}
    later = config[LATER]
    changed["stages"] = [stage.name for stage in repeated(stages)]
    changed[COLLECT] = {**config[COLLECT], "round": number} | _policies(config[COLLECT], newest.name, later["share"])
    if later["start"] == LAST:
        trained = {stage.name for stage in repeated(stages) if isinstance(stage, TrainingStage)}
        for name in trained:
            options = config[name]
            if options.get(INIT, name).partition("/")[0] not in trained and "reference" in options:
                reference = options[INIT] if options["reference"] == INIT else options["reference"]
                changed[name] = {**options, INIT: newest.name, "reference": reference}
    return {**config, **changed}


def _policies(options: Mapping[str, Any], newest: str, share: float) -> dict[str, Any]:
    """Those of the first round and the newest one, with their shares, unless it is named already."""
    named, shares = options[_POLICIES], options["sampling"][_SHARES]
    if newest in (name.partition("/")[0] for name in named):
        return {}
    weights = shares or [1] * len(named)
    parts = [round((1 - share) * weight / sum(weights), 6) for weight in weights]
    return {_POLICIES: [*named, newest], "sampling": {**options["sampling"], _SHARES: [*parts, share]}}


def metric_paths(config: Mapping[str, Any]) -> list[str]:
    """What `optimized_metric` names: nothing, one path into the metrics, or several."""
    named = config[METRIC]
    if named is None:
        return []
    return [str(named)] if isinstance(named, str) or not isinstance(named, Sequence) else [*map(str, named)]


def _metrics_of(config: Mapping[str, Any], stages: Sequence[Stage], number: int) -> list[str]:
    """The parts of `optimized_metric` of this round; one without a round is of the last that has its step."""
    count: int = config[ROUNDS]
    own: list[str] = []
    for path in metric_paths(config):
        step, *parts = path.split(".")
        if step == ROUNDS:
            if not parts or parts[0] not in map(str, range(1, count + 1)):
                raise PipelineError(
                    f"{METRIC}={path} is of no round. Name one of 1 to {count}: {ROUNDS}.{count}.<step>..."
                )
            own += [".".join(parts[1:])] if parts[0] == str(number) else []
        else:
            once = {stage.name for stage in stages} - {stage.name for stage in repeated(stages)}
            own += [path] if number == (1 if step in once else count) else []
    return own


def with_settings(pipeline: "Pipeline", config: Mapping[str, Any], runs: Runs) -> "Pipeline":
    """A pipeline of the steps that other settings name, in another run; what was read stays read."""
    other, context = copy(pipeline), copy(pipeline.context)
    other.config, other.runs = config, runs
    other.stages = [stage for stage in pipeline.stages if stage.name in config["stages"]]
    context.config, context.runs, context.tokenizers = config, runs, copy(context.tokenizers)
    context.tokenizers.path = context.model_path
    other.context = context
    return other


def rounds_of(first: "Pipeline") -> list["Pipeline"]:
    """The pipeline of each round.

    Args:
        first: That of the run.

    Raises:
        PipelineError: When a second round would be the same thing again.
    """
    config, stages, rounds = first.config, first.stages, [first]
    check_rounds(config, stages, first.context.brings("comparisons"))
    first.context.config = settings_of_round(config, stages, 1)
    for number in range(2, config[ROUNDS] + 1):
        later = with_settings(first, settings_of_round(config, stages, number), first.runs.of_round(number))
        later.earlier = rounds[-1]
        rounds.append(later)
    return rounds


def joined_metrics(rounds: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Those of every step by its last round, and those of each round under ``rounds`` and its number."""
    last = {name: value for own in rounds for name, value in own.items()}
    return {**last, ROUNDS: {str(number): own for number, own in enumerate(rounds, 1)}}


def prompts_of_round(context: Context, split: str, count: int, number: int) -> list[Any]:
    """The prompts that step collect asks in a round, of a split: the next ones of the data.

    Args:
        context: Records of the run.
        split: The split; train has to have some.
        count: How many.
        number: Which round, from 1.
    """
    prompts = context.records("prompts", split, required=split == "train")
    first, chosen = next_ones(prompts, count, number)
    if number > 1 and chosen:
        context.say(
            COLLECT,
            f"round {number}: {len(chosen):,} prompts for {split} from number {first + 1:,} of {len(prompts):,} on",
        )
    return chosen


def next_ones(rows: Sequence[T], count: int, number: int) -> tuple[int, list[T]]:
    """The place of the first row of a round, and its rows; after the last one come the first ones again.

    Examples:
        >>> [next_ones("abcde", 2, number) for number in (1, 2, 3)]
        [(0, ['a', 'b']), (2, ['c', 'd']), (4, ['e', 'a'])]
        >>> next_ones("abc", 5, 2)
        (0, ['a', 'b', 'c'])
    """
    count = min(count, len(rows))
    first = count * (number - 1) % max(1, len(rows))
    return first, [rows[(first + place) % len(rows)] for place in range(count)]


def seed_of_round(seed: int, number: int) -> int:
    """Another seed for every round, which is none of another run: those are below 2**32."""
    return seed + (number - 1) * 2**32
