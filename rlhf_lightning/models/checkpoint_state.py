"""What a Lightning checkpoint keeps of a module, and whether it is one that the module can go on from."""

from collections.abc import Mapping, Sequence
from typing import Any

from torch import nn

from rlhf_lightning.models.verified import restore_verified, verified_states

LAYOUT_KEY, LAYOUT = "rlhf_lightning_layout", 2
"""Written into every checkpoint; the number goes up when those that were made before can no longer be resumed."""
_VERIFIED = "verified"
_REMEDY = "Start anew, or build the model that it was made with."


class LayoutError(RuntimeError):
    """A checkpoint that another version of this package made."""


def beside_weights(module: nn.Module) -> dict[str, Any]:
    """What a checkpoint says besides weights: its layout, and which ways to read rows were right so far."""
    return {LAYOUT_KEY: LAYOUT, _VERIFIED: verified_states(module)}


def check_layout(checkpoint: Mapping[str, Any]) -> None:
    """Refuse a checkpoint of another layout.

    Args:
        checkpoint: The checkpoint as it was loaded.

    Raises:
        LayoutError: Naming the remedy.
    """
    if checkpoint.get(LAYOUT_KEY) != LAYOUT:
        raise LayoutError(
            "the checkpoint has the layout of another version of rlhf_lightning, and this one cannot go on from it. "
            "Remove the checkpoints folder to train anew, or finish it with the version that made it."
        )


def complete_checkpoint(checkpoint: dict[str, Any], module: nn.Module, frozen: Sequence[str]) -> None:
    """Put what does not learn back into a checkpoint of the module, from the module itself.

    Args:
        checkpoint: The checkpoint as it was loaded, changed in place.
        module: The module that goes on from it.
        frozen: Names of the submodules that are in no checkpoint.

    Raises:
        LayoutError: When it is of another layout.
        RuntimeError: When it is of another model.
    """
    check_layout(checkpoint)
    restore_verified(module, checkpoint.get(_VERIFIED, []))
    if "state_dict" in checkpoint:  # a strategy that shards weights has taken them already
        state = module.state_dict()
        check_same_model(checkpoint["state_dict"], learned_state(module, state, frozen))
        # What is frozen was handed over; Lightning would warn of every weight that it does not find.
        checkpoint["state_dict"] = {**state, **checkpoint["state_dict"]}


def learned_state(module: nn.Module, state: Mapping[str, Any], frozen: Sequence[str] = ()) -> dict[str, Any]:
    """The part of a state that a checkpoint keeps: buffers, and the weights that learn.

    Args:
        module: The module that the state is of.
        state: Its weights and buffers by name.
        frozen: Names of the submodules that are left out as a whole.
    """
    still = {name for name, p in module.named_parameters(remove_duplicate=False) if not p.requires_grad}
    prefixes = tuple(f"{name}." for name in frozen)
    return {name: value for name, value in state.items() if name not in still and not name.startswith(prefixes)}


def check_same_model(saved: Mapping[str, Any], expected: Mapping[str, Any]) -> None:
    """Refuse the state of another model, or of one of another size.

    Args:
        saved: The state in the checkpoint, by name.
        expected: What a checkpoint of the model at hand would have, by name.

    Raises:
        RuntimeError: Naming what differs.
    """
    if saved.keys() != expected.keys():
        lacks, more = sorted(expected.keys() - saved.keys())[:4], sorted(saved.keys() - expected.keys())[:4]
        raise RuntimeError(
            f"the checkpoint is of another model: it lacks {lacks or 'nothing'} and has {more or 'nothing'} "
            f"besides. {_REMEDY}"
        )
    for name, value in expected.items():
        if saved[name].shape != value.shape:
            raise RuntimeError(
                f"the checkpoint is of another model: its {name} has shape {tuple(saved[name].shape)}, not "
                f"{tuple(value.shape)}. {_REMEDY}"
            )
