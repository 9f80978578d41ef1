"""What a stage starts from: records, tokenizer and models, from the configuration and from earlier stages."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any, TypeVar

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from rlhf_lightning.algorithms.batch import PromptBatch
from rlhf_lightning.data.datamodule import RLHFDataModule
from rlhf_lightning.data.records import Comparison
from rlhf_lightning.data.rows.records_of import read_records
from rlhf_lightning.data.sources import DataSource
from rlhf_lightning.data.tokenize import Tokenization
from rlhf_lightning.generation.sample import token_id
from rlhf_lightning.models.loading import fit_to_tokenizer, load_causal_lm, load_tokenizer, model_folder
from rlhf_lightning.models.scalar_head import ScalarHeadModel, load_scalar_model
from rlhf_lightning.recipe.curated import CuratedData
from rlhf_lightning.runs.folders import STAGES, PipelineError, Runs, model_fingerprint, read_stage
from rlhf_lightning.runs.secrets import redacted

Batch = TypeVar("Batch")
BEFORE_CURATION = ("pretrain", "curate")  # these read the data option itself


class Inputs:
    """Finds and loads what stages need.

    Args:
        config: Resolved, plain types.
        build: Builds the object that a node with ``_target_`` describes, given further keyword arguments.
        runs: Where artifacts are.
    """

    def __init__(self, config: Mapping[str, Any], build: Callable[..., Any], runs: Runs) -> None:
        self.config, self.build, self.runs = config, build, runs
        self.data: DataSource = build(config["data"]["source"])
        gpu = config["trainer"].get("accelerator") in ("gpu", "cuda", "auto") and torch.cuda.is_available()
        self.device = torch.device("cuda" if gpu else "cpu")
        self._read: dict[tuple[Path | None, str, str], list[Any] | None] = {}
        self._tokenizers: dict[Path | None, PreTrainedTokenizerBase] = {}

    # --- models -------------------------------------------------------------------------------------------------------

    def model_path(self, name: str) -> Path | str | None:
        """Folder of a stage's model or a model given by path; None is the base model of the configuration.

        Args:
            name: ``base``, a stage (``ppo/raw`` for the weights without averaging, ``sft/epoch-3`` for those after an
                epoch, where they were kept), a folder or a hub id.

        Raises:
            PipelineError: When the stage has not run.
        """
        if name == "base":
            pretrained = self._pretrained()
            return None if pretrained is None else pretrained / "model"
        stage, _, variant = name.partition("/")
        if stage not in STAGES:
            return name
        folder = self.runs.find(stage)
        if folder is None:
            raise PipelineError(
                f"the model of stage {stage} is needed, but {self.runs.folder(stage)} is not complete"
                + (f", nor is it in run {' or '.join(self.runs.upstream)}" if self.runs.upstream else "")
                + f". Add it: stages=[{stage},...], or name a run that has it: upstream=<run>."
            )
        if variant.startswith("epoch-"):
            return folder / "epochs" / variant.removeprefix("epoch-")
        averaged = folder / "model_ema"
        return averaged if averaged.exists() and variant != "raw" else folder / "model"

    def available(self, name: str) -> bool:
        """Whether that model can be loaded."""
        try:
            self.model_path(name)
        except PipelineError:
            return False
        return True

    def causal_lm(self, name: str, residual_dropout: float = 0.0) -> PreTrainedModel:
        """Load a model by the names of :meth:`model_path`, in eval mode, on the device that samples."""
        path = self.model_path(name)
        options: dict[str, Any] = {"residual_dropout": residual_dropout} if residual_dropout else {}
        if path is None:
            model: PreTrainedModel = self.build(self.config["model"]["causal_lm"], **options)
        else:
            node = self.config["model"]["causal_lm"]
            kept = {key: node[key] for key in ("dtype", "attention", "trust_remote_code") if key in node}
            model = load_causal_lm(str(path), **kept, **options)
        fit_to_tokenizer(model, self.tokenizer)
        self.check_lengths(model, name)
        model.eval()
        torch.nn.Module.to(model, self.device)
        return model

    def scalar_model(self, stage: str) -> ScalarHeadModel:
        """The reward model of stage reward or judge, on the device that samples."""
        node = self.config["model"]["causal_lm"]
        kept = {key: node[key] for key in ("dtype", "attention") if key in node}
        return load_scalar_model(str(self.model_path(stage)), **kept).eval().to(self.device)

    def _pretrained(self) -> Path | None:
        """The base model that this run or its upstream made, if the configuration still describes it."""
        folder = self.runs.find("pretrain")
        if folder is not None and read_stage(folder)["identity"]["config"]["model"] != redacted(self.config["model"]):
            raise PipelineError(
                f"{folder} holds a base model made with other settings of 'model'. Give the same model=..., or another "
                "run or upstream."
            )
        return folder

    def check_lengths(self, model: PreTrainedModel, name: str, prefix: str = "") -> None:
        """Make sure that a prompt behind the prefix, with its response, fits into the model's context.

        Raises:
            PipelineError: When it does not.
        """
        lengths = self.config["data"]["lengths"]
        before = len(self.tokenizer(prefix)["input_ids"]) if prefix else 0
        needed = max(before + lengths["max_prompt_tokens"] + lengths["max_response_tokens"], lengths["block_size"])
        context = getattr(model.config.get_text_config(), "max_position_embeddings", None)
        if context is not None and needed > context:
            raise PipelineError(
                f"the model {name} reads {context} tokens, but data.lengths allow {needed} (prompt and response, or a "
                "block of text). Lower data.lengths.max_prompt_tokens, max_response_tokens or block_size"
                + (f", or shorten evaluate.few_shot_prefix, which has {before}." if before else ".")
            )

    @property
    def tokenizer(self) -> PreTrainedTokenizerBase:
        """Of the base model, which every later model shares."""
        pretrained = self._pretrained()
        if pretrained not in self._tokenizers:
            node = self.config["model"]["tokenizer"]
            self._tokenizers[pretrained] = load_tokenizer(str(pretrained / "model")) if pretrained else self.build(node)
        return self._tokenizers[pretrained]

    # --- records ------------------------------------------------------------------------------------------------------

    @property
    def tokenization(self) -> Tokenization:
        """Lengths and prompt template of the data option."""
        lengths = dict(self.config["data"]["lengths"])
        lengths.pop("block_size")
        return Tokenization(self.tokenizer, **lengths)

    def brings(self, name: str) -> bool:
        """Whether the data source has records of that name, so that no stage has to make them."""
        return self._given(name, "train") is not None

    def records(self, name: str, split: str, required: bool = True, curated: bool = True) -> list[Any]:
        """Records of the data source, as stage curate left them where it ran and ``curated`` is true.

        Raises:
            PipelineError: When there are none and they are required.
        """
        records = self._given(name, split) if curated else self.data.records(name, split)
        if not records and required:
            raise PipelineError(f"the data option has no {name} for the split {split}, which this stage needs.")
        return records or []

    def comparisons(self, name: str, split: str) -> list[Comparison]:
        """Rankings of the data source, or else those that were collected; empty where there are none for a split."""
        if self.brings(name):
            return self.records(name, split, required=False)
        folder = self.runs.find("collect")
        if name != "comparisons" or folder is None:
            raise PipelineError(
                f"there are no {name}: the data option has none and stage collect has not run. Add collect to stages, "
                "or name a run that has it: upstream=<run>."
            )
        path = folder / f"comparisons.{split}.jsonl"
        return read_records(path, Comparison) if path.exists() else []

    def datamodule(
        self, stage: str, task: Any, records: str, keep: Callable[[Any], bool] | None = None
    ) -> RLHFDataModule:
        """Data of a training stage; of its training records those for which ``keep`` is true."""
        options = dict(self.config[stage]["data"])
        uses_text = options.get("text_share") or options.get("text_batch_size")
        limits = {name: options.pop(name, None) for name in ("max_train", "max_validation")}
        left_out = options.pop("leave_out", None) or []
        curated = stage not in BEFORE_CURATION

        def given(split: str, required: bool) -> list[Any]:
            whole = task != "reward"
            return self.records(records, split, required, curated) if whole else self.comparisons(records, split)

        train = given("train", True)
        train = [record for record in train if record.source not in left_out][: limits["max_train"]]
        validation = [] if task == "ppo" else given("validation", False)
        return RLHFDataModule(
            task,
            self.tokenizer,
            train if keep is None else [record for record in train if keep(record)],
            validation[: limits["max_validation"]] or None,
            text=self.records("text", "train") if uses_text else None,
            seed=self.config["seed"],
            **self.config["data"]["lengths"],
            **options,
        )

    def _given(self, name: str, split: str) -> list[Any] | None:
        curated = self._curated()
        place = (curated.folder if curated else None, name, split)
        if place not in self._read:
            source = curated if curated and curated.holds(name) else self.data
            self._read[place] = source.records(name, split)
        return self._read[place]

    def _curated(self) -> CuratedData | None:
        """What stage curate of this run or its upstream left, where it ran."""
        folder = self.runs.find("curate")
        return None if folder is None else CuratedData(folder, self._data_fingerprint, self.config)

    def batches(self, examples: Sequence[Any], collate: Callable[..., Batch], size: int) -> list[Batch]:
        """Examples in order, padded."""
        pad = token_id(self.tokenizer.pad_token_id)
        return [collate(examples[start : start + size], pad) for start in range(0, len(examples), size)]

    # --- identity -----------------------------------------------------------------------------------------------------

    def identity(self, stage: str) -> dict[str, Any]:
        """What the artifact of a stage depends on: parents, data, resolved configuration."""
        curated = None if stage in BEFORE_CURATION else self._curated()
        config = {name: self.config[name] for name in ("model", "seed", stage)}
        config["data"] = self.config["data"]["lengths"]
        if stage in ("ppo", "ppo_ptx"):
            config["generation"] = self.config["generation"]
        placement = ("accelerator", "devices", "num_nodes", "strategy")
        config["trainer"] = {name: value for name, value in self.config["trainer"].items() if name not in placement}
        return {
            "stage": stage,
            "config": config,
            "data": curated.fingerprint if curated else self._data_fingerprint,
            "parents": {role: self._parent(name) for role, name in self._parents(stage).items()},
        }

    @cached_property
    def _data_fingerprint(self) -> str:
        return self.data.fingerprint()

    def _parents(self, stage: str) -> dict[str, str]:
        options = self.config[stage]
        if stage == "pretrain":
            return {}
        if stage == "curate":
            named = [source["path"] if isinstance(source, Mapping) else source for source in options["evaluation"]]
            return {str(path): str(path) for path in (*options["few_shot"], *named)}
        if stage in ("sft", "ppo_init"):
            return {"init": "base"}
        if stage == "collect":
            return {name: name for name in options["policies"]}
        if stage in ("reward", "judge"):
            given = self.brings("comparisons" if stage == "reward" else "judge_comparisons")
            return {"init": options["init"]} | ({} if given else {"comparisons": "collect"})
        if stage in ("ppo", "ppo_ptx"):
            reference = options["reference"]
            own = {"init": options["init"], "reward": "reward"}
            return own if reference == "init" else {**own, "reference": reference}
        wanted = [*options["policies"], options["reference"], "reward", *([] if options["judge"] else ["judge"])]
        return {name: name for name in wanted if name == "base" or (name != "prompted" and self.available(name))}

    def _parent(self, name: str) -> str:
        stage = name.partition("/")[0]
        if name == "base":
            pretrained = self._pretrained()
            if pretrained is None:
                path = self.config["model"]["causal_lm"].get("path")
                return model_fingerprint(model_folder(str(path)))
            stage = "pretrain"
        if stage in STAGES:
            folder = self.runs.find(stage)
            if folder is None:
                self.model_path(stage)  # raises, with what to do
                raise AssertionError(stage)
            return str(read_stage(folder)["fingerprint"])
        return model_fingerprint(model_folder(name))


def on_device(batch: PromptBatch, device: torch.device) -> PromptBatch:
    """The prompts on that device."""
    ids, mask, index, texts = batch
    return PromptBatch(ids.to(device), mask.to(device), index.to(device), texts)


def counted(
    batches: Sequence[PromptBatch], device: torch.device, advance: Callable[[int], None]
) -> Iterator[PromptBatch]:
    """Batches on a device, counting rows as they are asked for."""
    for batch in batches:
        yield on_device(batch, device)
        advance(len(batch.texts))
