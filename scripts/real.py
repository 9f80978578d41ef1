"""The recipe on a real model and real data, step by step, a process for each; see scripts/real.

    scripts/real --data DIR                          seed 1, every step of experiment=smollm2
    scripts/real --data DIR --seeds 1,2,3            three seeds, one after the other
    scripts/real --data DIR --steps benchmarks       one step, such as the public sets in DIR/evals (extra eval)
    scripts/real --data DIR --model /my/model        another model; without --model, SmolLM2-135M-Instruct is fetched
    scripts/real --rule                              the ten-minute proof: PPO against a rule, with prompts of its own
    scripts/real --report                            docs/real.md from what the runs left

DIR has the files that conf/data/real.yaml names. Whatever else is given is an override, such as sft.lora.rank=0.
"""

import argparse
import os
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path

from real_report import write_page
from smollm2 import CONSOLE, make_folder

from rlhf_lightning.runs.files import read_json, write_json

ROOT = Path(__file__).resolve().parent.parent
STEPS = ("sft", "judge", "reward", "ppo", "ppo_ptx", "evaluate")
RULE_STEPS = ("ppo", "evaluate")
EXAMPLES = ROOT / "scripts" / "examples"
StepRunner = Callable[[Sequence[str], Path], tuple[int, int]]
USAGE = "usage.json"
"""Seconds of every start of a step, over interruptions, and the most memory that one of them took, in KiB."""


def run_step(overrides: Sequence[str], folder: Path) -> tuple[int, int]:
    """Run the command line in a process of its own; its status, and the most memory that it held, in KiB."""
    # After the download nothing reaches for the network.
    environment = os.environ | {
        "HF_HUB_OFFLINE": "1",
        "PYTHONPATH": os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")])),
    }
    process = subprocess.Popen([sys.executable, "-m", "rlhf_lightning", *overrides], cwd=folder, env=environment)
    while True:
        try:
            _, status, used = os.wait4(process.pid, 0)
        except KeyboardInterrupt:  # the step has got it too, and ends in order
            continue
        process.returncode = os.waitstatus_to_exitcode(status)
        return process.returncode, used.ru_maxrss // (1024 if sys.platform == "darwin" else 1)


def run_steps(
    run: Path, steps: Sequence[str], overrides: Sequence[str], folder: Path, step_of: StepRunner = run_step
) -> None:
    """Run the steps of one seed, and note how long each took.

    Args:
        run: The run's folder.
        steps: The steps.
        overrides: Of the command line, but for those that say which step and run.
        folder: The working directory.
        step_of: What runs one step, as `run_step`.

    Raises:
        SystemExit: When a step ends with an error, which it has said itself.
    """
    for number, step in enumerate(steps, 1):
        CONSOLE.print(f"{run.name}: {step}, step {number} of {len(steps)}")
        start = time.monotonic()
        status, memory = step_of(
            [*overrides, f"stages=[{step}]", f"run={run.name}", f"paths.runs={run.parent}"], folder
        )
        note(run / USAGE, step, time.monotonic() - start, memory)
        if status:
            raise SystemExit(status)


def note(file: Path, step: str, seconds: float, memory: int) -> None:
    """Add what a start of a step took; the start of one that is complete already takes seconds, and is not noted."""
    usage = read_json(file) if file.exists() else {}
    stage = read_json(path) if (path := file.parent / step / "stage.json").exists() else {}
    made = stage.get("fingerprint")
    before = usage.get(step)
    if before is None or (before.get("made") or made) != made:  # overwrite=true has begun anew
        before = {"seconds": 0.0, "memory": 0, "complete": False}
    if before["complete"]:
        return
    usage[step] = {
        "seconds": round(before["seconds"] + seconds, 1),
        "memory": max(before["memory"], memory),
        "complete": stage.get("status") == "complete",
        "made": made,
    }
    file.parent.mkdir(parents=True, exist_ok=True)
    write_json(file, usage)


def main(arguments: Sequence[str] | None = None, step_of: StepRunner = run_step) -> None:
    """Run what the arguments say.

    Args:
        arguments: Those of the command line; None reads them.
        step_of: What runs one step, as `run_step`.
    """
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, default=os.environ.get("REAL_DATA"), help="folder of data (REAL_DATA)")
    parser.add_argument("--model", type=Path, help="folder of a model, in place of SmolLM2-135M-Instruct")
    parser.add_argument("--source", choices=["any", "hub", "package"], default="any", help="where the model comes from")
    parser.add_argument("--seeds", default="1", help="numbers with commas")
    parser.add_argument("--steps", help="names with commas; " + ", ".join(STEPS))
    parser.add_argument("--rule", action="store_true", help="experiment=rule, in place of experiment=smollm2")
    parser.add_argument("--runs", type=Path, default=ROOT / "runs", help="folder of the runs")
    parser.add_argument("--report", action="store_true", help="write docs/real.md, and run nothing")
    parser.add_argument("--page", type=Path, default=ROOT / "docs" / "real.md", help="the page that --report writes")
    options, overrides = parser.parse_known_args(arguments)
    if odd := [word for word in overrides if "=" not in word]:
        parser.error(f"{odd[0]} is neither an option nor an override such as sft.lora.rank=0.")
    name, runs = "rule" if options.rule else "smollm2", options.runs.resolve()
    if options.report:
        CONSOLE.print(write_page(runs, options.page))
        return
    data = EXAMPLES if options.rule else options.data and Path(options.data).resolve()
    if data is None or not data.is_dir():
        parser.error(f"--data {options.data}: name the folder that has the files of conf/data/real.yaml.")
    model = options.model.resolve() if options.model else make_folder(ROOT / ".models" / "smollm2", options.source)
    common = [f"experiment={name}", f"model.path={model}", f"data.root={data}"]
    common += ["ppo.reward=rules:fifteen_words"] if options.rule else []
    steps = options.steps.split(",") if options.steps else RULE_STEPS if options.rule else STEPS
    for seed in options.seeds.split(","):
        run = runs / f"{name}_seed{seed}"
        run_steps(run, steps, [*common, f"seed={seed}", *overrides], EXAMPLES if options.rule else ROOT, step_of)


if __name__ == "__main__":
    main()
