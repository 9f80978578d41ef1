"""NaN and infinity: the batch that made them is kept, and the message says what usually does."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import lightning as L
import torch
from torch import Tensor

from rlhf_lightning.parallel.processes import rank

CAUSES = {
    "loss": "a learning rate that is too high, or a precision that overflows (16-mixed; try bf16-mixed or 32-true)",
    "gradient": "a learning rate that is too high, no limit on the gradient's norm, or a precision that overflows",
    "sample": "weights that an earlier step spoilt, or an engine that samples in a precision that overflows",
    "reward": "a reward function that divides by nothing or parses nothing; look at the responses in the batch",
    "value": "weights of the critic that an earlier step spoilt; lower value_optimizer.lr",
}
"""What usually makes a kind of number infinite or undefined."""


class NonFiniteError(RuntimeError):
    """A loss, gradient, reward or sample is NaN or infinite."""


def non_finite_error(name: str, value: Tensor, batch: Any, trainer: L.Trainer | None) -> NonFiniteError:
    """The error for NaN or infinity, after its batch was saved beside the metrics.

    Args:
        name: The tensor's name; its first word says its kind.
        value: The tensor in which not all is finite.
        batch: The batch that the step read, or None.
        trainer: The Trainer of the run, or None outside of one.
    """
    bad = int((~value.isfinite()).sum())
    kept = ""
    if trainer is not None and batch is not None:
        folder, number = Path(trainer.default_root_dir), trainer.fit_loop.epoch_loop.total_batch_idx + 1
        path = folder / f"fault-batch-{number}-rank-{rank()}.pt"
        torch.save(_plain(batch), path)
        before = folder / "checkpoints" / "last.ckpt"
        saved = f"{before} is from before it" if before.exists() else "there is no checkpoint yet"
        kept = f" The batch is in {path}, for torch.load with weights_only=True; {saved}."
    cause = CAUSES.get(name.split()[0], CAUSES["loss"])
    return NonFiniteError(f"the {name} is not finite ({bad} of {value.numel()} numbers).{kept} Likely causes: {cause}.")


def _plain(value: Any) -> Any:
    """Dictionaries, lists, tensors and plain values, which load without running anything."""
    if isinstance(value, Tensor):
        return value.detach().cpu()
    if hasattr(value, "_asdict"):
        value = value._asdict()
    if isinstance(value, Mapping):
        return {str(name): _plain(item) for name, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    if isinstance(value, str):
        return str(value)  # and no string that knows more, as prompts do
    return value if value is None or isinstance(value, bool | int | float) else repr(value)
