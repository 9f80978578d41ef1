"""What the store has of one labeler: what is left for them, what they did, the task of a number."""

import json
from dataclasses import dataclass, field
from statistics import median
from typing import Any

from rlhf_lightning.labeling.queries import ASSIGNMENT
from rlhf_lightning.labeling.store import Assignment, LabelStore
from rlhf_lightning.labeling.tasks import Task
from rlhf_lightning.labeling.web.forms import KINDS

_LEFT = """SELECT t.kind, count(*) AS count FROM tasks t WHERE NOT t.closed
    AND NOT EXISTS (SELECT 1 FROM assignments m WHERE m.task = t.number AND m.labeler = :labeler AND m.done)
    AND (t.wanted IS NULL OR (SELECT count(*) FROM assignments o WHERE o.task = t.number AND o.labeler <> :labeler
        AND o.done) < t.wanted) GROUP BY t.kind"""
_SAVED = """SELECT t.kind, s.seconds, s.skipped FROM saves s JOIN assignments a ON a.id = s.assignment
    JOIN tasks t ON t.number = a.task WHERE a.labeler = ? AND s.undone_at IS NULL"""
_LATEST = """SELECT t.body, s.answer, s.seconds, s.saved_at FROM saves s JOIN assignments a ON a.id = s.assignment
    JOIN tasks t ON t.number = a.task WHERE a.labeler = ? AND s.undone_at IS NULL ORDER BY s.number DESC LIMIT 100"""


@dataclass
class OwnWork:
    """Work of one kind: how many tasks are left for a labeler, how many they passed over, seconds of each answer."""

    left: int = 0
    skipped: int = 0
    times: list[float] = field(default_factory=list)

    @property
    def done(self) -> int:
        """Answers that count, with those that were passed over."""
        return len(self.times)

    @property
    def seconds(self) -> float:
        """How long a task took, as the median."""
        return median(self.times) if self.times else 0.0


def own_work(store: LabelStore, labeler: str) -> dict[str, OwnWork]:
    """What a labeler did and what is left for them, by kind."""
    work = {kind: OwnWork() for kind in KINDS}
    with store.reading() as connection:
        for row in connection.execute(_LEFT, {"labeler": labeler}):
            work[row["kind"]].left = row["count"]
        for row in connection.execute(_SAVED, (labeler,)):
            work[row["kind"]].times.append(row["seconds"])
            work[row["kind"]].skipped += row["skipped"]
    return work


def own_answers(store: LabelStore, labeler: str) -> list[tuple[Task, dict[str, Any], float, float]]:
    """The last hundred answers of a labeler, newest first: task, answer, seconds that it took, time of saving."""
    with store.reading() as connection:
        rows = connection.execute(_LATEST, (labeler,)).fetchall()
    return [
        (Task(**json.loads(row["body"])), json.loads(row["answer"]), row["seconds"], row["saved_at"]) for row in rows
    ]


def own_assignment(store: LabelStore, labeler: str, number: int) -> Assignment:
    """The task that a labeler was given under this number.

    Raises:
        ValueError: When they were given none.
    """
    known = number if number < 1 << 63 else 0  # SQLite knows no larger one
    with store.reading() as connection:
        row = connection.execute(f"{ASSIGNMENT} WHERE a.id = ? AND a.labeler = ?", (known, labeler)).fetchone()
    if row is None:
        raise ValueError(f"no task {number} was given to {labeler}; open the page anew.")
    return Assignment(row["id"], Task(**json.loads(row["body"])), labeler, json.loads(row["display"]), row["given_at"])
