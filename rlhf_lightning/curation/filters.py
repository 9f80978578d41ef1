"""What is decided about a row by itself: personal data, language, length."""

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

from rlhf_lightning.curation.account import KindAccount
from rlhf_lightning.curation.keys import plain_text
from rlhf_lightning.curation.language import UNSURE
from rlhf_lightning.curation.personal import Finder, apart, find_personal, masked
from rlhf_lightning.curation.rows import Row
from rlhf_lightning.data.records import Comparison, Demonstration
from rlhf_lightning.data.tokens import Tokenization


class PersonalFilter:
    """Drops or masks rows with personal data, in the prompt or in a response (InstructGPT, section 3.2).

    Args:
        action: ``filter`` drops the row, ``mask`` puts the type in place of what was found.
        finders: Besides the regular expressions of ``find_personal``, which are always on.

    Raises:
        ValueError: When the action is unknown.
    """

    def __init__(self, action: str = "filter", finders: Sequence[Finder] = ()) -> None:
        if action not in ("filter", "mask"):
            raise ValueError(f"action must be filter or mask, got {action!r}.")
        self.action, self.finders = action, finders

    def __call__(self, record: Any, books: KindAccount) -> Any | None:
        """The record, perhaps with masks; None where it is to be dropped."""
        kinds: list[str] = []

        def clean(text: str) -> str:
            found = find_personal(text)
            if self.finders:
                found = apart([*found, *(finding for finder in self.finders for finding in finder(text))])
            kinds.extend(finding.kind for finding in found)
            return masked(text, found)

        cleaned = _with_texts(record, clean)
        if not kinds:
            return record
        books.personal.update(kinds)
        if self.action == "filter":
            return None
        books.changed["personal data masked"] += 1
        return cleaned


class LanguageFilter:
    """Counts the languages of the prompts and, where it is told which, drops the others (InstructGPT, appendix A.4).

    Args:
        identify: Names the language of a text; ``LanguageIdentifier`` does.
        keep: Codes of the languages that stay, besides texts that are too short to tell; None keeps all.
    """

    def __init__(self, identify: Callable[[str], str], keep: Sequence[str] | None = None) -> None:
        self.identify = identify
        self.keep = None if keep is None else {*keep, UNSURE}

    def __call__(self, record: Any, books: KindAccount) -> bool:
        """Whether the record stays."""
        language = self.identify(plain_text(record.prompt))
        books.languages[language] += 1
        return self.keep is None or language in self.keep


def within_lengths(row: Row, tokenization: Tokenization, books: KindAccount) -> Row:
    """The row with its responses cut at the limit, and the length of a demonstration's (InstructGPT, appendix C)."""
    record = row.record
    if isinstance(record, Demonstration):
        response = tokenization.cut_response(record.response)
        if response != record.response:
            books.changed["response cut"] += 1
            record = replace(record, response=response)
        length = len(tokenization.response_ids(response))
        return row._replace(record=record, response_tokens=length)
    if isinstance(record, Comparison):
        completions = [tokenization.cut_response(completion) for completion in record.completions]
        if completions != record.completions:
            books.changed["response cut"] += 1
            return row._replace(record=replace(record, completions=completions))
    return row


def _with_texts(record: Any, change: Callable[[str], str]) -> Any:
    """The record with every text changed."""
    new: dict[str, Any] = {}
    if isinstance(record.prompt, str):
        new["prompt"] = change(record.prompt)
    else:
        new["prompt"] = [{**message, "content": change(message["content"])} for message in record.prompt]
    if isinstance(record, Demonstration):
        new["response"] = change(record.response)
    if isinstance(record, Comparison):
        new["completions"] = [change(completion) for completion in record.completions]
    return replace(record, **new)
