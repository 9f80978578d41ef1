"""What an architecture reads in a way of its own: windows, positions that depend on the batch, both directions.

A model is right here, or it is refused in one sentence before anything is trained (`check_causal`, `check_length`). The
table of families is in docs/models.md.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, cast

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.models.auto.modeling_auto import MODEL_FOR_SEQ_TO_SEQ_CAUSAL_LM_MAPPING

from rlhf_lightning.models.precision import is_exact

_REFUSED = {"rwkv": "divides its own weights in eval mode, and an export would hold the divided ones"}
_ROPES = ("longrope", "dynamic")
"""Rotary embeddings whose frequencies change for the whole batch when its longest row passes a limit."""


def unwindowed_tokens(config: Any) -> int | None:
    """Tokens up to which every token of a row sees all before it; None where that is so at any length.

    A mask of our own (`rows x 1 x time x time`) takes the place of the window, whatever the field is called:
    `sliding_window`, `attention_chunk_size`, `window_size`, `local_attention`, ...

    Args:
        config: The configuration of a transformers model, or None for any other module.

    Examples:
        >>> from transformers import GPT2Config, MistralConfig
        >>> unwindowed_tokens(MistralConfig(sliding_window=64)), unwindowed_tokens(GPT2Config())
        (64, None)
    """
    text = config.get_text_config(decoder=True) if hasattr(config, "get_text_config") else None
    fields = {} if text is None else vars(text)
    windows = [value for name, value in fields.items() if _is_window(name) and type(value) is int and value > 0]
    return min(windows, default=None)


def _is_window(name: str) -> bool:
    if name in ("attention_chunk_size", "local_attention"):
        return True
    return "window" in name and "pattern" not in name and "layers" not in name


def rope_limit(config: Any) -> int | None:
    """Tokens from which on a row's logits would depend on the longest row beside it; None where they never do.

    Examples:
        >>> from transformers import LlamaConfig
        >>> ropes = {"rope_type": "dynamic", "factor": 2.0, "rope_theta": 10000.0}
        >>> rope_limit(LlamaConfig(max_position_embeddings=64, rope_parameters=ropes)), rope_limit(LlamaConfig())
        (64, None)
    """
    text = config.get_text_config(decoder=True) if hasattr(config, "get_text_config") else config
    ropes = getattr(text, "rope_parameters", None) or {}
    limits = []
    for rope in (ropes, *ropes.values()):  # one for all layers, or one for each type of layer
        if isinstance(rope, dict) and rope.get("rope_type") in _ROPES:
            original = rope.get("original_max_position_embeddings")
            original = original or getattr(text, "original_max_position_embeddings", None)
            limits.append(int(original or text.max_position_embeddings))
    return min(limits, default=None)


def check_length(model: nn.Module, tokens: int, *, learned: bool = False, new: int = 0) -> None:
    """Refuse rows that a model cannot read, and those that it reads in another way beside a longer row.

    Args:
        model: Any module; only transformers models have such a limit.
        tokens: Tokens of the longest row, prompt and response together.
        learned: Whether learned positions are counted; a plan of memory reads none.
        new: Those of them that are still to be sampled.

    Raises:
        ValueError: When it has learned positions and fewer of them, or when the frequencies of its rotary embedding
            would change with the longest row of the batch.
    """
    if not isinstance(model, PreTrainedModel):
        return
    positions = getattr(model.config.get_text_config(decoder=True), "max_position_embeddings", None)
    if learned and positions is not None and tokens > positions and _learns_positions(model):
        row = f"a prompt of {tokens - new} tokens and max_new_tokens={new}" if new else "prompt and response together"
        shorter = "Set max_new_tokens (max_response_tokens of the data) lower" if new else "Shorten the rows"
        raise ValueError(
            f"a row has {tokens} tokens, {row}, and {type(model).__name__} has positions for {positions}. {shorter}, "
            "or take a model that reads more."
        )
    limit = rope_limit(model.config)
    if limit is not None and tokens > limit:
        raise ValueError(
            f"a row has {tokens} tokens, and {type(model).__name__} changes the frequencies of its rotary embedding "
            f"for the whole batch above {limit} (rope_type longrope or dynamic): scores would depend on the rows "
            f"beside it. Set the lengths of prompts and responses to {limit} together, or a rope_type such as yarn."
        )


def _learns_positions(model: PreTrainedModel) -> bool:
    tables = [name.rpartition(".")[2] for name, part in model.named_modules() if isinstance(part, nn.Embedding)]
    return any(name == "wpe" or "pos" in name for name in tables)


@contextmanager
def lookup_errors(model: nn.Module, input_ids: Tensor) -> Iterator[None]:
    """Say what a model was given where one of its tables has no row for a token or a position.

    Raises:
        ValueError: In place of torch's `IndexError`.
    """
    try:
        yield
    except IndexError as error:
        if "out of range in self" not in str(error):  # of the module's own code
            raise
        check_length(model, input_ids.shape[1], learned=True)
        raise ValueError(
            f"{type(model).__name__} has no row for one of the tokens or positions that it was given: rows of "
            f"{input_ids.shape[1]} tokens, ids up to {int(input_ids.max())} ({error}). Give it a larger vocabulary or "
            "longer context, or shorter rows and the tokenizer it was made with."
        ) from error


def check_causal(model: PreTrainedModel) -> None:
    """Refuse what is no causal language model, by its kind and by what it says of six tokens.

    A later token must not change what is said of an earlier one, and neither must a longer row beside it.

    Args:
        model: The model, on any device.

    Raises:
        ValueError: When the model is the decoder of an encoder-decoder, looks ahead, depends on the batch or gives
            numbers that are not finite; or cannot be called with a mask and positions.
    """
    name, kind = type(model).__name__, str(model.config.model_type)
    if type(model.config) in MODEL_FOR_SEQ_TO_SEQ_CAUSAL_LM_MAPPING:
        raise ValueError(f"{name} is a part of an encoder-decoder ({kind}); name a model that is a decoder alone.")
    if kind in _REFUSED:
        raise ValueError(f"{name} cannot be trained here: it {_REFUSED[kind]}. Name a model of another family.")
    ids = probe_tokens(model, 8)
    two = torch.stack([ids[:6], torch.cat([ids[:4], ids[6:]])])
    positions = torch.arange(6, device=ids.device).expand_as(two)
    try:
        full = _eval_logits(model, two, attention_mask=torch.ones_like(two, dtype=torch.bool), position_ids=positions)
        alone = _eval_logits(model, ids[None, :4])
    except (LookupError, RuntimeError, TypeError) as error:
        raise ValueError(f"{name} cannot be read as a causal language model is: {error}") from error
    if not bool(full.isfinite().all()):
        raise ValueError(f"{name} gives logits that are not finite; its weights are broken or its dtype is too small.")
    if not alike(full[1, :4], full[0, :4], model):
        raise ValueError(
            f"{name} is no causal language model: a token changes what is said before it, so that it could read the "
            "answer it is asked for. Name a decoder (is_decoder=true for an encoder that can be one)."
        )
    if not alike(alone[0], full[0, :4], model, rough=0.3):
        raise ValueError(
            f"{name} reads a row in another way beside a longer one, or does not count positions from 0; it cannot be "
            "trained in batches. Name a model of another family."
        )


@torch.no_grad()
def _eval_logits(model: PreTrainedModel, input_ids: Tensor, **options: Tensor) -> Tensor:
    with eval_mode(model):
        return cast(Tensor, model(input_ids=input_ids, use_cache=False, **options).logits.float())


def probe_tokens(model: PreTrainedModel, count: int) -> Int[Tensor, " count"]:
    """Tokens to try a model on: parts of words, not the special tokens in front, which 16 bits blur beyond use.

    Args:
        model: The model.
        count: How many.
    """
    words = int(model.config.get_text_config(decoder=True).vocab_size)
    return torch.arange(count, device=next(model.parameters()).device) % words + min(1000, max(0, words - count))


def alike(
    found: Float[Tensor, "rows vocab"], expected: Float[Tensor, "rows vocab"], model: nn.Module, rough: float = 0.1
) -> bool:
    """Whether two ways to the same logits agree, measured by how much the logits of a row differ among themselves.

    Args:
        found: Logits of one way.
        expected: Logits of the other.
        model: The model, whose type says how closely they should agree.
        rough: Difference that 16 bits may make on average over the rows; rounding alone moves some of them far.
    """
    off = (found.float() - expected.float()).abs().mean(1) / (expected.float().std(1) + 1e-6)
    return bool(off.max() <= 1e-3 if is_exact(model) else off.mean() <= rough)


@contextmanager
def eval_mode(model: nn.Module) -> Iterator[None]:
    """Dropout off within the block; afterwards every module is in the mode it was in."""
    modes = [(module, module.training) for module in model.modules()]
    model.eval()
    try:
        yield
    finally:
        for module, mode in modes:
            module.training = mode
