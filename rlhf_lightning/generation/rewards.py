"""Scores of responses: by a reward model over the same tokens, by what reads texts, or by a weighted sum of both."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeAlias

import torch
from jaxtyping import Float
from torch import Tensor, nn
from transformers import PreTrainedTokenizerBase

from rlhf_lightning.algorithms.batch import Rollout
from rlhf_lightning.arguments import checked
from rlhf_lightning.generation.function_reward import call_by_name, reward_name
from rlhf_lightning.generation.sample import joined, response_texts, select_rows
from rlhf_lightning.models.forward import reads_tokens, token_scores
from rlhf_lightning.models.padding import length_groups
from rlhf_lightning.models.scalar_head import pooled

Reward: TypeAlias = nn.Module | Callable[..., Any]
"""What scores responses: a `ScalarHeadModel` over the policy's tokens; a `WeightedSum`; or whatever maps prompts and
responses to one finite score each, a function by the names of its parameters (`call_by_name`); higher is better."""

FORWARD_TOKENS = 2**14
"""Frozen models and the critic's first pass read episodes in groups of up to so many tokens."""
_LARGEST = torch.finfo(torch.float32).max


class WeightedSum(nn.Module):
    """A weighted sum of rewards of any kind.

    Args:
        rewards: The rewards.
        weights: The weight of each; it may be negative.

    Raises:
        ValueError: When there is no reward, or not one finite weight for each.
    """

    @checked
    def __init__(self, rewards: Sequence[Reward], weights: Sequence[float]) -> None:
        super().__init__()
        if not rewards or len(weights) != len(rewards) or not all(abs(weight) <= _LARGEST for weight in weights):
            raise ValueError(f"a weighted sum needs a finite weight for each reward, got {list(weights)}.")
        self.rewards, self.weights = list(rewards), [float(weight) for weight in weights]
        self.models = nn.ModuleList(reward for reward in rewards if isinstance(reward, nn.Module))

    def forward(self, prompts: Sequence[str], responses: Sequence[str]) -> list[float]:
        """The sum for each response, where every part reads texts."""
        parts = [text_scores(reward, prompts, responses) for reward in self.rewards]
        return [sum(w * s for w, s in zip(self.weights, of_row, strict=True)) for of_row in zip(*parts, strict=True)]


def response_scores(
    reward: Reward, rollout: Rollout, tokenizer: PreTrainedTokenizerBase, tokens: int | None = None
) -> Float[Tensor, " rows"]:
    """Score of each response: at its last token (or as the model pools), or from its text.

    The last token is EOS where there is one, so the action that ends a response gets its due.

    Args:
        reward: The reward.
        rollout: Prompts and responses.
        tokenizer: The policy's tokenizer, which turns responses into text.
        tokens: A reward model reads groups of up to so many tokens at once; None is all of them.

    Raises:
        ValueError: When it does not give one finite number for each response.
    """
    if isinstance(reward, WeightedSum):
        parts = [response_scores(each, rollout, tokenizer, tokens) for each in reward.rewards]
        return torch.stack([weight * part for weight, part in zip(reward.weights, parts, strict=True)]).sum(0)
    device = rollout.response_ids.device
    if not isinstance(reward, nn.Module) or not reads_tokens(reward):
        found = text_scores(reward, rollout.prompts.texts, response_texts(tokenizer, rollout))
        return torch.tensor(found, dtype=torch.float, device=device)
    if tokens is None:
        return _token_scores(reward, rollout)
    scores = torch.zeros(len(rollout.ended), device=device)
    for rows in length_groups(rollout.lengths, tokens):
        scores[rows] = _token_scores(reward, select_rows(rollout, rows)).to(scores)
    return scores


def text_scores(reward: Reward, prompts: Sequence[str], responses: Sequence[str]) -> list[float]:
    """Score of each response from its text.

    Args:
        reward: The reward; no `ScalarHeadModel`, which reads tokens.
        prompts: The prompts; of a data set they are `rlhf_lightning.algorithms.batch.PromptString`.
        responses: A response to each.

    Raises:
        ValueError: When it does not give one finite number for each response.
    """
    called = isinstance(reward, nn.Module)
    found = reward(prompts, responses) if called else call_by_name(reward, prompts, responses)
    return checked_scores(reward_name(reward), found, responses)


def checked_scores(name: str, found: Any, responses: Sequence[str]) -> list[float]:
    """What a reward returned as one finite number per response.

    Args:
        name: The reward's name in errors.
        found: What it returned: a list, a tuple, an array or a tensor with one axis.
        responses: The responses that it was asked about.

    Raises:
        ValueError: Naming the reward, the row, the value and the remedy.
    """
    count, shape = len(responses), getattr(found, "shape", None)
    remedy = f"Return {count} numbers, one for each of the {count} responses."
    if shape is not None and tuple(shape) != (count,):
        raise ValueError(f"the reward {name} returned a {type(found).__name__} of shape {tuple(shape)}. {remedy}")
    values = found.tolist() if shape is not None else found
    if not isinstance(values, Sequence) or isinstance(values, (str, bytes, Mapping)):
        raise ValueError(f"the reward {name} returned {_short(found)} for {count} responses. {remedy}")
    if len(values) != count:
        raise ValueError(f"the reward {name} returned {len(values)} scores for {count} responses. {remedy}")
    scores = []
    for row, value in enumerate(values):
        # Numbers of numpy and torch, of which some are no `float`.
        number = value.item() if getattr(value, "ndim", None) == 0 else value
        if not isinstance(number, (int, float)) or not abs(number) <= _LARGEST:
            raise ValueError(
                f"the reward {name} gave row {row}, the response {_short(responses[row])}, the score {_short(value)}. "
                "Return one finite number for it."
            )
        scores.append(float(number))
    return scores


def _token_scores(reward: nn.Module, rollout: Rollout) -> Float[Tensor, " rows"]:
    input_ids, mask, _ = joined(rollout)
    begins = rollout.prompts.prompt_mask.sum(1, keepdim=True)
    counts = mask & (torch.arange(mask.shape[1], device=mask.device) >= begins)
    return pooled(reward, token_scores(reward, input_ids, mask), counts)


def _short(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 80 else text[:77] + "..."
