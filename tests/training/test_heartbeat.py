"""In a file or a pipe a line comes after so many seconds of silence, whatever the run does; in a terminal, none."""

import io
import os
import re
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
from rich.console import Console

from rlhf_lightning.training.heartbeat import Heartbeat
from rlhf_lightning.training.progress import progress_bar


def console() -> Console:
    return Console(file=io.StringIO(), width=120)


def lines(of: Console) -> list[str]:
    assert isinstance(of.file, io.StringIO)
    return of.file.getvalue().splitlines()


def threads() -> list[str]:
    return [thread.name for thread in threading.enumerate() if thread.name == "heartbeat"]


def test_silence_is_filled_with_what_is_being_done() -> None:
    heartbeat = Heartbeat(console(), interval=0.05)
    with heartbeat.beating():
        heartbeat.note("working", "reward")
        time.sleep(0.12)
        with heartbeat.during("loading [base]"):
            time.sleep(0.12)
        time.sleep(0.12)
    said = [re.sub(r"\d+ s so far", "N s so far", line) for line in lines(heartbeat.console)]
    assert set(said) == {"reward    working, N s so far", "reward    loading [base], N s so far"}
    assert said[0] == said[-1] != said[len(said) // 2]
    assert threads() == []


def test_whoever_prints_is_not_interrupted() -> None:
    heartbeat = Heartbeat(console(), interval=0.3)
    with heartbeat.beating():
        for _ in range(8):
            time.sleep(0.05)
            heartbeat.console.print("a line")
    assert set(lines(heartbeat.console)) == {"a line"}


@pytest.mark.parametrize("quiet", [True, False])
def test_a_terminal_and_other_processes_hear_nothing(quiet: bool) -> None:
    output = io.StringIO()
    heartbeat = Heartbeat(Console(file=output, force_terminal=not quiet, quiet=quiet), interval=0.01)
    with heartbeat.beating():
        assert threads() == []
        time.sleep(0.05)
    assert output.getvalue() == ""


def test_the_line_says_how_far_a_bar_is_and_how_long_it_will_take(monkeypatch: pytest.MonkeyPatch) -> None:
    heartbeat = Heartbeat(console(), interval=0.05)
    now = [1000.0]
    monkeypatch.setattr("rlhf_lightning.training.heartbeat.time.monotonic", lambda: now[0])
    with progress_bar(heartbeat, "ppo", 50, completed=10) as (bar, task):
        now[0] += 60
        assert heartbeat.words() == "10/50 done, 1.0 min so far"
        bar.update(task, completed=14, figures="score 0.5  KL 1.2")
        # 4 of the 40 that were left took a minute, and 36 are left.
        assert heartbeat.words() == "14/50 done, score 0.5  KL 1.2, 1.0 min so far, about 9.0 min left"
        with heartbeat.during("loading judge"):
            now[0] += 7
            assert heartbeat.words() == "loading judge, 7 s so far"
    with progress_bar(heartbeat, "curate", None, figures="near copies") as (bar, task):
        bar.advance(task, 14)
        assert heartbeat.words() == "14 done, near copies, 0 s so far"


def test_errors_end_it_too() -> None:
    heartbeat = Heartbeat(console(), interval=0.05)
    for error in (ValueError, KeyboardInterrupt, SystemExit):
        with pytest.raises(error), heartbeat.beating(), heartbeat.during("loading"):
            raise error
        assert threads() == []
        assert heartbeat.words().startswith("starting")
    heartbeat.console.print("after")
    assert lines(heartbeat.console) == ["after"]


SLOW = """
import signal, sys, time
from dataclasses import dataclass
from pathlib import Path
from rlhf_lightning.cli import composed
from rlhf_lightning.recipe import pipeline
from rlhf_lightning.recipe.stage import Stage
from rlhf_lightning.runs.folders import Runs
from rlhf_lightning.runs.targets import builder
from rlhf_lightning.training import heartbeat

heartbeat.INTERVAL = 0.2

@dataclass(frozen=True)
class Slow(Stage):
    def parents(self, context):
        return {}
    def models(self, context):
        return {}
    def run(self, context, folder):
        context.say(self.name, "begins")
        time.sleep(float(sys.argv[2]))
        return {}

config = {**composed([]), "stages": ["slow"], "slow": {}}
signal.signal(signal.SIGINT, signal.default_int_handler)  # a job in the background of a shell ignores it
recipe = (*pipeline.RECIPE, Slow("slow", "Slow", "#000000"))
pipeline.Pipeline(config, builder([]), Runs(Path(sys.argv[1]), "run"), recipe=recipe).run()
"""


@pytest.mark.slow
@pytest.mark.parametrize(("seconds", "interrupt"), [("1.5", False), ("60", True)])
def test_a_slow_step_is_heard_through_a_pipe_and_ends_cleanly(tmp_path: Path, seconds: str, interrupt: bool) -> None:
    environment = {**os.environ, "COLUMNS": "120", "PYTHONPATH": str(Path(__file__).parents[2])}
    process = subprocess.Popen(
        [sys.executable, "-u", "-c", SLOW, str(tmp_path), seconds],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment,
    )  # fmt: skip
    assert process.stdout is not None
    heard = [line for line, _ in zip(process.stdout, range(4), strict=False)]
    if interrupt:
        process.send_signal(signal.SIGINT)
    rest, errors = process.communicate(timeout=60)
    assert any("slow      begins" in line for line in heard)
    assert sum("slow      working, " in line for line in heard) >= 2
    assert ("done in" in rest) == (not interrupt)
    # Python's own of Ctrl-C, unless a library runs code at exit.
    assert process.returncode in ((1, -signal.SIGINT) if interrupt else (0,))
    assert "Fatal" not in errors
    assert ("KeyboardInterrupt" in errors) == interrupt
