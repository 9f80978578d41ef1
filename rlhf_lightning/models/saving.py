"""A model that learned as a folder that transformers reads, whichever kind of model it is."""

from contextlib import nullcontext
from pathlib import Path

from torch import nn
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from rlhf_lightning.models.export import export_causal_lm, export_scalar_model
from rlhf_lightning.models.moving_average import MovingAverage
from rlhf_lightning.models.scalar_head import ScalarHeadModel

_SUFFIXES, _NAMES = (".json", ".safetensors", ".jinja", ".model"), ("README.md", "merges.txt", "vocab.txt")
"""Of the files of a model folder."""


def _is_of_a_model(file: Path) -> bool:
    return file.is_file() and (file.suffix in _SUFFIXES or file.name in _NAMES)


def save_model(
    model: nn.Module, folder: Path, tokenizer: PreTrainedTokenizerBase | None, average: MovingAverage | None = None
) -> None:
    """Write a causal language model, or a reward model as a sequence classifier, and the tokenizer beside it.

    Args:
        model: The model; adapters are added to its weights.
        folder: The folder to write; an older model there is replaced.
        tokenizer: The tokenizer, or None for none; a reward model needs it.
        average: The average that is written in place of the model's weights, or None.

    Raises:
        FileExistsError: When there is something else than a model in the folder.
        TypeError: When the model is not one of transformers.
        ValueError: When a reward model comes without a tokenizer, or its architecture cannot be written.
    """
    body = model.backbone if isinstance(model, ScalarHeadModel) else model
    if not isinstance(body, PreTrainedModel):
        raise TypeError(
            f"save_pretrained writes models of transformers, and {type(body).__name__} is none: it has no config that "
            "could build it again. Save its weights, torch.save(module.state_dict(), path), or the checkpoint."
        )
    if folder.exists() and not (folder.is_dir() and all(_is_of_a_model(file) for file in folder.iterdir())):
        raise FileExistsError(f"{folder} holds something else than a model, which would be lost. Name a new folder.")
    with nullcontext() if average is None else average.applied(model):
        if not isinstance(model, ScalarHeadModel):
            export_causal_lm(body, tokenizer, folder)
        elif tokenizer is None:
            raise ValueError(
                "a reward model is saved with its tokenizer, whose pad token tells a classifier where a text ends: "
                "save_pretrained(folder, tokenizer)."
            )
        else:
            export_scalar_model(model, body.config, tokenizer, folder)
