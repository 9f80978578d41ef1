"""Steps that jobs of a sweep share: made once, by the job that comes first, in a run of their own beside the jobs."""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rlhf_lightning.arguments import did_you_mean
from rlhf_lightning.recipe.rounds import METRIC, ROUNDS, with_settings
from rlhf_lightning.runs.errors import PipelineError
from rlhf_lightning.runs.identity import fingerprint
from rlhf_lightning.runs.lock import locked

if TYPE_CHECKING:
    from rlhf_lightning.recipe.pipeline import Pipeline
    from rlhf_lightning.recipe.stage import Stage

SHARED = "shared"
SLICE = 60.0
"""Seconds after which a job that waits for shared steps says so again."""


def check_shared_steps(config: Mapping[str, Any], steps: Collection[str]) -> None:
    """Refuse shared steps that there are not, or of which every round makes its own, with a `PipelineError`.

    Args:
        config: The resolved configuration.
        steps: The steps that there are.
    """
    if unknown := [name for name in config[SHARED] if name not in steps]:
        meant = "".join(did_you_mean(name, steps) for name in unknown)
        raise PipelineError(f"{SHARED} names {', '.join(unknown)}; the stages are {', '.join(steps)}.{meant}")
    if config[SHARED] and config[ROUNDS] > 1:
        raise PipelineError(
            f"{ROUNDS}={config[ROUNDS]} makes steps again that {SHARED}=[{','.join(config[SHARED])}] makes once for "
            f"all jobs. Set {SHARED}=[] or {ROUNDS}=1."
        )


def run_sharing(pipeline: "Pipeline") -> dict[str, Any]:
    """Run a job of a sweep; returns the metrics of every step.

    The shared steps lie in ``<run>.shared-<hash>``, by what they are made from, so jobs that differ in that have
    different ones. One job makes them while the others wait.

    Args:
        pipeline: That of the job, with all its steps; afterwards it finds the shared ones upstream.
    """
    config, runs = pipeline.config, pipeline.runs
    check_shared_steps(config, [stage.name for stage in pipeline.recipe])
    names = [stage.name for stage in pipeline.stages]
    shared = [stage for stage in pipeline.stages if stage.name in config[SHARED]]
    if not shared:
        return pipeline.run()
    if len(shared) == len(names):
        raise PipelineError(
            f"{SHARED}=[{','.join(config[SHARED])}] has every step of stages=[{','.join(names)}]: this job would "
            "measure nothing of its own. Take out the step that the sweep is about."
        )
    pipeline.look_ahead()  # what lacks is said before the shared steps are made
    base = replace(runs, run=f"{config['run']}.{SHARED}-{content_of(pipeline, shared)}")
    made = [stage.name for stage in shared]
    say = partial(pipeline.context.say, SHARED)
    say(f"{', '.join(made)} of {base.root / base.run}, made once for all jobs like this one")
    with locked(Path(base.root / base.run), SLICE, say):
        metrics = with_settings(pipeline, {**config, METRIC: None, "stages": made}, base).run()
    pipeline.runs = replace(runs, upstream=(base.run, *runs.upstream))
    rest = {METRIC: None, "stages": [name for name in names if name not in made]}
    return metrics | with_settings(pipeline, {**config, **rest}, pipeline.runs).run()


def content_of(pipeline: "Pipeline", shared: Sequence["Stage"]) -> str:
    """A hash of what steps are made from: the settings that are of their identity, the data, and what is upstream."""
    context = pipeline.context
    settings = {stage.name: stage.settings(context) for stage in shared}
    others = {name: pipeline.config[name] for name in ("data", "upstream")}
    return fingerprint(context.held({**settings, **others}))[:8]
