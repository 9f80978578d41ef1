"""The tasks by name: ours, and those of the harness behind `lm_eval/`."""

import logging
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import yaml
from lightning.pytorch.utilities.seed import isolate_rng

from rlhf_lightning.arguments import did_you_mean
from rlhf_lightning.evaluation.benchmarks.documents import EXAMPLES, TEST, has_examples, read
from rlhf_lightning.evaluation.benchmarks.sets import SOURCES
from rlhf_lightning.runs.extras import needs_extra

TASKS = Path(__file__).parent / "tasks"
THEIRS = "lm_eval/"
"""How the names of the harness's own tasks begin."""
TRUTH_JUDGED = "_written"
"""How the names of tasks end that need a judge of truth."""


def task_names() -> list[str]:
    """Those of our tasks."""
    return sorted(path.stem for path in TASKS.glob("[!_]*.yaml"))


def source_of(name: str) -> str:
    """The set that one of our tasks reads."""
    return str(_setting(name, "dataset_kwargs")["source"])


def _setting(name: str, key: str) -> Any:
    """What the YAML file of one of our tasks says, or the one that it includes; None where neither does."""
    text = (TASKS / f"{name}.yaml").read_text(encoding="utf-8")
    named: dict[str, Any] = yaml.safe_load(text.replace("!function ", ""))  # a tag of the harness
    inherited = named.get("include")
    return _setting(inherited[:-5], key) if inherited and key not in named else named.get(key)


def rows_lacking(names: Sequence[str], root: str, shots: Sequence[int]) -> Iterator[str]:
    """A sentence for each set of ours with a row that is wrong, or with fewer examples than are to be shown.

    Args:
        names: Our tasks; their files are there.
        root: The folder with the files.
        shots: How many examples tasks are asked with.
    """
    tasks: dict[str, list[str]] = {}
    for name in names:
        tasks.setdefault(source_of(name), []).append(name)
    for source, own in tasks.items():
        try:
            rows = read(source, root)
        except ValueError as error:
            yield str(error)
            continue
        there = len(rows[EXAMPLES]) if EXAMPLES in rows else len(rows[TEST]) - 1
        asked = [name for name in own if _setting(name, "num_fewshot") != 0]
        if asked and max(shots) > there:
            yield (
                f"benchmarks.shots={max(shots)}: {', '.join(asked)} can be asked with {there} examples at most. Ask "
                "with fewer."
            )


def can_load(name: str, root: str | None) -> bool:
    """Whether a task's set can be had: not from the hub where that has none that loads without code."""
    return root is not None or name not in task_names() or bool(SOURCES[source_of(name)].hub)


def names_lacking(names: Sequence[str]) -> Iterator[str]:
    """A sentence for the extra that is not installed, and for each task that does not exist."""
    installed = find_spec("lm_eval") is not None
    if not installed:
        yield "the automatic suite needs lm-evaluation-harness: pip install 'rlhf-lightning[eval]'."
    for name in names:
        if name.startswith(THEIRS) and installed:
            asked, there = name.removeprefix(THEIRS), harness_tasks().all_tasks
            if asked not in there:
                meant = did_you_mean(asked, there).replace("mean ", f"mean {THEIRS}")
                yield f"benchmarks.tasks names {name}, and the harness has no task {asked}.{meant}"
        if not name.startswith(THEIRS) and name not in (known := task_names()):
            yield (
                f"benchmarks.tasks names {name}, which is no task.{did_you_mean(name, known)} There are "
                f"{', '.join(known)}, and those of the harness, such as {THEIRS}arc_easy."
            )


@cache
def harness_tasks() -> Any:
    """The manager of the harness's own tasks, which reads the thousands of files that name them: once in a process."""
    from lm_eval.tasks import TaskManager

    with _quiet(), isolate_rng():
        return TaskManager()


def load_tasks(names: Sequence[str], root: str | None = None, uniform: int | None = None) -> dict[str, Any]:
    """The harness's task objects by name, with their documents.

    Few-shot examples are from the split for them where a set has one, else other items of the test.

    Args:
        names: Names of ours, or of the harness's behind `lm_eval/`; its groups and tags stand for all their tasks.
        root: The folder with the local files; None loads the sets from the hub.
        uniform: How many of RealToxicityPrompts to draw evenly over their toxicity; None takes them in order.

    Raises:
        ImportError: When the extra `eval` is not installed.
        ValueError: When a file is damaged.
    """
    with needs_extra("the automatic suite", "eval"):
        from lm_eval.tasks import TaskManager

    ours = [name for name in names if not name.startswith(THEIRS)]
    theirs = [name.removeprefix(THEIRS) for name in names if name.startswith(THEIRS)]
    with _quiet(), isolate_rng():
        # What is called metadata goes to the function that reads the documents.
        options = {"root": root, "uniform": uniform}
        manager = TaskManager(include_path=str(TASKS), include_defaults=False, metadata=options)
        found = dict(manager.load(ours)["tasks"])
        for name in ours:
            if has_examples(source_of(name), root) and (examples := found[name].fewshot_cfg).split:
                examples.split = EXAMPLES
                found[name].sampler.replace_df(list(found[name].fewshot_docs()))
        if theirs:
            found |= {f"{THEIRS}{name}": task for name, task in harness_tasks().load(theirs)["tasks"].items()}
    places = {name: place for place, name in enumerate(names)}
    return {name: found[name] for name in sorted(found, key=lambda each: places.get(each, len(names)))}


@contextmanager
def _quiet() -> Iterator[None]:
    """The harness without its remarks within the block."""
    logger = logging.getLogger("lm_eval")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        logger.setLevel(level)


def shots_of(task: Any, shots: Sequence[int]) -> list[int]:
    """How many examples a task is asked with: none where its form has no place for any."""
    return [0] if task.get_config("num_fewshot") == 0 else list(shots)


def described(task: Any) -> Mapping[str, Any]:
    """What a task is, as far as its results depend on it, without where its file lies."""
    return {name: value for name, value in task.dump_config().items() if name not in ("num_fewshot", "metadata")}
