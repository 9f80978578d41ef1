"""The command line: composes the configuration, builds what it describes, runs the pipeline."""

import ctypes
import logging
import math
import os
import platform
import signal
import sys
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import hydra
import torch
from hydra._internal import hydra as engine
from hydra._internal import utils as engine_errors
from hydra._internal.utils import get_args_parser
from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig, OmegaConf
from rich.console import Console
from transformers.utils import logging as transformers_logging

from rlhf_lightning.cli.configuration import CONFIG_DIR, CheckedConfigs, keep_secrets, places, resolved
from rlhf_lightning.cli.errors import print_stopped, print_waiting, report
from rlhf_lightning.cli.slurm import join_srun
from rlhf_lightning.cli.sweep import WAITING, check_started, is_sweep, record_job, runs_of
from rlhf_lightning.evaluation.metadata_table import table_3_table
from rlhf_lightning.evaluation.tables import EVALUATE, closing_table, sample_view
from rlhf_lightning.parallel.processes import init_process_group, rank
from rlhf_lightning.recipe.legend import run_legend
from rlhf_lightning.recipe.pipeline import RECIPE, Pipeline
from rlhf_lightning.recipe.rounds import ROUNDS, metric_paths
from rlhf_lightning.recipe.settings import setting_faults
from rlhf_lightning.recipe.shared import run_sharing
from rlhf_lightning.runs.errors import WaitingError
from rlhf_lightning.runs.folders import PipelineError
from rlhf_lightning.runs.jobs import BEGUN, COMPLETE, FAILED, WAITS
from rlhf_lightning.runs.secrets import remember_secrets
from rlhf_lightning.runs.shared_disk import check_shared
from rlhf_lightning.runs.targets import builder


class MetricError(PipelineError):
    """All steps came to their end, and what is optimized is no number."""


class NoMetricError(MetricError):
    """All steps came to their end, and none of them measured what is optimized; nor would another job's."""


Objectives = float | list[float] | None
"""What a sweeper optimizes: the metrics that ``optimized_metric`` names, one or several."""


def run(config: DictConfig) -> Objectives:
    """Run the pipeline that a composed configuration describes; returns ``optimized_metric``."""
    _keep_freed_memory()
    join_srun(os.environ)
    plain = resolved(config)
    remember_secrets(OmegaConf.to_container(config), plain)
    if faults := setting_faults(plain, RECIPE, plain.get("allowed_targets") or []):
        raise PipelineError("\n".join(faults))
    hydra_config: Any = HydraConfig.instance().cfg
    check_started(plain, hydra_config)
    check_processes(plain["trainer"], int(os.environ.get("WORLD_SIZE", "1")), is_sweep(hydra_config))
    processes = init_process_group(
        gpu=plain["trainer"].get("accelerator", "auto") in ("gpu", "cuda", "auto") and torch.cuda.is_available()
    )
    console = Console(quiet=rank() != 0)
    if not console.is_terminal and "COLUMNS" not in os.environ:
        console.width = 120  # a file or a pipe has none of its own
    runs = runs_of(plain, hydra_config)
    if processes > 1:
        check_shared(runs.root)
    transformers_logging.disable_progress_bar()
    logging.getLogger("lightning.pytorch").setLevel(logging.WARNING)
    pipeline = Pipeline(plain, builder(plain["allowed_targets"]), runs, console)
    if plain["plan"]:
        pipeline.plan()
        return None
    metrics = run_sharing(pipeline)
    record_job(config, hydra_config, BEGUN, upstream=pipeline.runs.upstream)
    if EVALUATE in metrics:
        legend = run_legend(RECIPE, plain)
        if evaluated := pipeline.runs.of_round(plain[ROUNDS]).find(EVALUATE):
            console.print(sample_view(evaluated / "samples.json", legend))
        console.print(
            *filter(None, (table_3_table(metrics[EVALUATE], legend), closing_table(metrics[EVALUATE], legend)))
        )
    return _optimized(metrics, plain)


def check_processes(trainer: Mapping[str, Any], started: int, sweeping: bool) -> None:
    """Refuse several devices without a process for each: Lightning would start the whole command again for them.

    Args:
        trainer: The group of that name.
        started: Processes that run this command.
        sweeping: Whether this is a job of a multirun.

    Raises:
        PipelineError: Saying how to start them.
    """
    devices = trainer.get("devices", "auto")
    each = len(devices) if isinstance(devices, list) else devices
    each = int(each) if isinstance(each, str) and each.isdecimal() else each  # as Lightning reads it
    nodes = trainer.get("num_nodes", 1)
    if isinstance(nodes, int) and nodes < 1:
        raise PipelineError(f"trainer.num_nodes={nodes} must be at least 1: the machines that torchrun starts it on.")
    needed = each * int(nodes) if isinstance(each, int) else None
    if sweeping and (started > 1 or needed != 1):
        raise PipelineError(
            f"trainer.devices={devices} cannot be used in a multirun: every process would start the sweep again. Run "
            "each job by torchrun, or sweep with trainer.devices=1."
        )
    if needed != started:
        several = f" with trainer.num_nodes={nodes}" if nodes != 1 else ""
        run = "1 runs" if started == 1 else f"{started} run"
        how = "torchrun --nproc-per-node=<devices> -m rlhf_lightning trainer=ddp ..."
        raise PipelineError(
            f"trainer.devices={devices}{several} needs {needed if needed and needed > 0 else 'a number of'} "
            f"process{'es' * (needed != 1)}, and {run} this command. Start one per device, and trainer=ddp or fsdp "
            f"counts them: {'srun rlhf trainer=slurm ...' if 'SLURM_PROCID' in os.environ else how}"
        )


def main() -> None:
    """Entry point of ``rlhf``."""
    arguments, _ = get_args_parser().parse_known_args()
    if arguments.experimental_rerun is not None:
        sys.exit("rlhf: --experimental-rerun reads a pickle, which may run anything. Give the overrides again.")
    keep_secrets()
    remember_secrets(*sys.argv[1:])
    vars(engine)["ConfigLoaderImpl"] = CheckedConfigs
    vars(engine_errors)["run_and_report"] = _call  # what is said of errors is ours, see `report`
    try:
        _main()
    except KeyboardInterrupt as stop:
        sys.exit(_stopped(stop))
    except Exception as error:
        report(error)
        sys.exit(1)


def _call(function: Callable[[], Any]) -> Any:
    return function()


@hydra.main(version_base="1.3", config_path=str(CONFIG_DIR), config_name="config")
def _main(config: DictConfig) -> Objectives:
    """Run a job; in a sweep one that fails is said in the table at the end, and the others go on."""
    hydra_config: Any = HydraConfig.instance().cfg
    record = partial(record_job, config, hydra_config)
    try:
        record(BEGUN)
        value = run(config)
        record(COMPLETE)
        return value
    except SystemExit as stop:
        if isinstance(stop.__context__, KeyboardInterrupt):  # as Lightning's trainer ends
            sys.exit(_stopped(stop))
        raise
    except Exception as error:
        if isinstance(error, WaitingError):
            print_waiting(error)
            if not is_sweep(hydra_config):
                sys.exit(WAITING)
            record(WAITS, str(error))
            return None
        said = report(error, _run_folder(config, hydra_config))
        try:
            record(FAILED, said, reached=isinstance(error, MetricError))
        except Exception:  # nothing can be written below the folder of all runs
            sys.exit(1)
        if not is_sweep(hydra_config) or not config.keep_going or isinstance(error, NoMetricError):
            sys.exit(1)
        return None  # of which Optuna makes a failed trial; it breaks off at a number that is none


def _run_folder(config: DictConfig, hydra_config: Any) -> Path | None:
    """The folder of a run that could not go on, where its settings say one."""
    try:
        runs = runs_of(places(config), hydra_config)
    except Exception:
        return None
    return runs.root / runs.run


def _stopped(stop: BaseException) -> int:
    """Say where a run goes on that was stopped from the keyboard; returns the exit code of such a command."""
    where = (
        getattr(stop, "__notes__", None) or getattr(stop.__context__, "__notes__", None) or ["before the first step"]
    )
    print_stopped(where[0])
    return 128 + signal.SIGINT


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


def _optimized(metrics: Mapping[str, Any], config: Mapping[str, Any]) -> Objectives:
    found = [_metric(metrics, path) for path in metric_paths(config)]
    return found if isinstance(config["optimized_metric"], list) else found[0] if found else None


def _metric(metrics: Mapping[str, Any], path: str) -> float:
    value: Any = metrics
    for part in path.split("."):
        if not isinstance(value, Mapping) or part not in value:
            raise NoMetricError(f"optimized_metric={path} is not among the metrics; {part!r} is not in {list(value)}.")
        value = value[part]
    if not isinstance(value, int | float) or not math.isfinite(value):
        raise MetricError(f"optimized_metric={path} is {value!r}, which a sweeper cannot compare. Name a number.")
    return float(value)
