"""The configuration: composed by Hydra, checked for what Hydra itself would build of it, as plain types."""

import json
import os
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import hydra
import yaml
from hydra._internal import hydra as engine
from hydra._internal.config_loader_impl import ConfigLoaderImpl
from hydra._internal.core_plugins import basic_sweeper
from hydra.core import utils as jobs
from hydra.errors import ConfigCompositionException
from omegaconf import DictConfig, ListConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from rlhf_lightning.evaluation.tables import REWARD
from rlhf_lightning.recipe.pipeline import RECIPE
from rlhf_lightning.recipe.schemas import Settings
from rlhf_lightning.runs.folders import PipelineError
from rlhf_lightning.runs.guard import guard_output
from rlhf_lightning.runs.secrets import redacted
from rlhf_lightning.runs.targets import is_allowed

_PACKAGE = Path(__file__).parents[1]
CONFIG_DIR = _PACKAGE / "conf" if (_PACKAGE / "conf").exists() else _PACKAGE.parent / "conf"
"""The shipped groups in an installed package, those of the checkout otherwise."""
LIKE = {stage.name: stage.like for stage in RECIPE if stage.like}
"""Steps with the settings of another one, but for what their own group says.

Their options refer to each of its settings; what is added to it, or stands in another optimizer, is found here.
"""


def scaled(value: float, *factors: float) -> str:
    """The values of a setting that a study tries, by what the experiment sets it to: ``${scaled:${...},0.5,1,2}``.

    Examples:
        >>> scaled(1e-4, 0.5, 1, 2), scaled(64, 0.5, 4)
        ('5e-05,0.0001,0.0002', '32,256')
    """
    return ",".join(str(round(value * by)) if isinstance(value, int) else f"{value * by:.4g}" for by in factors)


def quotient(value: float, by: float, times: float = 1) -> int:
    """A whole number that goes with other settings, such as the iterations of so many episodes.

    Args:
        value: What is divided.
        by: What it is divided by.
        times: What the quotient is multiplied by.

    Raises:
        ValueError: When it is no whole number of at least 1.

    Examples:
        >>> quotient(3200, 128), quotient(256, 128, 64)
        (25, 128)
    """
    found = value * times / by
    if found != round(found) or found < 1:
        said = f"{value} / {by}" + f" * {times}" * (times != 1)
        raise ValueError(f"{said} is {found:.4g}, no whole number of at least 1")
    return round(found)


def multiple(value: float, of: int) -> int:
    """The multiple of a number that is nearest to a value, and not 0.

    Examples:
        >>> multiple(25, 4), multiple(1, 4)
        (24, 4)
    """
    return max(1, round(value / of)) * of


def divisors(value: int, *among: int) -> str:
    """Those of some numbers that divide a value; a `ValueError` where none does.

    Examples:
        >>> divisors(32, 8, 16, 32, 64)
        '8,16,32'
    """
    found = [str(each) for each in among if value % each == 0]
    if not found:
        raise ValueError(f"none of {', '.join(map(str, among))} divides {value}")
    return ",".join(found)


for _resolver in (scaled, quotient, multiple, divisors):
    OmegaConf.register_new_resolver(_resolver.__name__, _resolver, replace=True)
FOLLOWS = "follows"
"""What a study sets by other settings as they are without it, such as iterations by the experiment's and the batch."""
_OBJECTS = {"_target_", "path", "url", REWARD}
"""Keys of nodes that describe an object, or a reward."""
OURS = "rlhf_lightning.cli.SweepSummary"
HYDRA_LIBRARIES = (
    "hydra.experimental.callbacks",
    "hydra._internal.core_plugins",
    "hydra_plugins",
    "optuna.samplers",
    "logging",
    "colorlog",
)
"""Packages whose classes the node ``hydra`` may name: Hydra's own, its plugins, and log handlers."""


class CheckedConfigs(ConfigLoaderImpl):
    """Hydra builds callbacks and log handlers of the node ``hydra`` by itself: what they name is checked before."""

    def load_configuration(self, *args: Any, **options: Any) -> DictConfig:
        """That of a command."""
        try:
            return _checked(super().load_configuration(*args, **options))
        except TypeError as error:  # Hydra's, at an option of a group that is no text
            raise ConfigCompositionException(
                f"a list of options, such as callbacks=[lr_monitor,timer], takes names alone, and no null ({error}). "
                "Take it out."
            ) from error
        except AttributeError as error:  # OmegaConf's, at a dictionary for what has none yet
            key = re.search(r"full_key: (\S+)", str(error))
            if key is None:
                raise
            raise ConfigCompositionException(
                f"{key[1]} cannot be given as a whole here. Set what it holds one by one; a search tries a setting by "
                "<setting>=interval(low,high)."
            ) from error

    def load_sweep_config(self, *args: Any, **options: Any) -> DictConfig:
        """That of a job; Hydra's own sweeper asks for all of them before the first one runs."""
        config = _checked(super().load_sweep_config(*args, **options))
        if "basic_sweeper" in str(config.hydra.sweeper.get("_target_")):
            try:
                resolved(OmegaConf.masked_copy(config, [str(name) for name in config if name != "hydra"]))
            except (OmegaConfBaseException, PipelineError) as error:
                if "HydraConfig was not set" not in str(error):  # ${hydra:...} is known in the job alone
                    raise
        return config


class RedactedOmegaConf(OmegaConf):
    """What Hydra prints and writes of configurations, such as multirun.yaml, while it runs: without their secrets."""

    @staticmethod
    def to_yaml(cfg: Any, *, resolve: bool = False, sort_keys: bool = False) -> str:
        """As YAML."""
        plain = OmegaConf.to_container(cfg, resolve=resolve, enum_to_str=True)
        return str(yaml.safe_dump(redacted(plain), sort_keys=sort_keys, allow_unicode=True))

    @staticmethod
    def save(config: Any, f: Any, resolve: bool = False) -> None:
        """To a file."""
        Path(f).write_text(RedactedOmegaConf.to_yaml(config, resolve=resolve), encoding="utf-8")


def keep_secrets() -> None:
    """Let Hydra and this process print and write no secrets from here on."""
    guard_output()
    for module in (engine, jobs, basic_sweeper):
        vars(module)["OmegaConf"] = RedactedOmegaConf


def _checked(config: DictConfig) -> DictConfig:
    more = config.get("allowed_targets") or []
    if not isinstance(more, ListConfig | list):
        raise ConfigCompositionException(f"allowed_targets must be a list of packages, got {more!r}.")
    for target in hydra_targets(config.hydra):
        try:
            fine = target == OURS or is_allowed(target, HYDRA_LIBRARIES, tuple(map(str, more)))
        except PipelineError as error:
            raise ConfigCompositionException(str(error)) from error
        if not fine:
            raise ConfigCompositionException(
                f"the node hydra names {target}, which is neither Hydra's, of a plugin of Hydra, nor a log handler. If "
                "you trust it, add its package to allowed_targets."
            )
    _check_runs_folder(OmegaConf.select(config, "paths.runs", throw_on_missing=False))
    return config


def _check_runs_folder(runs: Any) -> None:
    """Hydra makes the folder by itself, and what it says when it cannot names no setting."""
    if not isinstance(runs, str) or not runs:
        raise ConfigCompositionException(f"paths.runs must be the folder that runs go to, got {runs!r}.")
    path = Path(runs).absolute()
    there = next(folder for folder in (path, *path.parents) if os.path.lexists(folder))
    if not there.is_dir():
        raise ConfigCompositionException(f"paths.runs={runs}: {there} is no folder. Name one, or move what lies there.")
    if not os.access(there, os.W_OK | os.X_OK):
        raise ConfigCompositionException(f"paths.runs={runs}: {there} cannot be written to. Name another folder.")


def hydra_targets(node: Any) -> Iterator[str]:
    """Whatever Hydra and the configuration of logging would import and call, however deep in the node ``hydra``."""
    raw: Any = OmegaConf.to_container(node, resolve=False)
    for key in raw if isinstance(node, DictConfig) else range(len(raw)):
        try:
            value = None if OmegaConf.is_missing(node, key) else node[key]
        except OmegaConfBaseException:  # a reference to what is known later, such as the folder of a job
            value = raw[key]
        named = key in ("_target_", "()", "class") or (isinstance(value, str) and value.startswith("ext://"))
        if isinstance(value, DictConfig | ListConfig):
            yield from hydra_targets(value)
        elif named and value not in (None, "ext://sys.stdout", "ext://sys.stderr"):
            yield str(value)


def composed(overrides: Sequence[str]) -> dict[str, Any]:
    """The configuration that the command line with these overrides would have, as plain types."""
    with hydra.initialize_config_dir(str(CONFIG_DIR), version_base="1.3"):
        return resolved(hydra.compose("config", list(overrides)))


def resolved(config: DictConfig) -> dict[str, Any]:
    """The configuration as plain types, with every reference in it followed."""
    follows = OmegaConf.to_container(config[FOLLOWS], resolve=True) if FOLLOWS in config else {}
    plain = OmegaConf.to_container(OmegaConf.merge(config, follows), resolve=True, throw_on_missing=False)
    if not isinstance(plain, dict):
        raise PipelineError("the configuration must be a mapping.")
    found = {str(name): value for name, value in plain.items() if name != FOLLOWS}
    # What the user's own settings refer to, such as my_rate in ${my_rate}, is read by them alone.
    raw = json.dumps(OmegaConf.to_container(config, resolve=False), default=str)
    for name in found.keys() - Settings.__annotations__.keys() - {stage.name for stage in RECIPE}:
        if re.search(rf"\$\{{{re.escape(name)}[.}}]", raw):
            del found[name]
    found["run"], found["upstream"] = _as_names(found.get("run")), _as_names(found.get("upstream"))
    for step, other in LIKE.items():
        if step in found and other in found:
            found[step] = _inherited(found[step], found[other])
    return found


def places(config: DictConfig) -> dict[str, Any]:
    """Where a run writes and what it builds on, also where other settings cannot be followed."""
    names = {name: _as_names(config.get(name)) for name in ("run", "upstream")}
    return {**names, "paths": {"runs": config.paths.runs}}


def _as_names(value: Any) -> Any:
    """A run may be called 1, which Hydra reads as a number."""
    if isinstance(value, list | ListConfig):
        return [_as_names(each) for each in value]
    return str(value) if isinstance(value, int) and not isinstance(value, bool) else value


def _inherited(settings: Any, others: Any, name: str = "") -> Any:
    """Settings, and those of another step that they do not name; an object or a reward of its own stands alone."""
    alone = name not in ("", "module") and isinstance(settings, dict) and settings.keys() & _OBJECTS
    if not isinstance(settings, dict) or not isinstance(others, dict) or alone:
        return settings
    return {**others, **{key: _inherited(value, others.get(key), key) for key, value in settings.items()}}
