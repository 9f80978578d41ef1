"""From text to token ids, where text that spells a special token stays text.

People write `<|endoftext|>` and `</s>` into prompts. Only what a template writes is a special token.
"""

import json
import re
from collections.abc import Sequence
from functools import cached_property
from itertools import takewhile
from typing import Any

from jinja2.exceptions import TemplateError
from tokenizers import Tokenizer
from transformers import PreTrainedTokenizerBase

from rlhf_lightning.tokenization.chat import rendered_within_limits
from rlhf_lightning.tokenization.endings import end_token_ids

_BREAK, _OPEN, _CLOSE = "\ufdd0", "\ufdd1", "\ufdd2"
"""Noncharacters of Unicode, which no text holds: they break a token that is text, and enclose one that is a token."""


class TextEncoder:
    """Tells special tokens from text that spells them.

    Special are the tokens that the tokenizer calls so, those that end a response, and those that its chat template
    writes around a message. Texts that spell none of them are tokenized as the tokenizer does it.

    Args:
        tokenizer: Any tokenizer of transformers. Of one without a `tokenizer.json`, texts in which a special token is
            spelled beside a real one are refused.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase) -> None:
        self.tokenizer = tokenizer
        self.ends = end_token_ids(tokenizer)
        self.special = _special_tokens(tokenizer, self.ends)
        longest_first = sorted(self.special, key=len, reverse=True)
        # A token of one character has its break behind it.
        self._spelled = re.compile(f"(?:{'|'.join(map(re.escape, longest_first)) or '(?!)'})(?!{_BREAK})")

    @cached_property
    def opening(self) -> list[int]:
        """What the tokenizer writes before every text: its BOS, or nothing."""
        read: Any = self.tokenizer("x", return_special_tokens_mask=True)
        ids, special = read["input_ids"], read["special_tokens_mask"]
        return list(ids[: next((place for place, is_special in enumerate(special) if not is_special), 0)])

    def as_text(self, text: str) -> str:
        """The text with every special token that it spells broken, so that it goes through a template as text."""
        if any(mark in text for mark in (_BREAK, _OPEN, _CLOSE)):
            text = re.sub(f"[{_BREAK}{_OPEN}{_CLOSE}]", "", text)
        return self._spelled.sub(lambda token: token[0][0] + _BREAK + token[0][1:], text)

    def readable(self, text: str) -> str:
        """The text as it was before `as_text`."""
        return text.replace(_BREAK, "")

    def last_part(self, text: str) -> str:
        """The text from its last special token on, which makes the same tokens alone as behind the rest."""
        *_, last = [None, *self._spelled.finditer(text)]
        return text if last is None else text[last.start() :]

    def rows(self, texts: Sequence[str]) -> list[list[int]]:
        """Token ids of texts, in which special tokens that `as_text` did not break are special; no BOS is added.

        Raises:
            ValueError: When the tokenizer cannot tell them apart.
        """
        rows: list[list[int]] = []
        plain = [text for text in texts if _BREAK not in text]
        if plain:
            rows = self.tokenizer(plain, add_special_tokens=False, truncation=False, verbose=False)["input_ids"]
        if len(plain) == len(texts):
            return rows
        usual = iter(rows)
        return [self._told_apart(text) if _BREAK in text else next(usual) for text in texts]

    def _told_apart(self, text: str) -> list[int]:
        if self._marked is not None:
            marked = self._spelled.sub(lambda token: _OPEN + token[0] + _CLOSE, text)
            return list(self._marked.encode(self.readable(marked), add_special_tokens=False).ids)
        if self._spelled.search(text):
            raise ValueError(
                f"{self.readable(text)!r:.80} spells a special token beside real ones, and the tokenizer "
                f"{self.tokenizer.name_or_path} cannot tell them apart. Use one with a tokenizer.json, or leave the "
                "row out."
            )
        text = self.readable(text)
        ids: list[int] = self.tokenizer.encode(text, add_special_tokens=False, split_special_tokens=True)
        if any(self.tokenizer.convert_tokens_to_ids(token) in ids for token in self.special if token in text):
            raise ValueError(
                f"{text!r:.80} spells a special token, and the tokenizer {self.tokenizer.name_or_path} reads it as one "
                "also where it is text. Use a tokenizer with a tokenizer.json, or leave the row out."
            )
        return ids

    @cached_property
    def _marked(self) -> Tokenizer | None:
        """The same tokenizer with every special token spelled between two marks; None where it has no file."""
        backend = getattr(self.tokenizer, "backend_tokenizer", None)
        if not isinstance(backend, Tokenizer):
            return None
        marked = {token: _OPEN + token + _CLOSE for token in self.special}
        state = json.loads(backend.to_str())
        for token in state["added_tokens"]:
            if token["content"] in marked:
                token |= {"content": marked[token["content"]], "normalized": False}
        model, vocabulary = state["model"], state["model"]["vocab"]
        if isinstance(vocabulary, dict):
            model["vocab"] = {marked.get(token, token): number for token, number in vocabulary.items()}
        else:  # Unigram
            model["vocab"] = [[marked.get(token, token), score] for token, score in vocabulary]
        if model.get("unk_token") in marked:
            model["unk_token"] = marked[model["unk_token"]]
        if "merges" in model:  # none may make a special token of its parts
            model["merges"] = [pair for pair in model["merges"] if not marked.keys() & {*pair, "".join(pair)}]
        found = Tokenizer.from_str(json.dumps(state | {"post_processor": None, "truncation": None, "padding": None}))
        if any(found.token_to_id(new) != self.tokenizer.convert_tokens_to_ids(old) for old, new in marked.items()):
            raise ValueError(
                f"the special tokens of {self.tokenizer.name_or_path} change their ids when they are added anew, so "
                "that text cannot be told from them. Save the tokenizer again by transformers."
            )
        return found


def shared_start(ids: Sequence[int], others: Sequence[int]) -> int:
    """How many tokens both begin with."""
    return sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], zip(ids, others, strict=False)))


def _special_tokens(tokenizer: PreTrainedTokenizerBase, ends: Sequence[int]) -> tuple[str, ...]:
    added = [token for token in tokenizer.added_tokens_decoder.values() if token.special]
    found = [*map(str, added), *tokenizer.all_special_tokens]
    found += tokenizer.convert_ids_to_tokens(list(ends))
    if tokenizer.chat_template:
        try:
            written = rendered_within_limits(tokenizer, [{"role": "user", "content": ""}], add_generation_prompt=True)
        except (TemplateError, TypeError):  # refused with a sentence where a conversation is rendered
            written = ""
        found += [token for token in tokenizer.get_added_vocab() if token.strip() and token in written]
    return tuple(dict.fromkeys(found))
