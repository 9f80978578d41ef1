"""What is checked: models, tokenizer, a few records, and the settings of PPO."""

import copy
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from rlhf_lightning.batch import ComparisonBatch, Experience, LMBatch, PromptBatch, Rollout
from rlhf_lightning.data.collate import collate_comparisons, collate_lm, collate_prompts
from rlhf_lightning.data.records import Comparison, Demonstration, Prompt, Text
from rlhf_lightning.data.tokens import ComparisonExample, LMExample, Tokenization
from rlhf_lightning.generation import response_texts, sample_responses, token_id
from rlhf_lightning.models import ScalarHeadModel
from rlhf_lightning.stages.ppo import PPOModule


@dataclass
class Subject:
    """Everything that a check may look at; the models are never changed.

    Args:
        policy: A causal language model in eval mode.
        tokenizer: Of all models.
        prompts: A few.
        demonstrations: Likewise; may be empty.
        comparisons: Likewise; where there are none, sampled responses stand in.
        texts: Pretraining text; may be empty.
        reward: A trained reward model, or None for a fresh head on the policy's body.
        tokenization: Lengths and prompt template; None is the defaults.
        max_new_tokens: Of the checks' rollouts.
        block_size: Tokens per row of text.
        make_ppo: Builds PPO from ``policy, reference, reward, value, tokenizer`` and further options.
    """

    policy: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase
    prompts: Sequence[Prompt]
    demonstrations: Sequence[Demonstration] = ()
    comparisons: Sequence[Comparison] = ()
    texts: Sequence[Text] = ()
    reward: ScalarHeadModel | None = None
    tokenization: Tokenization | None = None
    max_new_tokens: int = 16
    block_size: int = 64
    make_ppo: Callable[..., PPOModule] = PPOModule

    @property
    def exact(self) -> bool:
        """Whether numbers have 32 bits at least, so that two ways to the same one agree closely."""
        return self.policy.dtype in (torch.float32, torch.float64)

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
        """The reward model."""
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            return (self.reward or ScalarHeadModel.from_causal_lm(self.policy)).eval().to(self.device)

    @cached_property
    def prompt_batch(self) -> PromptBatch:
        """Eight prompts."""
        ids, mask, index, texts = collate_prompts(self.tokens.prompts(self.prompts)[:8], self.pad)
        return PromptBatch(ids.to(self.device), mask.to(self.device), index.to(self.device), texts)

    @cached_property
    def comparison_batch(self) -> ComparisonBatch:
        """Up to four prompts with ranked responses."""
        examples = self.tokens.comparisons(self.comparisons[:4])
        if not examples:
            rollouts = [
                sample_responses(
                    self.policy,
                    self.prompt_batch,
                    max_new_tokens=self.max_new_tokens,
                    eos_token_id=self.eos,
                    pad_token_id=self.pad,
                    key=(number,),
                )
                for number in range(4)
            ]
            texts = [response_texts(self.tokenizer, rollout) for rollout in rollouts]
            examples = [
                ComparisonExample(
                    ids[mask].tolist(), [self.tokens.response_ids(own[row]) for own in texts], [2, 1, 3, 1], ""
                )
                for row, (ids, mask) in enumerate(zip(*self.prompt_batch[:2], strict=True))
            ][:4]
        batch = collate_comparisons(examples, self.pad)
        ids, mask, response_ids, response_mask, ranks = (value.to(self.device) for value in batch[:-1])
        return ComparisonBatch(ids, mask, response_ids, response_mask, ranks, batch.groups)

    @cached_property
    def text_batch(self) -> LMBatch:
        """Rows of text; responses to demonstrations where there is no text, and prompts where there are none."""
        examples = self.tokens.texts(self.texts, self.block_size) or self.tokens.demonstrations(self.demonstrations)
        if not examples:
            examples = [
                LMExample([*ids[mask].tolist(), self.eos], 1) for ids, mask in zip(*self.prompt_batch[:2], strict=True)
            ]
        return LMBatch(*(value.to(self.device) for value in collate_lm(examples[:6], self.pad)))

    @property
    def eos(self) -> int:
        """Id of the token that ends a response."""
        return token_id(self.tokenizer.eos_token_id)

    @property
    def pad(self) -> int:
        """Id of the token that fills rows."""
        return token_id(self.tokenizer.pad_token_id)

    def ppo(self, **options: Any) -> PPOModule:
        """PPO on copies of the models, outside a trainer: it logs nothing and steps plain SGD."""
        policy, value = copy.deepcopy(self.policy), copy.deepcopy(self.scalar)
        defaults = {"max_new_tokens": self.max_new_tokens, "num_minibatches": 2, "ptx_coef": 0.0, "seed": 0}
        sgd = partial(torch.optim.SGD, lr=1e-2)
        module = self.make_ppo(
            policy=policy.requires_grad_(True),
            reference=copy.deepcopy(self.policy),
            reward=copy.deepcopy(self.scalar),
            value=value.requires_grad_(True),
            tokenizer=self.tokenizer,
            optimizer=sgd,
            value_optimizer=sgd,
            **{**defaults, **options},
        )
        free = cast(Any, module)
        optimizers = [sgd(model.parameters()) for model in (module.policy, module.value)]
        free.log = free.log_dict = lambda *_, **__: None
        free.manual_backward, free.optimizers = (lambda loss: loss.backward()), (lambda *_, **__: optimizers)
        return module

    @cached_property
    def episode(self) -> tuple[PPOModule, Experience]:
        """A scored rollout before the first update, and the module that made it."""
        module = self.ppo()
        return module, module.score(self.rollout(module))

    def rollout(self, module: PPOModule) -> Rollout:
        """Responses of different lengths, whatever the model says: cut, so that there is padding."""
        full = module.rollout(self.prompt_batch)
        width = full.response_mask.shape[1]
        limits = torch.arange(len(full.response_mask), device=self.device) % width + 1
        mask = full.response_mask & (torch.arange(width, device=self.device) < limits.unsqueeze(1))
        ids, log_probs = full.response_ids.masked_fill(~mask, self.pad), full.log_probs.masked_fill(~mask, 0.0)
        return full._replace(response_ids=ids, response_mask=mask, log_probs=log_probs)

    @contextmanager
    def folder(self) -> Iterator[Path]:
        """A folder that is gone after the block."""
        with tempfile.TemporaryDirectory() as name:
            yield Path(name)


def plain_log_probs(model: nn.Module, prompt: Tensor, response: Tensor, temperature: float = 1.0) -> Tensor:
    """Log-probability of each response token by the model's own forward pass on one row without padding."""
    ids = torch.cat([prompt, response]).unsqueeze(0)
    logits = model(input_ids=ids, attention_mask=torch.ones_like(ids)).logits[0, len(prompt) - 1 : -1]
    return cast(Tensor, (logits.float() / temperature).log_softmax(-1).gather(1, response.unsqueeze(1)).squeeze(1))
