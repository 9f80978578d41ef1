"""What a step starts from: records, tokenizer and models, from the configuration and from earlier steps."""

from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from copy import copy
from pathlib import Path
from typing import Any, TypeVar

import torch
from lightning.fabric.utilities import move_data_to_device
from rich.console import Console
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from rlhf_lightning.data.records import Comparison
from rlhf_lightning.data.rows.records_of import read_records
from rlhf_lightning.data.sources import DataSource, FileData, check_data_source
from rlhf_lightning.data.tokenize import Tokenization
from rlhf_lightning.generation.sample import token_id
from rlhf_lightning.models.adapter_export import check_form
from rlhf_lightning.models.architecture import check_length
from rlhf_lightning.models.loading import fit_to_tokenizer, load_causal_lm
from rlhf_lightning.models.scalar_head import ScalarHeadModel, load_scalar_model
from rlhf_lightning.recipe.curated import CuratedData
from rlhf_lightning.recipe.messages import (
    Messages,
    longest_row,
    no_rankings,
    no_records,
    not_made,
    row_lengths,
    too_long,
)
from rlhf_lightning.recipe.provenance import provenance
from rlhf_lightning.recipe.tokenizers import Tokenizers
from rlhf_lightning.runs.exported import kept_weights, of_other_run
from rlhf_lightning.runs.folders import PipelineError, Runs, check_files, other_settings, step_fingerprint
from rlhf_lightning.runs.hub import model_folder
from rlhf_lightning.runs.identity import by_content, fingerprint, model_fingerprint
from rlhf_lightning.tokenization.trained import as_trained

Batch = TypeVar("Batch", bound=tuple[Any, ...])
BASE, FEW_SHOT, PRETRAIN, COLLECT, CURATE, SELECT = "base", "prompted", "pretrain", "collect", "curate", "select"
"""The base model, the same behind a few-shot prefix, and the steps whose artifacts others look for by name."""
MISSING = "???"
"""The name of a model that the user is still to give."""
WRITES, SCORES = "language model", "reward model"
"""What the model of a step is."""
TOKENIZER_OPTIONS = ("eos", "stop", "chat_template", "date", "trust_remote_code")
"""Options of the base model's tokenizer that hold for every folder and hub id that a setting names."""


class Context(Messages):
    """Finds, loads and builds what steps need, and tells people what happens.

    Args:
        config: The resolved configuration, plain types; one entry per step and shared group.
        build: Builds the object that a node with ``_target_`` describes, given further keyword arguments.
        runs: Where artifacts are.
        steps: All steps of the recipe by name, with the kind of model that each leaves, "" for none; any other name of
            a model is a folder or a hub id.
        console: Where progress and tables go.
    """

    def __init__(
        self,
        config: Mapping[str, Any],
        build: Callable[..., Any],
        runs: Runs,
        steps: Mapping[str, str],
        console: Console | None = None,
    ) -> None:
        self.config, self.build, self.runs, self.steps = config, build, runs, steps
        self.seed: int = config["seed"]
        self.coming: set[str] = set()
        """Steps that this run is still to make before the one that is asked; see `look_ahead`."""
        super().__init__(check_data_source(build(config["data"]["source"])), console)
        gpu = config["trainer"].get("accelerator") in ("gpu", "cuda", "auto") and torch.cuda.is_available()
        self.device = torch.device("cuda" if gpu else "cpu")
        self._records: dict[tuple[Path | None, str, str], list[Any] | None] = {}
        node = config["model"]["tokenizer"]
        options = {name: value for name, value in node.items() if name in TOKENIZER_OPTIONS}
        self.tokenizers = Tokenizers(lambda: build(node), self.model_path, (BASE, *steps), options)
        self._shared: PreTrainedTokenizerBase | None = None

    # --- models -------------------------------------------------------------------------------------------------------

    def model_path(self, name: str) -> Path | str | None:
        """Folder of a step's model or a model given by path; None is the base model of the configuration.

        Args:
            name: ``base``, a step (``ppo/raw`` for the weights without averaging, ``ppo/best`` for those of the best
                validation, ``sft/epoch-3`` or ``sft/batch-400`` for those after an epoch or so many batches, where
                they were kept), the same of another run (``<run>/sft``), a folder or a hub id.

        Raises:
            PipelineError: When the step has not run.
        """
        if name == BASE:
            return (pretrained := self._pretrained()) and pretrained / "model"
        step, _, variant = name.partition("/")
        if step in self.steps:
            return kept_weights(self.step_folder(step), variant)
        try:
            return of_other_run(self.runs.root, name)
        except FileNotFoundError as error:
            raise PipelineError(str(error)) from error

    def step_folder(self, step: str) -> Path:
        """The folder of a finished step, in this run or upstream; a `PipelineError` says that it has not run."""
        folder = self._left(step)
        if folder is None:
            raise PipelineError(not_made(self.runs, step))
        return folder

    def _left(self, step: str) -> Path | None:
        # What other runs have is nothing to a step that this one makes.
        return None if step in self.coming else self.runs.read(step)

    def verify(self, names: Iterable[str], curated: bool) -> None:
        """Make sure that models and records of steps hold what they held: those named, and the curated ones if read."""
        with self.heartbeat.during("verifying what earlier steps left"):
            for name in {*names, *([CURATE] if curated else [])}:
                for folder in self._made_in(name):
                    check_files(folder, contents=True, of=Path(str(self.model_path(name))))

    def _made_in(self, name: str) -> list[Path]:
        """Where the finished step is that the model or the records are of, of rankings every round; [] of no step."""
        step = PRETRAIN if name == BASE else name.partition("/")[0]
        found = self.runs.of_rounds(step) if step in self.steps else []
        return found if step == COLLECT else found[-1:]

    def available(self, name: str) -> bool:
        """Whether that model can be loaded."""
        step = name.partition("/")[0]
        return step not in self.steps or self.runs.find(step) is not None

    def causal_lm(self, name: str, residual_dropout: float = 0.0, of_records: bool = True) -> PreTrainedModel:
        """Load a model by the names of `model_path`, in eval mode, on the device that samples."""
        path = self.model_path(name)
        options: dict[str, Any] = {"residual_dropout": residual_dropout} if residual_dropout else {}
        with self.heartbeat.during(f"loading {name}"):
            if path is None:
                model: PreTrainedModel = self.build(self.config["model"]["causal_lm"], **options)
            else:
                model = load_causal_lm(str(path), **self._load_options("trust_remote_code"), **options)
        fit_to_tokenizer(model, self.tokenizer)
        if of_records:  # a public set has rows of its own lengths
            self.check_lengths(model, name)
        torch.nn.Module.to(model.eval(), self.device)
        return model

    def scalar_model(self, step: str) -> ScalarHeadModel:
        """The reward model of a step, on the device that samples."""
        with self.heartbeat.during(f"loading the reward model of {step}"):
            return load_scalar_model(str(self.model_path(step)), **self._load_options()).eval().to(self.device)

    def _load_options(self, *more: str) -> dict[str, Any]:
        node = self.config["model"]["causal_lm"]
        return {name: node[name] for name in ("dtype", "attention", *more) if name in node}

    def _pretrained(self) -> Path | None:
        """The base model that this run or its upstream made, if the configuration still describes it."""
        folder = self._left(PRETRAIN)
        if folder is not None and (found := other_settings(folder, "model", self.held(self.config["model"]))):
            raise PipelineError(
                f"{folder} holds a base model made with other settings of 'model':\n  {found}\n"
                "Give the same model=..., or another run or upstream."
            )
        return folder

    def check_lengths(self, model: PreTrainedModel, name: str, prefix: str = "") -> None:
        """Make sure that a prompt behind the prefix, with its response, fits into the model's context.

        Raises:
            PipelineError: When it does not.
            ValueError: When the model would read rows so long in another way beside others (`check_length`).
        """
        before = len(self.tokenization.text_ids(prefix, opens=True)) if prefix else 0
        lengths = row_lengths(self.config, self.data)
        if fault := too_long(lengths, model.config, f"{name} ({model.name_or_path})", before):
            raise PipelineError(fault)
        check_length(model, longest_row(lengths, before))

    @property
    def tokenizer(self) -> PreTrainedTokenizerBase:
        """The tokenizer that the models of the step share; that of the base model outside of a step."""
        return self.tokenizers.of(BASE) if self._shared is None else self._shared

    @property
    def export_tokenizer(self) -> PreTrainedTokenizerBase:
        """The same with a chat template that writes the format of the step's data, for what the step leaves."""
        return as_trained(self.tokenization.dialogue)

    def for_step(self, step: str, models: Mapping[str, str]) -> "Context":
        """This context with the tokenizer that the models of a step share.

        Raises:
            ImportError: When its adapters need peft.
            PipelineError: When two of them disagree.
            ValueError: When it could not write its model as it is told to.
        """
        check_form(step, self.config.get(step, {}))
        context = copy(self)
        own = self.tokenizers.described() if step == PRETRAIN else None
        context._shared = self.tokenizers.shared(step, models) if models else own
        for remark in self.tokenizers.other_formats(step, models, context.tokenization.dialogue.format):
            self.say(step, remark)
        if isinstance(self.data, FileData):
            self.data.check = context.tokenization.check if context.tokenizer.chat_template else None
        return context

    # --- records ------------------------------------------------------------------------------------------------------

    @property
    def tokenization(self) -> Tokenization:
        """Lengths and prompt template of the data option."""
        lengths = {name: value for name, value in self.config["data"]["lengths"].items() if name != "block_size"}
        return Tokenization(self.tokenizer, **lengths)

    def brings(self, name: str) -> bool:
        """Whether the data source has records of that name, so that no step has to make them; nothing is read."""
        return self.source(name).has(name, "train")

    def records(self, name: str, split: str, required: bool = True, curated: bool = True) -> list[Any]:
        """Records of the data source, as step curate left them where it ran and ``curated`` is true.

        Raises:
            PipelineError: When there are none and they are required.
        """
        records = self._read(name, split) if curated else self.data.records(name, split)
        if not records and required:
            raise PipelineError(no_records(name, split))
        return records or []

    def comparisons(self, name: str, split: str) -> list[Comparison]:
        """Rankings of the data source, or else those of all rounds so far; empty where there are none for a split."""
        if self.brings(name):
            return self.records(name, split, required=False)
        if name != "comparisons" or self.runs.read(COLLECT) is None:
            raise PipelineError(no_rankings(name))
        paths = [folder / f"comparisons.{split}.jsonl" for folder in self.runs.of_rounds(COLLECT)]
        return [ranking for path in paths if path.exists() for ranking in read_records(path, Comparison)]

    def _read(self, name: str, split: str) -> list[Any] | None:
        curated = self._curated()
        place = (curated.folder if curated else None, name, split)
        if place not in self._records:
            with self.heartbeat.during(f"reading {name} for {split}"):
                self._records[place] = self.source(name).records(name, split)
        return self._records[place]

    def source(self, name: str) -> CuratedData | DataSource:
        """What has the records of a kind: step curate, where it ran and curated them, or the data option."""
        return curated if (curated := self._curated()) and curated.holds(name) else self.data

    def _curated(self) -> CuratedData | None:
        """What step curate of this run or its upstream left, where it ran."""
        folder = self._left(CURATE)
        return None if folder is None else CuratedData(folder, self.data.fingerprint(), self.config, self.held)

    def batches(self, examples: Sequence[Any], collate: Callable[..., Batch], size: int) -> list[Batch]:
        """Examples in order, padded."""
        pad = token_id(self.tokenizer.pad_token_id)
        return [collate(examples[start : start + size], pad) for start in range(0, len(examples), size)]

    # --- identity -----------------------------------------------------------------------------------------------------

    def data_fingerprint(self, curated: bool, kinds: Collection[str]) -> str:
        """Changes when records of these kinds change: those of the data option, or what step curate made of them."""
        left = self._curated() if curated else None
        if left:
            return left.fingerprint
        return self.data.fingerprint(kinds) if isinstance(self.data, FileData) else self.data.fingerprint()

    def about(self, curated: bool, kinds: Collection[str]) -> dict[str, Any]:
        """What is kept beside the identity of a step."""
        return provenance(self.config, self.data, self._curated() if curated else None, self.device, kinds)

    def held(self, settings: Mapping[str, Any]) -> Any:
        """Settings with what files and model folders hold in place of their paths."""
        return by_content(settings, (BASE, *self.steps), self._runs_code)

    @property
    def _runs_code(self) -> bool:
        return any(self.config["model"][node].get("trust_remote_code") for node in ("causal_lm", "tokenizer"))

    def model_fingerprint(self, name: str) -> str:
        """Changes when the model changes, by the names of `model_path`, or the records that a step left."""
        path = str(self.model_path(name) or self.config["model"]["causal_lm"].get("path"))
        if len(made := [step_fingerprint(folder, path, self._runs_code) for folder in self._made_in(name)]) > 1:
            return fingerprint(made)
        return made[0] if made else model_fingerprint(model_folder(path), self._runs_code)


def counted(batches: Iterable[Batch], device: torch.device, advance: Callable[[int], None]) -> Iterator[Batch]:
    """Batches on a device, telling how many rows each had when the next one is asked for."""
    for batch in batches:
        yield move_data_to_device(batch, device)
        advance(len(batch[0]))
