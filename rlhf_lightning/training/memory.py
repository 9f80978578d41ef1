"""How much memory a stage will need, from its shapes alone: nothing of the size of a model is allocated.

The models are built and run on fake tensors, which have shapes and no values, while the bytes that would be alive are
counted. What stays from step to step is counted from parameters.
"""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import KW_ONLY, dataclass, field
from functools import partial
from typing import Any, cast

import torch
from torch import Tensor, nn
from transformers import AutoModelForCausalLM, PreTrainedConfig, PreTrainedModel

from rlhf_lightning.compat import FakeTensorMode
from rlhf_lightning.generation.decoding import prefill_tokens
from rlhf_lightning.generation.sampling_batches import key_value_width
from rlhf_lightning.models.architecture import unwindowed_tokens
from rlhf_lightning.models.loading import freeze, use_fast_kernels
from rlhf_lightning.models.log_probs import last_hidden, linear_log_probs
from rlhf_lightning.models.lora import add_adapters, critic_with_adapters, with_adapters
from rlhf_lightning.models.matmul import LINEAR
from rlhf_lightning.models.recompute import checkpoint_activations
from rlhf_lightning.models.scalar_head import ScalarHeadModel
from rlhf_lightning.models.shared_prefix import TREE_TOKENS
from rlhf_lightning.training.live_bytes import LiveBytes, parameter_bytes, trainable_bytes, without_values
from rlhf_lightning.training.planned_passes import read_cached, read_rows, read_tree, sampled_tokens, token_ids


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
        device: Where it will run.
    """

    config: PreTrainedConfig
    precision: Precision = Precision()
    _: KW_ONLY
    activation_checkpointing: bool = False
    optimizer_bytes: float = 2.0
    reward_config: PreTrainedConfig | None = None
    lora: Mapping[str, Any] | None = None
    device: str = "cpu"

    def language_model(
        self, rows: int, tokens: int, counted: int | None = None, micro_rows: int | None = None
    ) -> list[Phase]:
        """Pretraining or supervised fine-tuning.

        Args:
            rows: Rows per step.
            tokens: Tokens of a row.
            counted: Tokens of a row that are in the loss; None for all but the first.
            micro_rows: Rows per backward pass; None is all of them.
        """
        model = with_adapters(self._causal_lm(self.config, learns=not self.lora), **(self.lora or {}))
        size, micro = parameter_bytes(model), min(rows, micro_rows or rows)
        with self._fake(model):
            read = partial(self._log_probs, model, micro, tokens, counted or tokens - 1)
            passes = self._passes(model, read, 1 + (micro < rows))
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
        read = read_tree if prompt_tokens + responses * response_tokens <= TREE_TOKENS else read_cached
        if window is not None and prompt_tokens + response_tokens > window:
            read = read_rows
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
        sampled_rows: int | None = None,
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
            sampled_rows: Episodes of a sampling batch; None is all.
            ema: Whether a moving average is kept.
            text_rows: Rows of text per backward pass; 0 for plain PPO.
            text_tokens: Tokens of each of them.
        """
        tokens, width = prompt_tokens + response_tokens, response_tokens
        micro_rows = min(micro_rows, minibatch_rows)
        steps = 1 + (minibatch_rows > micro_rows)
        policy, reward, value, resident = self._ppo_models(ema)
        with self._fake(policy, value, reward):
            sampled = self._sampled(policy, min(rows, sampled_rows or rows), prompt_tokens, response_tokens)
            together = min(rows, max(1, forward_tokens // tokens))
            read = max(
                self._peak(lambda: self._log_probs(policy, micro_rows, tokens, width)),
                self._peak(lambda: self._log_probs(policy, together, tokens, width)),
                self._peak(lambda: reward(token_ids(together, tokens))),
            )
            update = self._passes(policy, lambda: self._log_probs(policy, micro_rows, tokens, width), steps)
            critic = self._passes(value, lambda: value(token_ids(micro_rows, tokens))[:, :width], steps)
            phases = [
                Phase("rollout", resident | sampled),
                Phase("score", {**resident, "activations": read}),
                Phase("update policy", {**resident, **update}),
            ]
            if text_rows:
                # The gradient of PPO is there already, and once more where the two gradients are compared.
                text = self._passes(policy, lambda: self._log_probs(policy, text_rows, text_tokens, text_tokens - 1), 2)
                text["gradients"] += text["gradients"]
                phases.append(Phase("ptx", {**resident, **text}))
            return [*phases, Phase("update value", {**resident, **critic})]

    def _ppo_models(self, ema: bool) -> tuple[Any, Any, Any, dict[str, int]]:
        """Policy, reward model and critic, and the bytes that are held throughout."""
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
        return policy, reward, value, resident

    def sampling(
        self, rows: int, prompt_tokens: int, response_tokens: int, *, scored: bool = False, forward_tokens: int
    ) -> list[Phase]:
        """A model that answers prompts and learns nothing; where it is scored, a reward model reads the answers.

        Args:
            rows: Rows of a sampling batch.
            prompt_tokens: Tokens of the longest prompt.
            response_tokens: Tokens of the longest response.
            scored: Whether there is a reward model.
            forward_tokens: Tokens that are read at once where nothing is sampled.
        """
        tokens = prompt_tokens + response_tokens
        model = self._causal_lm(self.config, learns=False)
        reward = self._scalar_model(self.reward_config or self.config, learns=False)
        resident = dict(model=parameter_bytes(model), reward=parameter_bytes(reward) * scored)
        together = min(rows, max(1, forward_tokens // tokens))
        with self._fake(model, reward):
            sampled = self._sampled(model, rows, prompt_tokens, response_tokens)
            read = self._peak(lambda: self._log_probs(model, together, tokens, response_tokens))
            score = max(read, self._peak(lambda: reward(token_ids(together, tokens))) if scored else 0)
        return [Phase("sample", resident | sampled), Phase("score", {**resident, "activations": score})]

    def reading(self, rows: int, tokens: int) -> Phase:
        """A model that reads rows without gradient and gives all their logits."""
        with self._fake(model := self._causal_lm(self.config, learns=False)):
            read = self._peak(lambda: model(input_ids=token_ids(rows, tokens), use_cache=False).logits.argmax(-1))
        return Phase("read", {"model": parameter_bytes(model), "activations": read})

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

    def _sampled(self, model: PreTrainedModel, rows: int, prompt_tokens: int, response_tokens: int) -> dict[str, int]:
        """What one sampling batch keeps, and what the fullest moment of its prompts and of a token has besides."""
        tokens, dtype = prompt_tokens + response_tokens, self.precision.autocast or next(model.parameters()).dtype
        prefilled = min(rows, max(1, prefill_tokens(torch.device(self.device)) // prompt_tokens))
        copied = self.precision.autocast is not None or bool(self.lora)  # cast, or with adapters added
        weights = [cast(Tensor, layer.weight) for layer in model.modules() if type(layer) in LINEAR and copied]
        return {
            "weights to sample by": sum(weight.numel() * dtype.itemsize for weight in weights),
            "key-value cache": 2 * rows * tokens * key_value_width(self.config) * dtype.itemsize,
            "activations": self._peak(lambda: last_hidden(model, token_ids(prefilled, prompt_tokens))),
            "logits": self._peak(lambda: sampled_tokens(rows, self.config.get_text_config().vocab_size, dtype)),
        }

    def _learned(self, model: nn.Module) -> dict[str, int]:
        return {"optimizer": int(self.optimizer_bytes * trainable_bytes(model))}

    def _log_probs(self, model: PreTrainedModel, rows: int, tokens: int, counted: int) -> Tensor:
        hidden = last_hidden(model, token_ids(rows, tokens))[:, :counted].flatten(0, 1)
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
        with torch.no_grad(), LiveBytes() as live:
            forward()
        return int(live.peak)
