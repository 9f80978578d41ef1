"""What is checked: models, tokenizer, a few records, and the settings of PPO."""

import copy
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field, replace
from functools import cached_property, partial
from typing import Any

import torch
from lightning.fabric.utilities import move_data_to_device
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from rlhf_lightning.algorithms.batch import ComparisonBatch, Experience, LMBatch, PromptBatch, Rollout
from rlhf_lightning.checks.result import CheckSkippedError
from rlhf_lightning.data.examples import ComparisonExample, LMExample
from rlhf_lightning.data.loader import collate_comparisons, collate_lm, collate_prompts
from rlhf_lightning.data.records import Comparison, Demonstration, Prompt, Text
from rlhf_lightning.data.tokenize import Tokenization
from rlhf_lightning.generation.sample import SamplingOptions, response_texts, sample_responses, token_id
from rlhf_lightning.models.lora import ppo_models, trainable_parameters
from rlhf_lightning.models.scalar_head import ScalarHeadModel, widen_vocabulary
from rlhf_lightning.modules.ppo import PPOModule
from rlhf_lightning.tokenization.endings import end_token_ids

STEP = partial(torch.optim.SGD, lr=1e-2)
LONGEST = 16
"""Tokens of a prompt (its last) and of a response (its first) that are read: 100M parameters should take a minute."""


@dataclass
class Subject:
    """Everything that a check may look at; the models are never changed.

    Args:
        policy: A causal language model in eval mode.
        tokenizer: Tokenizer of all models.
        prompts: A few prompts.
        demonstrations: A few demonstrations; may be empty.
        comparisons: A few rankings; where there are none, sampled responses stand in.
        texts: Pretraining text; may be empty.
        reward: A trained reward model, or None for a fresh head on the policy's body.
        tokenization: Lengths and prompt template; None is the defaults.
        max_new_tokens: Length limit of responses in the checks' rollouts.
        block_size: Tokens per row of text.
        make_ppo: Function that builds PPO from `policy, reference, reward, value, tokenizer` and further options.
        reference: Reference of PPO; None is the policy itself, before training.
        lora: Arguments of `rlhf_lightning.models.lora.ppo_models`.
        autocast: Precision of mixed-precision training, or None.
        centring: Demonstrations that the reward's bias was computed on; None is `demonstrations`.
        folder: Folder or hub id that the policy was loaded from; None where its weights are new.
    """

    policy: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase
    prompts: Sequence[Prompt]
    demonstrations: Sequence[Demonstration] = ()
    comparisons: Sequence[Comparison] = ()
    texts: Sequence[Text] = ()
    reward: ScalarHeadModel | None = None
    tokenization: Tokenization | None = None
    max_new_tokens: int = 8
    block_size: int = 32
    make_ppo: Callable[..., PPOModule] = PPOModule
    reference: PreTrainedModel | None = None
    lora: Mapping[str, Any] = field(default_factory=dict)
    autocast: torch.dtype | None = None
    centring: Sequence[Demonstration] | None = None
    folder: str | None = None
    _tried: bool = field(default=False, init=False, repr=False)
    _module: PPOModule | None = field(default=None, init=False, repr=False)
    _rollout: Rollout | None = field(default=None, init=False, repr=False)
    _experience: Experience | None = field(default=None, init=False, repr=False)

    @property
    def exact(self) -> bool:
        """Whether numbers have 32 bits at least, so that two ways to the same one agree closely."""
        return self.policy.dtype in (torch.float32, torch.float64) and self.autocast is None

    @property
    def device(self) -> torch.device:
        """Of the policy."""
        return next(self.policy.parameters()).device

    @cached_property
    def tokens(self) -> Tokenization:
        """How records become tokens."""
        return self.tokenization or Tokenization(self.tokenizer)

    @cached_property
    def scalar(self) -> ScalarHeadModel:
        """The reward model, with rows for every token that the policy may say."""
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            model = copy.deepcopy(self.reward) if self.reward else ScalarHeadModel.from_causal_lm(self.policy)
            widen_vocabulary(model, self.policy)
            return model.eval().to(self.device)

    @cached_property
    def prompt_batch(self) -> PromptBatch:
        """The ends of eight prompts."""
        examples = self.tokens.prompts(self.prompts)[:8]
        examples = examples * 2 if len(examples) == 1 else examples
        ends = [replace(example, prompt_ids=example.prompt_ids[-LONGEST:]) for example in examples]
        batch: PromptBatch = move_data_to_device(collate_prompts(ends, self.pad), self.device)
        return batch

    @cached_property
    def comparison_batch(self) -> ComparisonBatch:
        """Up to three prompts with up to four ranked responses, none longer than `LONGEST`."""
        examples = [
            replace(
                example,
                prompt_ids=example.prompt_ids[-LONGEST:],
                response_ids=[ids[:LONGEST] for ids in example.response_ids[:4]],
                ranks=example.ranks[:4],
            )
            for example in self.tokens.comparisons(self.comparisons[:3])
        ]
        if not examples:
            options = SamplingOptions.from_tokenizer(self.tokenizer, self.max_new_tokens)
            rollouts = [sample_responses(self.policy, self.prompt_batch, options, (number,)) for number in range(4)]
            texts = [response_texts(self.tokenizer, rollout) for rollout in rollouts]
            examples = [
                ComparisonExample(ids, [self.tokens.response_ids(of[row]) for of in texts], [2, 1, 3, 1], "")
                for row, ids in enumerate(self._prompts[:3])
            ]
        batch: ComparisonBatch = move_data_to_device(collate_comparisons(examples, self.pad), self.device)
        return batch

    @cached_property
    def text_batch(self) -> LMBatch:
        """Rows of text; responses to demonstrations where there is no text, and prompts where there are none."""
        examples = self.tokens.texts(self.texts[:4], self.block_size)
        if not examples:
            examples = [
                replace(example, input_ids=example.input_ids[: example.loss_start + LONGEST])
                for example in self.tokens.demonstrations(self.demonstrations[:4])
            ]
        if not examples:
            examples = [LMExample([*ids, self.ends[0]], 1) for ids in self._prompts]
        batch: LMBatch = move_data_to_device(collate_lm(examples[:4], self.pad), self.device)
        return batch

    @property
    def _prompts(self) -> list[list[int]]:
        return [ids[mask].tolist() for ids, mask in zip(*self.prompt_batch[:2], strict=True)]

    @property
    def ends(self) -> tuple[int, ...]:
        """Ids of the tokens that end a response; the first one ends those of the data."""
        return end_token_ids(self.tokenizer)

    @property
    def pad(self) -> int:
        """Id of the token that fills rows."""
        return token_id(self.tokenizer.pad_token_id)

    def as_trained(self) -> AbstractContextManager[Any]:
        """The precision in which the trainer would compute."""
        return nullcontext() if self.autocast is None else torch.autocast(self.device.type, self.autocast)

    def tolerance(self, exact: float, rough: float) -> float:
        """How far two ways to the same number may differ in 32 bits at least, and in fewer."""
        return exact if self.exact else rough

    def ppo(self, optimizer: Callable[..., torch.optim.Optimizer] = STEP, **options: Any) -> PPOModule:
        """PPO on copies of the models, outside of a Trainer: its optimizers are handed to `update`, nothing is logged.

        Args:
            optimizer: Factory of both optimizers.
            options: Further arguments of `PPOModule`.
        """
        policy, reward = copy.deepcopy(self.policy), copy.deepcopy(self.scalar)
        other = None if self.reference is None else copy.deepcopy(self.reference)
        defaults: dict[str, Any] = {
            "max_new_tokens": self.max_new_tokens,
            "num_minibatches": 2,
            "ptx_coef": 0.0,
            "seed": 0,
        }
        defaults |= {"score_hook": None, "score_scale": 1.0, "whiten_scores": False}  # the checks look at plain scores
        arguments = {**defaults, "optimizer": optimizer, "value_optimizer": optimizer, **options}
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)  # adapters start at random
            models = ppo_models(policy.requires_grad_(True), reward.requires_grad_(True), other, **self.lora)
            return self.make_ppo(**models, tokenizer=self.tokenizer, **arguments).to(self.device)

    def try_rollout(self) -> Experience:
        """Build PPO, roll out and score, before the first update; what was made on the way is kept for the checks."""
        self._tried = True
        self._module = self.ppo()
        self._rollout = self.rollout(self._module)
        self._experience = self._module.score(self._rollout)
        return self._experience

    @property
    def sampled(self) -> tuple[PPOModule, Rollout]:
        """A rollout before the first update, and the module that made it; `CheckSkippedError` where there is none."""
        if not self._tried:
            self.try_rollout()
        if self._module is None or self._rollout is None:
            raise CheckSkippedError("nothing could be sampled; see the row 'rollout'")
        return self._module, self._rollout

    @property
    def episode(self) -> tuple[PPOModule, Experience]:
        """The same rollout with its scores; without gradients. `CheckSkippedError` where there are none."""
        module, _ = self.sampled
        if self._experience is None:
            raise CheckSkippedError("the rollout could not be scored; see the row 'rollout'")
        module.zero_grad()
        return module, self._experience

    @cached_property
    def moved(self) -> Experience:
        """A scored rollout of a policy that has left its reference, at a `kl_coef` of 1, so that KL has its say."""
        module, _ = self.episode
        weights = trainable_parameters(module.policy)
        before, coef = [weight.detach().clone() for weight in weights], module.kl_coef.clone()
        generator = torch.Generator(self.device).manual_seed(0)
        try:
            with torch.no_grad():
                module.kl_coef.fill_(1.0)
                for weight in weights:
                    noise = torch.randn(weight.shape, generator=generator, device=self.device)
                    weight.add_(noise * (0.1 * weight.float().square().mean().sqrt() + 1e-3))
            return module.score(self.rollout(module))
        finally:
            module.kl_coef.copy_(coef)
            for weight, old in zip(weights, before, strict=True):
                weight.data.copy_(old)

    def forget(self) -> None:
        """Let go of the module, where memory is needed for another."""
        self._module = self._rollout = self._experience = None

    def rollout(self, module: PPOModule) -> Rollout:
        """Responses of different lengths, whatever the model says: cut, so that there is padding."""
        full = module.rollout(self.prompt_batch)
        width = full.response_mask.shape[1]
        limits = torch.arange(len(full.response_mask), device=self.device) % width + 1
        mask = full.response_mask & (torch.arange(width, device=self.device) < limits.unsqueeze(1))
        ids, log_probs = full.response_ids.masked_fill(~mask, self.pad), full.log_probs.masked_fill(~mask, 0.0)
        return full._replace(response_ids=ids, response_mask=mask, log_probs=log_probs)
