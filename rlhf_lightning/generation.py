"""Sampling responses. Left padding, positions, EOS and random numbers are handled here and nowhere else."""

from collections.abc import Sequence
from typing import Any, cast

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn
from transformers import DynamicCache, PreTrainedModel, PreTrainedTokenizerBase

from rlhf_lightning.batch import PromptBatch, Rollout
from rlhf_lightning.functional import position_ids, token_log_probs
from rlhf_lightning.models import causal_logits


@torch.no_grad()
def sample_responses(
    model: nn.Module,
    prompts: PromptBatch,
    *,
    max_new_tokens: int,
    eos_token_id: int,
    pad_token_id: int,
    temperature: float = 1.0,
    key: Sequence[int] = (0,),
) -> Rollout:
    """Sample one response per prompt from the full distribution of the model.

    Sampling inverts the cumulative distribution with one uniform number per token. The numbers are keyed by
    ``(*key, prompt index, position)``: how prompts are batched does not change a response (up to rounding of
    the logits). There is no top-k or top-p: a policy trained on truncated samples is not the policy that sampled them.

    Args:
        model: A transformers model (with a key-value cache), or any module that maps ids and mask to logits.
        prompts: Padded on the left.
        max_new_tokens: Length limit of a response, its EOS included.
        eos_token_id: The token that ends a response.
        pad_token_id: What fills the columns after the end; differs from EOS.
        temperature: Divides the logits; 0 takes the most likely token.
        key: Whole numbers that set the stream of random numbers, such as (seed, iteration).

    Raises:
        ValueError: When ``pad_token_id`` equals ``eos_token_id``.
    """
    if pad_token_id == eos_token_id:
        raise ValueError(
            f"pad_token_id and eos_token_id are both {pad_token_id}; the end could not be told from padding."
        )
    rows, device = prompts.prompt_ids.shape[0], prompts.prompt_ids.device
    # A prompt that stands in the batch twice is asked twice, not copied.
    index = prompts.prompt_index
    occurrence = (index.unsqueeze(0) == index.unsqueeze(1)).tril(-1).sum(1)
    uniforms = keyed_uniforms(key, index + occurrence * 2**40, max_new_tokens)
    tokens = torch.full((rows, max_new_tokens), pad_token_id, device=device)
    log_probs = torch.zeros(rows, max_new_tokens, device=device)
    active = torch.arange(rows, device=device)
    decoder = _Decoder(model, prompts)
    logits = decoder.first()
    length = 0
    while length < max_new_tokens and active.numel() > 0:
        if temperature > 0:
            logits = logits / temperature
            chosen = inverse_cdf_sample(logits, uniforms[active, length])
        else:
            chosen = logits.argmax(-1)
        tokens[active, length] = chosen
        log_probs[active, length] = token_log_probs(logits, chosen).to(log_probs.dtype)
        length += 1
        going = chosen != eos_token_id
        active = active[going]
        if active.numel() > 0 and length < max_new_tokens:
            logits = decoder.next(chosen, going)
    tokens = tokens[:, :length]
    ends = tokens == eos_token_id
    mask = (ends.long().cumsum(1) - ends.long()) == 0
    return Rollout(prompts, tokens, mask, log_probs[:, :length], ends.any(1))


def response_logits(model: nn.Module, rollout: Rollout) -> Float[Tensor, "rows response_time vocab"]:
    """Logits that predict each response token, from one pass over prompt and response."""
    input_ids, mask = joined(rollout)
    width = rollout.response_ids.shape[1]
    return causal_logits(model, input_ids, mask, position_ids(mask), last=width + 1)[:, :-1]


def joined(rollout: Rollout) -> tuple[Int[Tensor, "rows time"], Bool[Tensor, "rows time"]]:
    """Prompt and response in one row, and the mask of real tokens."""
    input_ids = torch.cat([rollout.prompts.prompt_ids, rollout.response_ids], 1)
    return input_ids, torch.cat([rollout.prompts.prompt_mask, rollout.response_mask], 1)


def select_rows(rollout: Rollout, rows: Int[Tensor, " chosen"]) -> Rollout:
    """Those rows of a rollout, without the columns that are padding in all of them."""
    prompt_mask, response_mask = rollout.prompts.prompt_mask[rows], rollout.response_mask[rows]
    start = int(prompt_mask.shape[1] - prompt_mask.sum(1).max())
    stop = int(response_mask.sum(1).max())
    prompts = PromptBatch(
        rollout.prompts.prompt_ids[rows, start:],
        prompt_mask[:, start:],
        rollout.prompts.prompt_index[rows],
        [rollout.prompts.texts[row] for row in rows.tolist()],
    )
    return Rollout(
        prompts,
        rollout.response_ids[rows, :stop],
        response_mask[:, :stop],
        rollout.log_probs[rows, :stop],
        rollout.ended[rows],
    )


def response_texts(tokenizer: PreTrainedTokenizerBase, rollout: Rollout) -> list[str]:
    """Responses as text, without EOS and padding."""
    return [
        str(tokenizer.decode(ids[mask], skip_special_tokens=True))
        for ids, mask in zip(rollout.response_ids, rollout.response_mask, strict=True)
    ]


def token_id(value: int | list[int] | None) -> int:
    """The id of a special token that has to exist, and to be one.

    Raises:
        ValueError: When it is not a single number.
    """
    if not isinstance(value, int):
        raise ValueError(f"the tokenizer's EOS and pad tokens must be one token each, got {value!r}.")
    return value


def inverse_cdf_sample(logits: Float[Tensor, "rows vocab"], uniforms: Float[Tensor, " rows"]) -> Int[Tensor, " rows"]:
    """The token at which the cumulative distribution passes the uniform number.

    One uniform number per row; ``torch.multinomial`` draws one exponential per vocabulary entry.

    Args:
        logits: Unnormalised log-probabilities.
        uniforms: In [0, 1), in 64 bits.
    """
    cumulative = logits.double().softmax(-1).cumsum(-1)
    threshold = (uniforms * cumulative[:, -1]).unsqueeze(-1)
    return torch.searchsorted(cumulative, threshold, right=True).squeeze(-1).clamp(max=logits.shape[-1] - 1)


def keyed_uniforms(key: Sequence[int], index: Int[Tensor, " rows"], count: int) -> Float[Tensor, "rows count"]:
    """Uniform numbers in [0, 1) that depend on nothing but the key, the row's index and the column.

    A counter-based generator: the finaliser of SplitMix64 (Steele et al. 2014) over the mixed key.

    Args:
        key: Whole numbers, such as (seed, iteration).
        index: One whole number per row.
        count: Columns.
    """
    state = torch.zeros((), dtype=torch.int64, device=index.device)
    for number in key:
        state = _mix(state + number)
    rows = _mix(state + index.long())
    bits = _mix(rows.unsqueeze(1) + torch.arange(count, device=index.device))
    return ((bits >> 20) & (2**44 - 1)).double() / 2**44


def _mix(state: Tensor) -> Tensor:
    """SplitMix64 on signed 64-bit integers, which wrap around as unsigned ones do."""
    state = state + _signed(0x9E3779B97F4A7C15)
    for shift, factor in ((30, 0xBF58476D1CE4E5B9), (27, 0x94D049BB133111EB)):
        state = (state ^ ((state >> shift) & (2 ** (64 - shift) - 1))) * _signed(factor)
    return state ^ ((state >> 31) & (2**33 - 1))


def _signed(number: int) -> int:
    return number - 2**64 if number >= 2**63 else number


class _Decoder:
    """Logits of the next token, step by step, over the rows that still go on.

    Rows that have ended are dropped from the cache once they are half of it: copying the cache costs more than a few
    idle rows.
    """

    def __init__(self, model: nn.Module, prompts: PromptBatch) -> None:
        self.model = model
        self.cache = DynamicCache() if isinstance(model, PreTrainedModel) else None
        self.input_ids, self.mask = prompts.prompt_ids, prompts.prompt_mask
        self.running = torch.ones(len(self.mask), dtype=torch.bool, device=self.mask.device)

    def first(self) -> Float[Tensor, "rows vocab"]:
        """Logits after the prompts."""
        return self._forward(self.input_ids, position_ids(self.mask))

    def next(self, chosen: Int[Tensor, " active"], going: Bool[Tensor, " active"]) -> Float[Tensor, "going vocab"]:
        """Append the chosen tokens of the active rows; logits of those that go on."""
        step = self.input_ids.new_zeros(len(self.running))
        step[self.running] = chosen
        self.running[self.running.clone()] = going
        if int(self.running.sum()) * 2 <= len(self.running):
            self._drop_ended(step)
            step = step[self.running]
            self.running = self.running[self.running]
        self.mask = torch.cat([self.mask, torch.ones_like(self.mask[:, :1])], 1)
        if self.cache is None:
            self.input_ids = torch.cat([self.input_ids, step.unsqueeze(1)], 1)
            logits = self._forward(self.input_ids, position_ids(self.mask))
        else:
            logits = self._forward(step.unsqueeze(1), position_ids(self.mask)[:, -1:])
        return logits[self.running]

    def _drop_ended(self, step: Tensor) -> None:
        keep = self.running.nonzero().squeeze(1)
        self.mask, self.input_ids = self.mask[keep], self.input_ids[keep]
        if self.cache is not None:
            self.cache.batch_select_indices(keep)

    def _forward(self, input_ids: Tensor, positions: Tensor) -> Tensor:
        if self.cache is None:
            return causal_logits(self.model, input_ids, self.mask, positions, last=1)[:, -1]
        output: Any = self.model(
            input_ids=input_ids,
            attention_mask=self.mask,
            position_ids=positions,
            past_key_values=self.cache,
            use_cache=True,
            logits_to_keep=1,
        )
        return cast(Tensor, output.logits[:, -1])
