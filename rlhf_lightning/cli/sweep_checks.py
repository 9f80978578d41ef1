"""What is checked before the first job of a sweep."""

from collections.abc import MutableMapping
from enum import Enum
from itertools import islice
from typing import Any

from hydra.core.global_hydra import GlobalHydra
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override
from omegaconf import DictConfig, OmegaConf, open_dict, read_write

from rlhf_lightning.cli.configuration import resolved
from rlhf_lightning.cli.slurm import join_srun
from rlhf_lightning.recipe.pipeline import RECIPE
from rlhf_lightning.recipe.rounds import ROUNDS, metric_paths
from rlhf_lightning.recipe.settings import setting_faults
from rlhf_lightning.recipe.shared import check_shared_steps
from rlhf_lightning.runs.errors import PipelineError
from rlhf_lightning.runs.secrets import remember_secrets

_LOOKED_AT = 50
"""Values of a sweep that are looked at before its first job, beside the first of each setting."""


def check_objectives(config: DictConfig) -> None:
    """Refuse a sweeper that optimizes something else than the run returns, before any work.

    Raises:
        PipelineError: When `optimized_metric` has not as many paths as the sweeper has directions, or nobody said
            which direction it is.
    """
    if _is_basic(config):
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


def check_values(config: DictConfig) -> None:
    """Refuse what no job could use: each value of a sweep is looked at beside the first ones of the others.

    Of a long sweep the first ones are looked at: a third of a second each. What cannot be composed or followed before
    there is a job, that job says.

    Raises:
        PipelineError: With a sentence for each setting that is wrong.
    """
    if not _is_basic(config):
        return
    loader, swept = GlobalHydra.instance().config_loader(), dict[str, list[str]]()
    params = OmegaConf.select(config, "hydra.sweeper.params") or {}
    for each in _parsed([*(f"{name}={values}" for name, values in params.items()), *_task(config)]):
        key = each.get_key_element()
        if each.is_sweep_override() and not each.is_discrete_sweep():
            return  # the sweeper refuses it
        plain = not each.is_sweep_override()
        swept[key] = [each.get_value_element_as_str()] if plain else [*each.sweep_string_iterator()]
    first = {key: values[0] for key, values in swept.items()}
    faults = dict[str, None]()
    others = ({**first, key: value} for key, values in swept.items() for value in values[1:])
    for chosen in [first, *islice(others, _LOOKED_AT)]:
        try:
            job = loader.load_sweep_config(config, [f"{key}={value}" for key, value in chosen.items()])
            with read_write(job), open_dict(job):
                del job["hydra"]
            told = resolved(job)
            remember_secrets(OmegaConf.to_container(job), told)
        except Exception:  # such as what refers to the job
            continue
        found = setting_faults(told, RECIPE, told.get("allowed_targets") or [])
        try:
            if not found:
                check_shared_steps(told, [stage.name for stage in RECIPE])
        except PipelineError as error:
            found = [str(error)]
        faults |= dict.fromkeys(found)
    if faults:
        raise PipelineError("\n".join(faults))


def swept_settings(config: DictConfig) -> set[str]:
    """The settings that differ between the jobs of a multirun: those of its sweeper, and those on the command line."""
    params = OmegaConf.select(config, "hydra.sweeper.params") or {}
    told = {each.key_or_group for each in _parsed(_task(config)) if each.is_sweep_override()}
    return {str(name) for name in params} | told


def _task(config: DictConfig) -> list[str]:
    told: Any = OmegaConf.to_container(config.hydra.overrides.task, resolve=False)  # they may refer to the job
    return list(told)


def _parsed(overrides: list[str]) -> list[Override]:
    return OverridesParser.create().parse_overrides(overrides)


def _is_basic(config: DictConfig) -> bool:
    return "basic_sweeper" in str(config.hydra.sweeper.get("_target_"))
