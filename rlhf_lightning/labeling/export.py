"""What labelers said as the records that stages read, and as one file of everything."""

from collections.abc import Iterable
from dataclasses import asdict
from pathlib import Path
from typing import Any, cast

from rlhf_lightning.data.few_shot import few_shot_examples
from rlhf_lightning.data.labeling import Labeling, record_row
from rlhf_lightning.data.records import Comparison, Demonstration
from rlhf_lightning.labeling.store import Answer, LabelStore
from rlhf_lightning.runs.files import write_lines


def rankings(answers: Iterable[Answer]) -> list[Comparison]:
    """The rankings among the answers; what was skipped and screening items are none."""
    return [
        Comparison(
            answer.task.prompt or "",
            answer.task.responses,
            answer.answer["ranks"],
            answer.labeler,
            answer.task.known.get("source") or "collected",
            answer.task.known.get("labels"),
            answer.task.known.get("user"),
            _labeling(answer),
        )
        for answer in _records(answers, "ranking")
    ]


def _labeling(answer: Answer) -> Labeling:
    """How the ranking came about, as far as it is known."""
    said = {name: answer.answer.get(name) for name in ("likert", "fields")}
    known = {"policies": answer.task.policies, **said, "order": answer.order, "round": answer.task.known.get("round")}
    return cast(Labeling, {name: value for name, value in known.items() if value})


def demonstrations(answers: Iterable[Answer]) -> list[Demonstration]:
    """The demonstrations among the answers; K pairs of a few-shot prompt make K of them.

    Who wrote the response is the label `labeler`, what kind of prompt it is the label `prompt_kind`. A prompt that the
    labeler wrote has the labeler as its user.
    """
    made = []
    for answer in _records(answers, "demonstration"):
        known, said = answer.task.known, answer.answer
        kind = said.get("prompt_kind", "given")
        labels = {**(known.get("labels") or {}), "labeler": answer.labeler, "prompt_kind": kind}
        user = known.get("user") if kind == "given" else answer.labeler
        source = known.get("source") or "labeler"
        if kind == "few_shot":
            pairs = [(pair["query"], pair["response"]) for pair in said["pairs"]]
            made += few_shot_examples(said["instruction"], pairs, user, source, labels)
        else:
            prompt = said["prompt"] if answer.task.prompt is None else answer.task.prompt
            made.append(Demonstration(prompt, said["response"], user, source, labels))
    return made


def row_of(answer: Answer) -> dict[str, Any]:
    """An answer with all that is known of it; the name of its task stands under `task`, with the task's content."""
    row = {**asdict(answer.task), **{name: value for name, value in vars(answer).items() if name != "task"}}
    return {"task": row.pop("id"), **row}


def write_exports(store: LabelStore, folder: Path) -> list[Path]:
    """Write all that was saved; each file appears when it is complete.

    Args:
        store: The store.
        folder: Where to.

    Returns:
        `comparisons.train.jsonl` and `demonstrations.train.jsonl`, the records; `answers.jsonl`, every answer that
        counts, with its task, who wrote the responses, the labeler, the order on their page and the time; and
        `undone.jsonl`, in the same form what was taken back or said anew.
    """
    folder.mkdir(parents=True, exist_ok=True)
    answers = store.answers()
    contents: dict[str, list[dict[str, Any]]] = {
        "comparisons.train": [record_row(record) for record in rankings(answers)],
        "demonstrations.train": [asdict(record) for record in demonstrations(answers)],
        "answers": [row_of(answer) for answer in answers],
        "undone": [row_of(answer) for answer in store.answers(undone=True)],
    }
    paths = {folder / f"{name}.jsonl": rows for name, rows in contents.items()}
    for path, rows in paths.items():
        write_lines(path, rows)
    return list(paths)


def _records(answers: Iterable[Answer], kind: str) -> list[Answer]:
    return [a for a in answers if a.task.kind == kind and a.task.planted is None and not a.skipped]
