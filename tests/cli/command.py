"""Runs the command `rlhf` many times quickly: every one is forked from a process that has imported it."""

import multiprocessing
import os
import signal
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

PROCESSES = multiprocessing.get_context("forkserver")
PROCESSES.set_forkserver_preload(["rlhf_lightning.cli", "rlhf_lightning.sandbox.data", "peft"])


class Said(NamedTuple):
    code: int | None
    text: str


def _rlhf(arguments: Sequence[str], folder: Path, written: Path, environment: Mapping[str, str]) -> None:
    signal.signal(signal.SIGINT, signal.default_int_handler)
    os.chdir(folder)
    os.environ.update(environment)
    with written.open("w") as file, Path(os.devnull).open() as nothing:
        os.dup2(nothing.fileno(), 0)
        os.dup2(file.fileno(), 1)
        os.dup2(file.fileno(), 2)
    sys.argv = ["rlhf", *arguments]
    own = environment.get("PYTHONPATH", "").split(os.pathsep)
    sys.path[:] = [path for path in (*own, *sys.path) if path]  # as for a console script
    from rlhf_lightning.cli import main

    main()


def start(arguments: Sequence[str], folder: Path, written: Path, environment: Mapping[str, str] | None = None):
    """The command as a process of its own; what it prints goes to a file."""
    quiet = {"HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1", "COLUMNS": "100000", "NO_COLOR": "1"}
    process = PROCESSES.Process(target=_rlhf, args=(arguments, folder, written, {**quiet, **(environment or {})}))
    process.start()
    return process


def rlhf(
    arguments: Sequence[str], folder: Path, limit: float = 60, environment: Mapping[str, str] | None = None
) -> Said:
    """Run the command to its end; the code is None where it ran past the limit in seconds."""
    written = folder.parent / f"{folder.name}.said"
    process = start(arguments, folder, written, environment)
    process.join(limit)
    late = process.is_alive()
    process.kill()
    process.join()
    return Said(None if late else process.exitcode, written.read_text(errors="replace"))
