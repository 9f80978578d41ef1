"""What people are asked by a step: its tasks, for whose answers the run ends, and goes on when it is started again."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import cached_property
from math import ceil
from pathlib import Path
from typing import Any

from rlhf_lightning.data.records import RecordError, short
from rlhf_lightning.data.rows.files import read_rows
from rlhf_lightning.data.rows.readers import SourceRow
from rlhf_lightning.labeling.store import Answer, LabelStore
from rlhf_lightning.labeling.tasks import Task, check_answer
from rlhf_lightning.recipe.context import Context
from rlhf_lightning.recipe.stage import Stage
from rlhf_lightning.runs.errors import PipelineError, WaitingError
from rlhf_lightning.runs.files import read_json_lines, write_lines
from rlhf_lightning.runs.folders import read_stage
from rlhf_lightning.runs.rounds import rounds_to

STORE = "labels.sqlite"
Asked = Mapping[str, Sequence[Task]]
"""Tasks by the part of the step that they belong to, such as a split."""


class AsksPeople(Stage):
    """A step that asks people."""

    def settings(self, context: Context) -> dict[str, Any]:
        """Without how many answers are enough and how many labelers share a prompt: that may change while they work."""
        settings = super().settings(context)
        own = dict(settings[self.name])
        asked = own.pop("people", None) or {}
        kept = {name: asked[name] for name in ("prompts", "form") if name in asked}
        return {**settings, self.name: {**own, **({"people": kept} if kept else {})}}


@dataclass(frozen=True)
class People:
    """Those who do the tasks of a step.

    Args:
        context: The run.
        step: The step's name.
        folder: Its folder.
        verb: What is done with a prompt, such as ``ranked``.
        enough: The share of the prompts that is enough, up to 1, or their number.
        files: Whether they have a tool of their own.
        labelers: Answers after which a prompt is done.
    """

    context: Context
    step: str
    folder: Path
    verb: str
    enough: float = 1.0
    files: bool = False
    labelers: int = 1

    def batch(self, part: str) -> str:
        """What the tasks of a part are called in the store; those of the step with other settings have another name."""
        run, fingerprint = self.context.runs.run, str(read_stage(self.folder)["fingerprint"])
        return (Path(run).relative_to(rounds_to(run)[-1]) / self.step / part / fingerprint[:8]).as_posix()

    def wait(self, parts: Sequence[str]) -> None:
        """Raise `WaitingError` where the tasks are open and not enough is answered, before models are loaded."""
        paths = {part: self.folder / f"tasks.{part}.jsonl" for part in parts}
        if all(path.exists() for path in paths.values()):
            self._enough({part: [Task(**row) for row in read_json_lines(path)] for part, path in paths.items()})

    def answers(
        self, tasks: Asked, useless: Callable[[Sequence[Answer]], str] = lambda answers: ""
    ) -> dict[str, list[Answer]]:
        """What was answered, in the order of the tasks; those that are not open are opened.

        Args:
            tasks: The tasks of each part.
            useless: What keeps the answers to a part that has tasks from being gone on with, in words; "" for nothing.

        Raises:
            PipelineError: At answers in files that are none to these tasks, with file and line.
            WaitingError: When it is not enough.
        """
        for part, own in tasks.items():  # whoever answers must not see who wrote what
            shown = [replace(task, policies=[]) for task in own] if self.files else own
            write_lines(self.folder / f"tasks.{part}.jsonl", map(asdict, shown))
        found = self._enough(tasks)
        for part, own in tasks.items():
            if own and (fault := useless(found[part])):
                raise WaitingError(
                    f"step {self.step} waits for people. {part}: {fault}. Take an answer back, which is possible until "
                    f"the run goes on, and give another one{self._where(tasks)}."
                )
        if not self.files:
            for part in tasks:
                self._store.close_batch(self.batch(part))  # what is gone on with must not change any more
            found = self._said(tasks)
        return found

    def unclear(self, tasks: Sequence[Task], answers: Sequence[Answer]) -> int:
        """How many of the tasks everybody skipped."""
        return self._states(tasks, answers).count("unclear")

    @cached_property
    def _store(self) -> LabelStore:
        return LabelStore(self._run / STORE)

    @property
    def _run(self) -> Path:
        """The folder that people open: that of the first round."""
        return self.context.runs.root / rounds_to(self.context.runs.run)[-1]

    def _enough(self, tasks: Asked) -> dict[str, list[Answer]]:
        if not self.files:
            self._open(tasks)
        found = self._said(tasks)
        if lacking := self._lacking(tasks, found):
            raise WaitingError(lacking)
        return found

    def _open(self, tasks: Asked) -> None:
        """Add the tasks, and give out no more of those of the step as it was made before, with other settings."""
        there = {task.batch for task in self._store.tasks()}
        for part, own in tasks.items():
            for batch in there - {self.batch(part)}:
                if batch.rpartition("/")[0] == self.batch(part).rpartition("/")[0]:
                    self._store.close_batch(batch)
            self._store.add_tasks(own)

    def _where(self, tasks: Asked) -> str:
        if self.files:
            return f": answers.<part>.jsonl beside {self.folder / 'tasks.<part>.jsonl'} (part: {', '.join(tasks)})"
        return f": rlhf-label {self._run}"

    def _said(self, tasks: Asked) -> dict[str, list[Answer]]:
        if self.files:
            return {part: self._of_file(part, own) for part, own in tasks.items()}
        return {part: _in_order(own, self._store.answers(self.batch(part))) for part, own in tasks.items()}

    def _of_file(self, part: str, tasks: Sequence[Task]) -> list[Answer]:
        path, by_id = self.folder / f"answers.{part}.jsonl", {task.id: task for task in tasks}
        places: dict[tuple[str, str], str] = {}
        found = []
        for row in read_rows(str(path), "train") if path.exists() else ():
            try:
                answer = _answer(row, by_id)
                key = answer.task.id, answer.labeler
                if key in places:
                    raise RecordError(f"{key[1]} answers task {key[0]} again, as at {places[key]}. Leave one line out.")
            except RecordError as error:
                raise PipelineError(f"{row.place}: {error}") from error
            places[key] = row.place
            found.append(answer)
        return _in_order(tasks, found)

    def _states(self, tasks: Sequence[Task], answers: Sequence[Answer]) -> list[str]:
        """Whether each task is done, unclear to all who saw it, or open."""
        said: dict[str, list[bool]] = {task.id: [] for task in tasks}
        for answer in answers:
            said[answer.task.id].append(answer.skipped)
        return [
            "open" if len(skipped) < self.labelers else "unclear" if all(skipped) else "done"
            for skipped in said.values()
        ]

    def _lacking(self, tasks: Asked, answers: Mapping[str, Sequence[Answer]]) -> str:
        """What is still to be done, in sentences; "" where enough is."""
        said, lacking = [], 0
        tasks = {part: own for part, own in tasks.items() if own}
        for part, own in tasks.items():
            states = self._states(own, answers[part])
            done, clear = states.count("done"), len(own) - states.count("unclear")
            needed = min(clear, ceil(self.enough if self.enough > 1 else self.enough * clear - 1e-9))
            lacking += max(0, needed - done)
            unclear = f", {len(own) - clear} skipped as unclear" if clear < len(own) else ""
            more = f", {needed - done} more are needed" if needed > done else ""
            of = f"{part}: " if len(tasks) > 1 else ""
            each = f" by {self.labelers} people" if self.labelers > 1 else ""
            said.append(f"{of}{done} of {len(own)} prompts are {self.verb}{each}{unclear}{more}")
        if not lacking:
            return ""
        how = "Put the answers there" if self.files else "Open the page"
        return (
            f"step {self.step} waits for people. {'; '.join(said)} ({self.step}.people.enough={self.enough:g}). "
            f"{how}{self._where(tasks)}. "
            "The same command goes on from here when that is done; what was sampled is kept."
        )


def _in_order(tasks: Sequence[Task], answers: Sequence[Answer]) -> list[Answer]:
    """Those to the tasks, in their order, without screening items."""
    places = {task.id: place for place, task in enumerate(tasks)}
    return sorted((each for each in answers if each.task.id in places), key=lambda each: places[each.task.id])


def _answer(row: SourceRow, tasks: Mapping[str, Task]) -> Answer:
    """The answer that a line of a file holds; a `RecordError` where it holds none."""
    if row.problem is not None:
        raise RecordError(row.problem)
    value: Any = row.value if isinstance(row.value, Mapping) else {}
    task, labeler, said = tasks.get(str(value.get("task"))), value.get("labeler"), value.get("answer")
    if value.keys() != {"task", "labeler", "answer"} or not isinstance(labeler, str) or not labeler.strip():
        raise RecordError(
            "a line must be {'task': its id, 'labeler': a name, 'answer': what was said}, got "
            f"{short(row.value)}. Mend it or leave it out."
        )
    if task is None:
        raise RecordError(f"field 'task' is {short(value['task'])}, which no task is called. Mend it or leave it out.")
    check_answer(task, said)
    return Answer(task, labeler, said, [*range(len(task.responses))], 0.0, 0.0, "")
