"""Reading folders of adapters, as PEFT writes them: LoRA beside the name of the model that it belongs to."""

import json
import warnings
from collections.abc import Sequence
from pathlib import Path
from types import ModuleType
from typing import Any, cast

from safetensors import safe_open
from torch import Tensor
from transformers import GenerationConfig, PreTrainedModel

from rlhf_lightning.runs.hub import ADAPTER_CONFIG

ADAPTER_WEIGHTS, PREFIX = "adapter_model.safetensors", "base_model.model."
"""PEFT's file of an adapter's weights, and what it writes before the names of the model's modules there."""
SEQUENCE_HEADS = ("score", "classifier")
"""What PEFT calls the heads of sequence classifiers, which are saved with their adapters."""
_REFUSED = ("alora_invocation_tokens", "layer_replication", "megatron_config")
"""Options of LoRA that have no merged model of the same shape, or import code by name."""


def peft_module() -> ModuleType:
    """The library peft.

    Raises:
        ImportError: When it is not installed.
    """
    try:
        import peft
    except ImportError as error:
        raise ImportError("LoRA needs peft: pip install 'rlhf-lightning[lora]'.") from error
    return peft


def adapter_settings(folder: Path) -> dict[str, Any]:
    """What the adapter's configuration says.

    Raises:
        ValueError: When it is no LoRA, has an option that cannot be merged, or has no weights in safetensors.
    """
    settings: dict[str, Any] = json.loads((folder / ADAPTER_CONFIG).read_text(encoding="utf-8"))
    kind, refused = settings.get("peft_type"), [name for name in _REFUSED if settings.get(name)]
    if kind != "LORA":
        raise ValueError(f"{folder} holds an adapter of type {kind}; only LORA is read here. Merge it, and save that.")
    if refused:
        raise ValueError(f"the adapter {folder} has {refused[0]}, which cannot be merged into its model.")
    if not (folder / ADAPTER_WEIGHTS).is_file():
        raise ValueError(f"{folder} has no {ADAPTER_WEIGHTS}, and a pickle is not read. Save it with safetensors.")
    return settings


def adapter_shapes(folder: Path) -> dict[str, list[int]]:
    """The shape of every weight in an adapter's folder, by the name that the model gives it."""
    with safe_open(folder / ADAPTER_WEIGHTS, framework="pt") as file:
        names = file.keys()
        return {name.removeprefix(PREFIX): file.get_slice(name).get_shape() for name in names}


def merged_adapter(model: PreTrainedModel, folder: Path) -> PreTrainedModel:
    """A model with an adapter added to its weights, changed in place.

    Args:
        model: The model that the adapter belongs to.
        folder: The adapter's folder; a generation config in it replaces the model's.

    Raises:
        ImportError: When peft is not installed.
        ValueError: When the adapter is none of this model, or would part weights that are tied.
    """
    peft, shapes = peft_module(), adapter_shapes(folder)
    embeddings = _embedding_names(model)
    saved = [shapes[name][0] for name in embeddings[:2] if name in shapes]
    if saved and saved[0] != len(cast(Tensor, model.get_input_embeddings().weight)):
        model.resize_token_embeddings(saved[0], mean_resizing=False)
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", ".*is_gradient_checkpointing.*", FutureWarning)  # peft 0.21
            warnings.filterwarnings("ignore", ".*missing adapter keys.*")  # they are refused below
            tuned = peft.PeftModel.from_pretrained(model, str(folder))
    except (RuntimeError, ValueError) as error:
        raise ValueError(f"the adapter {folder} does not fit {model.name_or_path}: {error}") from error
    expected = {
        name.removeprefix(PREFIX) for name in peft.get_peft_model_state_dict(tuned, save_embedding_layers=False)
    }
    lacks, more = sorted(expected - shapes.keys()), sorted(shapes.keys() - expected - set(embeddings))
    if lacks or more:
        raise ValueError(
            f"the adapter {folder} does not fit {model.name_or_path}: it lacks {lacks[:3] or 'nothing'} and has "
            f"{more[:3] or 'nothing'} besides. Set base_model_name_or_path to the model that it was trained on."
        )
    plain = cast(PreTrainedModel, tuned.merge_and_unload(safe_merge=True)).requires_grad_(True)
    plain.__dict__.pop("peft_config", None)  # until peft 0.20
    layers = tuple(f"{name.rpartition('.')[0]}.lora_" for name in embeddings)
    _check_tied(plain, folder, parted=any(name.startswith(layers) for name in expected))
    if (folder / "generation_config.json").exists() and plain.can_generate():
        plain.generation_config = GenerationConfig.from_pretrained(folder)
    plain.name_or_path = ""  # no folder holds these weights
    return plain


def _embedding_names(model: PreTrainedModel) -> Sequence[str]:
    """Names of the weights of the input and of the output embeddings, each by itself and under adapters."""
    layers = [model.get_input_embeddings(), model.get_output_embeddings()]
    names = {id(module): name for name, module in model.named_modules()}
    found = [names[id(layer)] for layer in layers if layer is not None]
    return [f"{name}.{part}" for name in found for part in ("weight", "base_layer.weight")]


def _check_tied(model: PreTrainedModel, folder: Path, parted: bool) -> None:
    """Refuse a head that is to be the embedding and is not; merging would add the adapter of one of them to both."""
    head: Any = model.get_output_embeddings()
    if head is None or not getattr(model.config.get_text_config(), "tie_word_embeddings", False):
        return
    embedding = cast(Tensor, model.get_input_embeddings().weight)
    if parted or not bool((head.weight == embedding).all()):
        raise ValueError(
            f"the adapter {folder} changes one of the embedding and the output layer, which are tied in its model, so "
            "that no folder could hold the merged one. Train an adapter without embed_tokens and lm_head."
        )
    model.tie_weights()
