"""What LightningCLI and Lightning's tuner ask of a module: hyperparameters that are its own, and `lr`."""

from collections.abc import Sequence
from functools import partial
from inspect import currentframe
from types import FrameType
from typing import Any, cast

import lightning as L
import torch
from lightning.pytorch.core.mixins.hparams_mixin import HyperparametersMixin
from lightning.pytorch.utilities.parsing import collect_init_args
from torch import nn

from rlhf_lightning.models.optimizers import OptimizerFactory


class Configurable(L.LightningModule):
    """A module that LightningCLI builds, also by a subclass with other arguments, and whose `lr` the tuner finds."""

    optimizer_factory: OptimizerFactory
    _hparams_given: dict[str, Any] | None = None
    """Those of a subclass, as LightningCLI gave them; a checkpoint has these, since it is loaded with them."""

    def save_hyperparameters(
        self,
        *args: Any,
        ignore: Sequence[str] | str | None = None,
        frame: FrameType | None = None,
        logger: bool = True,
    ) -> None:
        """Save them as Lightning does. It knows those that LightningCLI gave to a subclass alone; ours come to them.

        Args:
            args: As in Lightning.
            ignore: Names that are left out.
            frame: The frame of the constructor.
            logger: Whether loggers get them.
        """
        frame = frame or cast(FrameType, currentframe()).f_back
        super().save_hyperparameters(*args, ignore=ignore, frame=frame, logger=logger)
        levels = [] if args or frame is None else collect_init_args(frame, [], classes=(HyperparametersMixin,))
        left_out = [ignore] if isinstance(ignore, str) else ignore or []
        own = {name: value for name, value in (levels[:1] or [{}])[0].items() if name not in left_out}
        if any(name not in self.hparams or self.hparams[name] is not value for name, value in own.items()):
            self._hparams_given = self._hparams_given or dict(self.hparams)
            self.hparams.update(own)

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Keep the hyperparameters that the module is built with."""
        if self._hparams_given is not None:
            checkpoint["hyper_parameters"] = dict(self._hparams_given)

    @property
    def lr(self) -> float:
        """The learning rate of the optimizer's factory, in PPO of the policy's.

        Raises:
            AttributeError: When its optimizers have none.
            TypeError: When it is set and the factory takes none.
        """
        built: Any = self.optimizer_factory([nn.Parameter(torch.zeros(1, 1))])
        if "lr" not in built.defaults:
            raise AttributeError(f"a {type(built).__name__} has no learning rate.")
        return float(built.defaults["lr"])

    @lr.setter
    def lr(self, rate: float) -> None:
        before, factory = self.lr, self.optimizer_factory
        self.optimizer_factory = partial(cast(Any, factory), lr=rate)
        try:
            taken = self.lr == rate
        except TypeError:
            taken = False
        if not taken:
            self.optimizer_factory = factory
            raise TypeError(
                f"lr={rate}: the optimizer's factory takes no lr and stays at {before}. Give one that does, such as "
                "functools.partial(torch.optim.AdamW, lr=1e-5)."
            )
