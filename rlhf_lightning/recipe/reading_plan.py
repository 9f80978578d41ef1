"""The memory of the steps that train nothing: those that answer prompts, and those that read rows."""

from collections.abc import Mapping
from typing import Any

import torch
from transformers import PreTrainedConfig

from rlhf_lightning.evaluation.tables import REWARD
from rlhf_lightning.generation.rewards import FORWARD_TOKENS
from rlhf_lightning.models.device_memory import available_memory
from rlhf_lightning.recipe.context import BASE, Context
from rlhf_lightning.recipe.memory_plan import StagePlan, architecture_of, lengths_of, precision_of, sampled_rows
from rlhf_lightning.recipe.rewards import reward_steps
from rlhf_lightning.training.memory import MemoryPlanner, Phase, Precision
from rlhf_lightning.training.resident import in_process

READ_TOKENS = 512
"""Tokens of the row that says how much a token takes where rows are read."""


def answers_plan(context: Context, config: Mapping[str, Any], stage: str, rows: int) -> StagePlan:
    """Answers to the longest prompts, so many at a time, and their scores."""
    prompt, response = lengths_of(config)
    reward = bool(list(reward_steps(context, config[stage][REWARD])))
    rows = min(rows, sampled_rows(context, config))
    planner = MemoryPlanner(
        architecture_of(context, BASE),
        precision_of(config, trained=False),
        reward_config=architecture_of(context, REWARD),
    )
    phases = planner.sampling(rows, prompt, response, scored=reward, forward_tokens=FORWARD_TOKENS)
    words = f"{rows} rows of {prompt} + {response} tokens"
    return StagePlan(stage, words, in_process(phases, context.device))


def reading_plan(context: Context, config: Mapping[str, Any], stage: str) -> StagePlan:
    """Rows of any length that are read without gradient, as many as fit (`reading_tokens`)."""
    architecture, precision = architecture_of(context, BASE), Precision(precision_of(config, trained=False).weights)
    tokens, phase = reading_tokens(architecture, precision, context.device)
    return StagePlan(stage, f"{tokens} tokens at a time", in_process([phase], context.device))


def reading_tokens(architecture: PreTrainedConfig, precision: Precision, device: torch.device) -> tuple[int, Phase]:
    """Tokens of a batch that is read with all its logits in a tenth of the memory, and what that is.

    Args:
        architecture: The model's configuration.
        precision: Types of its weights and passes.
        device: Where it runs; on a CPU more tokens at once are no faster from some number on.
    """
    try:
        phase = MemoryPlanner(architecture, precision).reading(1, READ_TOKENS)
    except (AttributeError, LookupError, NotImplementedError, RuntimeError, TypeError, ValueError):
        # Some layers cannot be run without values: keys, values, activations and logits of a token, by their widths.
        text = architecture.get_text_config()
        width, layers = int(text.hidden_size), int(text.num_hidden_layers)
        size = 4 * (2 * layers * width + 12 * width + int(text.vocab_size))
        phase = Phase("read", {"activations": size * READ_TOKENS})
    of_token = max(1, phase.parts["activations"] // READ_TOKENS)
    memory = available_memory(device) or 2**32
    tokens = max(READ_TOKENS, min(2**13 if device.type == "cpu" else 2**17, memory // 10 // of_token))
    return tokens, Phase("read", {**phase.parts, "activations": tokens * of_token})
