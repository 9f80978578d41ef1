"""The typed batches that flow between data, generation and modules.

Legend of the shapes: `rows` sequences, `time` tokens, `prompts` prompts, `K` responses per prompt. Token masks
are True on real tokens. Prompts are padded on the left, so that responses start in one column; everything else is
padded on the right.
"""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from jaxtyping import Bool, Float, Int
from torch import Tensor


class LMBatch(NamedTuple):
    """Sequences for a language model loss."""

    input_ids: Int[Tensor, "rows time"]
    mask: Bool[Tensor, "rows time"]
    loss_mask: Bool[Tensor, "rows time"]
    """Tokens that count as targets: the response and its EOS, or all but the first token of pretraining text."""


class ComparisonBatch(NamedTuple):
    """Prompts with their K ranked responses; one prompt is one element (InstructGPT, section 3.5)."""

    prompt_ids: Int[Tensor, "prompts prompt_time"]
    prompt_mask: Bool[Tensor, "prompts prompt_time"]
    response_ids: Int[Tensor, "prompts K response_time"]
    response_mask: Bool[Tensor, "prompts K response_time"]
    ranks: Int[Tensor, "prompts K"]
    """1 is best, equal is a tie, 0 where a prompt has fewer than K responses."""
    groups: list[str]
    """Data set or labeler group of each prompt, for metrics per group."""

    @property
    def mask(self) -> Bool[Tensor, "prompts K"]:
        """Responses that exist."""
        return self.response_mask.any(-1)


class PromptString(str):
    """A prompt as people read it, which knows the messages and the other fields of the record that it was made from."""

    messages: Sequence[Mapping[str, str]]
    fields: Mapping[str, Any]

    def __new__(cls, text: str, messages: Sequence[Mapping[str, str]], fields: Mapping[str, Any]) -> "PromptString":
        """The text with its messages and fields."""
        string = super().__new__(cls, text)
        string.messages, string.fields = messages, fields
        return string

    def __getnewargs__(self) -> tuple[Any, ...]:
        """What a copy, or another process, makes it of."""
        return str(self), self.messages, self.fields


class PromptBatch(NamedTuple):
    """Prompts to answer."""

    prompt_ids: Int[Tensor, "rows prompt_time"]
    prompt_mask: Bool[Tensor, "rows prompt_time"]
    prompt_index: Int[Tensor, " rows"]
    """Number of the prompt in its data set: the key of its random numbers."""
    texts: list[str]
    """The prompts as people read them; those of a data set are `PromptString`."""


class Rollout(NamedTuple):
    """Prompts and the responses that a policy sampled for them."""

    prompts: PromptBatch
    response_ids: Int[Tensor, "rows response_time"]
    response_mask: Bool[Tensor, "rows response_time"]
    """Up to and including the first EOS."""
    log_probs: Float[Tensor, "rows response_time"]
    """Of the sampled tokens, as the sampler saw them."""
    ended: Bool[Tensor, " rows"]
    """Whether the response ends in EOS rather than at the length limit."""

    @property
    def lengths(self) -> Int[Tensor, " rows"]:
        """Tokens of prompt and response together."""
        return self.prompts.prompt_mask.sum(1) + self.response_mask.sum(1)


class Experience(NamedTuple):
    """A scored rollout: all that the PPO update needs. Token tensors are `rows x response_time`."""

    rollout: Rollout
    scores: Float[Tensor, " rows"]
    old_log_probs: Float[Tensor, "rows response_time"]
    reference_log_probs: Float[Tensor, "rows response_time"]
    old_values: Float[Tensor, "rows response_time"]
    advantages: Float[Tensor, "rows response_time"]
    """Whitened over the whole rollout."""
    returns: Float[Tensor, "rows response_time"]
    minibatches: list[Int[Tensor, " minibatch"]]
    """Row numbers of the minibatches of the first epoch, drawn before the old log-probs were computed on them."""
