"""A sign of life: in a file or a pipe, where bars show nothing before they end, a line comes every 30 seconds."""

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich.console import Console, ConsoleRenderable, RenderHook
from rich.markup import escape
from rich.progress import Progress, TaskID

INTERVAL = 30.0
"""Seconds without a line before the heartbeat writes one."""
_HOUR, _MINUTE = 3600, 60


class Heartbeat(RenderHook):
    """Says what a run is doing, while nothing else is printed and the console is no terminal.

    Args:
        console: Where the lines go.
        interval: Seconds of silence before a line; None is `INTERVAL`.
    """

    def __init__(self, console: Console, interval: float | None = None) -> None:
        self.console, self.interval = console, INTERVAL if interval is None else interval
        self._step, self._printed = "rlhf", time.monotonic()
        self._doing: list[_Activity] = [_Activity(lambda seconds: ["starting", f"{duration(seconds)} so far"])]

    @contextmanager
    def beating(self) -> Iterator[None]:
        """Watch within the block; the thread is gone after it, however it ends."""
        if self.console.quiet or self.console.is_terminal:
            yield
            return
        self._printed = time.monotonic()
        over = threading.Event()
        thread = threading.Thread(target=self._watch, args=(over,), name="heartbeat", daemon=True)
        self.console.push_render_hook(self)
        thread.start()
        try:
            yield
        finally:
            over.set()
            thread.join()
            self.console.pop_render_hook()

    def note(self, activity: str, step: str | None = None) -> None:
        """What the run does from now on, but for what is nested in it.

        Args:
            activity: What is being done, such as ``exporting``.
            step: The name at the start of the line, where it changes.
        """
        self._step = step or self._step
        self._doing[0] = _Activity(lambda seconds: [activity, f"{duration(seconds)} so far"])

    @contextmanager
    def during(self, activity: str) -> Iterator[None]:
        """Within the block the run does something else, such as ``loading base``."""
        with self._nested(lambda seconds: [activity, f"{duration(seconds)} so far"]):
            yield

    @contextmanager
    def following(self, bar: Progress, number: TaskID) -> Iterator[None]:
        """Within the block, tell how far a bar's task is, and guess how long it will take."""
        (task,) = [task for task in bar.tasks if task.id == number]
        start = task.completed

        def told(seconds: float) -> list[str]:
            done, total, figures = task.completed, task.total, str(task.fields.get("figures", ""))
            told = [f"{done:g}/{total:g} done" if total else f"{done:g} done", *([figures] if figures else [])]
            left = seconds * (total - done) / (done - start) if total and done > start else None
            return [*told, f"{duration(seconds)} so far", *([] if left is None else [f"about {duration(left)} left"])]

        with self._nested(told):
            yield

    def words(self) -> str:
        """What is being done, for how long, and how far it is."""
        return ", ".join(self._doing[-1].words())

    def process_renderables(self, renderables: list[ConsoleRenderable]) -> list[ConsoleRenderable]:
        """Something is printed: be silent for a while."""
        self._printed = time.monotonic()
        return renderables

    @contextmanager
    def _nested(self, told: Callable[[float], list[str]]) -> Iterator[None]:
        activity = _Activity(told)
        self._doing.append(activity)
        try:
            yield
        finally:
            self._doing.remove(activity)

    def _watch(self, over: threading.Event) -> None:
        while not over.wait(max(0.0, self._printed + self.interval - time.monotonic())):
            if time.monotonic() >= self._printed + self.interval:
                self.console.print(f"[bold]{self._step:<9}[/] {escape(self.words())}", soft_wrap=True)


class _Activity:
    """What is being done, since when, in words that know how many seconds it took so far."""

    def __init__(self, told: Callable[[float], list[str]]) -> None:
        self._told, self._since = told, time.monotonic()

    def words(self) -> list[str]:
        return self._told(time.monotonic() - self._since)


def duration(seconds: float) -> str:
    """A time as people say it.

    Examples:
        >>> duration(7.4), duration(90), duration(8000)
        ('7 s', '1.5 min', '2.2 h')
    """
    if seconds >= _HOUR:
        return f"{seconds / _HOUR:.1f} h"
    return f"{seconds / _MINUTE:.1f} min" if seconds >= _MINUTE else f"{seconds:.0f} s"
