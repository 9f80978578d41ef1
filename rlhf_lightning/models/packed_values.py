"""Numbers per token of a reward model or critic, from rows that are read as one without padding."""

from typing import cast

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn
from transformers import PreTrainedModel

from rlhf_lightning.models.forward import token_scores
from rlhf_lightning.models.packing import VerifiedPacking, packed_hidden
from rlhf_lightning.models.scalar_head import ScalarHeadModel


def packable(model: nn.Module) -> nn.Module:
    """The part of a model that reads packed rows: the body of a reward model or critic, and else the model itself."""
    return model.backbone if isinstance(model, ScalarHeadModel) else model


def token_values(
    model: nn.Module,
    input_ids: Int[Tensor, "rows time"],
    mask: Bool[Tensor, "rows time"],
    packing: VerifiedPacking | None = None,
) -> Float[Tensor, "rows time"]:
    """`token_scores`, from packed rows where those are right for the model; 0 on padding then.

    Args:
        model: A `ScalarHeadModel`, or any module that gives a number per token.
        input_ids: The tokens.
        mask: True on real tokens, which are on the left.
        packing: What is known of packed rows of its body; None reads rows with padding.
    """
    packed = packing is not None and packing.suits(packable(model), input_ids, mask)
    if not packed or not isinstance(model, ScalarHeadModel):
        return token_scores(model, input_ids, mask)
    values = model.values(packed_hidden(cast(PreTrainedModel, model.backbone), input_ids, mask).unsqueeze(0)).squeeze(0)
    return torch.zeros_like(mask, dtype=values.dtype).index_put(mask.nonzero(as_tuple=True), values)
