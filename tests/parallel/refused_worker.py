"""Runs commands that are refused, one after the other in the same process; see test_refusals.py.

Usage: refused_worker.py <file>, with a list of commands in JSON: either `rlhf` and its overrides, or a case of `CASES`.
"""

import json
import sys
import time
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from rlhf_lightning.cli.command import main
from rlhf_lightning.cli.errors import report
from rlhf_lightning.parallel.processes import by_turns, init_process_group, on_rank_zero, rank, sharing
from rlhf_lightning.runs.shared_disk import check_shared
from rlhf_lightning.training.callbacks import SampleTable
from rlhf_lightning.training.metrics_file import MetricsFile, check_mark


def fail(error: BaseException) -> None:
    """Raise it."""
    raise error


class OddError(Exception):
    """One that cannot be sent to another process."""

    def __init__(self, number: int, text: str) -> None:
        super().__init__(text)
        self.number = number


def metrics(folder: str) -> None:
    """A metrics.csv that is not the checkpoint's."""
    path = Path(folder) / "metrics.csv"
    on_rank_zero(partial(path.write_text, "step,loss\n0,0.5\n"))
    check_mark(path, MetricsFile(path).rows, {"rows": 1, "digest": "another"})


def samples(folder: str) -> None:
    """A samples.jsonl that is damaged."""
    path = Path(folder) / "samples.jsonl"
    on_rank_zero(partial(path.write_text, '{"iteration": 0\n{}\n'))
    table: Any = SampleTable(path, None)
    table.setup(SimpleNamespace(is_global_zero=rank() == 0), None, "fit")


def disk(folder: str, shared: str) -> None:
    """Two machines, with one disk or with two."""
    check_shared(Path(folder) / ("" if shared == "shared" else str(rank())), f"machine-{rank()}", patience=1.0)


def divided(wrong: str) -> None:
    """Jobs of which each process does every second one; the last of the second batch goes wrong if it shall."""

    def part(job: int) -> tuple[int, int]:
        if wrong and job == 3:
            raise OddError(3, "a part is wrong")
        return job**2, rank()

    def work(share: Any) -> list[Any]:
        assert rank() == 0
        turns: list[list[int]] = []
        found = [share([0, 1, 2]), share([]), *by_turns(lambda jobs: turns.append([*jobs]) or share(jobs), range(3, 8))]
        assert turns == [[3, 4, 5, 6], [7]]  # they wait for each other after two jobs of each
        return found

    assert sharing(work, part) == [[(0, 0), (1, 1), (4, 0)], [], (9, 0), (16, 1), (25, 0), (36, 1), (49, 0)]


CASES = {
    "divided": divided,
    "disk": disk,
    "metrics": metrics,
    "samples": samples,
    "value": lambda _: on_rank_zero(partial(fail, ValueError("a value is wrong"))),
    "odd": lambda _: on_rank_zero(partial(fail, OddError(7, "odd"))),
    "ended": lambda _: on_rank_zero(partial(fail, SystemExit(143))),
    "last": lambda _: fail(ValueError("the last one alone")) if rank() == 1 else sys.exit(1),
}


def run(name: str, *arguments: str) -> None:
    """Run one command as the command line does."""
    if name == "rlhf":
        sys.argv = [name, *arguments]
        main()
    try:
        CASES[name](*arguments)
        sys.exit(0)
    except Exception as error:
        report(error)
        sys.exit(1)


if __name__ == "__main__":
    init_process_group(gpu=False)
    for command in json.loads(Path(sys.argv[1]).read_bytes()):
        begun = time.monotonic()
        try:
            run(*command)
        except SystemExit as stop:
            sys.stdout.write(json.dumps([stop.code, round(time.monotonic() - begun, 2)]) + "\n")
            sys.stdout.flush()
