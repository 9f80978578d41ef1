"""Calling any module that maps ids and mask to logits, or to a score per token.

A keyword that its forward pass lacks is not passed, padding is put on its right, and what it gives is looked at.
"""

from collections.abc import Mapping
from inspect import Parameter, signature
from typing import Any, NamedTuple, cast
from weakref import WeakKeyDictionary

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn
from transformers import PreTrainedModel

from rlhf_lightning.models.architecture import check_length
from rlhf_lightning.models.padding import position_ids
from rlhf_lightning.models.scalar_head import ScalarHeadModel

_KEYWORDS = ("attention_mask", "position_ids", "use_cache")


class Keywords(NamedTuple):
    """What a module's forward pass can be given."""

    named: bool
    """Whether its ids are called `input_ids`; otherwise they are its first argument."""
    known: frozenset[str]
    """Those of the keywords that transformers models have which it takes too."""
    positioned: bool
    """Whether it names positions, and so can be right about padding in front of a row."""


_INSPECTED: WeakKeyDictionary[nn.Module, Keywords] = WeakKeyDictionary()


def keywords_of(model: nn.Module) -> Keywords:
    """What the module's forward pass can be given; it is inspected once.

    Args:
        model: Any module.

    Raises:
        ValueError: When it needs more than ids, mask and positions.

    Examples:
        >>> sorted(keywords_of(nn.Linear(2, 2)).known)
        []
    """
    if model not in _INSPECTED:
        parameters = list(signature(model.forward).parameters.values())
        names = {parameter.name for parameter in parameters}
        open_ended = any(parameter.kind is Parameter.VAR_KEYWORD for parameter in parameters)
        named = "input_ids" in names or [parameter.kind for parameter in parameters] == [Parameter.VAR_KEYWORD]
        single = [p for p in parameters if p.kind not in (Parameter.VAR_KEYWORD, Parameter.VAR_POSITIONAL)]
        needed = [p.name for p in (single if named else single[1:]) if p.default is Parameter.empty]
        if lacking := [name for name in needed if name not in (*_KEYWORDS, "input_ids")]:
            raise ValueError(
                f"{type(model).__name__}.forward needs {', '.join(lacking)}, which it is not given: it is called with "
                "input_ids, attention_mask and position_ids. Take those names, or give the others a default."
            )
        known = frozenset(name for name in _KEYWORDS if name in names)
        positioned = "position_ids" in known or isinstance(model, PreTrainedModel)
        _INSPECTED[model] = Keywords(named, known | set(_KEYWORDS) if open_ended else known, positioned)
    return _INSPECTED[model]


def token_logits(
    model: nn.Module,
    input_ids: Int[Tensor, "rows time"],
    mask: Bool[Tensor, "rows time"],
    positions: Int[Tensor, "rows time"],
) -> Float[Tensor, "rows time vocab"]:
    """Logits of any causal language model.

    Args:
        model: A transformers model, or any module that maps ids and mask to logits.
        input_ids: The tokens.
        mask: True on real tokens.
        positions: The position of each token (`rlhf_lightning.models.padding.position_ids`).

    Raises:
        ValueError: When the rows are too long for one reading (`check_length`), or the module gives anything else.
    """
    check_length(model, input_ids.shape[1])
    if not keywords_of(model).positioned and not bool((mask[:, 1:] <= mask[:, :-1]).all()):
        order = (~mask).int().argsort(dim=1, stable=True)
        ids, mask, positions = (values.gather(1, order) for values in (input_ids, mask, positions))
        logits = token_logits(model, ids, mask, positions)
        return logits.gather(1, order.argsort(1).unsqueeze(-1).expand_as(logits))
    options = {"attention_mask": mask, "position_ids": positions, "use_cache": False}
    logits = _called(model, input_ids, options)
    if logits.dim() != 3 or logits.shape[:2] != input_ids.shape:
        raise ValueError(
            f"{type(model).__name__} gives {tuple(logits.shape)} for {tuple(input_ids.shape)} ids; a language model "
            "gives logits, rows x time x vocabulary, as a tensor or in `logits`."
        )
    return logits


def token_scores(
    model: nn.Module, input_ids: Int[Tensor, "rows time"], mask: Bool[Tensor, "rows time"]
) -> Float[Tensor, "rows time *width"]:
    """One number per token of rows that are padded on the right, from any module that maps ids and mask to that.

    Args:
        model: A `ScalarHeadModel`, or a module that gives `rows x time`, or `rows x time x 1`, such as transformers'
            classifiers of tokens with one label.
        input_ids: The tokens.
        mask: True on real tokens.

    Raises:
        ValueError: When the module gives anything else.
    """
    if isinstance(model, ScalarHeadModel):
        return cast(Tensor, model(input_ids))  # attention is faster without a mask
    options = {"attention_mask": mask, "position_ids": position_ids(mask), "use_cache": False}
    scores = _called(model, input_ids, options)
    if scores.shape == (*input_ids.shape, 1):
        scores = scores.squeeze(-1)
    if scores.shape != input_ids.shape:
        raise ValueError(
            f"{type(model).__name__} gives {tuple(scores.shape)} for {tuple(input_ids.shape)} ids; a reward model or "
            "critic gives one number per token, rows x time. A classifier of whole texts is a reward through "
            "rlhf_lightning.generation.rewards.TextReward."
        )
    return scores


def reads_tokens(model: object) -> bool:
    """Whether a reward reads ids, as a reward model does, and not prompts and responses as text."""
    try:
        return isinstance(model, nn.Module) and bool(keywords_of(model))
    except ValueError:
        return False


def _called(model: nn.Module, input_ids: Tensor, options: Mapping[str, Any]) -> Tensor:
    named, known, _ = keywords_of(model)
    given = {name: value for name, value in options.items() if name in known}
    # Without gradient torch takes other kernels for its LSTM and its transformer layers, which round otherwise: PPO's
    # first ratio would not be exactly 1.
    with torch.set_grad_enabled(torch.is_grad_enabled() or not isinstance(model, PreTrainedModel)):
        output: Any = model(input_ids=input_ids, **given) if named else model(input_ids, **given)
    if isinstance(output, Mapping):
        output = output.get("logits", output)
    output = getattr(output, "logits", output)
    output = output[0] if isinstance(output, tuple) else output
    if not isinstance(output, torch.Tensor):
        raise ValueError(
            f"{type(model).__name__} gives a {type(output).__name__}; a tensor is needed, by itself or in `logits`."
        )
    return output if torch.is_grad_enabled() else output.detach()
