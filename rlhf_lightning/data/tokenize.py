"""From records to token ids: prompts, responses with their EOS, and packed pretraining text."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from transformers import PreTrainedTokenizerBase

from rlhf_lightning.data.records import Comparison, Demonstration, Prompt, PromptText, Text, decided_pairs


@dataclass(frozen=True)
class LMExample:
    """Token ids of one sequence and the first position that counts as a target."""

    input_ids: list[int]
    loss_start: int


@dataclass(frozen=True)
class ComparisonExample:
    """Token ids of a prompt and of its K ranked responses."""

    prompt_ids: list[int]
    response_ids: list[list[int]]
    ranks: list[int]
    group: str


@dataclass(frozen=True)
class PromptExample:
    """Token ids of a prompt, its number in the data set and its text (without the template)."""

    prompt_ids: list[int]
    index: int
    text: str


@dataclass
class Tokenization:
    """How records become token ids.

    Prompts longer than the limit, and those whose responses are all tied, are left out and counted in ``dropped``;
    responses longer than theirs are cut and end without EOS; every other response ends with EOS (InstructGPT,
    appendix C: 1k each of a 2k context).

    Args:
        tokenizer: A tokenizer with EOS and pad tokens that differ.
        max_prompt_tokens: Longest prompt.
        max_response_tokens: Longest response, its EOS included.
        prompt_template: How a plain string becomes the text that the model continues, with ``{prompt}``;
            conversations go through the tokenizer's chat template instead.

    Raises:
        ValueError: When EOS and pad are the same token or the template lacks ``{prompt}``.
    """

    tokenizer: PreTrainedTokenizerBase
    max_prompt_tokens: int = 1024
    max_response_tokens: int = 1024
    prompt_template: str = "{prompt}"
    dropped: dict[str, int] = field(default_factory=dict, init=False)

    def __post_init__(self) -> None:
        """Check the tokens and the template."""
        if self.tokenizer.pad_token_id in (None, self.tokenizer.eos_token_id):
            pad, eos = self.tokenizer.pad_token, self.tokenizer.eos_token
            raise ValueError(
                f"the tokenizer's pad token ({pad!r}) must exist and differ from its EOS token ({eos!r}); "
                "rlhf_lightning.load_tokenizer sees to it."
            )
        if "{prompt}" not in self.prompt_template:
            raise ValueError(f"prompt_template must contain '{{prompt}}', got {self.prompt_template!r}.")

    def prompt_text(self, prompt: PromptText) -> str:
        """The text that the model continues.

        Raises:
            ValueError: When the prompt is a conversation and the tokenizer has no chat template.
        """
        if isinstance(prompt, str):
            return self.prompt_template.replace("{prompt}", prompt)
        if not self.tokenizer.chat_template:
            raise ValueError(
                "a prompt is a conversation, but the tokenizer has no chat template. Set tokenizer.chat_template, "
                "or give prompts as strings."
            )
        return str(self.tokenizer.apply_chat_template(prompt, tokenize=False, add_generation_prompt=True))

    def prompt_ids(self, prompt: PromptText) -> list[int] | None:
        """Token ids of the prompt; None when it is too long."""
        # A chat template writes the special tokens itself.
        special = isinstance(prompt, str)
        ids = self._ids(self.prompt_text(prompt), special)
        if len(ids) <= self.max_prompt_tokens:
            return ids
        self._drop(f"prompt over {self.max_prompt_tokens} tokens")
        return None

    def prompt_lengths(self, prompts: Sequence[PromptText]) -> list[int]:
        """Tokens of each prompt, however long; many at once are several times as fast as one by one."""
        lengths = [0] * len(prompts)
        for special in (True, False):
            places = [place for place, prompt in enumerate(prompts) if isinstance(prompt, str) == special]
            rows = self._rows([self.prompt_text(prompts[place]) for place in places], special)
            for place, ids in zip(places, rows, strict=True):
                lengths[place] = len(ids)
        return lengths

    def cut_response(self, response: str) -> str:
        """The text of as many tokens as a response may have; all of a shorter one.

        It is read back as at least as many tokens, so that no EOS follows it.
        """
        limit = self.max_response_tokens
        # No token is shorter than a byte, but some tokenizers put one in front.
        if len(response.encode("utf-8", "replace")) + 1 < limit:
            return response
        ids = self._ids(response, False)
        if len(ids) <= limit:
            return response
        ends: list[tuple[int, int]] = []
        if self.tokenizer.is_fast:
            tokens = self.tokenizer(response, add_special_tokens=False, truncation=False, return_offsets_mapping=True)
            ends = tokens["offset_mapping"]
        for last in range(limit, len(ids)):
            text = response[: ends[last - 1][1]] if ends else str(self.tokenizer.decode(ids[:last]))
            # A word that is cut may make fewer tokens than it did as a part of the whole.
            if len(self._ids(text, False)) >= limit:
                return text
        return response

    def response_ids(self, response: str) -> list[int]:
        """Token ids of the response with its EOS, or cut at the limit without one."""
        ids = [*self._ids(response, False), self._eos]
        return ids[: self.max_response_tokens]

    def demonstrations(self, records: Iterable[Demonstration]) -> list[LMExample]:
        """Prompt and response; the response counts."""
        examples = []
        for record in records:
            prompt = self.prompt_ids(record.prompt)
            if prompt is not None:
                examples.append(LMExample([*prompt, *self.response_ids(record.response)], len(prompt)))
        return examples

    def texts(self, records: Iterable[Text], block_size: int) -> list[LMExample]:
        """Documents joined by EOS and cut into blocks; every token but a block's first counts."""
        stream = [token for record in records for token in [*self._ids(record.text, False), self._eos]]
        blocks = [stream[start : start + block_size] for start in range(0, len(stream), block_size)]
        return [LMExample(block, 1) for block in blocks if len(block) > 1]

    def comparisons(self, records: Iterable[Comparison]) -> list[ComparisonExample]:
        """Prompt, K responses, ranks."""
        examples = []
        for record in records:
            if len(set(record.ranks)) == 1:
                self._drop("all responses tied")
                continue
            prompt = self.prompt_ids(record.prompt)
            if prompt is not None:
                responses = [self.response_ids(completion) for completion in record.completions]
                group = record.source or record.labeler or "all"
                examples.append(ComparisonExample(prompt, responses, record.ranks, group))
        return examples

    def prompts(self, records: Iterable[Prompt]) -> list[PromptExample]:
        """Prompts, numbered as they stand in the records."""
        examples = []
        for index, record in enumerate(records):
            ids = self.prompt_ids(record.prompt)
            if ids is not None:
                text = record.prompt if isinstance(record.prompt, str) else self.prompt_text(record.prompt)
                examples.append(PromptExample(ids, index, text))
        return examples

    def _drop(self, reason: str) -> None:
        self.dropped[reason] = self.dropped.get(reason, 0) + 1

    @property
    def _eos(self) -> int:
        eos: Any = self.tokenizer.eos_token_id
        return int(eos)

    def _ids(self, text: str, special: bool) -> list[int]:
        return self._rows([text], special)[0]

    def _rows(self, texts: list[str], special: bool) -> list[list[int]]:
        if not texts:
            return []
        rows: list[list[int]] = self.tokenizer(texts, add_special_tokens=special, truncation=False)["input_ids"]
        if special:
            # Some tokenizers close every text; a prompt goes on.
            rows = [ids[:-1] if ids and ids[-1] == self._eos else ids for ids in rows]
        return rows


def split_into_pairs(examples: Iterable[ComparisonExample]) -> list[ComparisonExample]:
    """Every pair of every ranking that is no tie, as an example of its own, in the order of the responses."""
    pairs = []
    for example in examples:
        for better, worse in decided_pairs(example.ranks):
            responses = [example.response_ids[place] for place in sorted((better, worse))]
            ranks = [1, 2] if better < worse else [2, 1]
            pairs.append(replace(example, response_ids=responses, ranks=ranks))
    return pairs
