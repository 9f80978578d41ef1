"""Writing what was trained with adapters: as a plain model, as an adapter that PEFT reads, or as both."""

import copy
from collections.abc import Mapping
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Literal, get_args

from safetensors.torch import save_file
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from rlhf_lightning.models.adapter_folder import ADAPTER_WEIGHTS, PREFIX, peft_module
from rlhf_lightning.models.export import check_scalar_export, complete_folder, export_model, head_state
from rlhf_lightning.models.lora import without_adapters
from rlhf_lightning.models.scalar_head import HEAD_FILE, ScalarHeadModel
from rlhf_lightning.parallel.processes import rank

Form = Literal["merged", "adapter", "both"]
MERGED, ADAPTER, BOTH = get_args(Form)
"""How a step writes its model."""


def check_form(step: str, options: Mapping[str, Any]) -> None:
    """Refuse, before any work, adapters that could not be made or written.

    Args:
        step: The step's name.
        options: The step's settings; steps without `lora` and `export` are fine.

    Raises:
        ImportError: When peft is missing.
        ValueError: When there will be no adapters to write.
    """
    form, size = options.get("export"), options.get("lora", {}).get("rank", 0)
    if form in (ADAPTER, BOTH) and not size:
        raise ValueError(f"{step}.export={form} needs adapters, but {step}.lora.rank is {size}; set it, to 16 say.")
    if size and find_spec("peft") is None:
        peft_module()


def export_trained(
    model: PreTrainedModel | ScalarHeadModel,
    start: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    base: Path,
    form: Form | None,
    folder: Path,
) -> None:
    """Write a model, an adapter, or both, then the adapter beside the model (`adapter` beside `model`).

    Args:
        model: The model that was trained.
        start: The causal language model that it was made from, or itself.
        tokenizer: The tokenizer that is written beside each.
        base: Where the start is written to if no folder holds it: its vocabulary grew, or it was an adapter itself.
        form: How it is written; None is `merged`.
        folder: The folder to write; an older one there is replaced.
    """
    if form != ADAPTER:
        export_model(model, start.config, tokenizer, folder)
    if form == BOTH:
        name = folder.name.replace("model", "adapter")
        folder = folder.with_name(name if name != folder.name else f"{name}-adapter")
    if form in (ADAPTER, BOTH):
        if not start.name_or_path and not base.exists():
            export_model(without_adapters(model), start.config, tokenizer, base)
        name = start.name_or_path or str(base)
        place = str(Path(name).resolve()) if Path(name).exists() else name
        export_adapter(model, start, tokenizer, place, folder)


def export_adapter(
    model: PreTrainedModel | ScalarHeadModel,
    start: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    base: str,
    folder: Path,
) -> None:
    """Write a folder that PEFT reads: the adapters of a model, and the scalar head of one that has it.

    A reward model's head is there twice: as PEFT's `score`, and with the bias in the file that `load_scalar_model`
    reads.

    Args:
        model: The model with adapters.
        start: The causal language model that it was made from, or itself.
        tokenizer: The tokenizer that is written beside it.
        base: Folder or hub id of the start.
        folder: The folder to write; an older one there is replaced.
    """
    body: Any = model.backbone if isinstance(model, ScalarHeadModel) else model
    settings, prefix, head = copy.deepcopy(body.peft_config["default"]), PREFIX, dict[str, Tensor]()
    pooling = model.pooling if isinstance(model, ScalarHeadModel) else "last"
    settings.task_type = "CAUSAL_LM"
    if isinstance(model, ScalarHeadModel):
        classifier = check_scalar_export(model, start.config, tokenizer)
        settings.task_type, head = "FEATURE_EXTRACTION", head_state(model)
        if classifier is not None:
            settings.task_type, settings.modules_to_save = "SEQ_CLS", ["score"]
            prefix += f"{classifier.base_model_prefix}."
    settings.base_model_name_or_path, settings.inference_mode = base, True
    if not isinstance(settings.target_modules, str):  # a set has no order, and the same run writes the same file
        settings.target_modules = sorted(settings.target_modules)
    weights = peft_module().get_peft_model_state_dict(body, save_embedding_layers=False)
    state = {prefix + name: weight.detach().cpu().contiguous() for name, weight in weights.items()}
    if settings.modules_to_save:
        state[f"{PREFIX}score.weight"] = head["weight"]
    if rank() == 0:
        with complete_folder(folder) as unfinished:
            save_file(state, unfinished / ADAPTER_WEIGHTS, metadata={"format": "pt"})
            settings.save_pretrained(str(unfinished))
            tokenizer.save_pretrained(unfinished)
            if head:
                save_file(head, unfinished / HEAD_FILE, metadata={"format": "pt", "pooling": pooling})
            else:
                start.generation_config.save_pretrained(unfinished)
