"""One writer at a time: the lock of a folder that is being made."""

import json
import os
import socket
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from datetime import datetime
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from rlhf_lightning.parallel.processes import on_rank_zero
from rlhf_lightning.runs.errors import PipelineError
from rlhf_lightning.runs.files import write_json
from rlhf_lightning.runs.places import real_folder, writable

LOCKS = ".locks"
"""Beside the folders that are locked, so that a folder that is moved away leaves its lock where it is."""
_GLANCE, _PARTING = 2.0, 20.0
"""Seconds that a look into a finished step takes at most, and the children of a killed process to end."""


@contextmanager
def being_made(folder: Path, wait: float = _GLANCE) -> Iterator[None]:
    """Keep all other processes from a folder until the block ends; of several processes the first one locks for all.

    The lock is the operating system's (``flock``, on Windows ``msvcrt``), so it goes with its process, however that
    ends. On a file system without such locks filelock of today falls back to a file that names host and process: one
    that is gone from this host is recognised; after a crash of another host, delete the file that the message names.

    Args:
        folder: The folder; where it is a link, what it points at is locked.
        wait: Seconds to wait for another process.

    Raises:
        PipelineError: In all processes, when another one is at work there, which it names, or nothing can be written.
    """
    with ExitStack() as held:

        def lock() -> None:
            held.enter_context(locked(folder, wait))

        on_rank_zero(lock)
        yield


@contextmanager
def locked(folder: Path, wait: float, say: Callable[[str], None] | None = None) -> Iterator[None]:
    """The same for this process alone.

    Args:
        folder: As for `being_made`.
        wait: As for `being_made`; with `say` the seconds between two lines.
        say: Says who holds the lock while this process waits for as long as that takes; None does not wait on.
    """
    real = real_folder(folder)
    place = real.parent / LOCKS / real.name
    holder = place.with_name(place.name + ".json")
    lock = FileLock(place.with_name(place.name + ".lock"))
    with writable(folder):
        place.parent.mkdir(parents=True, exist_ok=True)
        _acquire(lock, wait, holder, folder, say)
    try:
        now = datetime.now().strftime("%Y-%m-%d %H:%M")
        write_json(holder, {"process": os.getpid(), "host": socket.gethostname(), "since": now})
        yield
    finally:
        holder.unlink(missing_ok=True)
        lock.release()


def _acquire(lock: FileLock, wait: float, holder: Path, folder: Path, say: Callable[[str], None] | None) -> None:
    begun = time.monotonic()
    try:
        while not _acquired(lock, wait, holder):
            first = _named(holder)
            who = "process {process} on host {host} since {since}".format(**first) if first else "another process"
            made = f"{folder} is being made by {who} (locked by {lock.lock_file})"
            if say is None:
                raise PipelineError(f"{made}; wait for it, or name another run=<name>.")
            say(f"waiting for {(time.monotonic() - begun) / 60:.0f} min: {made}")
    except NotImplementedError as error:
        raise PipelineError(
            f"{folder} is on a file system without locks ({error}), so two processes could not be kept apart. Set "
            "paths.runs to a folder on another one."
        ) from error


def _acquired(lock: FileLock, wait: float, holder: Path) -> bool:
    """Whether the lock could be had; the children of a process that has ended hold what it held, and end soon too."""
    for seconds in (wait, _PARTING):
        with suppress(Timeout):
            lock.acquire(timeout=seconds)
            return True
        if not _ended(_named(holder)):
            break
    return False


def _named(holder: Path) -> dict[str, Any]:
    """Who holds a lock, as far as that can be read."""
    try:
        first: Any = json.loads(holder.read_bytes())
    except (OSError, ValueError):
        return {}
    return first if isinstance(first, dict) and first.keys() >= {"process", "host", "since"} else {}


def _ended(first: dict[str, Any]) -> bool:
    """Whether the process that locked is one of this host and has ended."""
    if not first or first["host"] != socket.gethostname() or os.name == "nt":
        return False
    try:
        os.kill(int(first["process"]), 0)
    except ProcessLookupError:
        return True
    except OSError:
        return False
    return False
