"""Weights as sampling multiplies by them, made once and not at every token: cast, and with the adapters added."""

from collections.abc import Iterator
from contextlib import contextmanager

from torch import nn

from rlhf_lightning.models.cast_weights import cast_weights
from rlhf_lightning.models.lora import adapters_disabled, merged_weights


@contextmanager
def sampling_weights(model: nn.Module) -> Iterator[None]:
    """Within the block every linear layer of the model has the weights that its products are made of.

    Autocast casts what does not learn at every call, and an adapter costs two products more: on a CPU that is half of
    the time of a token.

    Args:
        model: Any module; what it learns is not touched, and is in its place again afterwards.
    """
    merged = merged_weights(model)
    with adapters_disabled(*([model] if merged else [])), cast_weights(model, others=merged, learned=True):
        yield
