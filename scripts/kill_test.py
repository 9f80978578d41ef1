"""Kills steps at random moments with SIGKILL, starts them again, and compares what comes out with an unbroken run.

    python scripts/kill_test.py                 20 kills each of every step
    python scripts/kill_test.py reward --kills 5

Where a step trains, three quarters of the kills come at a moment drawn evenly over its batches, with what comes before
and after them; the others wait until a checkpoint is being written. Other steps are killed at a moment drawn evenly
over their seconds. Same to the bit means: every exported weight, every record and every sample, byte for byte, every
figure in metrics.csv but the timings. The figures go to docs/kill_test.json; exit code 1 where a run differs.

Every run is a process of its own, forked from one that has imported the package and done nothing else.
"""

import argparse
import datetime
import multiprocessing
import os
import random
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Any
from zipfile import is_zipfile

from rich.console import Console
from rich.progress import track
from rich.table import Table

from rlhf_lightning.runs.files import read_metrics, write_json
from rlhf_lightning.runs.folders import is_complete
from rlhf_lightning.runs.identity import git_commit, processor
from rlhf_lightning.runs.signals import ended_by_signals

ROOT = Path(__file__).resolve().parent.parent
TRAINING = ("sft", "reward", "ppo", "ppo_ptx")
STAGES = (*TRAINING, "collect", "evaluate", "curate")
NEEDED = {
    "sft": (),
    "curate": (),
    "collect": ("sft",),
    "reward": ("sft", "collect"),
    "ppo": ("sft", "collect", "reward"),
}
NEEDED["ppo_ptx"] = NEEDED["evaluate"] = NEEDED["ppo"]
EPISODES = "batch_size: 16, num_batches: 16"
SMALL = (
    "model.size=small",
    "data.source.demonstrations=400",
    "data.source.prompts=700",
    "data.source.text=200",
    "data.source.validation=40",
    "collect={prompts: {train: 300, validation: 20}, sampling: {batch_size: 32}}",
    "evaluate={policies: [base, sft], num_prompts: 200, num_texts: 20, batch_size: 32}",
    "sft.residual_dropout=0.2",
    *(f"{stage}.fit.{count}_every=1" for stage in ("sft", "reward") for count in ("checkpoint", "log")),
    f"ppo.data={{{EPISODES}}}",
    f"ppo_ptx.data={{{EPISODES}, text_batch_size: 8}}",
    *(f"{stage}.module.{option}" for stage in ("ppo", "ppo_ptx") for option in ("kl_target=2", "kl_horizon=200")),
)
"""Overrides that make every stage last some seconds and save after every batch; the KL coefficient adapts."""
PROCESSES = multiprocessing.get_context("forkserver")
OVER = threading.Event()
"""Set when no further run may start."""


@contextmanager
def ending_runs() -> Iterator[None]:
    """Within the block signals end the test, and with it whatever runs."""
    try:
        with ended_by_signals():
            yield
    finally:
        OVER.set()
        for process in multiprocessing.active_children():
            process.kill()


def rlhf(log: Path, arguments: list[str]) -> None:
    """The command of that name, with what it prints in a file."""
    with log.open("a") as file:
        os.dup2(file.fileno(), 1)
        os.dup2(file.fileno(), 2)
    sys.argv = ["rlhf", *arguments]
    from rlhf_lightning.cli import main

    main()


def start(runs: Path, run: str, *stages: str) -> Any:
    """A process that makes some stages."""
    if OVER.is_set():
        raise SystemExit("the test was ended.")
    named = f"stages=[{','.join(stages)}]"
    arguments = [named, f"run={run}", "upstream=base", f"paths.runs={runs}", *SMALL]
    process = PROCESSES.Process(target=rlhf, args=(runs / f"{run}.log", arguments))
    process.start()
    return process


def finish(runs: Path, run: str, *stages: str) -> float:
    """Make some stages to their end; returns the seconds that the last one took."""
    process = start(runs, run, *stages)
    wait_for(runs / run / stages[-1] / "stage.json", process)
    begun = time.monotonic()
    process.join()
    if process.exitcode != 0:
        tail = (runs / f"{run}.log").read_text()[-2000:]
        raise SystemExit(f"run {run} ended with exit code {process.exitcode}:\n{tail}")
    return time.monotonic() - begun


def wait_for(path: Path, process: Any) -> None:
    """Wait until a file exists or the process has ended."""
    while not path.exists() and process.is_alive():
        time.sleep(0.0002)


def steps_done(metrics: Path) -> int:
    """How many steps of a run are logged."""
    last = metrics.read_text().rstrip().rpartition("\n")[2].partition(",")[0] if metrics.exists() else ""
    return int(last) + 1 if last.isdecimal() else 0


def kill(runs: Path, run: str, stage: str, moment: float, step: float, in_write: float | None) -> bool:
    """Kill a stage after so many steps and a part of one, or then in a write; whether it was at work."""
    process = start(runs, run, stage)
    folder = runs / run / stage
    wait_for(folder / "stage.json", process)
    while stage in TRAINING and steps_done(folder / "metrics.csv") < int(moment) and process.is_alive():
        time.sleep(0.001)
    time.sleep((moment % 1 if stage in TRAINING else moment) * step)
    if in_write is not None:
        wait_for(folder / "checkpoints" / "last.unfinished", process)
        time.sleep(in_write)
    process.kill()
    process.join()
    return not is_complete(folder)


def trial(runs: Path, stage: str, seconds: float, number: int) -> dict[str, Any]:
    """Kill a run of a stage, start it again, and compare it with the unbroken run."""
    moments = random.Random(f"{stage}/{number}")
    whole = runs / f"{stage}_whole" / stage
    # Seconds take the place of batches in steps that do not train.
    total = steps_done(whole / "metrics.csv") if stage in TRAINING else round(seconds, 2)
    in_write = moments.uniform(0, 0.01) if number % 4 == 3 and stage in TRAINING else None
    for attempt in range(10):
        run, moment = f"{stage}_{number}_{attempt}", moments.uniform(0, total + (stage in TRAINING))
        if kill(runs, run, stage, moment, seconds / total, in_write):
            break
    else:
        raise SystemExit(f"{stage} ended before it was killed, ten times; its {total} steps are too few.")
    folder = runs / run / stage
    unnamed = folder / "checkpoints" / "last.unfinished"
    found = {
        "stage": stage,
        "steps": steps_done(folder / "metrics.csv") if stage in TRAINING else round(moment, 2),
        "of": total,
        "unnamed_checkpoint": unnamed.exists(),
        "torn_checkpoint": unnamed.exists() and not is_zipfile(unnamed),
    }
    finish(runs, run, stage)
    return found | {"differing": differences(whole, folder)}


def differences(whole: Path, broken: Path) -> list[str]:
    """Weights, records and samples that are not the same bytes, and metrics that are not the same numbers."""
    patterns = ("*.safetensors", "*.jsonl", "samples.json")
    files = [path.relative_to(whole) for pattern in patterns for path in whole.rglob(pattern)]
    if not files:
        raise SystemExit(f"{whole} holds nothing to compare.")
    differing = [str(path) for path in files if (whole / path).read_bytes() != (broken / path).read_bytes()]
    if not (whole / "metrics.csv").exists():
        return differing
    figures = [
        [{name: value for name, value in row.items() if not name.startswith("time/")} for row in read_metrics(path)]
        for path in (whole / "metrics.csv", broken / "metrics.csv")
    ]
    return differing + ([] if figures[0] == figures[1] else ["metrics.csv"])


def machine() -> str:
    """The processor and its cores."""
    return f"{os.cpu_count()} cores, {processor()}"


def table_of(trials: list[dict[str, Any]]) -> Table:
    """One row per stage."""
    table = Table(
        "stage", "kills", "after batch or second", "before a checkpoint's rename", "of these torn", "same to the bit"
    )
    for stage in dict.fromkeys(row["stage"] for row in trials):
        own = [row for row in trials if row["stage"] == stage]
        steps = [row["steps"] for row in own]
        spread = f"{min(steps)} .. {max(steps)} of {own[0]['of']}"
        caught = (str(sum(row[name] for row in own)) for name in ("unnamed_checkpoint", "torn_checkpoint"))
        same = sum(not row["differing"] for row in own)
        table.add_row(stage, str(len(own)), spread, *caught, f"{same} of {len(own)}")
    return table


def main() -> None:
    """Every stage in turn, two trials at a time."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("stages", nargs="*", default=STAGES, metavar="stage", help=", ".join(STAGES))
    parser.add_argument("--kills", type=int, default=20, help="of every stage")
    parser.add_argument("--output", type=Path, default=ROOT / "docs" / "kill_test.json")
    wanted = parser.parse_args()
    if not set(wanted.stages) <= set(STAGES):
        parser.error(f"the stages are {', '.join(STAGES)}.")
    # One thread, so that sums are always taken in the same order.
    os.environ |= {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
    PROCESSES.set_forkserver_preload(["rlhf_lightning.cli"])
    console, trials, begun = Console(width=120), [], time.monotonic()
    with tempfile.TemporaryDirectory(prefix="kill-test-") as folder, ThreadPoolExecutor(2) as pool, ending_runs():
        runs = Path(folder)
        needed = {name for stage in wanted.stages for name in NEEDED[stage]}
        if needed:
            console.print("making what the stages start from")
            finish(runs, "base", *sorted(needed, key=("sft", "collect", "reward").index))
        for stage in wanted.stages:
            seconds = finish(runs, f"{stage}_whole", stage)
            jobs = pool.map(partial(trial, runs, stage, seconds), range(wanted.kills))
            trials += list(track(jobs, f"{stage:<8}", total=wanted.kills, console=console))
    console.print(table_of(trials))
    facts = {
        "date": str(datetime.date.today()),
        "machine": machine(),
        "torch": version("torch"),
        "commit": git_commit(),
        "minutes": round((time.monotonic() - begun) / 60, 1),
        "same": f"{sum(not row['differing'] for row in trials)} of {len(trials)}",
    }
    console.print(facts)
    write_json(wanted.output, facts | {"trials": trials})
    sys.exit(any(row["differing"] for row in trials))


if __name__ == "__main__":
    main()
