"""What is checked before the first job of a sweep."""

from collections.abc import MutableMapping
from enum import Enum
from typing import Any

from hydra.core.override_parser.overrides_parser import OverridesParser
from omegaconf import DictConfig, OmegaConf

from rlhf_lightning.cli.slurm import join_srun
from rlhf_lightning.recipe.rounds import ROUNDS, metric_paths
from rlhf_lightning.runs.errors import PipelineError


def check_objectives(config: DictConfig) -> None:
    """Refuse a sweeper that optimizes something else than the run returns, before any work.

    Raises:
        PipelineError: When `optimized_metric` has not as many paths as the sweeper has directions, or nobody said
            which direction it is.
    """
    if "basic_sweeper" in str(config.hydra.sweeper.get("_target_")):
        return
    paths, directions = metric_paths(config), config.hydra.sweeper.get("direction", "")
    sweeper = f"hydra/sweeper={config.hydra.runtime.choices.get('hydra/sweeper')}"
    if isinstance(directions, Enum):  # the sweeper's default
        raise PipelineError(
            f"{sweeper} would {directions.name} optimized_metric={config.optimized_metric}. Say which is wanted: "
            "hydra.sweeper.direction=maximize, or minimize."
        )
    for path in [] if "stages" in swept_settings(config) else paths:
        if path.partition(".")[0] not in (*config.stages, ROUNDS):
            raise PipelineError(f"optimized_metric={path}: no such step runs; stages has {', '.join(config.stages)}.")
    wanted = 1 if isinstance(directions, str) or directions is None else len(directions)
    if len(paths) != wanted:
        raise PipelineError(
            f"{sweeper} optimizes {wanted} number{'s' * (wanted > 1)} (hydra.sweeper.direction), and optimized_metric "
            f"names {len(paths)}. Name one for each, such as optimized_metric=evaluate.policies.ppo.win_rate.value."
        )


def check_alone(environment: MutableMapping[str, str]) -> None:
    """Refuse a multirun of which every process of several would make each job, with a `PipelineError`."""
    join_srun(environment)
    if (started := int(environment.get("WORLD_SIZE", "1"))) > 1:
        raise PipelineError(
            f"{started} processes run this command, and each would start the whole sweep. Start it once, or each job "
            "by itself on several devices."
        )


def check_study(config: DictConfig) -> None:
    """Refuse two studies at once, and names of a run whose jobs no table would find.

    Raises:
        PipelineError: Saying what to write.
    """
    raw: Any = OmegaConf.to_container(config, resolve=False)  # it may refer to the job
    run, choices = raw["run"], config.hydra.runtime.choices
    if not isinstance(run, str | int) or isinstance(run, bool):
        raise PipelineError(f"run must be text, got {run}; quote it: run='\"{run}\"'.")
    if str(run).count("/") > 1:
        raise PipelineError(f"run={run}: the table of a sweep looks into folders and theirs. Use one slash at most.")
    if all(str(choices.get(group)) not in ("None", "null", "") for group in ("sweep", "hparams_search")):
        raise PipelineError(
            f"sweep={choices['sweep']} and hparams_search={choices['hparams_search']} both say what jobs differ in. "
            "Take one of them."
        )


def swept_settings(config: DictConfig) -> set[str]:
    """The settings that differ between the jobs of a multirun: those of its sweeper, and those on the command line."""
    told: Any = OmegaConf.to_container(config.hydra.overrides.task, resolve=False)  # they may refer to the job
    parsed = OverridesParser.create().parse_overrides(told)
    params = OmegaConf.select(config, "hydra.sweeper.params") or {}
    return {str(name) for name in params} | {each.key_or_group for each in parsed if each.is_sweep_override()}
