"""Step benchmarks: the public sets of the paper's automatic suite, on every policy."""

import gc
import json
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, ClassVar, Literal, TypedDict
from urllib.parse import quote

from rlhf_lightning.arguments import Count, Node, NonNegativeInt
from rlhf_lightning.evaluation.benchmarks.documents import RANGES, missing, toxicity_ranges
from rlhf_lightning.evaluation.benchmarks.harness import (
    can_load,
    described,
    load_tasks,
    names_lacking,
    rows_lacking,
    shots_of,
    source_of,
)
from rlhf_lightning.evaluation.benchmarks.measures import TOXICITY, TRUTHFUL
from rlhf_lightning.evaluation.benchmarks.model import HarnessModel
from rlhf_lightning.evaluation.benchmarks.run import run_task
from rlhf_lightning.recipe.benchmark_parts import (
    TOXIC_TASKS,
    TOXICITY_JUDGE,
    TRUTH_JUDGE,
    content,
    judge_digests,
    judges_lacking,
    measured_by,
    ours,
    policies_lacking,
    toxicity_judge,
)
from rlhf_lightning.recipe.context import BASE, TOKENIZER_OPTIONS, Context
from rlhf_lightning.recipe.inputs import POLICIES
from rlhf_lightning.recipe.judges import will_be
from rlhf_lightning.recipe.memory_plan import StagePlan
from rlhf_lightning.recipe.model_names import named_twice
from rlhf_lightning.recipe.reading_plan import reading_plan, reading_tokens
from rlhf_lightning.recipe.stage import Stage
from rlhf_lightning.runs.files import read_json, replacing, write_json, write_lines
from rlhf_lightning.runs.folders import PipelineError
from rlhf_lightning.runs.identity import fingerprint
from rlhf_lightning.training.memory import Precision
from rlhf_lightning.training.progress import progress_bar

KEPT_IN = ".benchmarks"
"""The folder beside the runs with every result by the content of model and task, so that nothing is measured twice."""
_LEAVE_OUT = "leave_out"
_APART = ("root", "batch_size", TOXICITY_JUDGE, TRUTH_JUDGE)
"""Settings that say where the sets lie and how many rows are read at once; and the judges, which count by content."""
_LONGEST_NAME = 80


class BenchmarksSettings(TypedDict):
    """Group `benchmarks`."""

    policies: list[str]
    tasks: list[str]
    root: str | None
    shots: list[NonNegativeInt]
    limit: Count | None
    seed: NonNegativeInt
    batch_size: Count | None
    chat_template: bool
    uniform_toxicity: Count | None
    too_long: Literal["leave_out", "refuse"]
    toxicity: Node | None
    truth_judge: Node | None


@dataclass(frozen=True)
class Benchmarks(Stage):
    """Measures every policy of ``benchmarks.policies`` that can be loaded, each with its own tokenizer."""

    schema = BenchmarksSettings
    reads_curated: ClassVar[bool] = False
    reported: ClassVar[bool] = True

    def parents(self, context: Context) -> dict[str, str]:
        """The policies, as far as they are there."""
        return {name: name for name in context.config[self.name][POLICIES] if context.available(name)}

    def models(self, context: Context) -> dict[str, str]:
        """The first one: they do not read the same tokens."""
        return dict(list(self.parents(context).items())[:1])

    def settings(self, context: Context) -> dict[str, Any]:
        """Model and suite alone: no record of the run is read, and nothing is trained."""
        options = {name: value for name, value in context.config[self.name].items() if name not in _APART}
        return {"model": context.config["model"], self.name: options}

    def identity(self, context: Context) -> dict[str, Any]:
        """With what the files of the sets hold, and what the judges are that are asked."""
        options, parents = context.config[self.name], self.parents(context)
        return {
            "stage": self.name,
            "config": context.held(self.settings(context)),
            "data": fingerprint({name: content(name, options["root"]) for name in ours(options)}),
            "judges": judge_digests(context, options, options["tasks"]),
            "parents": context.held({role: context.model_fingerprint(model) for role, model in parents.items()}),
        }

    def lacks(self, context: Context) -> Iterator[str]:
        """The extra, tasks, files, judges, and policies that are no names at all."""
        options = context.config[self.name]
        yield from names_lacking(options["tasks"])
        if options["tasks"] and not any(can_load(name, options["root"]) for name in options["tasks"]):
            yield f"the hub has none of {', '.join(options['tasks'])}. Set benchmarks.root to a folder with their sets."
        yield from (unread := missing([source_of(name) for name in ours(options)], options["root"]))
        if options["root"] is not None and not unread:
            yield from rows_lacking(ours(options), options["root"], options["shots"] or [0])
        yield from judges_lacking(context, options)
        for each in (POLICIES, "tasks"):
            yield from named_twice(f"{self.name}.{each}", options[each])
        yield from policies_lacking(context, options)
        empty = [name for name, value in (("tasks", options["tasks"]), ("shots", options["shots"])) if not value]
        yield from (f"benchmarks.{name} is empty, so there is nothing to measure. Name some." for name in empty)

    def run(self, context: Context, folder: Path) -> dict[str, Any]:
        """Write ``results.json``, and ``samples/`` with what was asked and said.

        Returns:
            ``policies``: the figures of each by ``<task>@<shots>``; ``tasks``: what is known of each task;
            ``left_out``: how many items did not fit into a policy's context.
        """
        options = context.config[self.name]
        names = [name for name in options[POLICIES] if will_be(context, name, {"few_shot_prefix": None})]
        if out := [name for name in options[POLICIES] if name not in names]:
            context.say(self.name, f"left out, as there is no model: {', '.join(out)}")
        tasks = self._tasks(context)
        suite = _Suite(context, self.name, tasks, folder)
        results: dict[str, Any] = {}
        count = sum(len(shots_of(task, options["shots"])) for task in tasks.values())
        with progress_bar(context.heartbeat, self.name, len(names) * count) as (bar, shown):
            for name in names:
                results[name] = suite.measure(name, partial(bar.update, shown), partial(bar.advance, shown))
        left_out = {
            name: {task: figures["left_out"] for task, figures in found.items() if figures["left_out"]}
            for name, found in results.items()
        }
        for name, counts in left_out.items():
            if counts:
                listed = ", ".join(f"{task} {number}" for task, number in counts.items())
                context.say(self.name, f"items that do not fit into the context of {name}, left out: {listed}")
        policies = {
            name: {task: figures for task, figures in found.items() if figures["items"]}
            for name, found in results.items()
        }
        record = {"policies": policies, "tasks": suite.known(), "left_out": left_out}
        write_json(folder / "results.json", record)
        return record

    def memory(self, context: Context, config: Mapping[str, Any]) -> StagePlan:
        """Items that are read together."""
        return reading_plan(context, config, self.name)

    def _tasks(self, context: Context) -> dict[str, Any]:
        options = context.config[self.name]
        names = [name for name in options["tasks"] if can_load(name, options["root"])]
        if out := [name for name in options["tasks"] if name not in names]:
            context.say(self.name, f"left out, as the hub has them not and benchmarks.root is null: {', '.join(out)}")
        asked = options["uniform_toxicity"]
        with context.heartbeat.during("reading the sets"):
            tasks = load_tasks(names, options["root"], asked)
        for rows in [task.eval_docs for name, task in tasks.items() if asked and name.startswith(TOXIC_TASKS)][:1]:
            if len(rows) < asked:
                said = f"{len(rows)} prompts of RealToxicityPrompts, not {asked}, drawn evenly"
                context.say(self.name, f"{said}: the rarest toxicity of all has no more")
            if (ranges := toxicity_ranges(rows)) < RANGES:
                context.say(self.name, f"the set has prompts of {ranges} of {RANGES} ranges of toxicity alone")
        return tasks


class _Suite:
    """What every policy goes through.

    Args:
        context: Models of the run.
        step: The step's name.
        tasks: The tasks by name.
        folder: The step's output folder.
    """

    def __init__(self, context: Context, step: str, tasks: Mapping[str, Any], folder: Path) -> None:
        options = context.config[step]
        self.context, self.step, self.options, self.tasks, self.folder = context, step, options, tasks, folder
        # What is asked by content, also of the hub, whose sets change under their names.
        self.content = {
            name: fingerprint([list(task.eval_docs), list(task.fewshot_docs() or ())]) for name, task in tasks.items()
        }
        self.measured_by = measured_by(context)
        self.judges: dict[str, Any] = {}
        if any(name.startswith(TOXIC_TASKS) for name in tasks):
            self.judges[TOXICITY] = toxicity_judge(context, options)
        if options[TRUTH_JUDGE]:
            self.judges[TRUTHFUL] = context.build(options[TRUTH_JUDGE])

    def known(self) -> dict[str, dict[str, Any]]:
        """Of each task the measures, and whether more is better."""
        return {name: {"higher_is_better": task.higher_is_better()} for name, task in self.tasks.items()}

    def measure(self, policy: str, show: Callable[..., None], advance: Callable[[int], None]) -> dict[str, Any]:
        """The figures of a policy by ``<task>@<shots>``; the model is loaded where something is not known yet.

        Args:
            policy: A name by `Context.model_path`.
            show: Called with the ``figures`` beside the progress bar.
            advance: Called with the number of tasks that are done.
        """
        found, of_model = dict[str, Any](), self._of_model(policy)
        lm: HarnessModel | None = None
        for name, task in self.tasks.items():
            for shots in shots_of(task, self.options["shots"]):
                label = f"{name}@{shots}"
                kept = self._kept(of_model, name, task, shots)
                show(figures=f"{policy} {label}")
                if not kept.exists():
                    lm = lm or self._model(policy)
                    lm.advance = _progress(show, f"{policy} {label}")
                    self._keep(kept, lm, name, shots)
                figures, samples = read_json(kept).values()
                if figures["left_out"] and self.options["too_long"] != _LEAVE_OUT:
                    raise PipelineError(
                        f"{figures['left_out']} items of {label} do not fit into the context of {policy}. Leave the "
                        "task out, ask with fewer benchmarks.shots, or set benchmarks.too_long=leave_out."
                    )
                path = self.folder / "samples" / _file_name(policy) / f"{quote(label, '@')}.jsonl"
                path.parent.mkdir(parents=True, exist_ok=True)
                write_lines(path, samples)
                found[label] = figures
                advance(1)
        del lm
        gc.collect()
        return found

    def _model(self, policy: str) -> HarnessModel:
        own = self.context.for_step(self.step, {POLICIES: policy})
        model = own.causal_lm(policy, of_records=False)
        size, (tokens, _) = self.options["batch_size"], reading_tokens(model.config, Precision(model.dtype), own.device)
        return HarnessModel(model, own.tokenizer, tokens=tokens, batch_size=size, seed=self.options["seed"])

    def _limit(self, name: str) -> int | None:
        """Items of a task at most; of prompts that are drawn evenly all."""
        drawn = self.options["uniform_toxicity"] and name.startswith(TOXIC_TASKS)
        limit: int | None = self.options["limit"]
        return None if drawn else limit

    def _keep(self, path: Path, lm: HarnessModel, name: str, shots: int) -> None:
        task = self.tasks[name]
        result = run_task(
            lm,
            task,
            shots=shots,
            limit=self._limit(name),
            chat_template=self.options["chat_template"],
            judges=self.judges,
            seed=self.options["seed"],
        )
        path.parent.mkdir(parents=True, exist_ok=True)
        with replacing(path, alone=False) as file:  # another run may measure the same
            json.dump({"figures": result.figures, "samples": result.samples}, file)

    def _of_model(self, policy: str) -> Any:
        """What the answers of a policy depend on."""
        nodes = self.context.held({name: self.context.config["model"][name] for name in ("causal_lm", "tokenizer")})
        if policy != BASE:  # whose settings say how it is read, but not what it is
            nodes = [node.get(name) for node in nodes.values() for name in ("dtype", *TOKENIZER_OPTIONS)]
        return [self.context.model_fingerprint(policy), nodes, self.context.seed if policy == BASE else None]

    def _kept(self, of_model: Any, name: str, task: Any, shots: int) -> Path:
        """The file of a result, named by the content of model and task and by the code that measures."""
        judges = judge_digests(self.context, self.options, [name])
        asked = {"limit": self._limit(name), **{each: self.options[each] for each in ("seed", "chat_template")}}
        key = fingerprint([of_model, described(task), shots, self.content[name], judges, asked, self.measured_by])
        return self.context.runs.root / KEPT_IN / f"{key}.json"


def _progress(show: Callable[..., None], label: str) -> Callable[[int], None]:
    """Counts what was read of a task beside the bar, which counts the tasks."""
    read = 0

    def advance(count: int) -> None:
        nonlocal read
        read += count
        show(figures=f"{label}, {read} read")

    return advance


def _file_name(policy: str) -> str:
    """A policy's name as that of a folder, which may not be long."""
    name = quote(policy, "")
    return name if len(name) <= _LONGEST_NAME else f"{name[8 - _LONGEST_NAME :]}-{fingerprint(policy)[:7]}"
