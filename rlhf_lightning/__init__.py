"""InstructGPT (Ouyang et al. 2022) as PyTorch Lightning modules."""

import os
import sys
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any

if Path(*sys.argv[:1]).stem in ("rlhf", "rlhf-chat") or (
    sys.argv[:1] == ["-m"] and any(name.removeprefix("-m").split(".")[0] == __name__ for name in sys.orig_argv)
):
    # In our own commands alone, and before torch is imported, which reads it once: threads that wait sleep instead of
    # spinning, which beside other programs is many times faster.
    os.environ.setdefault("OMP_WAIT_POLICY", "passive")

if TYPE_CHECKING:
    from rlhf_lightning.algorithms.losses import lm_loss, policy_loss, ranking_loss, value_loss
    from rlhf_lightning.checks import Subject, check
    from rlhf_lightning.data.datamodule import RLHFDataModule
    from rlhf_lightning.data.records import Comparison, Demonstration, Prompt, Text
    from rlhf_lightning.generation.text_reward import TextReward
    from rlhf_lightning.models.loading import fit_to_tokenizer, load_causal_lm
    from rlhf_lightning.models.scalar_head import ScalarHeadModel, load_scalar_model
    from rlhf_lightning.modules.language_model import LanguageModelModule
    from rlhf_lightning.modules.ppo import PPOModule
    from rlhf_lightning.modules.reward import RewardModule
    from rlhf_lightning.tokenization.loading import load_tokenizer

__all__ = [
    "Comparison",
    "Demonstration",
    "LanguageModelModule",
    "PPOModule",
    "Prompt",
    "RLHFDataModule",
    "RewardModule",
    "ScalarHeadModel",
    "Subject",
    "Text",
    "TextReward",
    "check",
    "fit_to_tokenizer",
    "lm_loss",
    "load_causal_lm",
    "load_scalar_model",
    "load_tokenizer",
    "policy_loss",
    "ranking_loss",
    "value_loss",
]
__version__ = "0.1.0"

# Loaded when they are asked for: torch, transformers and Lightning take seconds.
_NAMES = {
    "algorithms.losses": "lm_loss policy_loss ranking_loss value_loss",
    "checks": "Subject check",
    "data.datamodule": "RLHFDataModule",
    "data.records": "Comparison Demonstration Prompt Text",
    "generation.text_reward": "TextReward",
    "models.loading": "fit_to_tokenizer load_causal_lm",
    "models.scalar_head": "ScalarHeadModel load_scalar_model",
    "modules.language_model": "LanguageModelModule",
    "modules.ppo": "PPOModule",
    "modules.reward": "RewardModule",
    "tokenization.loading": "load_tokenizer",
}
_PLACES = {name: module for module, names in _NAMES.items() for name in names.split()}


def __getattr__(name: str) -> Any:
    """A public name, from the module that defines it."""
    if name not in _PLACES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = globals()[name] = getattr(import_module(f"{__name__}.{_PLACES[name]}"), name)
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
