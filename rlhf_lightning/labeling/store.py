"""The store of a labeling: tasks, who has which, and every answer that anybody saved."""

import json
import math
import random
import sqlite3
import time
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from rlhf_lightning.arguments import PositiveFloat, checked
from rlhf_lightning.data.records import short
from rlhf_lightning.labeling.accounts import Accounts
from rlhf_lightning.labeling.queries import ANSWERS, ASSIGNMENT, FREE, IN_HANDS, LAST, PROGRESS
from rlhf_lightning.labeling.tasks import Task, check_answer


@dataclass(frozen=True)
class Assignment:
    """A task in the hands of a labeler.

    Args:
        id: Number.
        task: The task.
        labeler: Name of the labeler.
        order: For each place of the page the response that stands there; drawn for this labeler.
        given_at: When it was given out, in seconds since 1970.
        draft: What the labeler has so far; after an undo the answer that was taken back.
    """

    id: int
    task: Task
    labeler: str
    order: list[int]
    given_at: float
    draft: dict[str, Any] | None = None


@dataclass(frozen=True)
class Answer:
    """What a labeler saved.

    Args:
        task: The task.
        labeler: Name of the labeler.
        answer: What was said, see `check_answer`.
        order: For each place of the page the response that stood there.
        seconds: How long it took, as the page measured it.
        saved_at: When, in seconds since 1970.
        submission: The page's own name of the saving; empty where there was no page.
        given_at: When the task was given out, in seconds since 1970; None where nobody knows.
        undone_at: When it was taken back or said anew; None for what counts.
    """

    task: Task
    labeler: str
    answer: dict[str, Any]
    order: list[int]
    seconds: float
    saved_at: float
    submission: str = ""
    given_at: float | None = None
    undone_at: float | None = None

    @property
    def skipped(self) -> bool:
        """Whether the labeler passed it over."""
        return "skipped" in self.answer


class LabelStore(Accounts):
    """The tasks and answers of a run in one SQLite file, for several processes and threads.

    What a method has returned from lasts through a kill and a power cut.

    Args:
        path: The file, `<runs>/<run>/labels.sqlite`; it is made where there is none.
        lease_seconds: After so long without a sign of life a task that was given out goes to somebody else.
        clock: Seconds since 1970.
    """

    @checked
    def __init__(
        self, path: Path, lease_seconds: PositiveFloat = 1800.0, clock: Callable[[], float] = time.time
    ) -> None:
        super().__init__(Path(path))
        self._lease, self._clock = lease_seconds, clock

    def add_tasks(self, tasks: Iterable[Task]) -> int:
        """Add tasks; those that are there already stay as they are.

        Returns:
            How many are new.

        Raises:
            ValueError: When there is another task of the same id; then none is added.
        """
        added = 0
        with self.writing() as connection:
            for task in tasks:
                wanted = None if task.planted else task.labelers_wanted
                new = connection.execute(
                    "INSERT OR IGNORE INTO tasks (id, kind, batch, wanted, lacking, body) VALUES (?, ?, ?, ?, ?, ?)",
                    (task.id, task.kind, task.batch, wanted, wanted or 1, _json(asdict(task))),
                ).rowcount
                if not new:
                    (body,) = connection.execute("SELECT body FROM tasks WHERE id = ?", (task.id,)).fetchone()
                    _check_same(_task(body), task)
                added += new
        return added

    def tasks(self, batch: str | None = None, kind: str | None = None) -> list[Task]:
        """The tasks, in the order in which they were added."""
        with self.reading() as connection:
            rows = connection.execute(
                "SELECT body FROM tasks WHERE batch = ifnull(?, batch) AND kind = ifnull(?, kind) ORDER BY number",
                (batch, kind),
            )
            return [_task(row["body"]) for row in rows]

    def close_batch(self, batch: str) -> None:
        """Give out no more of these tasks, and let nobody take back an answer: somebody has gone on with them."""
        with self.writing() as connection:
            connection.execute("UPDATE tasks SET closed = 1 WHERE batch = ?", (batch,))

    def next_task(self, labeler: str, kind: str | None = None) -> Assignment | None:
        """What a labeler is to do: what they have in hands, else a task that is free; None where there is none."""
        now = self._clock()
        with self.writing() as connection:
            if connection.execute("SELECT 1 FROM labelers WHERE name = ?", (labeler,)).fetchone() is None:
                raise ValueError(f"there is no labeler {labeler!r}.")
            values = {"labeler": labeler, "kind": kind, "fresh": now - self._lease}
            row = connection.execute(IN_HANDS, values).fetchone()
            if row is not None:
                connection.execute("UPDATE assignments SET touched_at = ? WHERE id = ?", (now, row["id"]))
                return _assignment(row)
            found = connection.execute(FREE, values).fetchone()
            if found is None:
                return None
            task = _task(found["body"])
            order = list(range(len(task.responses)))
            random.Random(f"{task.id}/{labeler}").shuffle(order)
            number = connection.execute(
                "INSERT INTO assignments (task, labeler, display, given_at, touched_at) VALUES (?, ?, ?, ?, ?)",
                (found["number"], labeler, _json(order), now, now),
            ).lastrowid
            return Assignment(int(number or 0), task, labeler, order, now)

    def save_draft(self, assignment_id: int, labeler: str, draft: dict[str, Any] | None) -> None:
        """Keep what a labeler has so far; None keeps the last draft, and is a sign of life alone."""
        with self.writing() as connection:
            self._of(connection, assignment_id, labeler)
            connection.execute(
                "UPDATE assignments SET draft = ifnull(?, draft), touched_at = ? WHERE id = ? AND NOT done",
                (None if draft is None else _json(draft), self._clock(), assignment_id),
            )

    def save(self, assignment_id: int, labeler: str, answer: dict[str, Any], seconds: float, submission: str) -> bool:
        """Save an answer; one that was saved before is said anew, and the old one is history.

        An answer that comes after its time is kept as well, though somebody else may have been asked meanwhile.

        Args:
            assignment_id: Number of the assignment.
            labeler: Who saves.
            answer: What is said, see `check_answer`.
            seconds: How long it took.
            submission: A random name that the page gives to this saving: once it is saved, saving it again changes
                nothing, whatever came after.

        Returns:
            True, once it is on the disk.

        Raises:
            RecordError: When the answer is none to the task.
            ValueError: When the task is not in the hands of this labeler, or somebody has gone on with their answer.
            OSError: When nothing could be saved, as the disk is full.
        """
        if not submission or len(submission) > 100:
            raise ValueError(f"submission must be 1 to 100 characters, got {len(submission)}.")
        if not math.isfinite(seconds) or seconds < 0:
            raise ValueError(f"seconds must be a number of at least 0, got {seconds!r}.")
        now = self._clock()
        with self.writing() as connection:
            row = self._of(connection, assignment_id, labeler)
            done = connection.execute("SELECT assignment FROM saves WHERE submission = ?", (submission,)).fetchone()
            if done is not None:
                if done["assignment"] != assignment_id:
                    raise ValueError("this submission was saved for another task; give each saving a name of its own.")
                return True
            if row["closed"] and row["done"]:
                raise ValueError("this answer is in use already, and stays as it is; nothing was saved.")
            check_answer(_task(row["body"]), answer)
            connection.execute(
                "UPDATE saves SET undone_at = ? WHERE assignment = ? AND undone_at IS NULL", (now, assignment_id)
            )
            connection.execute(
                """INSERT INTO saves (submission, assignment, answer, skipped, seconds, saved_at)
                VALUES (?, ?, ?, ?, ?, ?)""",
                (submission, assignment_id, _json(answer), "skipped" in answer, seconds, now),
            )
            connection.execute(
                "UPDATE assignments SET done = 1, draft = NULL, touched_at = ? WHERE id = ?", (now, assignment_id)
            )
        return True

    def undo(self, labeler: str) -> Assignment | None:
        """Take back the last answer of a labeler, and the one before it at the next call; None where there is none.

        The task is in their hands again, with the answer as its draft; the answer stays in the history.
        """
        now = self._clock()
        with self.writing() as connection:
            row = connection.execute(LAST, (labeler,)).fetchone()
            if row is None:
                return None
            connection.execute("UPDATE saves SET undone_at = ? WHERE number = ?", (now, row["save"]))
            connection.execute(
                "UPDATE assignments SET done = 0, draft = ?, touched_at = ? WHERE id = ?",
                (row["taken_back"], now, row["id"]),
            )
            return replace(_assignment(row), draft=json.loads(row["taken_back"]))

    def answers(self, batch: str | None = None, kind: str | None = None, *, undone: bool = False) -> list[Answer]:
        """What was saved, in the order of saving.

        Args:
            batch: Of these tasks alone.
            kind: Of this kind alone.
            undone: Whether to give what was taken back, or said anew, instead of what counts.
        """
        with self.reading() as connection:
            rows = connection.execute(ANSWERS, (undone, batch, kind)).fetchall()
        return [
            Answer(
                _task(row["body"]),
                row["labeler"],
                json.loads(row["answer"]),
                json.loads(row["display"]),
                row["seconds"],
                row["saved_at"],
                row["submission"],
                row["given_at"],
                row["undone_at"],
            )
            for row in rows
        ]

    def progress(self, batch: str | None = None) -> dict[str, int]:
        """How far it is: answers `wanted`, `done` of them, of these `skipped`, and `given_out` now; no screening items.

        An answer beyond those that were wanted of its task does not count.
        """
        with self.reading() as connection:
            row = connection.execute(PROGRESS, {"batch": batch, "fresh": self._clock() - self._lease}).fetchone()
        return {name: row[name] or 0 for name in ("wanted", "done", "skipped", "given_out")}

    def _of(self, connection: sqlite3.Connection, assignment_id: int, labeler: str) -> sqlite3.Row:
        number = assignment_id if abs(assignment_id) < 1 << 63 else 0  # SQLite knows no larger one
        row: sqlite3.Row | None = connection.execute(f"{ASSIGNMENT} WHERE a.id = ?", (number,)).fetchone()
        if row is None or row["labeler"] != labeler:
            raise ValueError(f"no task {assignment_id} was given to {labeler}; open the page anew.")
        return row


def _check_same(there: Task, task: Task) -> None:
    # The same prompt of another user, with the same responses, is nothing to ask again.
    for name in ("kind", "form", "batch", "prompt", "responses", "labelers_wanted", "planted"):
        if getattr(there, name) != getattr(task, name):
            raise ValueError(
                f"there is a task {task.id} already, with another '{name}' ({short(getattr(there, name))}, not "
                f"{short(getattr(task, name))}). Give it another batch, or leave it as it was."
            )


def _assignment(row: sqlite3.Row) -> Assignment:
    draft = None if row["draft"] is None else json.loads(row["draft"])
    return Assignment(row["id"], _task(row["body"]), row["labeler"], json.loads(row["display"]), row["given_at"], draft)


def _task(body: str) -> Task:
    return Task(**json.loads(body))


def _json(value: Any) -> str:
    # ASCII, as half a surrogate pair, which a page may send in a draft, has no UTF-8.
    return json.dumps(value)
