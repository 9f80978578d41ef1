"""The command line: composes the configuration, builds what it describes, runs the pipeline."""

import ctypes
import json
import logging
import os
import platform
import re
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import hydra
import torch
from hydra.core.hydra_config import HydraConfig
from hydra.core.utils import JobReturn
from hydra.errors import InstantiationException
from hydra.experimental.callback import Callback
from hydra.types import RunMode
from hydra.utils import get_object, instantiate
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import MissingMandatoryValue
from rich.console import Console
from rich.text import Text
from transformers.utils import logging as transformers_logging

from rlhf_lightning.artifacts import PipelineError, Runs, fingerprint, redacted
from rlhf_lightning.distributed import join_processes, rank
from rlhf_lightning.evaluation.tables import closing_table, sample_table, sweep_table
from rlhf_lightning.pipeline import Pipeline

_PACKAGE = Path(__file__).parent
CONFIG_DIR = _PACKAGE / "conf" if (_PACKAGE / "conf").exists() else _PACKAGE.parent / "conf"
"""The shipped groups in an installed package, those of the checkout otherwise."""
LIBRARIES = ("torch.nn", "torch.optim", "lightning", "transformers", "peft")
"""Libraries whose classes a configuration may build; none of their functions, because some run commands."""


def run(config: DictConfig) -> float | None:
    """Run the pipeline that a composed configuration describes; returns ``optimized_metric``."""
    _keep_freed_memory()
    plain = resolved(config)
    hydra_config: Any = HydraConfig.instance().cfg
    sweeping = hydra_config is not None and hydra_config.hydra.mode == RunMode.MULTIRUN
    check_processes(plain["trainer"], int(os.environ.get("WORLD_SIZE", "1")), sweeping)
    join_processes(gpu=plain["trainer"]["accelerator"] in ("gpu", "cuda", "auto") and torch.cuda.is_available())
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
    if "evaluate" in metrics:
        samples = runs.folder("evaluate") / "samples.json"
        console.print(sample_table(json.loads(samples.read_text(encoding="utf-8"))))
        console.print(closing_table(metrics["evaluate"]))
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


def builder(more_targets: list[str]) -> Callable[..., Any]:
    """A function that builds the object which a node with ``_target_`` describes, if the target is allowed.

    Args:
        more_targets: Packages that may be used besides ours and ``LIBRARIES``, their functions too.
    """
    trusted = ("rlhf_lightning", *more_targets)

    def build(node: Mapping[str, Any], **arguments: Any) -> Any:
        for target in _targets(node):
            if not _is_allowed(target, trusted):
                raise PipelineError(
                    f"_target_ {target} is neither from {', '.join(trusted)} nor a class of {', '.join(LIBRARIES)}. If "
                    "you trust it, add its package to allowed_targets."
                )
        return instantiate(dict(node), _convert_="all", **arguments)

    return build


@hydra.main(version_base="1.3", config_path=str(CONFIG_DIR), config_name="config")
def main(config: DictConfig) -> float | None:
    """Entry point of ``rlhf``."""
    try:
        return run(config)
    except (PipelineError, ValueError, MissingMandatoryValue, InstantiationException) as error:
        if os.environ.get("HYDRA_FULL_ERROR") or HydraConfig.get().mode == RunMode.MULTIRUN:
            raise
        cause = error.__cause__ if isinstance(error, InstantiationException) and error.__cause__ else error
        console = Console(stderr=True, soft_wrap=True)
        console.print(
            "[bold red]rlhf:[/]", Text(str(cause)), "[dim](HYDRA_FULL_ERROR=1 shows where)[/]", highlight=False
        )
        sys.exit(1)


class SweepSummary(Callback):
    """Prints one table when a multirun ends, with every policy pooled over the jobs."""

    def __init__(self) -> None:
        self.jobs: dict[str, Path] = {}

    def on_job_end(self, config: DictConfig, job_return: JobReturn, **_: Any) -> None:
        """Remember where a job of a multirun wrote."""
        if config.hydra.mode == RunMode.MULTIRUN:
            job: Any = job_return.cfg
            runs = _runs(resolved(job), config)
            self.jobs[redacted(config.hydra.job.override_dirname) or str(config.hydra.job.num)] = runs.root / runs.run

    def on_multirun_end(self, config: DictConfig, **_: Any) -> None:
        """Print the table, and take secrets out of the command line that Hydra wrote down."""
        Console().print(sweep_table(self.jobs))
        written = Path(config.hydra.sweep.dir) / "multirun.yaml"
        if written.exists():
            written.write_text(redacted(written.read_text(encoding="utf-8")), encoding="utf-8")


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
    return {str(name): value for name, value in plain.items()}


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


def _targets(node: Any) -> Iterator[str]:
    if isinstance(node, Mapping):
        if "_target_" in node:
            yield str(node["_target_"])
        for value in node.values():
            yield from _targets(value)
    elif isinstance(node, list):
        for value in node:
            yield from _targets(value)


def _is_allowed(target: str, trusted: tuple[str, ...]) -> bool:
    if not _within(target, (*trusted, *LIBRARIES)):
        return False
    try:
        found = get_object(target)
    except (ImportError, ValueError) as error:
        reason = str(error.__cause__ or error).splitlines()[0]
        raise PipelineError(f"_target_ {target} cannot be found: {reason}. Check how it is spelled.") from error
    # The name alone proves little: torch.nn.modules.module.os.system is a name in torch.nn.
    home = getattr(found, "__module__", None) or ""
    return _within(home, trusted) or (isinstance(found, type) and _within(home, LIBRARIES))


def _within(name: str, packages: tuple[str, ...]) -> bool:
    return any(name == package or name.startswith(f"{package}.") for package in packages)


def _optimized(metrics: Mapping[str, Any], path: str | None) -> float | None:
    if path is None:
        return None
    value: Any = metrics
    for part in path.split("."):
        if not isinstance(value, Mapping) or part not in value:
            raise PipelineError(f"optimized_metric={path} is not among the metrics; {part!r} is not in {list(value)}.")
        value = value[part]
    return float(value)
