"""What policies and steps are called in tables, and their colours in figures."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from rlhf_lightning.evaluation.plots import Legend
from rlhf_lightning.evaluation.tables import EVALUATE
from rlhf_lightning.recipe.context import BASE, FEW_SHOT
from rlhf_lightning.recipe.inputs import POLICIES
from rlhf_lightning.recipe.stage import Stage
from rlhf_lightning.runs.hub import is_hub_id, model_folder


def legend_of(recipe: Sequence[Stage], base: str = BASE, policies: Sequence[str] = ()) -> Legend:
    """The legend of a run.

    Args:
        recipe: The steps, which bring their titles and colours.
        base: Name of the base model.
        policies: Policies that are folders or hub ids. The model of a run's step is called by the run (``flan`` for
            ``runs/flan/sft/model``), with the step where that is not enough; another folder by as many of its last
            parts as tell it from the others; a hub id, or the name of another run's step, by the whole.
    """
    steps = {stage.name: stage for stage in recipe if stage.keeps_artifact}
    labels = {BASE: base, FEW_SHOT: f"{base} prompted", **{name: stage.title for name, stage in steps.items()}}
    own = {
        name: name
        if is_hub_id(name) or is_hub_id(name.rpartition("/")[0])  # <run>/<step>/epoch-1
        else _label(name, [each for each in policies if each != name], labels)
        for name in policies
        if name.partition("/")[0] not in labels
    }
    return Legend({**own, **labels}, {BASE: "#a07e5c", **{name: stage.colour for name, stage in steps.items()}})


def run_legend(recipe: Sequence[Stage], config: Mapping[str, Any]) -> Legend:
    """The legend of a run by its configuration."""
    options = config.get(EVALUATE) or {}
    policies = [name for own in config.values() if isinstance(own, Mapping) for name in own.get(POLICIES) or ()]
    named = filter(None, [*policies, options.get("baseline"), options.get("reference")])
    return legend_of(recipe, base_name(config["model"]["causal_lm"]), list(dict.fromkeys(named)))


def base_name(model: Mapping[str, Any]) -> str:
    """What the base model is called: a hub id as it is, a folder by its own name, what ships or is fresh ``base``.

    Args:
        model: The settings of the model, with ``path`` where it has weights.
    """
    path = model.get("path")
    if path is None or model_folder(path) != path:
        return BASE
    return str(path) if is_hub_id(path) else Path(path).resolve().name


def _label(name: str, others: Sequence[str], labels: Mapping[str, str]) -> str:
    taken = {*labels.values(), *(Path(each).name for each in others)}
    taken.update(*(_of_run(each, labels) for each in others))
    free = [each for each in _of_run(name, labels) if each not in taken]
    return free[0] if free else _shortest(name, [*others, *labels.values()])


def _of_run(name: str, titles: Mapping[str, str]) -> tuple[str, ...]:
    """What the model of a run's step may be called; () for any other folder."""
    *_, run, step, model = ("", "", *Path(name).resolve().parts)
    return (run, f"{run} {titles[step]}") if step in titles and model in ("model", "model_ema") else ()


def _shortest(name: str, others: Sequence[str]) -> str:
    parts, rest = Path(name).resolve().parts, [Path(other).resolve().parts for other in others]
    for count in range(1, len(parts)):
        if all(other == parts or other[-count:] != parts[-count:] for other in rest):
            return "/".join(parts[-count:])
    return name
