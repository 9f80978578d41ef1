"""Steps that jobs of a sweep share: made once, by the job that comes first, in a run of their own beside the jobs."""

from collections.abc import Collection, Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rlhf_lightning.recipe.rounds import METRIC, ROUNDS, with_settings
from rlhf_lightning.runs.errors import PipelineError
from rlhf_lightning.runs.identity import fingerprint
from rlhf_lightning.runs.lock import locked

if TYPE_CHECKING:
    from rlhf_lightning.recipe.pipeline import Pipeline

SHARED = "shared"
_FOREVER = -1.0
_OUTSIDE = {"run", "paths", "stages", SHARED, METRIC, "overwrite", "keep_going", "plan", "tags", "logger"}
"""What no step depends on."""


def check_shared_steps(config: Mapping[str, Any], steps: Collection[str]) -> None:
    """Refuse shared steps that there are not, or of which every round makes its own, with a `PipelineError`.

    Args:
        config: The resolved configuration.
        steps: The steps that there are.
    """
    if unknown := [name for name in config[SHARED] if name not in steps]:
        raise PipelineError(f"{SHARED} names {', '.join(unknown)}; the stages are {', '.join(steps)}.")
    if config[SHARED] and config[ROUNDS] > 1:
        raise PipelineError(
            f"{ROUNDS}={config[ROUNDS]} makes steps again that {SHARED}=[{','.join(config[SHARED])}] makes once for "
            f"all jobs. Set {SHARED}=[] or {ROUNDS}=1."
        )


def run_sharing(pipeline: "Pipeline") -> dict[str, Any]:
    """Run a job of a sweep; returns the metrics of every step.

    The shared steps lie in ``<run>.shared-<hash>``, by the content of the settings that they may depend on, so jobs
    that differ in those have different ones. One job makes them while the others wait.

    Args:
        pipeline: That of the job, with all its steps.
    """
    config, runs = pipeline.config, pipeline.runs
    check_shared_steps(config, [stage.name for stage in pipeline.recipe])
    names = [stage.name for stage in pipeline.stages]
    shared = [name for name in names if name in config[SHARED]]
    if not shared:
        return pipeline.run()
    pipeline.look_ahead()  # what lacks is said before the shared steps are made
    base = replace(runs, run=f"{config['run']}.{SHARED}-{_content(pipeline, shared)}")
    pipeline.context.say(SHARED, f"{', '.join(shared)} of {base.root / base.run}, made once for all jobs like this one")
    rest = {METRIC: None, "stages": [name for name in names if name not in shared]}
    with locked(Path(base.root / base.run), _FOREVER):
        metrics = with_settings(pipeline, {**config, METRIC: None, "stages": shared}, base).run()
    if rest["stages"]:
        own = replace(runs, upstream=(base.run, *runs.upstream))
        metrics |= with_settings(pipeline, {**config, **rest}, own).run()
    return metrics


def _content(pipeline: "Pipeline", shared: Collection[str]) -> str:
    """A hash of the settings that some steps may depend on: theirs, and all that is of no step."""
    others = {stage.name for stage in pipeline.recipe} - {*shared}
    kept = {name: value for name, value in pipeline.config.items() if name not in others | _OUTSIDE}
    return fingerprint(kept)[:8]
