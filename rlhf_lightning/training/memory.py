"""How much memory a stage will need, from its shapes alone: nothing of the size of a model is allocated.

The models are built and run on fake tensors, which have shapes and no values, while the bytes that would be alive are
counted. What stays from step to step is counted from parameters.
"""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import KW_ONLY, dataclass, field
from typing import Any, cast

import torch
from torch import Tensor, nn
from transformers import AutoModelForCausalLM, DynamicCache, PreTrainedConfig, PreTrainedModel

from rlhf_lightning.compat import FakeTensorMode
from rlhf_lightning.generation.inverse_cdf import inverse_cdf_sample
from rlhf_lightning.models.architecture import unwindowed_tokens
from rlhf_lightning.models.loading import freeze, use_fast_kernels
from rlhf_lightning.models.log_probs import last_hidden, linear_log_probs
from rlhf_lightning.models.lora import add_adapters, critic_with_adapters, with_adapters
from rlhf_lightning.models.recompute import checkpoint_activations
from rlhf_lightning.models.scalar_head import ScalarHeadModel
from rlhf_lightning.models.selected_cache import selected
from rlhf_lightning.models.shared_prefix import GROUP_TOKENS, TREE_TOKENS, continuation_mask
from rlhf_lightning.training.live_bytes import LiveBytes, parameter_bytes, trainable_bytes, without_values


@dataclass
class Phase:
    """What is alive at the fullest moment of one phase, in bytes."""

    name: str
    parts: dict[str, int] = field(default_factory=dict)

    @property
    def total(self) -> int:
        """All parts together."""
        return sum(self.parts.values())


@dataclass(frozen=True)
class Precision:
    """How the numbers are kept.

    Args:
        weights: Type of the parameters that are frozen; those that learn have 32 bits at least.
        autocast: Type that the passes run in, or None for that of the parameters.
    """

    weights: torch.dtype = torch.float32
    autocast: torch.dtype | None = None

    @property
    def learned(self) -> torch.dtype:
        """Type of the parameters that learn."""
        return torch.promote_types(self.weights, torch.float32)

    @property
    def activations(self) -> torch.dtype:
        """Type of keys, values and hidden states."""
        return self.autocast or self.learned


@dataclass(frozen=True)
class MemoryPlanner:
    """Plans the training stages of one architecture.

    Args:
        config: The architecture's configuration.
        precision: Types of weights and passes, as the trainer has them.
        activation_checkpointing: Whether activations are computed again in the backward pass.
        optimizer_bytes: Optimizer state per byte of parameters; 2 for Adam.
        reward_config: The configuration of the reward model and the critic of PPO; None is the same architecture.
        lora: Options of `rlhf_lightning.models.lora.add_adapters`; None trains every weight.
    """

    config: PreTrainedConfig
    precision: Precision = Precision()
    _: KW_ONLY
    activation_checkpointing: bool = False
    optimizer_bytes: float = 2.0
    reward_config: PreTrainedConfig | None = None
    lora: Mapping[str, Any] | None = None

    def language_model(self, rows: int, tokens: int, counted: int | None = None) -> list[Phase]:
        """Pretraining or supervised fine-tuning.

        Args:
            rows: Rows per step.
            tokens: Tokens of a row.
            counted: Tokens of a row that are in the loss; None for all but the first.
        """
        model = with_adapters(self._causal_lm(self.config, learns=not self.lora), **(self.lora or {}))
        size = parameter_bytes(model)
        with self._fake(model):
            passes = self._passes(model, lambda: self._log_probs(model, rows, tokens, counted or tokens - 1))
        return [Phase("train", {"model": size, **self._learned(model), **passes})]

    def reward_model(
        self,
        prompts: int,
        prompt_tokens: int,
        responses: int,
        response_tokens: int,
        *,
        micro_prompts: int | None = None,
        freeze_body: bool = False,
    ) -> list[Phase]:
        """Reward training on prompts with so many responses each.

        Args:
            prompts: Prompts per optimizer step.
            prompt_tokens: Tokens of each.
            responses: Responses to each.
            response_tokens: Tokens of each of them.
            micro_prompts: Prompts per backward pass; None is all of them.
            freeze_body: Whether the head alone learns.
        """
        model = with_adapters(self._scalar_model(self.config, learns=not self.lora), **(self.lora or {}))
        if freeze_body:
            freeze(model.backbone)
        size, micro = parameter_bytes(model), min(prompts, micro_prompts or prompts)
        shape = micro, prompt_tokens, responses, response_tokens
        window = unwindowed_tokens(model.backbone.config)
        read = _read_tree if prompt_tokens + responses * response_tokens <= TREE_TOKENS else _read_cached
        if window is not None and prompt_tokens + response_tokens > window:
            read = _read_rows
        with self._fake(model):
            passes = self._passes(model, lambda: read(model, *shape), 1 + (micro < prompts))
        return [Phase("train", {"model": size, **self._learned(model), **passes})]

    def ppo(
        self,
        rows: int,
        prompt_tokens: int,
        response_tokens: int,
        *,
        micro_rows: int,
        minibatch_rows: int,
        forward_tokens: int,
        ema: bool = True,
        text_rows: int = 0,
        text_tokens: int = 0,
    ) -> list[Phase]:
        """PPO on rollouts of so many prompts.

        Args:
            rows: Episodes of an iteration.
            prompt_tokens: Tokens of the longest prompt.
            response_tokens: Tokens of the longest response.
            micro_rows: Episodes per backward pass.
            minibatch_rows: Episodes per optimizer step.
            forward_tokens: Tokens that frozen models read at once.
            ema: Whether a moving average is kept.
            text_rows: Rows of text per backward pass; 0 for plain PPO.
            text_tokens: Tokens of each of them.
        """
        tokens, width = prompt_tokens + response_tokens, response_tokens
        micro_rows = min(micro_rows, minibatch_rows)
        repeated = minibatch_rows > micro_rows
        reward_config = self.reward_config or self.config
        policy = self._causal_lm(self.config, learns=not self.lora)
        reward = self._scalar_model(reward_config, learns=False)
        resident = dict(policy=parameter_bytes(policy), reward=parameter_bytes(reward))
        if self.lora:
            add_adapters(policy, **self.lora)
            value = critic_with_adapters(reward, **self.lora)
            resident["adapters"] = trainable_bytes(policy) + trainable_bytes(value)
        else:
            value = self._scalar_model(reward_config)
            reference = self._causal_lm(self.config, learns=False)
            resident |= {"reference": parameter_bytes(reference), "value": parameter_bytes(value)}
        resident |= {"average": sum(p.numel() * 4 for p in policy.parameters() if p.requires_grad)} if ema else {}
        resident["optimizer"] = sum(self._learned(model)["optimizer"] for model in (policy, value))
        with self._fake(policy, value, reward):
            cache = 2 * rows * tokens * key_value_width(self.config) * self.precision.activations.itemsize
            prefill = self._peak(lambda: last_hidden(policy, _ids(rows, prompt_tokens)))
            vocabulary = self.config.get_text_config().vocab_size
            sampled = self._peak(lambda: _sample(rows, vocabulary, self.precision.activations))
            together = min(rows, max(1, forward_tokens // tokens))
            read = max(
                self._peak(lambda: self._log_probs(policy, micro_rows, tokens, width)),
                self._peak(lambda: self._log_probs(policy, together, tokens, width)),
                self._peak(lambda: reward(_ids(together, tokens))),
            )
            steps = 1 + repeated
            update = self._passes(policy, lambda: self._log_probs(policy, micro_rows, tokens, width), steps)
            critic = self._passes(value, lambda: value(_ids(micro_rows, tokens))[:, :width], steps)
            phases = [
                Phase("rollout", {**resident, "key-value cache": cache, "activations": prefill, "logits": sampled}),
                Phase("score", {**resident, "activations": read}),
                Phase("update policy", {**resident, **update}),
            ]
            if text_rows:
                # The gradient of PPO is there already, and once more where the two gradients are compared.
                text = self._passes(policy, lambda: self._log_probs(policy, text_rows, text_tokens, text_tokens - 1), 2)
                text["gradients"] += text["gradients"]
                phases.append(Phase("ptx", {**resident, **text}))
            return [*phases, Phase("update value", {**resident, **critic})]

    # --- pieces ------------------------------------------------------------------------------------------------------

    @contextmanager
    def _fake(self, *models: nn.Module) -> Iterator[None]:
        dtype = self.precision.autocast or torch.bfloat16
        with FakeTensorMode(), torch.autocast("cpu", dtype, enabled=self.precision.autocast is not None):
            without_values(models)
            yield

    def _causal_lm(self, config: PreTrainedConfig, learns: bool = True) -> PreTrainedModel:
        dtype = self.precision.learned if learns else self.precision.weights
        with torch.device("meta"):
            model = AutoModelForCausalLM.from_config(config, dtype=dtype)
        use_fast_kernels(cast(PreTrainedModel, model)).eval()
        if self.activation_checkpointing:
            checkpoint_activations(model)
        return cast(PreTrainedModel, model)

    def _scalar_model(self, config: PreTrainedConfig, learns: bool = True) -> ScalarHeadModel:
        with torch.device("meta"):
            return ScalarHeadModel(self._causal_lm(config, learns).base_model, config.get_text_config().hidden_size)

    def _learned(self, model: nn.Module) -> dict[str, int]:
        return {"optimizer": int(self.optimizer_bytes * trainable_bytes(model))}

    def _log_probs(self, model: PreTrainedModel, rows: int, tokens: int, counted: int) -> Tensor:
        hidden = last_hidden(model, _ids(rows, tokens))[:, :counted].flatten(0, 1)
        weight = cast(Tensor, model.get_output_embeddings().weight)
        return linear_log_probs(hidden, weight, torch.zeros(len(hidden), dtype=torch.long))

    def _passes(self, model: nn.Module, forward: Callable[[], Tensor], steps: int = 1) -> dict[str, int]:
        """Gradients, and what the fullest moment of forward and backward passes has besides them."""
        size = trainable_bytes(model)
        torch.clear_autocast_cache()
        with LiveBytes() as live:
            for _ in range(steps):
                forward().float().sum().backward()
        model.zero_grad()
        return {"gradients": size, "activations": max(0, live.peak - size)}

    def _peak(self, forward: Callable[[], Tensor]) -> int:
        torch.clear_autocast_cache()
        live = LiveBytes()
        with torch.no_grad(), live:
            forward()
        return live.peak


def key_value_width(config: PreTrainedConfig) -> int:
    """Numbers that one token leaves in the keys, or in the values, of all layers."""
    text: Any = config.get_text_config()
    heads = getattr(text, "num_key_value_heads", None) or text.num_attention_heads
    size = getattr(text, "head_dim", None) or text.hidden_size // text.num_attention_heads
    return int(text.num_hidden_layers * heads * size)


def _ids(rows: int, tokens: int) -> Tensor:
    return torch.zeros(rows, tokens, dtype=torch.long)


def _sample(rows: int, vocabulary: int, dtype: torch.dtype) -> Tensor:
    return inverse_cdf_sample(torch.zeros(rows, vocabulary, dtype=dtype), torch.zeros(rows, dtype=torch.float64))[1]


def _read_cached(model: ScalarHeadModel, prompts: int, width: int, responses: int, tokens: int) -> Tensor:
    cache = DynamicCache()
    model(_ids(prompts, width), cache=cache)
    last = []
    for rows in torch.arange(prompts).repeat_interleave(responses).split(max(1, GROUP_TOKENS // tokens)):
        ids = _ids(len(rows), tokens)
        everything = torch.ones(len(ids), width, dtype=torch.bool)
        mask = continuation_mask(everything, torch.ones_like(ids, dtype=torch.bool))
        last.append(model(ids, mask, torch.arange(width, width + tokens).expand_as(ids), selected(cache, rows))[:, -1])
    return torch.cat(last)


def _read_rows(model: ScalarHeadModel, prompts: int, width: int, responses: int, tokens: int) -> Tensor:
    return cast(Tensor, model(_ids(prompts * responses, width + tokens))[:, -1])


def _read_tree(model: ScalarHeadModel, prompts: int, width: int, responses: int, tokens: int) -> Tensor:
    ids = _ids(prompts, width + responses * tokens)
    mask = torch.ones(prompts, 1, ids.shape[1], ids.shape[1], dtype=torch.bool)
    return cast(Tensor, model(ids, mask, torch.arange(ids.shape[1]).expand_as(ids)))
