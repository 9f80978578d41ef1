"""A model in memory as the harness asks one: likelihoods of texts and continuations."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import torch
from lightning.fabric.utilities import move_data_to_device
from torch import nn
from transformers import PreTrainedTokenizerBase
from transformers.generation.stopping_criteria import StopStringCriteria

from rlhf_lightning.algorithms.batch import LMBatch, PromptBatch
from rlhf_lightning.arguments import Count, checked
from rlhf_lightning.data.examples import LMExample
from rlhf_lightning.data.loader import collate_lm, padded
from rlhf_lightning.generation.sample import SamplingOptions, response_texts, sample_responses, token_id
from rlhf_lightning.models.architecture import rope_limit
from rlhf_lightning.models.forward import token_logits
from rlhf_lightning.models.log_probs import causal_log_probs
from rlhf_lightning.models.padding import length_groups, position_ids
from rlhf_lightning.tokenization.chat import ConversationError, rendered
from rlhf_lightning.tokenization.encoding import TextEncoder, shared_start

_KNOWN = ("until", "do_sample", "temperature", "max_gen_toks")
"""Arguments of generation that are followed; a task with another one is refused."""


class Likelihood(tuple[float, bool]):
    """The total log-probability of a text, and whether greedy decoding would have written it.

    Args:
        total: The sum over its tokens.
        greedy: Whether each of them was the likeliest; False where nobody asked.
        tokens: How many they are, which the harness does not know of.
    """

    tokens: int

    def __new__(cls, total: float, greedy: bool, tokens: int) -> "Likelihood":
        """A pair, as the harness wants it, that knows its tokens."""
        pair = super().__new__(cls, (total, greedy))
        pair.tokens = tokens
        return pair


class _Generation(NamedTuple):
    stops: tuple[str, ...]
    max_new_tokens: int
    temperature: float


@checked
class HarnessModel:
    """Reads and writes by the rules of the recipe: text is text, one BOS or none, the end is any of the end tokens.

    A token that reaches over the border of context and continuation counts for the continuation. What does not fit
    into the model's context is not cut: its answer is None.

    Args:
        model: The model, in eval mode, on its device.
        tokenizer: Its tokenizer.
        tokens: A batch holds at most so many, padding included, or one row.
        batch_size: And at most so many rows; None sets no limit of rows.
        seed: Seed of sampling, for tasks that sample.
        advance: Called with the number of requests that are done.
    """

    def __init__(
        self,
        model: nn.Module,
        tokenizer: PreTrainedTokenizerBase,
        *,
        tokens: Count = 4096,
        batch_size: Count | None = None,
        seed: int = 0,
        advance: Callable[[int], None] | None = None,
    ) -> None:
        self.model, self.tokenizer, self.encoder = model, tokenizer, TextEncoder(tokenizer)
        self.tokens, self.batch_size, self.seed, self.advance = tokens, batch_size, seed, advance
        self.greedy = False
        """Whether a task wants to know what greedy decoding would have written."""
        self.chat = False
        """Whether contexts come from `apply_chat_template`."""
        self._device = next((each.device for each in model.parameters()), torch.device("cpu"))
        config: Any = getattr(model, "config", None)
        positions = None if config is None else getattr(config.get_text_config(), "max_position_embeddings", None)
        limits = [limit for limit in (positions, None if config is None else rope_limit(config)) if limit]
        self.limit: int | None = min(limits, default=None)
        """Tokens that the model reads."""

    def loglikelihood(self, requests: Sequence[Any]) -> list[Any]:
        """A `Likelihood` for each pair of context and continuation; None where they do not fit."""
        rows = self._rows([request.args[0] for request in requests], [request.args[1] for request in requests])
        found: list[Any] = [None] * len(rows)
        for group in self._groups([len(row.input_ids) for row in rows]):
            for place, likelihood in zip(group, self._likelihoods([rows[place] for place in group]), strict=True):
                found[place] = likelihood
            self._advance(len(group))
        return found

    def generate_until(self, requests: Sequence[Any]) -> list[Any]:
        """A continuation of each context, cut where a text of `until` begins; None where it would not fit."""
        ids = self._ids([request.args[0] for request in requests])
        asked = [_generation(request.args[1]) for request in requests]
        found: list[Any] = [None] * len(ids)
        for how in dict.fromkeys(asked):
            places = [place for place, each in enumerate(asked) if each == how]
            options = self._options(how)
            for group in self._groups([len(ids[place]) + how.max_new_tokens for place in places]):
                part = [places[number] for number in group]
                for place, text in zip(part, self._continued(ids, part, options), strict=True):
                    found[place] = text[: min((text.find(stop) for stop in how.stops if stop in text), default=None)]
                self._advance(len(part))
        return found

    def loglikelihood_rolling(self, requests: Sequence[Any]) -> list[float]:
        """Refused: perplexity of documents is what `evaluate.num_texts` measures."""
        raise ValueError("perplexity of whole documents is measured by step evaluate (evaluate.num_texts), not here.")

    def apply_chat_template(self, chat_history: list[dict[str, str]], add_generation_prompt: bool = True) -> str:
        """The messages as the model's own template writes them; special tokens that they spell stay text."""
        messages = [{**each, "content": self.encoder.as_text(each["content"])} for each in chat_history]
        try:
            return rendered(self.tokenizer, messages, generation_prompt=add_generation_prompt)
        except ConversationError:
            if [each["role"] for each in messages[:2]] != ["system", "user"]:
                raise
            # A template without a system's role: the instruction opens what the user says.
            system, user, *others = messages
            opened = {**user, "content": f"{system['content'].rstrip()}\n\n{user['content']}"}
            return rendered(self.tokenizer, [opened, *others], generation_prompt=add_generation_prompt)

    def _ids(self, contexts: Sequence[str]) -> list[list[int]]:
        return [[*self._opening(text), *row] for text, row in zip(contexts, self._bare(contexts), strict=True)]

    def _bare(self, contexts: Sequence[str]) -> list[list[int]]:
        return self.encoder.rows([self._readable(text) for text in contexts])

    def _readable(self, context: str) -> str:
        return context if self.chat else self.encoder.as_text(context)

    def _opening(self, context: str) -> list[int]:
        """What stands before a context: a template writes it itself, and before nothing stands at least an end."""
        if self.chat:
            return []
        ends = [token for token in (self.tokenizer.bos_token_id, self.encoder.ends[0]) if isinstance(token, int)]
        return self.encoder.opening or ([] if context else ends[:1])

    def _rows(self, contexts: Sequence[str], endings: Sequence[str]) -> list[LMExample]:
        distinct = list(dict.fromkeys(contexts))
        before = dict(zip(distinct, self._bare(distinct), strict=True))
        pairs = list(zip(contexts, endings, strict=True))
        whole = self.encoder.rows([self._readable(context) + self.encoder.as_text(ending) for context, ending in pairs])
        rows = []
        for (context, _), ids in zip(pairs, whole, strict=True):
            shared = shared_start(before[context], ids)
            opening = self._opening(context if shared else "")
            rows.append(LMExample([*opening, *ids], len(opening) + shared))
        return rows

    def _groups(self, lengths: Sequence[int]) -> list[list[int]]:
        """Rows that fit, in batches of similar length."""
        places = [place for place, length in enumerate(lengths) if self.limit is None or length <= self.limit]
        self._advance(len(lengths) - len(places))
        sizes = torch.tensor([lengths[place] for place in places], dtype=torch.long)
        groups = length_groups(sizes, self.tokens, self.batch_size)
        return [[places[number] for number in group.tolist()] for group in groups]

    @torch.no_grad()
    def _likelihoods(self, rows: Sequence[LMExample]) -> list[Likelihood]:
        batch: LMBatch = move_data_to_device(collate_lm(rows, token_id(self.tokenizer.pad_token_id)), self._device)
        counts = batch.loss_mask[:, 1:]
        sums = causal_log_probs(self.model, batch.input_ids, batch.mask, batch.loss_mask).double().sum(1).tolist()
        greedy = [False] * len(rows)
        if self.greedy:
            logits = token_logits(self.model, batch.input_ids, batch.mask, position_ids(batch.mask))
            likeliest = logits[:, :-1].argmax(-1) == batch.input_ids[:, 1:]
            greedy = (likeliest | ~counts).all(1).tolist()
        tokens = counts.sum(1).tolist()
        return [Likelihood(*each) for each in zip(sums, greedy, tokens, strict=True)]

    def _continued(self, ids: Sequence[Sequence[int]], part: Sequence[int], options: SamplingOptions) -> list[str]:
        rows, mask = padded([ids[place] for place in part], options.pad_token_id, left=True)
        prompts = PromptBatch(rows, mask, torch.tensor(part), [""] * len(part))
        rollout = sample_responses(self.model, move_data_to_device(prompts, self._device), options, (self.seed,))
        return response_texts(self.tokenizer, rollout)

    def _options(self, how: _Generation) -> SamplingOptions:
        options = SamplingOptions.from_tokenizer(self.tokenizer, how.max_new_tokens, how.temperature)
        try:
            also: Any = StopStringCriteria(self.tokenizer, list(how.stops))
        except ValueError:  # no token has a part of such a text: it is cut once it is there
            return options
        own: Any = options.stop
        stop = also if own is None else lambda tokens, scores: own(tokens, scores) | also(tokens, scores)
        return SamplingOptions(
            options.max_new_tokens, options.eos_token_id, options.pad_token_id, options.temperature, stop
        )

    def _advance(self, count: int) -> None:
        if self.advance is not None:
            self.advance(count)


def _generation(arguments: Mapping[str, Any]) -> _Generation:
    if unknown := sorted({name for name, value in arguments.items() if value is not None} - {*_KNOWN}):
        raise ValueError(
            f"a task generates with {', '.join(unknown)}, which is not followed here; known are {', '.join(_KNOWN)}. "
            "Leave the task out."
        )
    until = arguments.get("until") or []
    temperature = float(arguments.get("temperature") or 0.0) if arguments.get("do_sample") else 0.0
    stops = (until,) if isinstance(until, str) else tuple(until)
    return _Generation(stops, int(arguments.get("max_gen_toks") or 256), temperature)
