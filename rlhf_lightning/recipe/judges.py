"""Who judges in step evaluate: settings of the forms of `ppo.reward`, and what is known of them."""

from collections.abc import Iterable, Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Annotated, Any, NotRequired, TypedDict

from annotated_types import Len

from rlhf_lightning.arguments import Count, Node, NonNegativeFloat, NonNegativeInt, did_you_mean
from rlhf_lightning.evaluation.preferences import PromptSet
from rlhf_lightning.evaluation.tables import JUDGE, REWARD
from rlhf_lightning.labeling.settings import Rated
from rlhf_lightning.models.loading import model_config
from rlhf_lightning.recipe.context import BASE, FEW_SHOT, SELECT, Context
from rlhf_lightning.recipe.inputs import POLICIES, records_lacking, rows_of, unread_prompt
from rlhf_lightning.recipe.messages import not_made, row_lengths, too_long
from rlhf_lightning.recipe.model_names import base_lacking, model_lacking, named_twice
from rlhf_lightning.recipe.preferences import preferences_lacking
from rlhf_lightning.recipe.rewards import compares_setting, reward_fingerprints, reward_label, reward_lacking
from rlhf_lightning.recipe.schemas import Reward
from rlhf_lightning.runs.folders import read_stage
from rlhf_lightning.runs.hub import model_folder
from rlhf_lightning.runs.identity import fingerprint


class EvaluateSettings(TypedDict):
    """Group `evaluate`."""

    policies: list[str]
    baseline: str | None
    reference: str
    judge: Reward
    judges: Mapping[str, Reward] | None
    people: NotRequired[Rated | None]
    metadata: Node | None
    probes: Node | None
    few_shot_prefix: str | None
    base_stop: str | None
    num_prompts: Count
    prompt_sets: Mapping[str, PromptSet] | None
    breakdown: list[str] | None
    likert: Mapping[str, Annotated[list[float], Len(6, 6)]] | None
    num_texts: NonNegativeInt
    temperature: NonNegativeFloat
    temperatures: Mapping[str, NonNegativeFloat] | None
    batch_size: Count


_COMPARES = "judge compares two responses, and the main judge scores each. Name it in evaluate.judges.<name>."


def main_judge(context: Context, step: str) -> Any:
    """The setting of whose scores make the win rates: that of the step, else step judge, else the reward model."""
    judge = context.config[step][JUDGE]
    if judge or context.available(JUDGE):
        return judge or JUDGE
    context.say(step, "no judge: the reward model judges; where it trained the policies, mind over-optimisation")
    return REWARD


def judge_settings(options: Mapping[str, Any]) -> dict[str, Any]:
    """Every judge that the settings of the step name, by the role of its first part among the step's parents."""
    further = {f"{JUDGE} {name}": judge for name, judge in (options["judges"] or {}).items()}
    return {role: judge for role, judge in {JUDGE: options[JUDGE], **further}.items() if judge}


def evaluation_lacking(context: Context, options: Mapping[str, Any]) -> Iterator[str]:
    """What step evaluate needs and nothing brings or makes; policies of steps that do not run are left out there."""
    policies = {name: will_be(context, name, options) for name in policies_of(options)}
    yield from named_twice(POLICIES, policies_of(options))
    for name, there in policies.items():
        if name != FEW_SHOT and (there or name.partition("/")[0] not in context.steps):
            yield from model_lacking(context, POLICIES, name)
    yield from model_lacking(context, "reference", options["reference"])
    if FEW_SHOT in policies and BASE not in policies:
        yield from base_lacking(context)
    yield from _baseline_lacking(context, options["baseline"], policies)
    yield from records_lacking(context, "prompts", "test")
    judges = judge_settings(options)
    if JUDGE not in judges and not will_be(context, JUDGE, options) and not will_be(context, REWARD, options):
        reason = not_made(context.runs, REWARD)
        yield f"nobody judges: evaluate.judge is null, and no step made a reward model. {reason}"
    remedy = "Name a judge of your own in evaluate.judge and evaluate.judges, and evaluate.metadata=null."
    yield from preferences_lacking(context, options)
    for role, judge in judges.items():
        if compares_setting(context, judge):
            yield from [_COMPARES] if role == JUDGE else []
            continue
        yield from reward_lacking(context, role, judge, partial(rows_of, context, "prompts", "test"))
    if (policies.get(FEW_SHOT) or policies.get(BASE)) and not any(base_lacking(context)):
        yield from _prefix_lacking(context, options) if policies.get(FEW_SHOT) else ()
        prefix = few_shot_prefix(context, options) if policies.get(FEW_SHOT) else None
        yield from texts_lacking(context, prefix, options["base_stop"])
    yield from unread_prompt(context, {**judges, "metadata": options["metadata"]}, "test", remedy)


def _baseline_lacking(context: Context, baseline: str | None, policies: Mapping[str, bool]) -> Iterator[str]:
    """Whether the baseline is one of the policies, of which is said whether they are there."""
    if baseline is None:
        yield "baseline is null. Name one of the policies or the folder of another; the paper takes its 175B SFT model."
    elif baseline in policies and not policies[baseline] and baseline.partition("/")[0] in context.steps:
        yield f"baseline={baseline}: {not_made(context.runs, baseline.partition('/')[0])}"
    elif not policies.get(baseline):
        found = ", ".join(name for name, there in policies.items() if there) or "none is there"
        meant = "" if baseline in policies else did_you_mean(baseline, policies)
        yield f"baseline={baseline} is not among the policies ({found}).{meant} Name one of them."


def policies_of(options: Mapping[str, Any]) -> list[str]:
    """The policies that step evaluate samples: those named, and a baseline that step select, a folder or an id is."""
    named, baseline = options[POLICIES], options["baseline"]
    further = baseline and (baseline == SELECT or "/" in baseline) and baseline not in named
    return [*named, *([baseline] if further else [])]


def few_shot_prefix(context: Context, options: Mapping[str, Any]) -> str | None:
    """What the prompted base model reads first: the setting, or the best prefix of step select, once it is made."""
    prefix: str | None = options["few_shot_prefix"]
    if prefix != SELECT:
        return prefix
    folder = None if SELECT in context.coming else context.runs.find(SELECT)
    best: str | None = None if folder is None else read_stage(folder)["metrics"].get("best_prefix")
    return best


def _prefix_lacking(context: Context, options: Mapping[str, Any]) -> Iterator[str]:
    if options["few_shot_prefix"] == SELECT and few_shot_prefix(context, options) is None:
        if SELECT not in context.coming and context.runs.find(SELECT) is None:
            yield not_made(context.runs, SELECT)
        elif SELECT not in context.coming or not context.config[SELECT]["prefixes"]:
            yield "few_shot_prefix=select: no prefixes compete in step select. List some in select.prefixes."


def texts_lacking(context: Context, prefix: str | None, stop: str | None) -> Iterator[str]:
    """Whether prompts still fit into the base model behind a few-shot prefix, and whether it can write the stop."""
    path = context.model_path(BASE) or context.config["model"]["causal_lm"].get("path")
    if path is None or not Path(model_folder(str(path))).is_dir():
        return
    if prefix:
        before = len(context.tokenization.text_ids(prefix, opens=True))
        fault = too_long(row_lengths(context.config, context.data), model_config(str(path)), FEW_SHOT, before)
        yield from [fault] if fault else []
    if stop is not None:
        tokenizer = context.tokenizer
        ids = tokenizer(stop, add_special_tokens=False)["input_ids"]
        if not ids or (tokenizer.unk_token_id in ids and stop != tokenizer.unk_token):
            yield f"base_stop={stop} is no text that the tokenizer of the base model can write. Name one, or null."


def will_be(context: Context, name: str, options: Mapping[str, Any]) -> bool:
    """Whether a policy is there, or will be when the step runs."""
    if name == FEW_SHOT:
        return bool(options["few_shot_prefix"])
    return name.partition("/")[0] in context.coming or context.available(name)


def judge_fingerprints(context: Context, options: Mapping[str, Any]) -> dict[str, str]:
    """What every part of every judge is, by content, and the prefix that step select chose."""
    each = [reward_fingerprints(context, judge, role) for role, judge in judge_settings(options).items()]
    chosen = options["few_shot_prefix"] == SELECT and few_shot_prefix(context, options)
    prefix = {"few_shot_prefix": fingerprint(chosen)} if chosen else {}
    return {role: found for of_judge in (*each, prefix) for role, found in of_judge.items()}


def judge_record(context: Context, judge: Any, policies: Iterable[str]) -> dict[str, Any]:
    """The judge's name, and whether a policy learned from any part of it, as far as the policies' folders tell."""
    parts = {*reward_fingerprints(context, judge).values()}
    paths = [context.model_path(name) for name in policies if name != FEW_SHOT]
    learned = [_rewards(Path(path).parent) for path in paths if path is not None]
    return {"name": reward_label(judge), "trained_policies": any(parts & rewards for rewards in learned)}


def _rewards(folder: Path) -> set[str]:
    """The rewards that a step learned from; none of a folder that no step made."""
    parents = read_stage(folder).get("identity", {}).get("parents", {})
    return {value for role, value in parents.items() if role == REWARD or role.startswith(f"{REWARD}_")}
