"""Calling any module that maps ids and mask to logits, or to a score per token.

A keyword that its forward pass lacks is not passed, padding is put on its right, and what it gives is looked at. A
module that calls them otherwise says so by an attribute, `forward_names = {"attention_mask": "keep"}`.
"""

import re
import warnings
from collections.abc import Mapping, Set
from inspect import Parameter, signature
from typing import Any, NamedTuple, cast
from weakref import WeakKeyDictionary

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn
from transformers import PreTrainedModel

from rlhf_lightning.models.architecture import check_length, lookup_errors
from rlhf_lightning.models.padding import position_ids
from rlhf_lightning.models.scalar_head import ScalarHeadModel

_MASK = re.compile("mask|pad|length|valid|keep")
"""What an argument may be called that says which tokens are real."""
_IDS, _KEYWORDS = "input_ids", ("attention_mask", "position_ids", "use_cache")


class Keywords(NamedTuple):
    """What a module's forward pass can be given."""

    ids: str | None
    """What its ids are called; None where they are its first argument."""
    known: Mapping[str, str]
    """Those of the keywords that transformers models have which it takes too, and what it calls them."""
    positioned: bool
    """Whether it names positions, and so can be right about padding in front of a row."""


_INSPECTED: WeakKeyDictionary[nn.Module, Keywords] = WeakKeyDictionary()


def keywords_of(model: nn.Module) -> Keywords:
    """What the module's forward pass can be given; it is inspected once.

    Args:
        model: Any module.

    Raises:
        ValueError: When it needs more than ids, mask and positions, or `forward_names` are not those of its arguments.

    Examples:
        >>> keywords_of(nn.Linear(2, 2)).known
        {}
    """
    if model not in _INSPECTED:
        parameters = list(signature(model.forward).parameters.values())
        names = {parameter.name for parameter in parameters}
        open_ended = any(parameter.kind is Parameter.VAR_KEYWORD for parameter in parameters)
        called = {name: name for name in (_IDS, *_KEYWORDS)} | _forward_names(model, names, open_ended)
        named = called[_IDS] in names or [parameter.kind for parameter in parameters] == [Parameter.VAR_KEYWORD]
        single = [p for p in parameters if p.kind not in (Parameter.VAR_KEYWORD, Parameter.VAR_POSITIONAL)]
        needed = [p.name for p in (single if named else single[1:]) if p.default is Parameter.empty]
        if lacking := [name for name in needed if name not in called.values()]:
            raise ValueError(
                f"{type(model).__name__}.forward needs {', '.join(lacking)}, which it is not given: it is called with "
                "input_ids, attention_mask (True on real tokens) and position_ids. Take those names, say what it calls "
                'them (forward_names = {"attention_mask": ...}), or give the others a default.'
            )
        known = {name: called[name] for name in _KEYWORDS if open_ended or called[name] in names}
        masks = sorted(name for name in names - {*called.values()} if _MASK.search(name))
        if masks and "attention_mask" not in known:
            warnings.warn(
                f"{type(model).__name__}.forward has no attention_mask, so it is given none: {', '.join(masks)} "
                "keeps its default. Where that says which tokens are real, padding changes what a row gets: "
                f'set forward_names = {{"attention_mask": "{masks[0]}"}}.',
                stacklevel=2,
            )
        positioned = called["position_ids"] in names or isinstance(model, PreTrainedModel)
        _INSPECTED[model] = Keywords(called[_IDS] if named else None, known, positioned)
    return _INSPECTED[model]


def _forward_names(model: nn.Module, names: Set[str], open_ended: bool) -> dict[str, str]:
    own = dict(getattr(model, "forward_names", {}))
    wrong = [f"{name}: {own[name]}" for name in own if name not in (_IDS, *_KEYWORDS)]
    if wrong := wrong or [f"{name}: {own[name]}" for name in own if not open_ended and own[name] not in names]:
        raise ValueError(
            f"{type(model).__name__}.forward_names has {', '.join(wrong)}; it says what forward calls {_IDS}, "
            f"{' and '.join(_KEYWORDS[:2])}, and forward has {', '.join(sorted(names))}."
        )
    return own


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
        with lookup_errors(model.backbone, input_ids):
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
    ids, known, _ = keywords_of(model)
    given = {known[name]: value for name, value in options.items() if name in known}
    # Without gradient torch takes other kernels for its LSTM and its transformer layers, which round otherwise: PPO's
    # first ratio would not be exactly 1.
    grad = torch.is_grad_enabled() or not isinstance(model, PreTrainedModel)
    with torch.set_grad_enabled(grad), lookup_errors(model, input_ids):
        output: Any = model(input_ids, **given) if ids is None else model(**{ids: input_ids}, **given)
    if isinstance(output, Mapping):
        output = output.get("logits", output)
    output = getattr(output, "logits", output)
    output = output[0] if isinstance(output, tuple) else output
    if not isinstance(output, torch.Tensor):
        raise ValueError(
            f"{type(model).__name__} gives a {type(output).__name__}; a tensor is needed, by itself or in `logits`."
        )
    return output if torch.is_grad_enabled() else output.detach()
