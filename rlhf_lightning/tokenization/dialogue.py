"""What a model reads of a prompt, and what it should write behind it, as token ids."""

import re
import warnings
from collections.abc import Sequence
from typing import NamedTuple, TypeAlias

from transformers import PreTrainedTokenizerBase

from rlhf_lightning.tokenization.chat import ConversationError, rendered
from rlhf_lightning.tokenization.encoding import TextEncoder, shared_start
from rlhf_lightning.tokenization.formats import CHAT, PROMPT, RENDERED, prompt_format

PromptLike: TypeAlias = str | list[dict[str, str]]
"""A plain string, or a conversation that ends with the user's turn."""

_PLACES = re.compile(f"({PROMPT}|{RENDERED})")
_ASKED = "rlhf"
"""Stands for a question where a template shows what it writes before one."""
_OPENED = re.compile(r"(<[a-z_]+>)\s*$")
"""A tag that stands open at the end of a prompt."""


class ReadPrompt(NamedTuple):
    """A prompt as it goes into the model.

    Args:
        messages: The conversation; None of a string that no chat template writes.
        text: The text, in which special tokens of people are broken (`TextEncoder.as_text`).
        ids: Its token ids.
    """

    messages: list[dict[str, str]] | None
    text: str
    ids: list[int]


class DialogueEncoder:
    """Encodes prompts, and answers to them, by the chat template where the model has one.

    - A string is the one message of a user in the format ``chat``; in ``template`` it goes through the prompt template,
      in ``plain`` it stands before a blank line. In those two the one message of a user is such a string, and every
      other conversation goes through the chat template.
    - A BOS stands before a prompt once where the tokenizer writes one before texts; a chat template writes its own.
    - An answer is what the template writes behind the prompt for it, up to the token that ends the turn. Where it
      writes no such token, the first one of `end_token_ids` follows. Where it writes answers elsewhere than behind its
      own generation prompt, and of strings without a chat template, an answer is its own tokens and that end.
    - End tokens that stand at the end of an answer's text are taken off: it has one end.

    Args:
        tokenizer: The tokenizer.
        prompt_template: How a string becomes the text that the model continues, with ``{prompt}``; with ``{rendered}``,
            strings are conversations that a template wrote already: special tokens in them count.
        format: ``chat``, ``template``, ``plain`` or None (by model), see `prompt_format`.

    Raises:
        ValueError: As `prompt_format`.
    """

    def __init__(
        self, tokenizer: PreTrainedTokenizerBase, prompt_template: str | None = None, format: str | None = None
    ) -> None:
        self.tokenizer, self.text = tokenizer, TextEncoder(tokenizer)
        self.format = prompt_format(tokenizer, format, prompt_template)
        self._opening = self._template_opening()
        ends = [str(token) for token in tokenizer.convert_ids_to_tokens(list(self.text.ends))]
        self._ends = re.compile("|".join(map(re.escape, ends)))
        self._closing = re.compile(rf"(?:\s*(?:{self._ends.pattern}))+\s*$")

    @property
    def uses_chat(self) -> bool:
        """Whether strings go through the chat template."""
        return self.format.name == CHAT

    def _template_opening(self) -> re.Pattern[str] | None:
        """How the chat template begins: up to the user's text, or with two of its tokens; None where nothing does."""
        if not self.tokenizer.chat_template or RENDERED in str(self.format.template):
            return None
        try:
            text = rendered(self.tokenizer, [{"role": "user", "content": _ASKED}], generation_prompt=True)
        except ConversationError:  # which is raised where a prompt is one
            return None
        token = "|".join(re.escape(token) for token in self.text.special if token in text)
        before = re.escape(text.partition(_ASKED)[0].strip())
        ways = ([before] if before else []) + ([rf"(?:{token}).*(?:{token})"] if token else [])
        return re.compile(rf"\s*(?:{'|'.join(ways)})", re.DOTALL) if ways else None

    def messages(self, prompt: PromptLike) -> list[dict[str, str]] | None:
        """The prompt as a conversation; None of a question that no chat template writes."""
        if self.uses_chat:
            return [{"role": "user", "content": prompt}] if isinstance(prompt, str) else prompt
        return None if isinstance(prompt, str) or self._is_question(prompt) else prompt

    def _is_question(self, prompt: list[dict[str, str]]) -> bool:
        """Whether a conversation is what a string is: one message of a user, which no template wrote already."""
        rendered_already = RENDERED in str(self.format.template)
        return [message["role"] for message in prompt] == ["user"] and not rendered_already

    def prompt_text(self, prompt: PromptLike) -> str:
        """The text that the model continues, in which special tokens of people are broken.

        Raises:
            ConversationError: When no chat template can write the conversation.
        """
        messages = self.messages(prompt)
        if messages is not None:
            return self._rendered(messages, generation_prompt=True)
        asked = prompt if isinstance(prompt, str) else prompt[0]["content"]
        written = {PROMPT: self.text.as_text(asked), RENDERED: asked}
        return "".join(written.get(piece, piece) for piece in _PLACES.split(str(self.format.template)))

    def read(self, prompts: Sequence[PromptLike], texts: Sequence[str] | None = None) -> list[ReadPrompt]:
        """Prompts with their token ids; many at once are several times as fast as one by one.

        Args:
            prompts: The prompts.
            texts: What `prompt_text` makes of each, where that is known.
        """
        texts = [self.prompt_text(prompt) for prompt in prompts] if texts is None else texts
        self._warn_of_rendered(prompts)
        opening = self.text.opening
        found = []
        for prompt, text, row in zip(prompts, texts, self.text.rows(texts), strict=True):
            messages = self.messages(prompt)
            bare = messages is None and row[: len(opening)] != opening
            found.append(ReadPrompt(messages, text, [*opening, *row] if bare else row))
        return found

    def _warn_of_rendered(self, prompts: Sequence[PromptLike]) -> None:
        """Say once that strings look like conversations that a chat template wrote, and are read as text."""
        for prompt in prompts:
            if isinstance(prompt, str) and self._opening is not None and self._opening.match(prompt):
                self._opening = None
                warnings.warn(
                    f"The prompt {prompt!r:.60} begins as the chat template does. It is read as a person's text; for "
                    f"prompts that a template wrote already set prompt_template='{RENDERED}' (data.lengths).",
                    stacklevel=2,
                )

    def answers(self, prompts: Sequence[ReadPrompt], responses: Sequence[str]) -> list[list[int]]:
        """Token ids of the answer to each prompt, with its end."""
        written = [self._answer(prompt, response) for prompt, response in zip(prompts, responses, strict=True)]
        # What stands before the last special token of a prompt does not change the tokens behind it.
        parts = [
            self.text.last_part(prompt.text) if behind else ""
            for prompt, (_, behind, _) in zip(prompts, written, strict=True)
        ]
        distinct = list(dict.fromkeys(parts))
        opened = dict(zip(distinct, self.text.rows(distinct), strict=True))
        rows = self.text.rows([part + text for part, (text, _, _) in zip(parts, written, strict=True)])
        split = {}
        for place, part in enumerate(parts):
            length = len(opened[part])
            if rows[place][:length] == opened[part]:
                rows[place] = rows[place][length:]
            else:  # a token would reach over the end of the prompt
                split[place] = written[place][0]
        for place, row in zip(split, self.text.rows(list(split.values())), strict=True):
            rows[place] = row
        return [row if ended else [*row, self.text.ends[0]] for row, (_, _, ended) in zip(rows, written, strict=True)]

    def without_end(self, response: str) -> str:
        """The response without end tokens at the end of its text."""
        return self._closing.sub("", response)

    def earlier_answers(self, prompt: ReadPrompt) -> list[tuple[int, int]]:
        """Where the answers within a conversation stand among its token ids, each with its end; but for weight 0.

        Raises:
            ConversationError: When the template writes a conversation otherwise as long as it is shorter.
        """
        messages = prompt.messages or []
        return [
            self._turn(prompt, messages, number)
            for number, message in enumerate(messages)
            if message["role"] == "assistant" and message.get("weight") != "0"
        ]

    def _turn(self, prompt: ReadPrompt, messages: list[dict[str, str]], number: int) -> tuple[int, int]:
        before = self._rendered(messages[:number], generation_prompt=True)
        end = self._ends.search(prompt.text, len(before))
        whole = "" if end else self._rendered(messages[: number + 1]).rstrip()
        if not prompt.text.startswith(before) or not prompt.text.startswith(whole):
            raise ConversationError(
                f"the chat template writes turn {number + 1}, of the role 'assistant', otherwise once others follow. "
                "Train on the last turn alone (data.train_on=last), or name another template (model.chat_template)."
            )
        return self._boundary(prompt, len(before)), self._boundary(prompt, end.end() if end else len(whole))

    def _boundary(self, prompt: ReadPrompt, place: int) -> int:
        """How many tokens of the prompt stand before a place in its text."""
        before, behind = self.text.rows([prompt.text[:place], prompt.text[place:]])
        if shared_start(before, prompt.ids) == len(before):
            return len(before)
        # What stood last before it goes on: `\n\n` is two tokens before a word.
        return len(prompt.ids) - shared_start(behind[::-1], prompt.ids[::-1])

    def _answer(self, prompt: ReadPrompt, response: str) -> tuple[str, bool, bool]:
        """The answer's text; whether it goes on where the prompt stops; whether it has its end."""
        response = self.without_end(response)
        if prompt.messages is not None:
            turn = {"role": "assistant", "content": response}
            whole = self._rendered([*prompt.messages, turn])
            opened = _OPENED.search(prompt.text)  # as <think>, which an answer may begin with itself
            if opened is not None and response.lstrip().startswith(opened[1]):
                response = response.lstrip().removeprefix(opened[1]).lstrip()
            text, spoken = whole.removeprefix(prompt.text), self.text.as_text(response).strip()
            if whole.startswith(prompt.text) and spoken in text:
                # The first end: behind a turn's, some templates write that of a document.
                end = self._ends.search(text, text.find(spoken) + len(spoken))
                return (text.rstrip(), True, False) if end is None else (text[: end.end()], True, True)
        return self.text.as_text(response), False, False

    def _rendered(self, messages: list[dict[str, str]], *, generation_prompt: bool = False) -> str:
        as_text = [{**message, "content": self.text.as_text(message["content"])} for message in messages]
        return rendered(self.tokenizer, as_text, generation_prompt=generation_prompt)
