"""Whether what a head computes can be computed without the model around it."""

import math
from typing import cast
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from rlhf_lightning.models.architecture import eval_mode

_PLAIN_HEAD: WeakKeyDictionary[nn.Module, bool] = WeakKeyDictionary()
_LARGE = 200.0
"""Logits that a cap would change: those of Gemma 2 are bent at 30, and a fresh model's do not get there."""


@torch.no_grad()
def has_plain_head(model: PreTrainedModel, device: torch.device) -> bool:
    """Whether the logits are the body's last hidden state times the head's weight, and nothing else.

    Some architectures scale or cap their logits. It is tried once per model, on a few tokens, with hidden states so
    large that a cap would show.
    """
    if model not in _PLAIN_HEAD:
        head = model.get_output_embeddings()
        plain = isinstance(head, nn.Linear) and head.bias is None and model.base_model is not model
        if plain:
            ids = torch.arange(4, device=device).unsqueeze(0) % model.config.get_text_config().vocab_size
            with eval_mode(model):
                mask = torch.ones_like(ids)  # or transformers might take some for padding, and warn
                hidden = model.base_model(input_ids=ids, attention_mask=mask, use_cache=False).last_hidden_state
                product = nn.functional.linear(hidden, cast(Tensor, head.weight)).float()
                largest = float(product.abs().max())
                if not math.isfinite(largest):
                    return True  # either way; whoever asks will stop at the numbers
                # A power of two: it rounds nothing.
                scale = 2.0 ** round(math.log2(_LARGE / max(largest, 1e-6)))
                product = nn.functional.linear(hidden * scale, cast(Tensor, head.weight)).float()
                logits = _logits_of_scaled(model, ids, scale)
            plain = product.shape == logits.shape and bool((product - logits).abs().max() <= 1e-3 * _LARGE)
        _PLAIN_HEAD[model] = plain
    return _PLAIN_HEAD[model]


def _logits_of_scaled(model: PreTrainedModel, input_ids: Tensor, scale: float) -> Tensor:
    """Logits of a model whose head reads hidden states that are so many times as large."""
    head = cast(nn.Module, model.get_output_embeddings())
    hook = head.register_forward_pre_hook(lambda _, arguments: (arguments[0] * scale, *arguments[1:]))
    try:
        mask = torch.ones_like(input_ids)
        return cast(Tensor, model(input_ids=input_ids, attention_mask=mask, use_cache=False).logits.float())
    finally:
        hook.remove()
