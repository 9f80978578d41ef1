"""How a step ends before its time, and what it must not end with."""

import math
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

from rlhf_lightning.parallel.processes import rank
from rlhf_lightning.runs.files import naming_full_disk
from rlhf_lightning.runs.folders import PipelineError
from rlhf_lightning.runs.signals import Ended, ended_by_signals


@contextmanager
def ending_in_order(step: str, folder: Path, say: Callable[[str, str], None]) -> Iterator[None]:
    """One sentence where a signal or a full disk ends a step within the block; what was done is kept.

    While a Trainer runs, its callback `BatchCheckpoint` has the signals. The first process listens: the others wait for
    it in calls that no handler interrupts, and end at once.

    Args:
        step: The step's name.
        folder: The step's output folder.
        say: Function that tells the user, given the step and the sentence.
    """
    try:
        with naming_full_disk(step, folder), ExitStack() as signals:
            if rank() == 0:
                signals.enter_context(ended_by_signals())
            yield
    except Ended as ended:
        say(step, f"stopped by {ended.name}; the same command goes on from here")
        raise


def refuse_non_finite(step: str, metrics: Any) -> None:
    """A step must not be complete with a measure that is no number.

    Args:
        step: The step's name.
        metrics: Its metrics, however nested; None where something was not measured.

    Raises:
        PipelineError: Names the measures.
    """
    found = list(_non_finite(metrics))
    if found:
        shown = ", ".join(f"{name} = {value}" for name, value in found[:5])
        more = f" and {len(found) - 5} more" if len(found) > 5 else ""
        raise PipelineError(
            f"{step} ended with {shown}{more}: what it made is not to be used, so it does not count as complete. Look "
            f"at its metrics and data, lower the learning rate or raise the precision where it trains, and make it "
            f"again: stages=[{step}] overwrite=true."
        )


def _non_finite(value: Any, path: str = "") -> Iterator[tuple[str, float]]:
    if isinstance(value, Mapping):
        for name, part in value.items():
            yield from _non_finite(part, f"{path}.{name}" if path else str(name))
    elif isinstance(value, (list, tuple)):
        for number, part in enumerate(value):
            yield from _non_finite(part, f"{path}.{number}")
    elif isinstance(value, float) and not math.isfinite(value):
        yield path, value
