"""What a step of the recipe is: its name, what it starts from, how it is made, what the report shows of it."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, ClassVar

import lightning as L

from rlhf_lightning.data.datamodule import TASK_OF, RLHFDataModule
from rlhf_lightning.data.loader import random_part
from rlhf_lightning.data.records import Comparison
from rlhf_lightning.data.sources import RECORD_TYPES
from rlhf_lightning.evaluation.plots import Curve
from rlhf_lightning.generation.engines import responses_depend_on
from rlhf_lightning.recipe.context import COLLECT, MISSING, WRITES, Context
from rlhf_lightning.recipe.inputs import check_sources, training_lacking
from rlhf_lightning.recipe.memory_plan import Lever, StagePlan, training_levers
from rlhf_lightning.recipe.model_names import models_lacking
from rlhf_lightning.training.fit import fit_stage
from rlhf_lightning.training.surroundings import user_callbacks, user_loggers
from rlhf_lightning.training.watch import watches

LOGGER, CALLBACKS = "logger", "callbacks"
PLACEMENT = ("accelerator", "devices", "num_nodes", "strategy", LOGGER, CALLBACKS)
"""Settings of the trainer that say where it runs and who is told; the artifact is the same."""


@dataclass(frozen=True)
class Stage(ABC):
    """A step of the recipe; ``recipe/pipeline.py`` has the tuple of them.

    A new one is a subclass in a file of its own, a line in ``RECIPE`` and a config group of its name.

    Args:
        name: The step's folder, its node in the configuration and what other steps call its model.
        title: The step as people call it.
        colour: The step's colour in figures, as ``#rrggbb``.
        like: The step whose settings it has, but for what its own group says; "" where it has its own alone.
    """

    name: str
    title: str
    colour: str
    like: str = ""

    schema: ClassVar[type | None] = None
    """The `TypedDict` of what its config group may hold; without one its nodes with `_target_` alone are checked."""
    all_processes: ClassVar[bool] = False
    """Whether all processes take part; otherwise the first one works and the others wait."""
    keeps_artifact: ClassVar[bool] = True
    """Whether the step leaves a folder that is skipped when complete and resumed when half done."""
    reads_curated: ClassVar[bool] = True
    """Whether it reads the records that step curate left; otherwise those of the data option itself."""
    samples: ClassVar[bool] = False
    """Whether models write responses in it, by the engine of `generation`."""
    curves: ClassVar[tuple[Curve, ...]] = ()
    """What the report draws from its metrics.csv."""
    unit: ClassVar[str] = "batch"
    """What a row of its metrics.csv stands for."""
    measured_on_rankings: ClassVar[bool] = False
    """Whether the report has a table of its accuracy on rankings."""
    reported: ClassVar[bool] = False
    """Whether the report is written when it is complete."""
    record_kinds: ClassVar[tuple[str, ...]] = ()
    """Those that `kinds` says."""
    leaves: ClassVar[str] = ""
    """What its ``model/`` is, `WRITES` or `SCORES`; "" where it leaves none."""

    @abstractmethod
    def parents(self, context: Context) -> dict[str, str]:
        """Models and steps that it is made from, by their role."""

    def models(self, context: Context) -> dict[str, str]:
        """The parents that read the same tokens as the step, by their role; the first one brings the tokenizer."""
        return {role: name for role, name in self.parents(context).items() if name not in (COLLECT, MISSING)}

    @abstractmethod
    def run(self, context: Context, folder: Path) -> dict[str, Any]:
        """Make the step's artifact in its folder, from where it was interrupted; returns its metrics."""

    def settings(self, context: Context) -> dict[str, Any]:
        """The part of the resolved configuration that the artifact depends on."""
        config = {name: context.config[name] for name in ("model", "seed", self.name)}
        config |= {"generation": responses_depend_on(context.config["generation"])} if self.samples else {}
        config["data"] = context.config["data"]["lengths"]
        trainer = context.config["trainer"]
        return {**config, "trainer": {name: value for name, value in trainer.items() if name not in PLACEMENT}}

    def identity(self, context: Context) -> dict[str, Any]:
        """What the artifact depends on, by content: parents, data, resolved configuration."""
        parents = self.parents(context)
        return {
            "stage": self.name,
            "config": context.held(self.settings(context)),
            "data": context.data_fingerprint(self.reads_curated, self.kinds(context)),
            "parents": context.held({role: context.model_fingerprint(model) for role, model in parents.items()}),
        }

    def kinds(self, context: Context) -> tuple[str, ...]:
        """Kinds of the records that it reads; () stands for all."""
        return self.record_kinds

    def lacks(self, context: Context) -> Iterator[str]:
        """What it needs and nothing brings or makes, a sentence each; asked before the first step of the run."""
        yield from models_lacking(context, self.parents)

    def not_needed(self, context: Context) -> str | None:
        """Why this run does without the step; None where it does not."""
        return None

    def memory(self, context: Context, config: Mapping[str, Any]) -> StagePlan | None:
        """The memory that the step needs with a configuration; None where it does not train."""
        return None

    def levers(self, config: Mapping[str, Any]) -> list[Lever]:
        """Overrides that need less memory, from what costs nothing to what changes the run."""
        return []


class TrainingStage(Stage):
    """A step that trains a LightningModule."""

    all_processes: ClassVar[bool] = True
    leaves: ClassVar[str] = WRITES
    reads: str
    """The kind of the records that it learns from; see `RECORD_TYPES`."""

    def fit(
        self,
        context: Context,
        folder: Path,
        module: L.LightningModule,
        callbacks: Sequence[L.Callback] = (),
        keep: Callable[[Comparison], bool] | None = None,
    ) -> dict[str, Any]:
        """Train a module on records of a kind, from its last checkpoint where there is one.

        Args:
            context: Models, records and settings of the run.
            folder: The folder that gets ``metrics.csv``, ``checkpoints/``, ``dropped.json`` and ``cut.json``.
            module: The module that learns.
            callbacks: Callbacks besides the progress bar and those of the user.
            keep: Which of the training records to keep; None keeps all.

        Returns:
            The last value of every metric.
        """
        config, build = context.config, context.build
        data = self.datamodule(context, keep)
        trainer = {name: value for name, value in config["trainer"].items() if name not in (LOGGER, CALLBACKS)}
        users = user_callbacks(of_user(config, CALLBACKS), build)
        say = partial(context.say, self.name)
        metrics = fit_stage(
            module,
            data,
            folder,
            partial(build, trainer),
            [*watches(self.name, module, data, folder, say, context.heartbeat), *callbacks, *users],
            say,
            loggers=user_loggers(of_user(config, LOGGER), build, folder, config["tags"]),
            hyperparameters=self.settings(context),
            tags=config["tags"],
            **config[self.name]["fit"],
        )
        context.report_dropped(self.name, folder, data.tally)
        return metrics

    def settings(self, context: Context) -> dict[str, Any]:
        """Callbacks of the user may end a training, so the artifact depends on them."""
        callbacks = [nodes for nodes in of_user(context.config, CALLBACKS) if nodes]
        return super().settings(context) | ({CALLBACKS: callbacks} if callbacks else {})

    def lacks(self, context: Context) -> Iterator[str]:
        """The models, and the records that it will learn from."""
        yield from super().lacks(context)
        yield from training_lacking(context, self.name, self.reads, self.reads_curated)

    def records(self, context: Context, split: str) -> list[Any]:
        """The records of a split; training records have to be there."""
        return context.records(self.reads, split, required=split == "train", curated=self.reads_curated)

    def datamodule(self, context: Context, keep: Callable[[Comparison], bool] | None = None) -> RLHFDataModule:
        """The data that the step trains on; arguments as those of `fit`."""
        options = dict(context.config[self.name]["data"])
        uses_text = options.get("text_share") or options.get("text_batch_size")
        limits = {name: options.pop(name, None) for name in ("max_train", "max_validation")}
        left_out = options.pop("leave_out", None) or []
        read = self.records(context, "train")
        check_sources(f"{self.name}.data.leave_out", left_out, read)
        train = random_part(
            [record for record in read if record.source not in left_out], limits["max_train"], context.seed
        )
        return RLHFDataModule(
            TASK_OF[RECORD_TYPES[self.reads]],
            context.tokenizer,
            train if keep is None else [record for record in train if keep(record)],
            random_part(self.records(context, "validation"), limits["max_validation"], context.seed) or None,
            text=context.records("text", "train") if uses_text else None,
            seed=context.seed,
            **context.config["data"]["lengths"],
            **options,
        )

    def kinds(self, context: Context) -> tuple[str, ...]:
        """What it learns from, text beside it, and demonstrations that scores are centred by."""
        options = context.config[self.name]
        text = ["text"] * bool(options["data"].get("text_share") or options["data"].get("text_batch_size"))
        return (self.reads, *text, *["demonstrations"] * bool(options.get("bias_demonstrations")))

    def levers(self, config: Mapping[str, Any]) -> list[Lever]:
        """Activation checkpointing and smaller batches."""
        return training_levers(config, self.name)


def of_user(config: Mapping[str, Any], group: str) -> list[Any]:
    """The nodes of a group, and those that stand in the trainer."""
    return [config[group], config["trainer"].get(group)]
