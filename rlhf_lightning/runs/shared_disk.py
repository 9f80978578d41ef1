"""Whether all machines of a run write to the same disk."""

import socket
import time
from pathlib import Path
from uuid import uuid4

from rlhf_lightning.parallel.processes import all_gather_objects, on_rank_zero
from rlhf_lightning.runs.errors import PipelineError

PATIENCE = 60.0
"""Seconds until a file that one machine wrote is seen on the others; network disks remember for half a minute."""


def check_shared(folder: Path, machine: str | None = None, patience: float = PATIENCE) -> None:
    """Make sure that a folder is the same in all processes, where they run on several machines.

    Args:
        folder: The folder of all runs.
        machine: The name of this process's machine; None asks the system.
        patience: Seconds to wait for what the first process wrote.

    Raises:
        PipelineError: Naming the machines that have another disk there.
    """
    machine = machine or socket.gethostname()
    if len(set(all_gather_objects(machine))) == 1:
        return
    mark = folder / on_rank_zero(lambda: _written(folder))
    end = time.monotonic() + patience
    while not mark.exists() and time.monotonic() < end:
        time.sleep(0.2)
    lacking = {name for name, seen in all_gather_objects((machine, mark.exists())) if not seen}
    on_rank_zero(lambda: _judged(mark, sorted(lacking)))


def _judged(mark: Path, lacking: list[str]) -> None:
    mark.unlink(missing_ok=True)
    if lacking:
        raise PipelineError(
            f"{mark.parent} is another folder on {', '.join(lacking)} than on the first machine; what one process "
            "makes the others read there. Set paths.runs to a folder on a disk that all machines share."
        )


def _written(folder: Path) -> str:
    folder.mkdir(parents=True, exist_ok=True)
    name = f".shared-{uuid4().hex}"
    (folder / name).touch()
    return name
