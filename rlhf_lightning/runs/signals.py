"""SIGTERM and SIGHUP end a process as Ctrl-C does: in order, with its children, and with an exit code that says so."""

import os
import signal
import subprocess
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from types import FrameType
from typing import Any

SIGNALS = tuple(getattr(signal, name) for name in ("SIGTERM", "SIGHUP") if hasattr(signal, name))
"""What ends a process besides Ctrl-C; Windows has the first alone."""


class Ended(SystemExit):
    """A signal came; the exit code is the one that a shell has for it.

    Args:
        number: The signal.
    """

    def __init__(self, number: int) -> None:
        self.status, self.name = 128 + number, signal.Signals(number).name
        super().__init__(self.status)


@contextmanager
def handling(handler: Callable[[int, FrameType | None], None]) -> Iterator[None]:
    """Let a function handle the signals that end a process, within the block and in the main thread.

    What is ignored stays ignored: `nohup` does so with SIGHUP.
    """
    before: dict[int, Any] = {}
    try:
        if threading.current_thread() is threading.main_thread():
            for number in SIGNALS:
                if signal.getsignal(number) not in (signal.SIG_IGN, None):
                    before[number] = signal.signal(number, handler)
        yield
    finally:
        for number, old in before.items():
            signal.signal(number, old)


@contextmanager
def ended_by_signals() -> Iterator[None]:
    """Within the block the signals raise `Ended`, where Ctrl-C raises KeyboardInterrupt; handlers are put back."""
    came: list[int] = []

    def end(number: int, frame: FrameType | None) -> None:
        came.append(number)
        raise Ended(number)

    with handling(end):
        yield
    if came:  # raised where Python cannot pass it on, as in a finaliser
        raise Ended(came[0])


class Children:
    """Processes that end with this one: within the block, whatever ends it.

    Each has a session of its own, so that Ctrl-C comes to it once, as the SIGTERM that steps of the recipe end in order
    on. What still runs when the limit is over is killed, with what it started.

    Args:
        limit: Seconds that the children have to end.
    """

    def __init__(self, limit: float = 60.0) -> None:
        self.limit = limit
        self._running: list[subprocess.Popen[Any]] = []
        self._over = False
        self._lock = threading.Lock()
        self._signals = ExitStack()

    def __enter__(self) -> "Children":
        """Listen to signals."""
        self._signals.enter_context(ended_by_signals())
        return self

    def run(self, command: Sequence[Any], **options: Any) -> subprocess.CompletedProcess[Any]:
        """`subprocess.run` without `check`, from any thread.

        Raises:
            RuntimeError: When the block is over.
        """
        with self._lock:
            if self._over:
                raise RuntimeError(f"{command[0]} is not started: this process ends.")
            process: subprocess.Popen[Any] = subprocess.Popen(command, start_new_session=True, **options)
            self._running.append(process)
        output, errors = process.communicate()
        self._running.remove(process)
        return subprocess.CompletedProcess(command, process.returncode, output, errors)

    def __exit__(self, *error: Any) -> None:
        """End those that run."""
        with self._lock:
            self._over = True
            running = list(self._running)
        until = time.monotonic() + self.limit
        try:
            for process in running:
                process.terminate()
            for process in running:
                process.wait(max(0.0, until - time.monotonic()))
        except subprocess.TimeoutExpired:
            pass
        finally:  # also at a second signal
            for process in (each for each in running if each.poll() is None):
                with suppress(ProcessLookupError, PermissionError):
                    getattr(os, "killpg", os.kill)(process.pid, getattr(signal, "SIGKILL", signal.SIGTERM))
            self._signals.__exit__(*error)
