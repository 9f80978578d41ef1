"""Sampling responses. Left padding, positions, EOS and random numbers are handled here and nowhere else."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import reduce
from typing import NamedTuple

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn
from transformers import PreTrainedTokenizerBase
from transformers.generation.stopping_criteria import StopStringCriteria

from rlhf_lightning.algorithms.batch import PromptBatch, Rollout
from rlhf_lightning.algorithms.functional import token_log_probs
from rlhf_lightning.algorithms.keyed_random import distinct_index, keyed_uniforms
from rlhf_lightning.arguments import Count, NonNegativeFloat, checked
from rlhf_lightning.generation.cuda_graphs import GraphDecoder
from rlhf_lightning.generation.decoding import Decoder, decoder
from rlhf_lightning.generation.inverse_cdf import inverse_cdf_sample
from rlhf_lightning.generation.sampling_weights import sampling_weights
from rlhf_lightning.models.log_probs import causal_log_probs
from rlhf_lightning.models.packed_values import token_values
from rlhf_lightning.models.packing import VerifiedPacking
from rlhf_lightning.models.padding import left_aligned
from rlhf_lightning.tokenization.endings import end_token_ids, stop_strings


@checked
@dataclass(frozen=True)
class SamplingOptions:
    """How long responses may be, how they end, and how they are drawn; the same for every engine.

    Args:
        max_new_tokens: Length limit of a response, its EOS included.
        eos_token_id: The token that ends a response, or all that do.
        pad_token_id: The token that fills the columns after the end; none of those.
        temperature: What divides the logits; 0 takes the most likely token.
        stop: Tells of each row of tokens whether a text that ends a response ends in its last one; None where only
            tokens do.

    Raises:
        ValueError: When `pad_token_id` ends a response.
    """

    max_new_tokens: Count
    eos_token_id: int | tuple[int, ...]
    pad_token_id: int
    temperature: NonNegativeFloat = 1.0
    stop: Callable[[Tensor, None], Tensor] | None = None

    def __post_init__(self) -> None:
        """Refuse an end that could not be told from padding."""
        if self.pad_token_id in self.eos_token_ids:
            same = f"pad_token_id and eos_token_id are both {self.pad_token_id}"
            raise ValueError(f"{same}; the end could not be told from padding.")

    @property
    def eos_token_ids(self) -> tuple[int, ...]:
        """Every token that ends a response."""
        return (self.eos_token_id,) if isinstance(self.eos_token_id, int) else self.eos_token_id

    @classmethod
    def from_tokenizer(
        cls, tokenizer: PreTrainedTokenizerBase, max_new_tokens: int, temperature: float = 1.0
    ) -> "SamplingOptions":
        """With all that ends a response by a tokenizer (`end_token_ids`, `stop_strings`), and its pad token.

        Raises:
            ValueError: When no token of it has a part of a stop string.
        """
        ends, texts = end_token_ids(tokenizer), stop_strings(tokenizer)
        try:
            stop = StopStringCriteria(tokenizer, list(texts)) if texts else None
        except ValueError as error:
            raise ValueError(
                f"model.stop ({', '.join(map(repr, texts))}) cannot be found in responses: the tokens of "
                f"{tokenizer.name_or_path} do not put it together. Use an end token, model.eos."
            ) from error
        eos = ends if len(ends) > 1 else ends[0]
        return cls(max_new_tokens, eos, token_id(tokenizer.pad_token_id), temperature, stop)

    def ends_at_last(self, tokens: Int[Tensor, "rows time"]) -> Bool[Tensor, " rows"]:
        """Whether each row ends in its last token."""
        ends = self._are_ends(tokens[:, -1])
        return ends if self.stop is None else ends | self.stop(tokens, None)

    def ends(self, tokens: Int[Tensor, "rows time"]) -> Bool[Tensor, "rows time"]:
        """Where each row would end."""
        if self.stop is None:
            return self._are_ends(tokens)
        return torch.stack([self.ends_at_last(tokens[:, :stop]) for stop in range(1, tokens.shape[1] + 1)], 1)

    def _are_ends(self, tokens: Tensor) -> Tensor:
        # No table of ids: making one on a GPU at every token takes longer than the comparisons.
        return reduce(torch.logical_or, [tokens == token for token in self.eos_token_ids])


@torch.no_grad()
def sample_responses(
    model: nn.Module,
    prompts: PromptBatch,
    options: SamplingOptions,
    key: Sequence[int] = (0,),
    *,
    cuda_graphs: bool = False,
) -> Rollout:
    """Sample one response per prompt from the full distribution of the model.

    Sampling inverts the cumulative distribution with one uniform number per token. The numbers are keyed by
    `(*key, prompt index, position)`: how prompts are batched does not change a response (up to rounding of
    the logits). There is no top-k or top-p: a policy trained on truncated samples is not the policy that sampled them.

    Args:
        model: A transformers model (with a key-value cache), or any module that maps ids and mask to logits.
        prompts: The prompts, padded on the left.
        options: Lengths, end and temperature.
        key: Whole numbers that set the stream of random numbers, such as (seed, iteration).
        cuda_graphs: Whether a GPU runs every step as one graph, where that is right for the model (`GraphDecoder`).
    """
    size, device = (len(prompts.prompt_ids), options.max_new_tokens), prompts.prompt_ids.device
    uniforms = keyed_uniforms(key, distinct_index(prompts.prompt_index), options.max_new_tokens)
    tokens, log_probs = torch.full(size, options.pad_token_id, device=device), torch.zeros(size, device=device)
    with sampling_weights(model):
        steps = decoder(model, prompts, options.max_new_tokens, (GraphDecoder,) if cuda_graphs else ())
        length = _sample(steps, options, uniforms, tokens, log_probs)
    tokens = tokens[:, :length]
    ends = options.ends(tokens)
    return Rollout(prompts, tokens, through_first(ends), log_probs[:, :length], ends.any(1))


def _sample(steps: Decoder, options: SamplingOptions, uniforms: Tensor, tokens: Tensor, log_probs: Tensor) -> int:
    """Fill in tokens and log-probabilities; returns the length of the longest response."""
    logits = steps.first()
    length = 0
    while True:
        if options.temperature > 0:
            chosen, log_prob = inverse_cdf_sample(logits, uniforms[steps.rows, length], options.temperature)
        else:
            chosen = logits.argmax(-1)
            log_prob = token_log_probs(logits, chosen)
        tokens[steps.rows, length] = chosen
        log_probs[steps.rows, length] = log_prob.to(log_probs.dtype)
        length += 1
        going = ~options.ends_at_last(tokens[steps.rows, :length])
        if length == options.max_new_tokens or not bool(going.any()):
            return length
        logits = steps.next(chosen, going)


def through_first(ends: Bool[Tensor, "rows time"]) -> Bool[Tensor, "rows time"]:
    """True up to the first end of each row, that one included; everywhere in a row without one.

    Examples:
        >>> through_first(torch.tensor([[False, True, False, True]]))
        tensor([[ True,  True, False, False]])
    """
    return (ends.long().cumsum(1) - ends.long()) == 0


def response_log_probs(
    model: nn.Module, rollout: Rollout, temperature: float = 1.0, packing: VerifiedPacking | None = None
) -> Float[Tensor, "rows response_time"]:
    """Log-probability of each response token, 0 on padding, from one pass over prompt and response.

    Args:
        model: A transformers model, or any module that maps ids and mask to logits.
        rollout: Prompts and responses.
        temperature: The temperature of sampling, which divides the logits.
        packing: What is known of packed rows of the model; None reads rows with padding.
    """
    input_ids, mask, columns = joined(rollout)
    packed = packing is not None and packing.suits(model, input_ids, mask)
    prompt_lengths = rollout.prompts.prompt_mask.sum(1, keepdim=True)
    counts = mask & (torch.arange(mask.shape[1], device=mask.device) >= prompt_lengths)
    log_probs = causal_log_probs(model, input_ids, mask, counts, temperature, packed)
    return torch.where(rollout.response_mask, log_probs.gather(1, columns - 1), 0.0)


def response_values(
    model: nn.Module, rollout: Rollout, packing: VerifiedPacking | None = None
) -> Float[Tensor, "rows response_time"]:
    """Value estimate before each response token, 0 on padding; arguments as `response_log_probs`."""
    input_ids, mask, columns = joined(rollout)
    values = token_values(model, input_ids, mask, packing)
    return torch.where(rollout.response_mask, values.gather(1, columns - 1), 0.0)


class Joined(NamedTuple):
    """Prompt and response in one row, padded on the right."""

    input_ids: Int[Tensor, "rows time"]
    mask: Bool[Tensor, "rows time"]
    columns: Int[Tensor, "rows response_time"]
    """Where in the row each response token is."""


def joined(rollout: Rollout) -> Joined:
    """Prompt and response in one row: no token sees padding, so attention needs no mask besides the causal one."""
    input_ids = torch.cat([rollout.prompts.prompt_ids, rollout.response_ids], 1)
    mask = torch.cat([rollout.prompts.prompt_mask, rollout.response_mask], 1)
    input_ids, mask = left_aligned(input_ids, mask)
    lengths = rollout.prompts.prompt_mask.sum(1, keepdim=True)
    time = torch.arange(rollout.response_ids.shape[1], device=mask.device)
    # Padding of a short response would be to the right of the row.
    columns = (lengths + time).clamp(max=mask.shape[1] - 1)
    return Joined(input_ids, mask, columns)


def select_prompts(prompts: PromptBatch, rows: Int[Tensor, " chosen"]) -> PromptBatch:
    """Those prompts, without the columns that are padding in all of them."""
    ids, mask, index, texts = prompts
    start = int(mask.shape[1] - mask[rows].sum(1).max())
    return PromptBatch(ids[rows, start:], mask[rows, start:], index[rows], [texts[row] for row in rows.tolist()])


def select_rows(rollout: Rollout, rows: Int[Tensor, " chosen"]) -> Rollout:
    """Those rows of a rollout, without the columns that are padding in all of them."""
    prompts, response_mask = select_prompts(rollout.prompts, rows), rollout.response_mask[rows]
    stop = int(response_mask.sum(1).max())
    response_ids, log_probs = rollout.response_ids[rows, :stop], rollout.log_probs[rows, :stop]
    return Rollout(prompts, response_ids, response_mask[:, :stop], log_probs, rollout.ended[rows])


def response_texts(tokenizer: PreTrainedTokenizerBase, rollout: Rollout) -> list[str]:
    """Responses as text, without what ended them and without padding."""
    ends, texts = set(end_token_ids(tokenizer)), stop_strings(tokenizer)
    responses = []
    for row, mask in zip(rollout.response_ids, rollout.response_mask, strict=True):
        ids = row[mask].tolist()
        text = str(tokenizer.decode(ids[:-1] if ids and ids[-1] in ends else ids, skip_special_tokens=True))
        stops = [text.find(stop) for stop in texts if stop in text]
        responses.append(text[: min(stops)] if stops else text)
    return responses


def token_id(value: int | list[int] | None) -> int:
    """The id of a special token that has to exist, and to be one; a `ValueError` where it is not a single number."""
    if not isinstance(value, int):
        raise ValueError(f"the tokenizer's EOS and pad tokens must be one token each, got {value!r}.")
    return value
