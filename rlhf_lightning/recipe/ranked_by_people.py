"""People in step collect: what was sampled is theirs to rank, and what they said becomes comparisons."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from rlhf_lightning.data.records import Comparison, decided_pairs
from rlhf_lightning.labeling.export import rankings
from rlhf_lightning.labeling.settings import FILES, PEOPLE
from rlhf_lightning.labeling.store import Answer
from rlhf_lightning.labeling.tasks import Task, share
from rlhf_lightning.recipe.context import Context
from rlhf_lightning.recipe.people import People

Collected = dict[str, tuple[list[Comparison], dict[str, int]]]
"""By split the rankings, and how many prompts were dropped, by reason."""


def asks_people(labelers: Any) -> bool:
    """Whether the setting of that name says that people rank, and no object."""
    return labelers in (PEOPLE, FILES)


def rankers(context: Context, step: str, folder: Path) -> People | None:
    """The people who rank, where the step asks people; `WaitingError` where the tasks are open and not done."""
    options = context.config[step]
    if not asks_people(options["labelers"]):
        return None
    people = People(context, step, folder, "ranked", options["people"]["enough"], options["labelers"] == FILES)
    people.wait([*options["prompts"]])
    return people


def ranked(people: People, sampled: Collected) -> Collected:
    """The same, ranked by people: a prompt may have several rankings, and what nobody ranked is dropped.

    Args:
        people: Those who rank.
        sampled: The rankings that step collect made of what it sampled, in which all is tied.

    Raises:
        PipelineError: When an answer is none.
        WaitingError: When not enough is ranked.
    """
    options = people.context.config[people.step]
    shared, labelers = (options["people"][name] for name in ("shared", "labelers_per_shared"))
    tasks = {}
    for split, (comparisons, _) in sampled.items():
        own = {task.id: task for each in comparisons for task in [_task(people.batch(split), each, options)]}
        tasks[split] = share([*own.values()], shared, labelers, people.context.seed)
    found: Collected = {}
    for split, answers in people.answers(tasks, _undecided).items():
        comparisons, unclear = rankings(answers), people.unclear(tasks[split], answers)
        done = len({answer.task.id for answer in answers if not answer.skipped})
        dropped = {"unclear": unclear, "not ranked": len(tasks[split]) - unclear - done}
        found[split] = comparisons, {**sampled[split][1], **{name: count for name, count in dropped.items() if count}}
    return found


def _undecided(answers: Sequence[Answer]) -> str:
    """That nothing can be learned from the rankings, as all are ties or skipped."""
    decided = any(decided_pairs(each.answer["ranks"]) for each in answers if not each.skipped)
    return "" if decided else "no response was ranked above another, and a reward model learns from nothing else"


def _task(batch: str, sampled: Comparison, options: Mapping[str, Any]) -> Task:
    policies = (sampled.labeling or {}).get("policies") or options["policies"] * len(sampled.completions)
    known = {"source": sampled.source, "user": sampled.user, "labels": sampled.labels, "round": options.get("round", 1)}
    known = {name: value for name, value in known.items() if value is not None}
    return Task("", "ranking", batch, sampled.prompt, sampled.completions, policies, known=known)
