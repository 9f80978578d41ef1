"""PPO and PPO-ptx: roll out, score, update."""

from collections.abc import Sequence
from functools import partial
from typing import Any, cast

import torch
from jaxtyping import Int
from torch import Tensor, nn
from torch.optim import Optimizer
from transformers import PreTrainedTokenizerBase

from rlhf_lightning.algorithms.batch import Experience, LMBatch, PromptBatch, Rollout
from rlhf_lightning.algorithms.functional import gae, kl_k1, kl_penalized_rewards, whiten
from rlhf_lightning.algorithms.keyed_random import distinct_index
from rlhf_lightning.algorithms.losses import PolicyStatistics, policy_loss, value_loss
from rlhf_lightning.arguments import Count, Decay, Fraction, NonNegativeFloat, PositiveFloat, checked
from rlhf_lightning.generation.episode_batches import count_scored, figures_in, micro_batches_of, read_micro_batches
from rlhf_lightning.generation.experience import adapted_kl_coef, check_first_ratio, check_sampler, rollout_figures
from rlhf_lightning.generation.held_out import Sample, answered, mean_score, samples
from rlhf_lightning.generation.rewards import FORWARD_TOKENS, Reward, response_scores
from rlhf_lightning.generation.sample import SamplingOptions, response_log_probs, response_values, sample_responses
from rlhf_lightning.generation.sampling_batches import Sampler
from rlhf_lightning.generation.score_hooks import ScoreHook, shaped_scores
from rlhf_lightning.models.dict_batches import ppo_batch
from rlhf_lightning.models.gradients import measured_gradient
from rlhf_lightning.models.loading import check_rows
from rlhf_lightning.models.lora import adapters_disabled, freeze_unshared, learning_parameters
from rlhf_lightning.models.master_weights import check_learned, widened
from rlhf_lightning.models.moving_average import MovingAverage
from rlhf_lightning.models.offload import on_device_within
from rlhf_lightning.models.optimizers import OptimizerFactory, SchedulerFactory, check_factories
from rlhf_lightning.models.packing import VerifiedPacking
from rlhf_lightning.models.padding import length_groups, padded_size
from rlhf_lightning.models.precision import is_exact
from rlhf_lightning.models.recompute import checkpoint_activations
from rlhf_lightning.modules.base import RLHFModule
from rlhf_lightning.modules.ppo_minibatch import draw_minibatches
from rlhf_lightning.modules.ppo_ptx import GRADIENT_FIGURES, backward_pretrain, text_part
from rlhf_lightning.parallel.processes import all_reduce_mean, all_reduce_sum, mean_over_rows, no_sync, over_all_rows
from rlhf_lightning.parallel.sharding import call_unsharded, unshard


class PPOModule(RLHFModule):
    """PPO against a reward model with a per-token KL penalty, optionally with pretraining gradients (PPO-ptx).

    One `training_step` is one iteration: `rollout`, `score`, `update`. No dropout; advantages are whitened (ours). The
    scalars are `hparams`. Source: InstructGPT, 3.5, equation 2 and C.4; *ours* marks what the paper does not say.

    Args:
        policy: The model that learns: any that maps ids and mask to logits (`rlhf_lightning.models.forward`).
        reference: The frozen model that the KL penalty pulls to. Usually the policy before training; with adapters
            (`rlhf_lightning.models.lora`) the policy itself, which is read without them.
        reward: Scorer: a number per token of the policy's, as a `ScalarHeadModel` gives, or anything else in
            `generation.rewards.Reward`.
        value: The critic; starts as the reward model in the paper. With adapters it can share the reward model's body.
        tokenizer: The policy's tokenizer; tells EOS and padding and turns responses into text.
        optimizer: Factory of the policy's optimizer.
        value_optimizer: Factory of the critic's optimizer.
        scheduler: Factory of both schedules, stepped once per iteration; None keeps the learning rates.
        sampler: Function that samples the responses (`rlhf_lightning.generation.engines`).
        max_new_tokens: Length limit of a response, its EOS included.
        temperature: Temperature of sampling; the paper uses 1.
        num_minibatches: Optimizer steps per pass (8 in the paper); a smaller last batch has one per episode at most.
        num_ppo_epochs: Passes over a rollout; the paper makes 1.
        micro_batch_size: Rows per backward pass; changes memory, not the gradient. None takes a minibatch at once.
        kl_coef: Weight of the KL penalty (beta), per nat; the paper uses 0.02.
        kl_target: Nats of KL per response that `kl_coef` adapts to, None for a constant one (ours).
        kl_horizon: Episodes over which an adapting `kl_coef` reacts (ours).
        ptx_coef: Weight of the pretraining gradient (gamma), 27.8 in the paper; that it is of means per token is ours.
        discount: Discount of rewards, per token; the paper has none.
        gae_lambda: Lambda of the advantage estimate (ours).
        clip_range: Trust region of the policy's ratio, 0.2 in the paper.
        value_clip_range: Trust region of the values (ours), None for none.
        stop_kl: Nats of KL per token from the policy that sampled; the first minibatch above and all later ones of the
            iteration are left out (ours). None for no limit.
        score_hook: What scores go through before the advantages (ours), see `generation.score_hooks`; None for none.
        score_scale: What they are multiplied by then (ours).
        whiten_scores: Whether they get mean 0 and variance 1 over each rollout before that (ours).
        missing_eos_penalty: Penalty that a response which was cut at the limit loses of its score (ours).
        max_grad_norm: Norm that the policy's and the critic's gradients are clipped to (ours), None for none.
        ema_decay: Decay of the policy's moving average, 0.992 in the paper; per optimizer step is ours. None for none.
        activation_checkpointing: Compute the activations of policy and critic again in the backward pass.
        packing: Read episodes as one row without padding (`rlhf_lightning.models.packing`).
        offload_frozen: Keep reference and reward model in the CPU's memory except while they score.
        seed: Seed of sampling and minibatches.
    """

    frozen, learner = ("reference", "reward"), "policy"
    kl_coef: Tensor
    iteration: Tensor

    @checked
    def __init__(
        self,
        policy: nn.Module,
        reference: nn.Module,
        reward: Reward,
        value: nn.Module,
        tokenizer: PreTrainedTokenizerBase,
        optimizer: OptimizerFactory,
        value_optimizer: OptimizerFactory,
        scheduler: SchedulerFactory | None = None,
        *,
        sampler: Sampler = sample_responses,
        max_new_tokens: Count = 1024,
        temperature: PositiveFloat = 1.0,
        num_minibatches: Count = 8,
        num_ppo_epochs: Count = 1,
        micro_batch_size: Count | None = None,
        kl_coef: NonNegativeFloat = 0.02,
        kl_target: PositiveFloat | None = None,
        kl_horizon: PositiveFloat = 10_000,
        ptx_coef: NonNegativeFloat = 0.0,
        discount: Fraction = 1.0,
        gae_lambda: Fraction = 0.95,
        clip_range: PositiveFloat = 0.2,
        value_clip_range: PositiveFloat | None = 0.2,
        stop_kl: PositiveFloat | None = None,
        score_hook: ScoreHook | None = None,
        score_scale: PositiveFloat = 1.0,
        whiten_scores: bool = False,
        missing_eos_penalty: NonNegativeFloat | None = None,
        max_grad_norm: PositiveFloat | None = None,
        ema_decay: Decay | None = 0.992,
        activation_checkpointing: bool = False,
        packing: bool = False,
        offload_frozen: bool = False,
        seed: int = 0,
    ) -> None:
        super().__init__(optimizer, scheduler)
        models = ["policy", *self.frozen, "value", "tokenizer", "sampler", "score_hook"]
        self.save_hyperparameters(ignore=[*models, "optimizer", "value_optimizer", "scheduler"])
        check_rows(tokenizer, policy, reference, reward, value)
        check_factories(value_optimizer=value_optimizer)
        self.automatic_optimization = False
        self.policy, self.value = widened(policy).eval(), widened(value).eval()
        self.reference, self.reward = freeze_unshared(reference, policy), freeze_unshared(reward, value)
        self.offloaded = (self.reference, self.reward) if offload_frozen else ()
        self.tokenizer, self.value_optimizer_factory = tokenizer, value_optimizer
        self.sampler, self.score_hook = sampler, score_hook
        self.packing, self.value_packing, self.reference_packing = (VerifiedPacking(wanted=packing) for _ in range(3))
        self.register_buffer("kl_coef", torch.tensor(float(kl_coef)))
        self.register_buffer("iteration", torch.tensor(0))
        self.latest: Experience | None = None
        self.ema = None if ema_decay is None else MovingAverage(policy, ema_decay)
        if activation_checkpointing:
            checkpoint_activations(policy)
            checkpoint_activations(value)

    def training_step(self, batch: Any, batch_idx: int) -> None:
        """One iteration."""
        prompts, text = ppo_batch(batch)
        with self.throughput.phase("rollout"):
            rollout = self.rollout(prompts)
        with self.throughput.phase("score"), on_device_within(self.device, *self.offloaded):
            experience = self.score(rollout)
        with self.throughput.phase("update"), no_sync(self.trainer.model):
            self.update(experience, text)
        for scheduler in cast(list[Any], self.lr_schedulers() or []):
            scheduler.step()
        self.latest = experience
        shown, others = rollout_figures(experience)
        self.log_dict(shown, prog_bar=True)
        self.log_dict({"rollout/kl_coef": self.kl_coef.clone(), **others})
        self.kl_coef = adapted_kl_coef(self.kl_coef, experience, self.hparams.kl_target, self.hparams.kl_horizon)
        self.iteration += 1

    def rollout(self, prompts: PromptBatch) -> Rollout:
        """Sample one response per prompt; each pair is an episode of a bandit."""
        check_learned(self)
        options = SamplingOptions.from_tokenizer(self.tokenizer, self.hparams.max_new_tokens, self.hparams.temperature)
        # A prompt that comes again in the iteration, in whichever process, is answered anew.
        asked = prompts._replace(prompt_index=over_all_rows(distinct_index, prompts.prompt_index))
        with unshard(self.policy):
            rollout = self.sampler(self.policy, asked, options, (self.hparams.seed, int(self.iteration)))
        tokens = rollout.response_mask.sum()
        self.throughput.count(self.policy, tokens, tokens, lengths=rollout.lengths)
        return rollout._replace(prompts=prompts)

    @torch.no_grad()
    def score(self, rollout: Rollout) -> Experience:
        """Scores, log-probs of policy and reference, values, advantages."""
        mask, minibatches = rollout.response_mask, self._draw_minibatches(len(rollout.ended), epoch=0)
        log_probs = partial(response_log_probs, temperature=self.hparams.temperature)
        with unshard(self.policy):
            groups = micro_batches_of(rollout, minibatches, self.hparams.micro_batch_size, self.policy, self.packing)
            old_log_probs = figures_in(groups, rollout, log_probs, self.throughput, self.policy, self.packing)
        with unshard(self.reference, self.value, self.reward):
            groups = length_groups(rollout.lengths, FORWARD_TOKENS)
            values = figures_in(groups, rollout, response_values, self.throughput, self.value, self.value_packing)
            with adapters_disabled(self.reference):
                reference, packing = self.reference, self.reference_packing
                reference_log_probs = figures_in(groups, rollout, log_probs, self.throughput, reference, packing)
            count_scored(rollout, self.throughput, self.reward)
            with adapters_disabled(self.reward):
                scores = response_scores(self.reward, rollout, self.tokenizer, FORWARD_TOKENS).to(values)
        scores = scores - (self.hparams.missing_eos_penalty or 0.0) * (~rollout.ended).to(scores)
        self.check_finite(**{"sample": rollout.log_probs, "reward": scores, "log-prob": old_log_probs, "value": values})
        self.log_figures({"rollout/sampler_gap": check_sampler(rollout, old_log_probs, is_exact(self.policy))})
        shaped = shaped_scores(scores, rollout, self.score_hook, self.hparams.score_scale, self.hparams.whiten_scores)
        self.log_figures({"rollout/shaped_score": mean_over_rows(shaped)[0]} if shaped is not scores else {})
        rewards = kl_penalized_rewards(shaped, kl_k1(old_log_probs, reference_log_probs), mask, self.kl_coef)
        advantages, returns = gae(rewards, values, mask, self.hparams.discount, self.hparams.gae_lambda)
        advantages = whiten(advantages, mask, all_reduce_sum)
        return Experience(rollout, scores, old_log_probs, reference_log_probs, values, advantages, returns, minibatches)

    def update(
        self, experience: Experience, pretrain: LMBatch | None = None, optimizers: Sequence[Optimizer] | None = None
    ) -> None:
        """Optimizer steps of policy and critic on one rollout.

        Args:
            experience: The scored rollout, from `score`.
            pretrain: Text for the pretraining gradient, an equal part per minibatch; needed when `ptx_coef` is not 0.
            optimizers: Those of policy and critic; None takes them from the Trainer or Fabric.
        """
        policy_optimizer, value_optimizer = cast(Sequence[Optimizer], optimizers or self.optimizers())
        limit, stop_kl, episodes = self.hparams.max_grad_norm, self.hparams.stop_kl, len(experience.scores)
        later = [self._draw_minibatches(episodes, epoch) for epoch in range(1, self.hparams.num_ppo_epochs)]
        epochs = [experience.minibatches, *later]
        steps = [(rows, number, len(drawn)) for drawn in epochs for number, rows in enumerate(drawn)]
        for step, (rows, number, count) in enumerate(steps):
            _, approx_kl, deviation = self.backward_policy(experience, rows)
            if step == 0:
                self.log_figures({"update/first_ratio_deviation": deviation}, sync_dist=True, reduce_fx="max")
                check_first_ratio(deviation, 0.0 if is_exact(self.policy) else 0.1)
            if stop_kl is not None and all_reduce_mean(approx_kl) > stop_kl:
                self.note("update/left_out", torch.tensor(float(count - number)))
                policy_optimizer.zero_grad()
                break
            if self.hparams.ptx_coef:
                self.backward_text(text_part(pretrain, number, count), measure=step == 0)
            self.step_clipped(policy_optimizer, self.policy, "policy", limit)
            if self.ema is not None:
                self.ema.update(self.policy)
            self.backward_value(experience, rows)
            self.step_clipped(value_optimizer, self.value, "value", limit)
        self.log_noted("update/ptx_loss")

    def backward_policy(self, experience: Experience, rows: Int[Tensor, " minibatch"]) -> PolicyStatistics:
        """Add the gradient of the policy loss on a minibatch to the policy's."""
        temperature, clip_range = self.hparams.temperature, self.hparams.clip_range
        measured, max_rows, packing = [], self.hparams.micro_batch_size, self.packing
        for part, num_tokens in read_micro_batches(experience, rows, max_rows, self.throughput, self.policy, packing):
            mask = part.rollout.response_mask
            log_probs = call_unsharded(response_log_probs, self.policy, part.rollout, temperature, packing)
            loss, statistics = policy_loss(log_probs, part.old_log_probs, part.advantages, mask, clip_range, num_tokens)
            self.backward_loss(loss)
            measured.append((loss.detach(), mask.sum() / num_tokens, *statistics))
        losses, weight, clipped, kl, deviation = (torch.stack(values) for values in zip(*measured, strict=True))
        statistics = PolicyStatistics((weight * clipped).sum(), (weight * kl).sum(), (deviation * (weight > 0)).max())
        self.note("update/policy_loss", losses.sum())
        self.note("update/clip_fraction", statistics.clip_fraction)
        self.note("update/approx_kl", statistics.approx_kl)
        return statistics

    def backward_value(self, experience: Experience, rows: Int[Tensor, " minibatch"]) -> None:
        """Add the gradient of the value loss on a minibatch to the critic's."""
        clip_range, max_rows, packing = self.hparams.value_clip_range, self.hparams.micro_batch_size, self.value_packing
        total, clip_fraction = torch.zeros(2, device=experience.returns.device)
        for part, num_tokens in read_micro_batches(experience, rows, max_rows, self.throughput, self.value, packing):
            mask = part.rollout.response_mask
            values = call_unsharded(response_values, self.value, part.rollout, packing)
            loss, statistics = value_loss(values, part.old_values, part.returns, mask, clip_range, num_tokens)
            self.backward_loss(loss)
            total += loss.detach()
            clip_fraction += statistics.clip_fraction * mask.sum() / num_tokens
        self.note("update/value_loss", total)
        self.note("update/value_clip_fraction", clip_fraction)

    def backward_text(self, batch: LMBatch, measure: bool) -> None:
        """Add the pretraining gradient to the policy's."""
        lengths, coef = batch.mask.sum(1), self.hparams.ptx_coef
        with self.throughput.phase("ptx"), measured_gradient(self.policy, GRADIENT_FIGURES, wanted=measure) as figures:
            self.throughput.count(self.policy, lengths.sum(), padded_size(lengths), lengths=lengths, backward=True)
            loss = backward_pretrain(self.policy, batch, coef, self.hparams.micro_batch_size, self.backward_loss)
        self.note("update/ptx_loss", loss)
        self.log_figures(figures)

    def _draw_minibatches(self, rows: int, epoch: int) -> list[Int[Tensor, " minibatch"]]:
        seed, iteration = self.hparams.seed, int(self.iteration)
        drawn = draw_minibatches(rows, self.hparams.num_minibatches, (seed, iteration, epoch, 1), first=iteration == 0)
        return [minibatch.to(self.device) for minibatch in drawn]

    def validation_step(self, batch: PromptBatch, batch_idx: int, dataloader_idx: int = 0) -> None:
        """Score of fresh samples on held-out prompts."""
        score, rows = mean_score(self, batch)
        self.log(self.split_key("validation/score"), score, prog_bar=True, batch_size=rows, sync_dist=True)

    def predict_step(self, batch: PromptBatch, batch_idx: int, dataloader_idx: int = 0) -> list[Sample]:
        """Fresh samples and their scores."""
        return samples(self.tokenizer, *answered(self, batch))

    def build_optimizers(self) -> list[Optimizer]:
        """Those of policy and critic, as `update` and Fabric take them."""
        policy, value = learning_parameters(self.policy), learning_parameters(self.value)
        return [self.optimizer_factory(policy), self.value_optimizer_factory(value)]
