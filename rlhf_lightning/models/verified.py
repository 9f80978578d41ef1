"""Ways to read rows that share work: each is taken where it was right for the model, on rows at least as long."""

import warnings
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import nn

from rlhf_lightning.parallel.processes import all_gather_objects, rank
from rlhf_lightning.parallel.sharding import call_unsharded, is_sharded


class Verified:
    """What is known of such ways, by name; a checkpoint keeps it, so that a run that goes on reads as it did.

    A window, or whatever else begins at some length, does not show on shorter rows. So where a batch has longer rows
    than all before, they are tried again on its longest, which in a run happens a handful of times. (Sharded weights
    are gathered by all processes together, so there it is the first batch alone on which they are tried.)

    Args:
        feature: What a model does not support for which a way is wrong.
        instead: What is done instead.
    """

    def __init__(self, feature: str, instead: str) -> None:
        self.feature, self.instead = feature, instead
        self.tokens: dict[str, int] = {}
        """Tokens of the longest row on which each was tried."""
        self.faults: dict[str, str] = {}
        """What is wrong with those that are not taken."""
        self.tried = False
        """Whether there was a batch, even one that no way would read."""

    def verify(
        self, model: nn.Module, spans: Mapping[str, int], fault_of: Callable[[str], str], body: nn.Module | None = None
    ) -> None:
        """Try the ways that have not read rows so long; those that are wrong are left out with a warning.

        Args:
            model: The model.
            spans: Tokens of the longest row that each way would read.
            fault_of: What is wrong with a way on these rows; "" where nothing is.
            body: What the warning names; None is the model.

        Raises:
            torch.OutOfMemoryError: When there is no memory to try them, which says nothing of the model.
        """
        longer = [way for way in spans if way not in self.faults and spans[way] > self.tokens.get(way, 0)]
        # All processes gather together, those with nothing to try among them.
        if self.tried if is_sharded(model) else not longer:
            return
        self.tried = True
        with torch.no_grad():
            faults = call_unsharded(lambda _: _faults(longer, fault_of), model)
        self.tokens |= {way: spans[way] for way in longer}
        self.faults |= faults
        if faults and rank() == 0:
            reasons = "; ".join(fault if way == self.feature else f"{way}: {fault}" for way, fault in faults.items())
            warnings.warn(
                f"{type(body or model).__name__} does not support {self.feature} ({reasons}); {self.instead}",
                stacklevel=3,
            )


def _faults(ways: Sequence[str], fault_of: Callable[[str], str]) -> dict[str, str]:
    found = {}
    for way in ways:
        try:
            found[way] = fault_of(way)
        except torch.OutOfMemoryError:
            raise
        except (AttributeError, LookupError, RuntimeError, TypeError, ValueError) as error:
            found[way] = str(error)
    return {way: fault for way, fault in found.items() if fault}


def verified_states(module: nn.Module) -> list[dict[str, Any]]:
    """What each process knows of the ways of a module, by attribute, as plain types; all processes must ask."""
    return all_gather_objects(
        {
            name: {"tokens": value.tokens, "faults": value.faults, "tried": value.tried}
            for name, value in vars(module).items()
            if isinstance(value, Verified)
        }
    )


def restore_verified(module: nn.Module, states: Sequence[Mapping[str, Any]]) -> None:
    """Put back what `verified_states` gave; nothing of a checkpoint that has none.

    Args:
        module: The module.
        states: What each process knew; with more processes than then, the first one's holds for the others.
    """
    if states:
        for name, state in states[rank() if rank() < len(states) else 0].items():
            known = getattr(module, name)
            known.tokens, known.faults = dict(state["tokens"]), dict(state["faults"])
            known.tried = state.get("tried", bool(known.tokens))
