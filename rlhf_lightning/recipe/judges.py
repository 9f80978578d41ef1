"""Who judges in step evaluate: settings of the forms of `ppo.reward`, and what is known of them."""

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from rlhf_lightning.evaluation.tables import JUDGE, REWARD
from rlhf_lightning.recipe.context import Context
from rlhf_lightning.recipe.rewards import reward_fingerprints, reward_label
from rlhf_lightning.runs.folders import read_stage

FEW_SHOT = "prompted"
"""The policy that is the base model behind a few-shot prefix."""


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


def judge_fingerprints(context: Context, options: Mapping[str, Any]) -> dict[str, str]:
    """What every part of every judge is, by content."""
    each = [reward_fingerprints(context, judge, role) for role, judge in judge_settings(options).items()]
    return {role: found for of_judge in each for role, found in of_judge.items()}


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
