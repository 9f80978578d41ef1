"""Writing models as plain Hugging Face folders that appear when they are complete."""

import copy
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any, cast

import torch
from safetensors.torch import save_file
from torch import Tensor, nn
from transformers import (
    AutoModel,
    AutoModelForSequenceClassification,
    GenerationConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)

from rlhf_lightning.models.architecture import eval_mode
from rlhf_lightning.models.lora import has_adapters, merge_adapters, plain_names
from rlhf_lightning.models.moving_average import MovingAverage
from rlhf_lightning.models.precision import is_exact
from rlhf_lightning.models.scalar_head import HEAD_FILE, HEAD_PAGE, Pooling, ScalarHeadModel
from rlhf_lightning.parallel.processes import rank
from rlhf_lightning.parallel.sharding import full_state_dict, full_tensor, unshard
from rlhf_lightning.runs.files import put_in_place
from rlhf_lightning.tokenization.endings import name_special_tokens

_SUFFIXES, _NAMES = (".json", ".safetensors", ".jinja", ".model"), ("README.md", "merges.txt", "vocab.txt")
"""Of the files of a model folder."""


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
        export_model(cast(PreTrainedModel | ScalarHeadModel, model), body.config, tokenizer, folder)


def _is_of_a_model(file: Path) -> bool:
    return file.is_file() and (file.suffix in _SUFFIXES or file.name in _NAMES)


def export_model(
    model: PreTrainedModel | ScalarHeadModel, config: Any, tokenizer: PreTrainedTokenizerBase | None, folder: Path
) -> None:
    """Write either kind of model; arguments as `export_scalar_model`.

    Raises:
        ValueError: When a reward model comes without a tokenizer, or its architecture cannot be written.
    """
    if not isinstance(model, ScalarHeadModel):
        export_causal_lm(model, tokenizer, folder)
    elif tokenizer is None:
        raise ValueError(
            "a reward model is saved with its tokenizer, whose pad token tells a classifier where a text ends: "
            "save_pretrained(folder, tokenizer)."
        )
    else:
        export_scalar_model(model, config, tokenizer, folder)


def export_causal_lm(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase | None, folder: Path, dtype: str | None = None
) -> None:
    """Write a folder that `AutoModelForCausalLM` and `AutoTokenizer` load; it appears when complete.

    Args:
        model: The model to write, with adapters, if it has them, added to the weights.
        tokenizer: The tokenizer that is written beside it, or None for none.
        folder: The folder to write; an older one there is replaced.
        dtype: Name of the torch dtype of the weights on disk; None leaves them as they are.
    """
    if has_adapters(model):
        model = merge_adapters(model)
    if dtype is not None:
        model = copy.deepcopy(model).to(getattr(torch, dtype))
    _write(model, tokenizer, folder)


def sampling_as_trained(
    tokenizer: PreTrainedTokenizerBase, temperature: float, max_new_tokens: int
) -> GenerationConfig:
    """The generation config by which `generate` samples as PPO did: from the whole distribution, without penalties.

    Args:
        tokenizer: The policy's tokenizer, for pad, BOS and the ends.
        temperature: Temperature of sampling in training.
        max_new_tokens: Length limit of responses in training.
    """
    config = GenerationConfig(
        do_sample=True, temperature=temperature, top_k=0, top_p=1.0, max_new_tokens=max_new_tokens
    )
    name_special_tokens(config, tokenizer)
    return config


def export_scalar_model(model: ScalarHeadModel, config: Any, tokenizer: PreTrainedTokenizerBase, folder: Path) -> None:
    """Write a folder that `load_scalar_model` reads with the same scores.

    Where the architecture has a class for sequence classification that gives our scores, it is a folder of that class;
    such a class looks at the last token, so a model that pools by the mean has none.
    Its head has no bias, so the normalising bias goes into the config as `reward_bias`. Elsewhere the folder holds the
    body, for `AutoModel`, and the head in a file of its own, which the README.md beside it explains.

    Args:
        model: The model to write, with adapters, if it has them, added to the weights.
        config: The configuration of the causal language model that the body came from.
        tokenizer: The tokenizer that is written beside it; its pad token tells the classifier where a text ends.
        folder: The folder to write; an older one there is replaced.

    Raises:
        ValueError: As `check_scalar_export`.
    """
    if has_adapters(model):
        model = merge_adapters(model)
    classifier = check_scalar_export(model, config, tokenizer)
    if classifier is not None:
        classifier.score.weight = model.head.weight
        return _write(classifier, tokenizer, folder)
    body = cast(PreTrainedModel, model.backbone)
    before, body.config = body.config, scalar_config(model, config, tokenizer)
    try:
        _write(body, tokenizer, folder, head_state(model), model.pooling)
    finally:
        body.config = before


def head_state(model: ScalarHeadModel) -> dict[str, Tensor]:
    """What `HEAD_FILE` holds; all processes must ask for it."""
    return {"weight": full_tensor(model.head.weight).detach().cpu().contiguous(), "bias": model.bias.detach().cpu()}


@torch.no_grad()
def check_scalar_export(model: ScalarHeadModel, config: Any, tokenizer: PreTrainedTokenizerBase) -> Any:
    """The classifier that gives our scores, with our weights, or None where the head needs a file of its own.

    To be called before training as well as at its end: what cannot be written should not be trained.

    Args:
        model: The model that is to be written.
        config: The configuration of the causal language model that the body came from.
        tokenizer: The tokenizer that is to be written beside it.

    Raises:
        ValueError: When `AutoModel` would not find the body's class and weights in the folder.
    """
    ours, body = scalar_config(model, config, tokenizer), model.backbone
    with torch.device("meta"):
        try:
            classifier: Any = AutoModelForSequenceClassification.from_config(ours)
        except (AttributeError, TypeError, ValueError):
            classifier = None
        plain = AutoModel.from_config(ours)
    if classifier is not None and _scores_alike(classifier, model, tokenizer):
        return classifier
    if type(plain) is not type(body) or plain.state_dict().keys() != plain_names(body):
        raise ValueError(
            f"a reward model on {type(body).__name__} cannot be written: transformers would read {type(plain).__name__}"
            " with other weights from its folder. Take another architecture for reward.init."
        )
    return None


def scalar_config(model: ScalarHeadModel, config: Any, tokenizer: PreTrainedTokenizerBase) -> Any:
    """The configuration of a reward model's folder; arguments as `export_scalar_model`."""
    config = copy.deepcopy(config)
    config.num_labels = 1
    config.label2id = {"reward": 0}
    config.id2label = dict(enumerate(config.label2id))
    config.problem_type = "regression"  # or `pipeline` would squash the score
    name_special_tokens(config, tokenizer)
    config.reward_bias = float(model.bias)
    return config


def _scores_alike(classifier: Any, model: ScalarHeadModel, tokenizer: PreTrainedTokenizerBase) -> bool:
    """Whether the classifier, given our weights, scores a row and a padded row as we do."""
    score, prefix = getattr(classifier, "score", None), classifier.base_model_prefix
    if (
        model.pooling != "last"
        or not isinstance(score, nn.Linear)
        or score.bias is not None
        or type(classifier.base_model) is not type(model.backbone)
    ):
        return False
    setattr(classifier, prefix, model.backbone)
    with unshard(model), eval_mode(model):
        score.weight = nn.Parameter(model.head.weight.to(next(model.backbone.parameters()).dtype))
        if any(parameter.is_meta for parameter in classifier.parameters()):
            return False  # it has more to its head than we train
        words = [token for token in range(10) if token not in tokenizer.all_special_ids][:5] or [0]
        ids = torch.tensor([words, words], device=model.head.weight.device)
        mask = torch.ones_like(ids)
        ids[1, 2:], mask[1, 2:] = cast(int, tokenizer.pad_token_id), 0
        found = classifier.eval()(input_ids=ids, attention_mask=mask).logits[:, 0]
        rows = model(torch.tensor([words], device=ids.device))[0] - model.bias
        ends = torch.tensor([len(words) - 1, min(1, len(words) - 1)], device=ids.device)
        return bool(((found - rows[ends]).abs() <= (1e-4 if is_exact(model) else 0.1) * (1 + rows[ends].abs())).all())


def _write(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase | None,
    folder: Path,
    head: dict[str, Tensor] | None = None,
    pooling: Pooling = "last",
) -> None:
    state = full_state_dict(model)  # of all processes, before one of them writes
    if rank() == 0:
        with complete_folder(folder) as unfinished:
            model.save_pretrained(unfinished, state_dict=state)
            if tokenizer is not None:
                tokenizer.save_pretrained(unfinished)
            if head is not None:
                save_file(head, unfinished / HEAD_FILE, metadata={"format": "pt", "pooling": pooling})
                (unfinished / "README.md").write_text(HEAD_PAGE, encoding="utf-8")


@contextmanager
def complete_folder(folder: Path) -> Iterator[Path]:
    """A folder to write into that takes its name only when the block ends without an error."""
    unfinished = folder.with_name(folder.name + ".unfinished")
    shutil.rmtree(unfinished, ignore_errors=True)
    unfinished.mkdir(parents=True)
    yield unfinished
    shutil.rmtree(folder, ignore_errors=True)
    put_in_place(unfinished, folder)
