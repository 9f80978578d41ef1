"""From records to token ids: prompts, responses with their end, and packed pretraining text."""

from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import islice
from typing import Any, Literal, NamedTuple, TypeVar, get_args

from transformers import PreTrainedTokenizerBase

from rlhf_lightning.algorithms.batch import PromptString
from rlhf_lightning.arguments import Count, checked
from rlhf_lightning.data.examples import ComparisonExample, LMExample, PromptExample
from rlhf_lightning.data.records import (
    Comparison,
    Demonstration,
    Prompt,
    PromptText,
    Record,
    RecordError,
    Text,
    prompt_fields,
)
from rlhf_lightning.data.rows.columns import dense_ranks
from rlhf_lightning.data.tally import CUT, DROPPED, Tallied, Tally
from rlhf_lightning.tokenization.dialogue import DialogueEncoder, ReadPrompt
from rlhf_lightning.tokenization.formats import FormatName

TrainOn = Literal["last", "all"]
LAST, ALL = get_args(TrainOn)
"""Which turns of the assistant a demonstration trains."""
CHUNK = 1000
"""Records that are tokenized together."""
RANKED = "ranked responses"
"""What is counted where responses of a ranking are cut."""
_ANYTHING = "?"
"""Stands for a prompt where it does not matter what it asks."""
Item = TypeVar("Item")


class _Encoded(NamedTuple):
    """A record, its number, and its prompt and responses as token ids."""

    number: int
    record: Any
    prompt: ReadPrompt
    responses: list[list[int]]


@checked
@dataclass
class Tokenization(Tallied):
    """How records become token ids.

    Prompts longer than the limit are never cut: they are left out and counted in ``dropped``, as are rankings whose
    responses are all tied. Responses longer than theirs are cut, end without an end token, and are counted in ``cut``;
    every other response has its end (InstructGPT, appendix C: 1k each of a 2k context). Responses to one prompt that
    are the same tokens once they are cut are tied, at the mean of their ranks. How text becomes tokens is described at
    `rlhf_lightning.tokenization.dialogue.DialogueEncoder`.

    Args:
        tokenizer: A tokenizer with end and pad tokens that differ.
        max_prompt_tokens: Longest prompt.
        max_response_tokens: Longest response, its end included.
        prompt_template: How a plain string becomes the text that the model continues, with ``{prompt}``.
        train_on: ``last``: the response of a demonstration is its target; ``all``: so are the assistant's turns in its
            prompt.
        format: ``chat``: strings go through the tokenizer's chat template; ``template``: through ``prompt_template``;
            ``plain``: a blank line follows them; None: by model, see `rlhf_lightning.tokenization.formats`.

    Raises:
        ValueError: When an end and pad are the same token, format and template do not go together, or ``train_on`` is
            neither.
    """

    tokenizer: PreTrainedTokenizerBase
    max_prompt_tokens: Count = 1024
    max_response_tokens: Count = 1024
    prompt_template: str | None = None
    train_on: TrainOn = LAST
    format: FormatName | None = None
    tally: Tally = field(default_factory=Tally, init=False)
    dialogue: DialogueEncoder = field(init=False)

    def __post_init__(self) -> None:
        """Check the tokens and the template."""
        self.dialogue = DialogueEncoder(self.tokenizer, self.prompt_template, self.format)
        if self.tokenizer.pad_token_id in (None, self.tokenizer.eos_token_id, *self.dialogue.text.ends):
            pad, eos = self.tokenizer.pad_token, self.tokenizer.eos_token
            raise ValueError(
                f"the tokenizer's pad token ({pad!r}) must exist and differ from its EOS token ({eos!r}) and every "
                "other token that ends a response; rlhf_lightning.load_tokenizer sees to it."
            )

    def text_ids(self, text: str, *, opens: bool = False) -> list[int]:
        """Token ids of text that people wrote: the special tokens that it spells are text too.

        Args:
            text: The text, without a template.
            opens: Whether a sequence begins with it, so that the BOS stands before it where the tokenizer writes one.
        """
        encoder = self.dialogue.text
        return [*(encoder.opening if opens else ()), *encoder.rows([encoder.as_text(text)])[0]]

    def prompt_text(self, prompt: PromptText) -> str:
        """The text that the model continues.

        Raises:
            ConversationError: When the prompt is a conversation that no chat template can write.
        """
        return self.dialogue.text.readable(self.dialogue.prompt_text(prompt))

    def check(self, record: Record) -> None:
        """Make sure that the chat template can write the record's conversation, if it has one.

        Raises:
            RecordError: When it cannot; the message names the role and the remedy.
        """
        if isinstance(record, Text) or self.dialogue.messages(record.prompt) is None:
            return
        try:
            text = self.dialogue.prompt_text(record.prompt)
            if self.train_on == ALL and isinstance(record, Demonstration):
                self.dialogue.earlier_answers(self.dialogue.read([record.prompt], [text])[0])
        except ValueError as error:
            raise RecordError(str(error)) from error

    def prompt_ids(self, prompt: PromptText) -> list[int] | None:
        """Token ids of the prompt; None when it is too long."""
        ids = self.dialogue.read([prompt])[0].ids
        return ids if self._fits(ids) else None

    def prompt_lengths(self, prompts: Sequence[PromptText]) -> list[int]:
        """Tokens of each prompt, however long; many at once are several times as fast as one by one."""
        return [len(prompt.ids) for prompt in self.dialogue.read(prompts)]

    def response_ids(self, response: str, prompt: PromptText | None = None) -> list[int]:
        """Token ids of the response with its end, or cut at the limit without one.

        Args:
            response: The response.
            prompt: What it answers; None stands for any one message, which is the same in almost every chat template.
        """
        return self.whole_response_ids(response, prompt)[: self.max_response_tokens]

    def whole_response_ids(self, response: str, prompt: PromptText | None = None) -> list[int]:
        """The same, however long."""
        return self.dialogue.answers(self.dialogue.read([prompt or _ANYTHING]), [response])[0]

    def demonstrations(self, records: Iterable[Demonstration]) -> list[LMExample]:
        """Prompt and response; the response counts, and with ``train_on=all`` earlier answers too."""
        examples = []
        for number, record, prompt, (whole,) in self._encoded(records, lambda record: [record.response]):
            response = self._limited(whole, "demonstrations", record.source)
            try:
                earlier = self.dialogue.earlier_answers(prompt) if self.train_on == ALL else []
            except ValueError as error:
                raise _placed(number, record, error) from error
            examples.append(LMExample([*prompt.ids, *response], len(prompt.ids), earlier))
        return examples

    def texts(self, records: Iterable[Text], block_size: int) -> list[LMExample]:
        """Documents with BOS and EOS, joined and cut into blocks; every token but a block's first counts.

        The BOS is left out where the tokenizer writes none before texts.
        """
        text, stream = self.dialogue.text, []
        eos: Any = self.tokenizer.eos_token_id
        for chunk in chunks(records):
            for ids in text.rows([text.as_text(record.text) for record in chunk]):
                stream += [*text.opening, *ids, int(eos)]
        blocks = [stream[start : start + block_size] for start in range(0, len(stream), block_size)]
        return [LMExample(block, 1) for block in blocks if len(block) > 1]

    def comparisons(self, records: Iterable[Comparison]) -> list[ComparisonExample]:
        """Prompt, K responses, ranks."""
        examples, decided = [], []
        for record in records:
            if len(set(record.ranks)) > 1:
                decided.append(record)
            else:
                self.tally.count(DROPPED, "all responses tied", record.source)
        for _, record, prompt, whole in self._encoded(decided, lambda record: record.completions):
            ranks = self._ranks_once_cut(record, whole)
            if len(set(ranks)) == 1:
                self.tally.count(DROPPED, "all responses tied once they are cut", record.source)
                continue
            responses = [self._limited(ids, RANKED, record.source) for ids in whole]
            examples.append(ComparisonExample(prompt.ids, responses, ranks, record.source or record.labeler or "all"))
        return examples

    def prompts(self, records: Iterable[Prompt]) -> list[PromptExample]:
        """Prompts, numbered as they stand in the records; every text has every field that any of the records has."""
        records, examples = list(records), []
        lacking = dict.fromkeys(name for record in records for name in prompt_fields(record))
        for number, record, prompt, _ in self._encoded(records, lambda record: []):
            asked = record.prompt if isinstance(record.prompt, str) else self.dialogue.text.readable(prompt.text)
            messages = [{"role": "user", "content": asked}] if isinstance(record.prompt, str) else record.prompt
            text = PromptString(asked, messages, {**lacking, **prompt_fields(record)})
            examples.append(PromptExample(prompt.ids, number, text))
        return examples

    def _encoded(self, records: Iterable[Any], responses_of: Callable[[Any], list[str]]) -> Iterator[_Encoded]:
        """The records whose prompts are short enough.

        Raises:
            RecordError: Where the record is that cannot be encoded, why, and what to do.
        """
        for chunk in chunks(enumerate(records)):
            try:
                found = self._encoded_at_once(chunk, responses_of)
            except ValueError:  # one by one, to say which it is
                found = [self._encoded_alone(number, record, responses_of) for number, record in chunk]
            yield from (encoded for encoded in found if self._fits(encoded.prompt.ids, encoded.record.source))

    def _encoded_at_once(
        self, chunk: Sequence[tuple[int, Any]], responses_of: Callable[[Any], list[str]]
    ) -> list[_Encoded]:
        prompts = self.dialogue.read([record.prompt for _, record in chunk])
        short = [len(prompt.ids) <= self.max_prompt_tokens for prompt in prompts]
        responses = [responses_of(record) if fits else [] for (_, record), fits in zip(chunk, short, strict=True)]
        each = [prompt for prompt, texts in zip(prompts, responses, strict=True) for _ in texts]
        answers = iter(self.dialogue.answers(each, [text for texts in responses for text in texts]))
        return [
            _Encoded(number, record, prompt, [next(answers) for _ in texts])
            for (number, record), prompt, texts in zip(chunk, prompts, responses, strict=True)
        ]

    def _encoded_alone(self, number: int, record: Any, responses_of: Callable[[Any], list[str]]) -> _Encoded:
        try:
            return self._encoded_at_once([(number, record)], responses_of)[0]
        except ValueError as error:
            raise _placed(number, record, error) from error

    def _fits(self, prompt_ids: Sequence[int], source: str | None = None) -> bool:
        fits = len(prompt_ids) <= self.max_prompt_tokens
        if not fits:
            self.tally.count(DROPPED, f"prompt over {self.max_prompt_tokens} tokens", source)
        return fits

    def _limited(self, response_ids: list[int], what: str, source: str | None) -> list[int]:
        """As much of a response as there may be; one that loses its end is counted."""
        if len(response_ids) > self.max_response_tokens:
            self.tally.count(CUT, f"{what} cut at {self.max_response_tokens} tokens, without an end", source)
        return response_ids[: self.max_response_tokens]

    def _ranks_once_cut(self, record: Comparison, whole: Sequence[list[int]]) -> list[int]:
        """The ranks; responses that are the same once they are cut are tied at the mean of theirs."""
        limit, ranks = self.max_response_tokens, record.ranks
        same: defaultdict[tuple[int, ...], list[int]] = defaultdict(list)
        for ids, rank in zip(whole, ranks, strict=True):
            same[tuple(ids[:limit])].append(rank)
        if all(len(set(several)) == 1 for several in same.values()):
            return ranks
        self.tally.count(CUT, "rankings with responses that are the same once they are cut", record.source)
        means = [sum(each) / len(each) for each in (same[tuple(ids[:limit])] for ids in whole)]
        return dense_ranks(means, highest_is_best=False)


def _placed(number: int, record: Any, error: Exception) -> RecordError:
    return RecordError(f"{getattr(record, 'place', None) or f'{record.kind} number {number}'}: {error}")


def chunks(items: Iterable[Item]) -> Iterator[list[Item]]:
    """Lists of `CHUNK` items, the last one shorter."""
    rest = iter(items)
    while chunk := list(islice(rest, CHUNK)):
        yield chunk
