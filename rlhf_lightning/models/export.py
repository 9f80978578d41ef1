"""Writing models as plain Hugging Face folders that appear when they are complete."""

import copy
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForSequenceClassification, PreTrainedModel, PreTrainedTokenizerBase

from rlhf_lightning.models.lora import has_adapters, merge_adapters
from rlhf_lightning.models.scalar_head import ScalarHeadModel
from rlhf_lightning.parallel.processes import rank
from rlhf_lightning.parallel.sharding import full_state_dict
from rlhf_lightning.runs.files import put_in_place
from rlhf_lightning.tokenization.endings import name_special_tokens


def export_causal_lm(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, folder: Path, dtype: str | None = None
) -> None:
    """Write a folder that `AutoModelForCausalLM` and `AutoTokenizer` load; it appears when complete.

    Args:
        model: The model to write, with adapters, if it has them, added to the weights.
        tokenizer: The tokenizer that is written beside it.
        folder: The folder to write; an older one there is replaced.
        dtype: Name of the torch dtype of the weights on disk; None leaves them as they are.
    """
    if has_adapters(model):
        model = merge_adapters(model)
    if dtype is not None:
        model = copy.deepcopy(model).to(getattr(torch, dtype))
    _write(model, tokenizer, folder)


def export_scalar_model(model: ScalarHeadModel, config: Any, tokenizer: PreTrainedTokenizerBase, folder: Path) -> None:
    """Write a folder that `AutoModelForSequenceClassification` loads with the same scores up to `bias`.

    Those classes have a head without bias, so the normalising bias goes into the config as `reward_bias`.

    Args:
        model: The model to write.
        config: The configuration of the causal language model that the body came from.
        tokenizer: The tokenizer that is written beside it; its pad token tells the classifier where a text ends.
        folder: The folder to write; an older one there is replaced.
    """
    config = copy.deepcopy(config)
    config.num_labels = 1
    name_special_tokens(config, tokenizer)
    config.reward_bias = float(model.bias)
    with torch.device("meta"):
        classifier = AutoModelForSequenceClassification.from_config(config)
    setattr(classifier, classifier.base_model_prefix, model.backbone)
    classifier.score.weight = model.head.weight
    _write(classifier, tokenizer, folder)


def _write(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, folder: Path) -> None:
    state = full_state_dict(model)  # of all processes, before one of them writes
    if rank() == 0:
        with complete_folder(folder) as unfinished:
            model.save_pretrained(unfinished, state_dict=state)
            tokenizer.save_pretrained(unfinished)


@contextmanager
def complete_folder(folder: Path) -> Iterator[Path]:
    """A folder to write into that takes its name only when the block ends without an error."""
    unfinished = folder.with_name(folder.name + ".unfinished")
    shutil.rmtree(unfinished, ignore_errors=True)
    unfinished.mkdir(parents=True)
    yield unfinished
    shutil.rmtree(folder, ignore_errors=True)
    put_in_place(unfinished, folder)
