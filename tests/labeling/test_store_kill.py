"""Whatever moment a process is killed at, every save that it acknowledged is there, and once."""

import json
import multiprocessing
import os
import random
import signal
import time
from pathlib import Path

import pytest

from rlhf_lightning.labeling.export import write_exports
from rlhf_lightning.labeling.store import LabelStore
from rlhf_lightning.labeling.tasks import Task

pytestmark = pytest.mark.filterwarnings("ignore:.*multi-threaded.*:DeprecationWarning")
PROCESSES = multiprocessing.get_context("fork")
NAMES = ("ann", "bob", "cem")


def _label(path: Path, acknowledged: int, life: int) -> None:
    """Save without a pause; tell of each save once it is acknowledged."""
    store = LabelStore(path)
    for number in range(1_000_000):
        name = NAMES[number % 3]
        if number % 7 == 6 and (back := store.undo(name)) is not None:
            os.write(acknowledged, f"undone {back.task.id}\n".encode())
        mine = store.next_task(name)
        if mine is None:
            return
        submission = f"{life}/{number}"
        store.save_draft(mine.id, name, {"so far": number})
        store.save(mine.id, name, {"response": submission}, 1.0, submission)
        os.write(acknowledged, f"{mine.task.id} {submission}\n".encode())


def test_a_process_is_killed_five_times(tmp_path):
    path = tmp_path / "labels.sqlite"
    tasks = [Task("", "demonstration", "b", f"p{number}", labelers_wanted=1 + number % 2) for number in range(3000)]
    with LabelStore(path) as store:
        store.add_tasks(tasks)
        for name in NAMES:
            store.add_labeler(name)
    moments, said = random.Random(0), []
    for life in range(5):
        reading, writing = os.pipe()
        process = PROCESSES.Process(target=_label, args=(path, writing, life))
        process.start()
        os.close(writing)
        with os.fdopen(reading) as pipe:
            said.append(pipe.readline())  # it is at work
            time.sleep(moments.uniform(0.0, 0.25))
            os.kill(process.pid, signal.SIGKILL)
            said += pipe.readlines()
        process.join()
        assert process.exitcode == -signal.SIGKILL
    acknowledged = [line.split()[1] for line in said if not line.startswith("undone")]
    assert len(acknowledged) > 20
    with LabelStore(path) as store:
        write_exports(store, tmp_path / "out")
        progress = store.progress()
    rows = {
        name: [json.loads(line) for line in (tmp_path / "out" / f"{name}.jsonl").read_text().splitlines()]
        for name in ("answers", "undone", "demonstrations.train")
    }
    exported = [row["submission"] for row in rows["answers"] + rows["undone"]]
    assert {*acknowledged} <= {*exported}
    assert len(exported) == len({*exported})
    # A kill between a save and its word leaves one more: five at most.
    assert len(exported) - len(acknowledged) <= 5
    counts = [(row["task"], row["labeler"]) for row in rows["answers"]]
    assert len(counts) == len({*counts})
    assert progress["done"] == len(rows["answers"]) == len(rows["demonstrations.train"])
    assert all(row["answer"]["response"] == row["submission"] for row in rows["answers"])
