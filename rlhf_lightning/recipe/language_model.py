"""Steps pretrain, sft and ppo_init: a language model on text or on demonstrations (InstructGPT, 3.5, C.1, C.3)."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, ClassVar

from transformers import PreTrainedModel

from rlhf_lightning.evaluation.plots import Curve
from rlhf_lightning.models.adapter_export import export_trained
from rlhf_lightning.models.export import export_causal_lm
from rlhf_lightning.models.loading import fit_to_tokenizer
from rlhf_lightning.models.lora import with_adapters
from rlhf_lightning.recipe.context import BASE, Context
from rlhf_lightning.recipe.memory_plan import StagePlan, demonstrations_plan, text_plan
from rlhf_lightning.recipe.model_names import base_lacking
from rlhf_lightning.recipe.schemas import FineTuningSettings, PretrainSettings
from rlhf_lightning.recipe.stage import TrainingStage
from rlhf_lightning.training.callbacks import KeepEpochs

CURVES = (Curve("Loss", "nats per token", {"validation": "validation/loss", "train": "train/loss"}),)


@dataclass(frozen=True)
class Pretraining(TrainingStage):
    """Trains the base model on text, where one is to be made; it plays GPT-3."""

    reads: str = "text"

    schema = PretrainSettings
    reads_curated: ClassVar[bool] = False
    curves: ClassVar[tuple[Curve, ...]] = CURVES

    def parents(self, context: Context) -> dict[str, str]:
        """There are none."""
        return {}

    def lacks(self, context: Context) -> Iterator[str]:
        """Also what it starts from, which no other step makes."""
        yield from super().lacks(context)
        yield from base_lacking(context, anew=True)

    def not_needed(self, context: Context) -> str | None:
        """Weights that are there, unless they are to be trained on."""
        path = context.config["model"]["causal_lm"].get("path")
        found = path is not None and not context.config[self.name]["on_weights"]
        return f"{path} has weights; pretrain.on_weights=true trains them further on the text" if found else None

    def run(self, context: Context, folder: Path) -> dict[str, Any]:
        """Train from the configuration's own weights and write ``model/``."""
        config, options = context.config, context.config[self.name]
        model = fit_to_tokenizer(context.build(config["model"]["causal_lm"]), context.tokenizer)
        module = context.build(options["module"], model=model)
        metrics = self.fit(context, folder, module)
        export_causal_lm(model, context.tokenizer, folder / "model", dtype=options["export_dtype"])
        return metrics

    def memory(self, context: Context, config: Mapping[str, Any]) -> StagePlan:
        """Full blocks of text."""
        return text_plan(context, config, self.name)


@dataclass(frozen=True)
class FineTuning(TrainingStage):
    """Fine-tunes the base model on demonstrations."""

    reads: str = "demonstrations"

    schema = FineTuningSettings
    curves: ClassVar[tuple[Curve, ...]] = CURVES

    def parents(self, context: Context) -> dict[str, str]:
        """The base model."""
        return {"init": BASE}

    def run(self, context: Context, folder: Path) -> dict[str, Any]:
        """Train and write ``model/``, and ``epochs/`` where they are kept."""
        options = context.config[self.name]
        model: PreTrainedModel = context.causal_lm(BASE, residual_dropout=options["residual_dropout"])
        module = context.build(options["module"], model=with_adapters(model, **options["lora"]))
        export = partial(export_trained, model, model, context.export_tokenizer, folder / "base", options["export"])
        epochs = KeepEpochs(folder / "epochs", export, options["keep_epochs"], options["keep_every"])
        metrics = self.fit(context, folder, module, [epochs])
        export(folder / "model")
        return metrics

    def memory(self, context: Context, config: Mapping[str, Any]) -> StagePlan:
        """The longest prompts and responses."""
        return demonstrations_plan(context, config, self.name)
