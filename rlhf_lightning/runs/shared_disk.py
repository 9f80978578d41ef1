"""Whether all processes of a run write to the same disk."""

import socket
import time
from pathlib import Path
from uuid import uuid4

from rlhf_lightning.parallel.processes import all_gather_objects, on_rank_zero, world_size
from rlhf_lightning.runs.errors import PipelineError

PATIENCE = 60.0
"""Seconds until a file that one machine wrote is seen on the others; network disks remember for half a minute."""


def check_shared(folder: Path, machine: str | None = None, patience: float = PATIENCE) -> None:
    """Make sure that a folder is the same in all processes, on whichever machines or in whichever containers they run.

    Args:
        folder: The folder of all runs.
        machine: The name of this process's machine; None asks the system.
        patience: Seconds to wait on other machines for what the first process wrote.

    Raises:
        PipelineError: Naming the machines that have another disk there, or the processes that have it on the first one.
    """
    if world_size() == 1:
        return
    machine = machine or socket.gethostname()
    mark, first = folder / on_rank_zero(lambda: _written(folder)), on_rank_zero(lambda: machine)
    end = time.monotonic() + (patience if machine != first else 0)
    while not mark.exists() and time.monotonic() < end:
        time.sleep(0.2)
    seen = all_gather_objects((machine, mark.exists()))
    lacking = [
        f"process {number} on {name}" if name == first else name
        for number, (name, there) in enumerate(seen)
        if not there
    ]
    on_rank_zero(lambda: _judged(mark, [*dict.fromkeys(lacking)]))


def _judged(mark: Path, lacking: list[str]) -> None:
    mark.unlink(missing_ok=True)
    if lacking:
        raise PipelineError(
            f"{mark.parent} is another folder for {', '.join(lacking)} than for the first process; what one process "
            "makes the others read there. Set paths.runs to a folder on a disk that all machines share."
        )


def _written(folder: Path) -> str:
    folder.mkdir(parents=True, exist_ok=True)
    name = f".shared-{uuid4().hex}"
    (folder / name).touch()
    return name
