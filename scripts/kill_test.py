"""Kills training at random moments with SIGKILL, starts it again, and compares what comes out with an unbroken run.

    python scripts/kill_test.py                 20 kills each of sft, reward and ppo_ptx
    python scripts/kill_test.py reward --kills 5

A quarter of the kills wait until a checkpoint is being written. Equal means: every exported weight, byte for byte, and
every figure in metrics.csv but the timings. The figures go to docs/kill_test.json; exit code 1 where a run differs.
"""

import argparse
import datetime
import os
import platform
import random
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path

from rich.console import Console
from rich.progress import track
from rich.table import Table

from rlhf_lightning.artifacts import git_commit, read_metrics, read_stage, write_json

ROOT = Path(__file__).resolve().parent.parent
SMALL = (
    "model.size=small",
    "data.source.demonstrations=400",
    "data.source.prompts=700",
    "data.source.text=200",
    "data.source.validation=40",
    "collect.prompts={train: 300, validation: 20}",
    "sft.fit.checkpoint_every=1",
    "reward.fit.checkpoint_every=1",
    "ppo_ptx.data={batch_size: 16, num_batches: 16, text_batch_size: 8}",
    "ppo_ptx.module.kl_target=2",
    "ppo_ptx.module.kl_horizon=200",
)
"""Overrides that make every stage last some seconds and save after every batch; the KL coefficient adapts."""
STAGES = ("sft", "reward", "ppo_ptx")


def start(runs: Path, run: str, *stages: str) -> subprocess.Popen[bytes]:
    """A process that makes some stages; one thread, so that sums are always taken in the same order."""
    command = [sys.executable, "-m", "rlhf_lightning", f"stages=[{','.join(stages)}]", f"run={run}", "upstream=base"]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", "PYTHONPATH": str(ROOT)}
    with (runs / f"{run}.log").open("a") as log:
        return subprocess.Popen([*command, f"paths.runs={runs}", *SMALL], stdout=log, stderr=log, env=environment)


def finish(runs: Path, run: str, *stages: str) -> float:
    """Make some stages to their end; returns the seconds that the last one took."""
    process = start(runs, run, *stages)
    wait_for(runs / run / stages[-1] / "stage.json", process)
    begun = time.monotonic()
    if process.wait() != 0:
        tail = (runs / f"{run}.log").read_text()[-2000:]
        raise SystemExit(f"run {run} ended with exit code {process.returncode}:\n{tail}")
    return time.monotonic() - begun


def wait_for(path: Path, process: subprocess.Popen[bytes]) -> None:
    """Wait until a file exists or the process has ended."""
    while not path.exists() and process.poll() is None:
        time.sleep(0.0005)


def kill(runs: Path, run: str, stage: str, after: float, in_write: bool) -> bool:
    """Start a stage and kill it so many seconds after it began; whether it was still at work."""
    process = start(runs, run, stage)
    folder = runs / run / stage
    wait_for(folder / "stage.json", process)
    time.sleep(after)
    if in_write:
        wait_for(folder / "checkpoints" / "last.unfinished", process)
    process.kill()
    process.wait()
    return read_stage(folder)["status"] != "complete"


def trial(runs: Path, stage: str, seconds: float, number: int) -> dict[str, object]:
    """Kill a run of a stage, start it again, and compare it with the unbroken run."""
    moments = random.Random(f"{stage}/{number}")
    in_write = number % 4 == 3
    for attempt in range(10):
        run, after = f"{stage}_{number}_{attempt}", moments.uniform(0, seconds)
        if kill(runs, run, stage, after, in_write):
            break
    else:
        raise SystemExit(f"{stage} ended before it was killed, ten times; its {seconds:.1f} s are too few.")
    torn = (runs / run / stage / "checkpoints" / "last.unfinished").exists()
    steps = read_metrics(runs / run / stage / "metrics.csv")[-1]["step"] + 1 if reached(runs, run, stage) else 0
    finish(runs, run, stage)
    differing = differences(runs / f"{stage}_whole" / stage, runs / run / stage)
    return {"stage": stage, "killed_after_s": round(after, 2), "steps": steps, "torn": torn, "differing": differing}


def reached(runs: Path, run: str, stage: str) -> bool:
    """Whether the run had logged a step."""
    path = runs / run / stage / "metrics.csv"
    return path.exists() and bool(read_metrics(path))


def differences(whole: Path, broken: Path) -> list[str]:
    """Exported weights that are not the same bytes, and metrics that are not the same numbers."""
    weights = [path.relative_to(whole) for path in whole.rglob("*.safetensors")]
    if not weights:
        raise SystemExit(f"{whole} holds no weights to compare.")
    differing = [str(path) for path in weights if (whole / path).read_bytes() != (broken / path).read_bytes()]
    figures = [
        [{name: value for name, value in row.items() if not name.startswith("time/")} for row in read_metrics(path)]
        for path in (whole / "metrics.csv", broken / "metrics.csv")
    ]
    return differing + ([] if figures[0] == figures[1] else ["metrics.csv"])


def main() -> None:
    """Every stage in turn, two trials at a time."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("stages", nargs="*", default=STAGES, choices=STAGES, metavar="stage")
    parser.add_argument("--kills", type=int, default=20, help="of every stage")
    wanted = parser.parse_args()
    console, trials = Console(), []
    with tempfile.TemporaryDirectory(prefix="kill-test-") as folder, ThreadPoolExecutor(2) as pool:
        runs = Path(folder)
        console.print("making what the stages start from")
        finish(runs, "base", "sft", "collect", "reward")
        for stage in wanted.stages:
            seconds = finish(runs, f"{stage}_whole", stage)
            jobs = pool.map(partial(trial, runs, stage, seconds), range(wanted.kills))
            trials += list(track(jobs, f"{stage:<8}", total=wanted.kills, console=console))
    table = Table("stage", "kills", "after, s", "steps done", "in a checkpoint's write", "same to the bit")
    for stage in wanted.stages:
        own = [row for row in trials if row["stage"] == stage]
        after, steps = [row["killed_after_s"] for row in own], [row["steps"] for row in own]
        same = sum(not row["differing"] for row in own)
        spread = (f"{min(values)} .. {max(values)}" for values in (after, steps))
        table.add_row(stage, str(len(own)), *spread, str(sum(row["torn"] for row in own)), f"{same} of {len(own)}")
    console.print(table)
    facts = {"date": str(datetime.date.today()), "machine": f"{os.cpu_count()} cores, {platform.processor()}"}
    write_json(ROOT / "docs" / "kill_test.json", facts | {"commit": git_commit(), "trials": trials})
    sys.exit(any(row["differing"] for row in trials))


if __name__ == "__main__":
    main()
