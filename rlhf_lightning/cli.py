"""The command line: composes the configuration, builds what it describes, runs the pipeline."""

import ctypes
import json
import logging
import os
import platform
import re
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import hydra
import torch
import yaml
from hydra._internal import hydra as engine
from hydra._internal.config_loader_impl import ConfigLoaderImpl
from hydra._internal.core_plugins import basic_sweeper
from hydra._internal.utils import get_args_parser
from hydra.core import utils as jobs
from hydra.core.hydra_config import HydraConfig
from hydra.core.utils import JobReturn
from hydra.errors import ConfigCompositionException
from hydra.experimental.callback import Callback
from hydra.types import RunMode
from lightning.fabric.utilities.exceptions import MisconfigurationException
from omegaconf import DictConfig, ListConfig, OmegaConf
from omegaconf.errors import MissingMandatoryValue, OmegaConfBaseException
from rich.console import Console
from rich.text import Text
from transformers.utils import logging as transformers_logging

from rlhf_lightning.evaluation.tables import EVALUATE, closing_table, sample_table, sweep_table
from rlhf_lightning.parallel.processes import init_process_group, rank
from rlhf_lightning.recipe.legend import run_legend
from rlhf_lightning.recipe.pipeline import RECIPE, Pipeline
from rlhf_lightning.runs.folders import PipelineError, Runs, fingerprint
from rlhf_lightning.runs.guard import guard_output
from rlhf_lightning.runs.secrets import redacted, remember_secrets
from rlhf_lightning.runs.targets import builder, is_allowed

_PACKAGE = Path(__file__).parent
CONFIG_DIR = _PACKAGE / "conf" if (_PACKAGE / "conf").exists() else _PACKAGE.parent / "conf"
"""The shipped groups in an installed package, those of the checkout otherwise."""
LIKE = {stage.name: stage.like for stage in RECIPE if stage.like}
"""Steps with the settings of another one, but for what their own group says.

Their options refer to each of its settings; what is added to it, or stands in another optimizer, is found here.
"""
_OBJECTS = {"_target_", "path", "url", "reward"}
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


def run(config: DictConfig) -> float | None:
    """Run the pipeline that a composed configuration describes; returns ``optimized_metric``."""
    _keep_freed_memory()
    plain = resolved(config)
    remember_secrets(OmegaConf.to_container(config), plain)
    hydra_config: Any = HydraConfig.instance().cfg
    sweeping = hydra_config is not None and hydra_config.hydra.mode == RunMode.MULTIRUN
    check_processes(plain["trainer"], int(os.environ.get("WORLD_SIZE", "1")), sweeping)
    init_process_group(gpu=plain["trainer"]["accelerator"] in ("gpu", "cuda", "auto") and torch.cuda.is_available())
    console = Console(quiet=rank() != 0)
    if not console.is_terminal and "COLUMNS" not in os.environ:
        console.width = 120  # a file or a pipe has none of its own
    runs = _runs(plain, hydra_config)
    transformers_logging.disable_progress_bar()
    logging.getLogger("lightning.pytorch").setLevel(logging.WARNING)
    pipeline = Pipeline(plain, builder(plain["allowed_targets"]), runs, console)
    if plain["plan"]:
        pipeline.plan()
        return None
    metrics = pipeline.run()
    if EVALUATE in metrics:
        legend = run_legend(RECIPE, plain)
        samples = runs.folder(EVALUATE) / "samples.json"
        console.print(sample_table(json.loads(samples.read_text(encoding="utf-8")), legend))
        console.print(closing_table(metrics[EVALUATE], legend))
    return _optimized(metrics, plain["optimized_metric"])


def check_processes(trainer: Mapping[str, Any], started: int, sweeping: bool) -> None:
    """Refuse several devices without a process for each: Lightning would start the whole command again for them.

    Args:
        trainer: The group of that name.
        started: Processes that run this command.
        sweeping: Whether this is a job of a multirun.

    Raises:
        PipelineError: Saying how to start them.
    """
    devices = trainer["devices"]
    each = len(devices) if isinstance(devices, list) else devices
    needed = each * int(trainer.get("num_nodes", 1)) if isinstance(each, int) else None
    if sweeping and (started > 1 or needed != 1):
        raise PipelineError(
            f"trainer.devices={devices} cannot be used in a multirun: every process would start the sweep again. Run "
            "each job by torchrun, or sweep with trainer.devices=1."
        )
    if needed != started:
        raise PipelineError(
            f"trainer.devices={devices} needs {needed if needed and needed > 0 else 'a number of'} processes, and "
            f"{started} runs this command. Start one per device, and trainer=ddp or fsdp counts them: torchrun "
            "--nproc-per-node=<devices> -m rlhf_lightning trainer=ddp ..."
        )


def main() -> None:
    """Entry point of ``rlhf``."""
    _keep_secrets()
    remember_secrets(*sys.argv[1:])
    arguments, _ = get_args_parser().parse_known_args()
    if arguments.experimental_rerun is not None:
        sys.exit("rlhf: --experimental-rerun reads a pickle, which may run anything. Give the overrides again.")
    vars(engine)["ConfigLoaderImpl"] = _CheckedConfigs
    _main()


@hydra.main(version_base="1.3", config_path=str(CONFIG_DIR), config_name="config")
def _main(config: DictConfig) -> float | None:
    try:
        return run(config)
    except (PipelineError, MisconfigurationException, ValueError, OSError, ImportError, MissingMandatoryValue) as error:
        if os.environ.get("HYDRA_FULL_ERROR") or HydraConfig.get().mode == RunMode.MULTIRUN:
            raise
        console = Console(stderr=True, soft_wrap=True)
        console.print(
            "[bold red]rlhf:[/]",
            Text(redacted(str(error))),
            "[dim](HYDRA_FULL_ERROR=1 shows where)[/]",
            highlight=False,
        )
        sys.exit(1)


class _Redacted(OmegaConf):
    """What Hydra prints and writes of configurations, such as multirun.yaml, while it runs: without their secrets."""

    @staticmethod
    def to_yaml(cfg: Any, *, resolve: bool = False, sort_keys: bool = False) -> str:
        plain = OmegaConf.to_container(cfg, resolve=resolve, enum_to_str=True)
        return str(yaml.safe_dump(redacted(plain), sort_keys=sort_keys, allow_unicode=True))

    @staticmethod
    def save(config: Any, f: Any, resolve: bool = False) -> None:
        Path(f).write_text(_Redacted.to_yaml(config, resolve=resolve), encoding="utf-8")


def _keep_secrets() -> None:
    guard_output()
    for module in (engine, jobs, basic_sweeper):
        vars(module)["OmegaConf"] = _Redacted


class _CheckedConfigs(ConfigLoaderImpl):
    """Hydra builds callbacks and log handlers of the node ``hydra`` by itself: what they name is checked before."""

    def load_configuration(self, *args: Any, **options: Any) -> DictConfig:
        return _checked(super().load_configuration(*args, **options))

    def load_sweep_config(self, *args: Any, **options: Any) -> DictConfig:
        return _checked(super().load_sweep_config(*args, **options))


def _checked(config: DictConfig) -> DictConfig:
    more = tuple(config.get("allowed_targets") or ())
    for target in hydra_targets(config.hydra):
        try:
            fine = target == OURS or is_allowed(target, HYDRA_LIBRARIES, more)
        except PipelineError as error:
            raise ConfigCompositionException(str(error)) from error
        if not fine:
            raise ConfigCompositionException(
                f"the node hydra names {target}, which is neither Hydra's, of a plugin of Hydra, nor a log handler. If "
                "you trust it, add its package to allowed_targets."
            )
    return config


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


class SweepSummary(Callback):
    """Prints one table when a multirun ends, with every policy pooled over the jobs."""

    def __init__(self) -> None:
        _keep_secrets()  # in the processes of other launchers too
        self.jobs: dict[str, Path] = {}

    def on_job_end(self, config: DictConfig, job_return: JobReturn, **_: Any) -> None:
        """Remember where a job of a multirun wrote."""
        if config.hydra.mode == RunMode.MULTIRUN:
            job: Any = job_return.cfg
            runs = _runs(resolved(job), config)
            self.jobs[redacted(config.hydra.job.override_dirname) or str(config.hydra.job.num)] = runs.root / runs.run

    def on_multirun_end(self, config: DictConfig, **_: Any) -> None:
        """Print the table."""
        Console().print(sweep_table(self.jobs))


def _keep_freed_memory() -> None:
    """Let glibc keep large freed buffers instead of handing each back to the kernel.

    On a CPU a tensor of logits is freed and allocated at every step; faulting its pages in again costs several times
    the arithmetic. Other C libraries are left alone.
    """
    if sys.platform == "linux" and platform.libc_ver()[0] == "glibc":
        libc = ctypes.CDLL(None)
        trim_threshold, top_pad, mmap_threshold, largest = -1, -2, -3, 2**31 - 1
        libc.mallopt(trim_threshold, largest)
        libc.mallopt(top_pad, 64 * 2**20)
        libc.mallopt(mmap_threshold, largest)


def composed(overrides: Sequence[str]) -> dict[str, Any]:
    """The configuration that the command line with these overrides would have, as plain types."""
    with hydra.initialize_config_dir(str(CONFIG_DIR), version_base="1.3"):
        return resolved(hydra.compose("config", list(overrides)))


def resolved(config: DictConfig) -> dict[str, Any]:
    """The configuration as plain types, with every reference in it followed."""
    plain = OmegaConf.to_container(config, resolve=True, throw_on_missing=False)
    if not isinstance(plain, dict):
        raise PipelineError("the configuration must be a mapping.")
    found = {str(name): value for name, value in plain.items()}
    for step, other in LIKE.items():
        if step in found:
            found[step] = _inherited(found[step], found[other])
            _check_rate(step, found[step], other, found[other])
    return found


def _check_rate(step: str, settings: Mapping[str, Any], other: str, others: Mapping[str, Any]) -> None:
    """Adapters learn at another rate than whole weights: a step with them and one without do not share it."""
    adapted, rates = zip(
        *((bool(each["lora"]["rank"]), each["module"]["optimizer"]["lr"]) for each in (settings, others)), strict=True
    )
    if adapted[0] != adapted[1] and rates[0] == rates[1]:
        raise PipelineError(
            f"{step} has lora.rank={settings['lora']['rank']} and {other} lora.rank={others['lora']['rank']}, but one "
            f"learning rate, which suits one of them alone. Set {step}.module.optimizer.lr."
        )


def _inherited(settings: Any, others: Any, name: str = "") -> Any:
    """Settings, and those of another step that they do not name; an object or a reward of its own stands alone."""
    alone = name not in ("", "module") and isinstance(settings, dict) and settings.keys() & _OBJECTS
    if not isinstance(settings, dict) or not isinstance(others, dict) or alone:
        return settings
    return {**others, **{key: _inherited(value, others.get(key), key) for key, value in settings.items()}}


def _runs(config: Mapping[str, Any], hydra_config: Any) -> Runs:
    run_name, upstream = config["run"], config["upstream"] or []
    upstream = (upstream,) if isinstance(upstream, str) else tuple(upstream)
    if hydra_config is not None and hydra_config.hydra.mode == RunMode.MULTIRUN:
        # Jobs must not write into one another's folders, nor into the run that they build on.
        job = hydra_config.hydra.job
        upstream = upstream or (run_name,)
        name = re.sub("[^A-Za-z0-9_.,=+-]", "_", redacted(job.override_dirname) or str(job.num))
        run_name = f"{run_name}.{name if len(name) <= 120 else f'{name[:100]}-{fingerprint(name)[:8]}'}"
    return Runs(Path(config["paths"]["runs"]), run_name, upstream)


def _optimized(metrics: Mapping[str, Any], path: str | None) -> float | None:
    if path is None:
        return None
    value: Any = metrics
    for part in path.split("."):
        if not isinstance(value, Mapping) or part not in value:
            raise PipelineError(f"optimized_metric={path} is not among the metrics; {part!r} is not in {list(value)}.")
        value = value[part]
    return float(value)
