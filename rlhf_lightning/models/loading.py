"""Models and tokenizers: loading, fitting them to each other, freezing."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, TypeVar, cast

import torch
from safetensors import SafetensorError
from torch import Tensor, nn
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    PreTrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)
from transformers.activations import NewGELUActivation

from rlhf_lightning.arguments import Decay, checked
from rlhf_lightning.models.adapter_folder import SEQUENCE_HEADS, adapter_settings, adapter_shapes, merged_adapter
from rlhf_lightning.models.architecture import check_causal
from rlhf_lightning.models.matmul import use_fast_matmul
from rlhf_lightning.runs.hub import adapter_base, model_source
from rlhf_lightning.tokenization.endings import name_special_tokens

Module = TypeVar("Module", bound=nn.Module)
DType = Literal["float32", "bfloat16", "float16", "float64"]
"""Types of weights, as torch calls them."""
_RESIDUAL_DROPOUT = (
    "resid_pdrop",
    "resid_dropout",
    "residual_dropout",
    "hidden_dropout",
    "hidden_dropout_prob",
    "dropout",
)
"""What configurations call the dropout on residual branches."""


@checked
def load_causal_lm(
    path: str | None = None,
    config: Mapping[str, Any] | None = None,
    *,
    dtype: DType = "float32",
    attention: str = "sdpa",
    residual_dropout: Decay = 0.0,
    trust_remote_code: bool = False,
) -> PreTrainedModel:
    """Load a causal language model, or make a fresh one.

    Args:
        path: A local folder, a hub id, or a shipped model (`model_folder`). A folder that holds an adapter is read with
            its model, and merged.
        config: Instead of `path`, `model_type` and the architecture's own configuration fields; the weights are then
            random.
        dtype: Name of the torch dtype of the weights; training keeps 32-bit master weights.
        attention: Attention implementation of transformers: `sdpa`, `eager`, `flex_attention` (GPU), ...
        residual_dropout: Dropout on the residual branches (0.2 for SFT in InstructGPT, appendix C.1); every other
            dropout is 0. Only for architectures that have one.
        trust_remote_code: Whether code that comes with the model may run.

    Raises:
        FileNotFoundError: When there is nothing at a path that is no hub id.
        ValueError: When not exactly one of `path` and `config` is given, the dropout does not exist, the folder does
            not hold the whole model (`load_weights`), or it is no causal language model (`check_causal`).
    """
    architecture = model_config(path, config, trust_remote_code=trust_remote_code)
    _set_dropout(architecture, residual_dropout)
    options: dict[str, Any] = {
        "config": architecture,
        "dtype": getattr(torch, dtype),
        # Not every architecture has torch's kernel; transformers takes it where there is one.
        "attn_implementation": None if attention == "sdpa" else attention,
        "trust_remote_code": trust_remote_code,
    }
    if path is None:
        model = AutoModelForCausalLM.from_config(**options)
    else:
        model = load_weights(AutoModelForCausalLM, path, **options)
    check_causal(model)
    return use_fast_kernels(cast(PreTrainedModel, model))


def load_weights(auto_class: Any, path: str, **options: Any) -> PreTrainedModel:
    """Load a model of which every weight is there: transformers would make up those that are not, and go on.

    Args:
        auto_class: The class of transformers that knows what the model is for, such as `AutoModelForCausalLM`.
        path: A local folder, a hub id, or a shipped model; or the folder of an adapter, which is merged into its model.
        options: Further arguments of `from_pretrained`.

    Raises:
        ValueError: When weights are missing, are named otherwise or have other shapes, with some of their names; or
            when the folder holds something else than a model in safetensors.
    """
    source = model_source(path)
    base = adapter_base(source)
    if base is None:
        return _load_plain(auto_class, path, **options)
    folder = Path(source)
    trained = tuple(adapter_settings(folder).get("modules_to_save") or ())
    if auto_class is AutoModelForSequenceClassification:
        trained += SEQUENCE_HEADS
        heads = [shape[0] for name, shape in adapter_shapes(folder).items() if name.split(".")[-2] in SEQUENCE_HEADS]
        options |= {"num_labels": heads[0]} if heads else {}
    return merged_adapter(_load_plain(auto_class, base, trained, **options), folder)


def _load_plain(auto_class: Any, path: str, trained: Sequence[str] | None = None, **options: Any) -> PreTrainedModel:
    """Load a model; beside an adapter, modules that were `trained` may be missing, and another head may be there."""
    source = model_source(path)
    _check_kind(Path(source), path)
    # Other shapes are reported with the names, not by an error without them.
    reported = {"use_safetensors": True, "output_loading_info": True, "ignore_mismatched_sizes": True}
    try:
        model, report = auto_class.from_pretrained(source, **reported, **options)
    except SafetensorError as error:
        raise ValueError(
            f"the weights of {path} cannot be read ({error}): a file that was cut, or a pointer of Git LFS. Fetch them "
            "again (git lfs pull)."
        ) from error
    missing, unexpected = report["missing_keys"], report["unexpected_keys"]
    if trained is not None:
        missing = [name for name in missing if set(trained).isdisjoint(name.split("."))]
        unexpected = [name for name in unexpected if name.startswith(f"{model.base_model_prefix}.")]
    found = {
        "lacks": sorted(missing),
        "has besides": sorted(unexpected),
        "has in other shapes": sorted(str(name) for name, *_ in report["mismatched_keys"]),
    }
    faults = [f"{what} {_some(names)}" for what, names in found.items() if names]
    if faults:
        raise ValueError(
            f"{path} does not hold the weights of a {type(model).__name__}: it {', and '.join(faults)}. Those that it "
            "lacks would be random. Save the model itself, without a prefix of torch.compile or of an adapter in the "
            "names of its weights, or name a folder of this kind."
        )
    return cast(PreTrainedModel, model)


def _check_kind(folder: Path, path: str) -> None:
    """Refuse folders that hold no whole model in a form that is read here."""
    if not folder.is_dir():
        return
    names = {file.name for file in folder.iterdir()}
    if "config.json" not in names:
        raise ValueError(f"{path} has no config.json; name the folder that save_pretrained wrote.")
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    if config.get("is_encoder_decoder"):
        raise ValueError(f"{path} is an encoder-decoder ({config.get('model_type')}); a decoder is needed.")
    if config.get("quantization_config"):
        raise ValueError(f"{path} is quantised, which cannot be trained here; name the model it was made from.")
    if not any(name.endswith((".safetensors", ".safetensors.index.json")) for name in names):
        raise ValueError(
            f"{path} has no weights in safetensors, and a pickle is not read. If you trust its .bin, load and save it "
            "once: AutoModelForCausalLM.from_pretrained(folder).save_pretrained(folder)."
        )


def _some(names: Sequence[str]) -> str:
    return ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")


def model_config(
    path: str | None = None, config: Mapping[str, Any] | None = None, *, trust_remote_code: bool = False
) -> PreTrainedConfig:
    """The architecture of a model, without its weights; arguments and errors as those of `load_causal_lm`."""
    if (path is None) == (config is None):
        raise ValueError(f"a model needs either 'path' or 'config', got path={path!r} and config={config!r}.")
    if path is not None:
        source = model_source(path)
        source = adapter_base(source) or source
        _check_kind(Path(source), path)
        try:
            architecture = AutoConfig.from_pretrained(source, trust_remote_code=trust_remote_code)
        except OSError as error:
            if Path(source).exists():
                raise
            reason = str(error).splitlines()[0]
            raise OSError(f"there is no folder {path!r} here, and the hub does not give it ({reason}).") from error
    else:
        architecture = AutoConfig.for_model(**{"bos_token_id": None, "eos_token_id": None, **(config or {})})
    return cast(PreTrainedConfig, architecture)


def use_fast_kernels(model: Module) -> Module:
    """Put faster kernels into a model; its values are the same up to rounding, its parameters the very same.

    Linear layers multiply by `rlhf_lightning.models.matmul.matmul`. Where transformers writes out the formula of
    tanh-GELU (`gelu_new`: GPT-2 and others) stands torch's kernel: a training step takes about a fifth less time, and
    the activations that are kept for the backward pass shrink.
    """
    use_fast_matmul(model)
    for module in list(model.modules()):
        for name, child in module.named_children():
            if isinstance(child, NewGELUActivation):
                setattr(module, name, nn.GELU(approximate="tanh"))
    return model


def fit_to_tokenizer(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> PreTrainedModel:
    """Give the model the tokenizer's special tokens and, where it has more tokens, rows for them.

    New rows start at the mean of the old ones, so that the new tokens are neither likely nor unlikely.

    Raises:
        ValueError: When the model lacks rows for the vocabulary itself, not just for tokens that were added to it.
    """
    old = cast(Tensor, model.get_input_embeddings().weight).shape[0]
    if tokenizer.vocab_size > old:
        raise ValueError(
            f"the tokenizer {tokenizer.name_or_path} has a vocabulary of {tokenizer.vocab_size} tokens, the model rows "
            f"for {old}: it is another model's. Set model.tokenizer.path to the folder of the model."
        )
    if len(tokenizer) > old:
        model.resize_token_embeddings(len(tokenizer), mean_resizing=False)
        model.name_or_path = ""  # no folder holds these weights
        with torch.no_grad():
            for layer in (model.get_input_embeddings(), model.get_output_embeddings()):
                weight = cast(Tensor, layer.weight)
                weight[old:] = weight[:old].mean(0)
    for config in (model.config, model.generation_config):
        if config is not None:
            name_special_tokens(config, tokenizer)
    return model


def check_rows(tokenizer: PreTrainedTokenizerBase, *models: object) -> None:
    """Make sure that models have rows for all tokens, those too that `load_tokenizer` added, such as a pad token.

    Args:
        tokenizer: The tokenizer whose ids the models will read.
        models: The models; anything without an embedding of transformers is passed over.

    Raises:
        ValueError: Naming the model, both numbers, and the remedy.
    """
    for model in models:
        body = getattr(model, "backbone", model)
        if isinstance(body, PreTrainedModel):
            rows = cast(Tensor, body.get_input_embeddings().weight).shape[0]
            if rows < len(tokenizer):
                raise ValueError(
                    f"the tokenizer has {len(tokenizer)} tokens, but a {type(body).__name__} has rows for {rows}. Add "
                    "those that lack: rlhf_lightning.fit_to_tokenizer(model, tokenizer), before others are made of it."
                )


def freeze(module: Module) -> Module:
    """Turn off gradients and dropout, for good."""
    return module.requires_grad_(False).eval()


def _set_dropout(config: Any, residual_dropout: float) -> None:
    for name, value in config.to_dict().items():
        if "drop" in name and isinstance(value, float):
            setattr(config, name, 0.0)
    names = [name for name in _RESIDUAL_DROPOUT if hasattr(config, name)]
    if residual_dropout and not names:
        lacking = f"{config.model_type} models have no residual dropout"
        raise ValueError(f"residual_dropout is {residual_dropout}, but {lacking}. Set it to 0.")
    for name in names:
        setattr(config, name, residual_dropout)
