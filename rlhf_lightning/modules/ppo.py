"""PPO and PPO-ptx: roll out, score, update."""

import sys
from collections.abc import Iterator
from typing import Any, cast

import torch
from jaxtyping import Int
from lightning.pytorch.core.optimizer import LightningOptimizer
from lightning.pytorch.utilities.types import OptimizerLRScheduler
from torch import Tensor, nn
from torch.optim import Optimizer
from transformers import PreTrainedTokenizerBase

from rlhf_lightning.algorithms.batch import Experience, LMBatch, PromptBatch, Rollout, length_groups, padded_size
from rlhf_lightning.algorithms.functional import gae, kl_k1, kl_penalized_rewards, whiten
from rlhf_lightning.algorithms.losses import PolicyStatistics, policy_loss, value_loss
from rlhf_lightning.generation.engines import Sampler
from rlhf_lightning.generation.rewards import TextScorer, response_scores
from rlhf_lightning.generation.sample import response_log_probs, sample_responses, select_rows, token_id
from rlhf_lightning.models.lora import adapters_disabled, frozen_beside
from rlhf_lightning.models.moving_average import MovingAverage
from rlhf_lightning.models.offload import offload, on_device_within
from rlhf_lightning.models.recompute import checkpoint_activations
from rlhf_lightning.models.scalar_head import ScalarHeadModel
from rlhf_lightning.modules.base import OptimizerFactory, SchedulerFactory, StageModule, check_positive
from rlhf_lightning.modules.ppo_experience import (
    adapted_kl_coef,
    check_first_ratio,
    check_sampler,
    draw_minibatches,
    merge_statistics,
    response_kl,
    response_values,
    rollout_figures,
)
from rlhf_lightning.modules.ppo_ptx import backward_pretrain, measured_gradient, text_share
from rlhf_lightning.parallel.processes import all_reduce_gradients, all_reduce_mean, all_reduce_sum, no_sync
from rlhf_lightning.parallel.sharding import call_unsharded, full_tensor, sync_on_last, unshard

FORWARD_TOKENS = 2**14
"""Frozen models and the critic's first pass read episodes in groups of up to so many tokens."""


class PPOModule(StageModule):
    """PPO against a reward model with a per-token KL penalty, optionally with pretraining gradients (PPO-ptx).

    One ``training_step`` is one iteration: :meth:`rollout`, :meth:`score`, :meth:`update`. Dropout is off throughout.
    Source: InstructGPT, section 3.5, equation 2 and appendix C.4; *ours* marks what the paper does not say.

    Args:
        policy: The model that learns.
        reference: Where the KL penalty pulls to; frozen. Usually the policy before training; with adapters
            (:mod:`rlhf_lightning.models.lora`) the policy itself, which is read without them.
        reward: Gives a response its score: a :class:`ScalarHeadModel` over the policy's tokens, or a function of
            prompt texts and response texts.
        value: The critic; starts as the reward model in the paper. With adapters it can share the reward model's body.
        tokenizer: Of the policy; tells EOS and padding and turns responses into text.
        optimizer: Factory of the policy's optimizer.
        value_optimizer: Factory of the critic's optimizer.
        scheduler: Factory of both schedules, stepped once per iteration; None keeps the learning rates.
        sampler: Who samples the responses (:mod:`rlhf_lightning.generation.engines`).
        max_new_tokens: Length limit of a response, its EOS included.
        temperature: Of sampling; the paper uses 1.
        num_minibatches: Optimizer steps per pass over a rollout.
        num_ppo_epochs: Passes over a rollout.
        micro_batch_size: Rows per backward pass; changes memory, not the gradient. None takes a minibatch at once.
        kl_coef: beta, per nat.
        kl_target: When set, ``kl_coef`` adapts so that the KL of a response stays near this many nats.
        kl_horizon: Episodes over which an adapting ``kl_coef`` reacts.
        ptx_coef: gamma, the weight of the pretraining gradient; 0 is plain PPO.
        discount: Of rewards, per token.
        gae_lambda: Of the advantage estimate.
        clip_range: Trust region of the policy's ratio.
        value_clip_range: Trust region of the values (ours), None for none.
        stop_kl: When the KL of a minibatch to the policy that sampled is above so many nats per token, it and the later
            ones of the iteration are left out (ours); None for never.
        missing_eos_penalty: Subtracted from the score of a response that was cut at the limit.
        max_grad_norm: Norm that the policy's and the critic's gradients are cut to, None for none.
        activation_checkpointing: Compute activations of policy and critic again in the backward pass instead of
            keeping them.
        offload_frozen: Keep reference and reward model in the CPU's memory except while they score.
        ema_decay: Decay per optimizer step of the policy's moving average, None for none.
        seed: Of sampling and minibatches.

    Raises:
        ValueError: When an argument is out of its range.
    """

    frozen = ("reference", "reward")
    kl_coef: Tensor
    iteration: Tensor

    def __init__(
        self,
        policy: nn.Module,
        reference: nn.Module,
        reward: ScalarHeadModel | TextScorer,
        value: ScalarHeadModel,
        tokenizer: PreTrainedTokenizerBase,
        optimizer: OptimizerFactory,
        value_optimizer: OptimizerFactory,
        scheduler: SchedulerFactory | None = None,
        *,
        sampler: Sampler = sample_responses,
        max_new_tokens: int = 1024,
        temperature: float = 1.0,
        num_minibatches: int = 8,
        num_ppo_epochs: int = 1,
        micro_batch_size: int | None = None,
        kl_coef: float = 0.02,
        kl_target: float | None = None,
        kl_horizon: int = 10_000,
        ptx_coef: float = 0.0,
        discount: float = 1.0,
        gae_lambda: float = 0.95,
        clip_range: float = 0.2,
        value_clip_range: float | None = 0.2,
        stop_kl: float | None = None,
        missing_eos_penalty: float | None = None,
        max_grad_norm: float | None = None,
        ema_decay: float | None = 0.992,
        activation_checkpointing: bool = False,
        offload_frozen: bool = False,
        seed: int = 0,
    ) -> None:
        super().__init__(optimizer, scheduler)
        check_positive(
            max_new_tokens=max_new_tokens,
            temperature=temperature,
            num_minibatches=num_minibatches,
            num_ppo_epochs=num_ppo_epochs,
            clip_range=clip_range,
        )
        self.automatic_optimization = False
        self.policy, self.value = policy.eval(), value.eval()
        self.reference, self.reward = frozen_beside(policy, reference), frozen_beside(value, reward)
        self._offloaded = (self.reference, self.reward) if offload_frozen else ()
        self.tokenizer, self.value_optimizer_factory, self.sampler = tokenizer, value_optimizer, sampler
        self.max_new_tokens, self.temperature, self.seed = max_new_tokens, temperature, seed
        self.num_minibatches, self.num_ppo_epochs = num_minibatches, num_ppo_epochs
        self.kl_target, self.kl_horizon, self.ptx_coef = kl_target, kl_horizon, ptx_coef
        self.discount, self.gae_lambda, self.micro_batch_size = discount, gae_lambda, micro_batch_size
        self.clip_range, self.value_clip_range = clip_range, value_clip_range
        self.missing_eos_penalty, self.max_grad_norm, self.stop_kl = missing_eos_penalty, max_grad_norm, stop_kl
        self.register_buffer("kl_coef", torch.tensor(float(kl_coef)))
        self.register_buffer("iteration", torch.tensor(0))
        self.latest: Experience | None = None
        self.ema = None if ema_decay is None else MovingAverage(policy, ema_decay)
        if activation_checkpointing:
            checkpoint_activations(policy)
            checkpoint_activations(value)

    # --- the three steps of an iteration ------------------------------------------------------------------------------

    def training_step(self, batch: dict[str, Any], batch_idx: int) -> None:
        """One iteration."""
        with self.throughput.phase("rollout"):
            rollout = self.rollout(batch["prompts"])
        with self.throughput.phase("score"), on_device_within(self.device, *self._offloaded):
            experience = self.score(rollout)
        with self.throughput.phase("update"), no_sync(self.trainer.model):
            self.update(experience, batch.get("pretrain"))
        for scheduler in cast(list[Any], self.lr_schedulers() or []):
            scheduler.step()
        self.latest = experience
        self.log_noted("update/ptx_loss")
        shown = {"rollout/score": experience.scores.mean(), "rollout/kl": response_kl(experience)}
        self.log_dict(shown, prog_bar=True, sync_dist=True)
        self.log_dict({"rollout/kl_coef": self.kl_coef.clone(), **rollout_figures(experience)}, sync_dist=True)
        self.kl_coef = adapted_kl_coef(self.kl_coef, experience, self.kl_target, self.kl_horizon)
        self.iteration += 1

    def rollout(self, prompts: PromptBatch) -> Rollout:
        """Sample one response per prompt; each pair is an episode of a bandit."""
        with unshard(self.policy):
            rollout = self.sampler(
                self.policy,
                prompts,
                max_new_tokens=self.max_new_tokens,
                eos_token_id=token_id(self.tokenizer.eos_token_id),
                pad_token_id=token_id(self.tokenizer.pad_token_id),
                temperature=self.temperature,
                key=(self.seed, int(self.iteration)),
            )
        self.throughput.count(self.policy, rollout.response_mask.sum(), rollout.response_mask.sum())
        return rollout

    def validation_step(self, batch: PromptBatch, batch_idx: int) -> None:
        """Score of fresh samples on held-out prompts."""
        with on_device_within(self.device, *self._offloaded), adapters_disabled(self.reward), unshard(self.reward):
            score = response_scores(self.reward, self.rollout(batch), self.tokenizer).mean()
        self.log("validation/score", score, prog_bar=True, sync_dist=True)

    def on_fit_start(self) -> None:
        """Refuse what would be silently wrong."""
        if self.trainer.precision == "16-mixed":
            raise RuntimeError("precision=16-mixed scales gradients before they are clipped; use bf16-mixed.")
        offload(*self._offloaded)

    @torch.no_grad()
    def score(self, rollout: Rollout) -> Experience:
        """Scores, log-probs of policy and reference, values, advantages."""
        mask = rollout.response_mask
        minibatches = self._draw_minibatches(len(mask), epoch=0)
        old_log_probs, reference_log_probs, values = torch.zeros(3, *mask.shape, device=mask.device)
        scores = torch.zeros(len(mask), device=mask.device)
        with unshard(self.policy):
            for rows in (micro for minibatch in minibatches for micro in self._micro_batches(rollout, minibatch)):
                part = self._read(rollout, rows, self.policy)
                width = part.response_ids.shape[1]
                old_log_probs[rows, :width] = response_log_probs(self.policy, part, self.temperature).float()
        with unshard(self.reference, self.value, self.reward):
            for rows in length_groups(rollout.lengths, FORWARD_TOKENS):
                part = self._read(rollout, rows, self.reference, self.value, self.reward)
                width = part.response_ids.shape[1]
                values[rows, :width] = response_values(self.value, part).float()
                with adapters_disabled(self.reference, self.reward):
                    log_probs = response_log_probs(self.reference, part, self.temperature)
                    reference_log_probs[rows, :width] = log_probs.float()
                    scores[rows] = response_scores(self.reward, part, self.tokenizer).to(scores)
        if self.missing_eos_penalty is not None:
            scores = scores - self.missing_eos_penalty * (~rollout.ended).float()
        self.check_finite(**{"sample": rollout.log_probs, "reward": scores, "log-prob": old_log_probs, "value": values})
        self.log("rollout/sampler_gap", check_sampler(rollout, old_log_probs, 0.01 if self._exact else 0.1))
        rewards = kl_penalized_rewards(scores, kl_k1(old_log_probs, reference_log_probs), mask, self.kl_coef)
        advantages, returns = gae(rewards, values, mask, self.discount, self.gae_lambda)
        advantages = whiten(advantages, mask, all_reduce_sum)
        return Experience(rollout, scores, old_log_probs, reference_log_probs, values, advantages, returns, minibatches)

    def update(self, experience: Experience, pretrain: LMBatch | None = None) -> None:
        """Optimizer steps of policy and critic on one rollout.

        Args:
            experience: From :meth:`score`.
            pretrain: Rows for the pretraining gradient, shared out evenly over the minibatches; needed when
                ``ptx_coef`` is not 0.
        """
        policy_optimizer, value_optimizer = cast(list[LightningOptimizer], self.optimizers())
        for epoch in range(self.num_ppo_epochs):
            drawn = experience.minibatches if epoch == 0 else self._draw_minibatches(len(experience.scores), epoch)
            for number, rows in enumerate(drawn):
                first = epoch == 0 and number == 0
                _, approx_kl, deviation = self.backward_policy(experience, rows)
                if first:
                    self.log("update/first_ratio_deviation", deviation, sync_dist=True, reduce_fx="max")
                    check_first_ratio(deviation, 0.0 if self._exact else 0.1)
                if self.stop_kl is not None and all_reduce_mean(approx_kl) > self.stop_kl:
                    self.note("update/left_out", torch.tensor(float(len(drawn) - number)))
                    policy_optimizer.zero_grad()
                    return
                if self.ptx_coef:
                    self.backward_text(text_share(pretrain, number, len(drawn)), measure=first)
                self._step(policy_optimizer, self.policy, "policy")
                if self.ema is not None:
                    self.ema.update(self.policy)
                self.backward_value(experience, rows)
                self._step(value_optimizer, self.value, "value")

    # --- backward passes ---------------------------------------------------------------------------------------------

    def backward_policy(self, experience: Experience, rows: Int[Tensor, " minibatch"]) -> PolicyStatistics:
        """Add the gradient of the policy loss on a minibatch to the policy's."""
        rows, num_tokens = self._counted(experience.rollout, rows)
        parts = []
        for micro, part in self._parts(experience.rollout, rows, self.policy):
            width = part.response_ids.shape[1]
            loss, statistics = policy_loss(
                call_unsharded(response_log_probs, self.policy, part, self.temperature),
                experience.old_log_probs[micro, :width],
                experience.advantages[micro, :width],
                part.response_mask,
                self.clip_range,
                num_tokens,
            )
            self.manual_backward(loss)
            parts.append((loss.detach(), part.response_mask.sum() / num_tokens, statistics))
        merged = merge_statistics([(weight, part) for _, weight, part in parts])
        self.note("update/policy_loss", torch.stack([loss for loss, *_ in parts]).sum())
        self.note("update/clip_fraction", merged.clip_fraction)
        self.note("update/approx_kl", merged.approx_kl)
        return merged

    def backward_value(self, experience: Experience, rows: Int[Tensor, " minibatch"]) -> None:
        """Add the gradient of the value loss on a minibatch to the critic's."""
        rows, num_tokens = self._counted(experience.rollout, rows)
        total = torch.zeros((), device=self.device)
        for micro, part in self._parts(experience.rollout, rows, self.value):
            width = part.response_ids.shape[1]
            loss, _ = value_loss(
                call_unsharded(response_values, self.value, part),
                experience.old_values[micro, :width],
                experience.returns[micro, :width],
                part.response_mask,
                self.value_clip_range,
                num_tokens,
            )
            self.manual_backward(loss)
            total += loss.detach()
        self.note("update/value_loss", total)

    def backward_text(self, batch: LMBatch, measure: bool) -> None:
        """Add the pretraining gradient to the policy's."""
        lengths = batch.mask.sum(1)
        with self.throughput.phase("ptx"), measured_gradient(self.policy, measure) as figures:
            self.throughput.count(self.policy, lengths.sum(), padded_size(lengths), backward=True)
            loss = backward_pretrain(self.policy, batch, self.ptx_coef, self.micro_batch_size, self.manual_backward)
        self.note("update/ptx_loss", loss)
        self.log_dict(figures)

    def _step(self, optimizer: LightningOptimizer | Optimizer, module: nn.Module, name: str) -> None:
        limit = float("inf") if self.max_grad_norm is None else self.max_grad_norm
        all_reduce_gradients(module)
        norm = full_tensor(nn.utils.clip_grad_norm_(module.parameters(), limit))
        self.check_finite(**{f"gradient of the {name}": norm})
        self.note(f"update/{name}_grad_norm", norm)
        optimizer.step()
        optimizer.zero_grad()
        # Lightning keeps one autocast around the whole iteration, and autocast keeps 16-bit copies of the weights.
        torch.clear_autocast_cache()

    # --- bookkeeping -------------------------------------------------------------------------------------------------

    def configure_model(self) -> None:
        """Where weights are shared out over processes, so is their moving average."""
        super().configure_model()
        if self.ema is not None:
            self.ema.shard_like(self.policy)

    def configure_optimizers(self) -> OptimizerLRScheduler:
        """Policy and critic have optimizers of their own; schedules count iterations."""
        optimizers = [
            self.optimizer_factory([p for p in self.policy.parameters() if p.requires_grad]),
            self.value_optimizer_factory([p for p in self.value.parameters() if p.requires_grad]),
        ]
        if self.scheduler_factory is None:
            return optimizers
        iterations = int(self.trainer.estimated_stepping_batches)
        return optimizers, [self.scheduler_factory(optimizer, iterations) for optimizer in optimizers]

    def _draw_minibatches(self, rows: int, epoch: int) -> list[Int[Tensor, " minibatch"]]:
        key = (self.seed, int(self.iteration), epoch, 1)
        return [drawn.to(self.device) for drawn in draw_minibatches(rows, self.num_minibatches, key)]

    def _micro_batches(self, rollout: Rollout, rows: Int[Tensor, " minibatch"]) -> list[Int[Tensor, " micro"]]:
        """Episodes of similar length go through the models together; the gradients add up to the minibatch's."""
        return [rows[group] for group in length_groups(rollout.lengths[rows], sys.maxsize, self.micro_batch_size)]

    def _counted(self, rollout: Rollout, rows: Tensor) -> tuple[Tensor, Tensor]:
        """The rows of a minibatch and what its loss is divided by; who has none reads one that counts for nothing."""
        num_tokens = all_reduce_mean(rollout.response_mask[rows].sum())
        return (rows, num_tokens) if len(rows) else (rows.new_zeros(1), num_tokens * float("inf"))

    def _parts(self, rollout: Rollout, rows: Tensor, model: nn.Module) -> Iterator[tuple[Tensor, Rollout]]:
        parts = sync_on_last(model, self._micro_batches(rollout, rows))
        return ((micro, self._read(rollout, micro, model, backward=True)) for micro in parts)

    def _read(self, rollout: Rollout, rows: Tensor, *models: Any, backward: bool = False) -> Rollout:
        """Those rows, noted as read by the models among ``models``."""
        part = select_rows(rollout, rows)
        for model in models:
            if isinstance(model, nn.Module):
                positions = len(rows) * part.lengths.max()
                self.throughput.count(model, part.lengths.sum(), positions, backward=backward)
        return part

    @property
    def _exact(self) -> bool:
        one = next(self.policy.parameters())
        return one.dtype in (torch.float32, torch.float64) and not torch.is_autocast_enabled(one.device.type)
