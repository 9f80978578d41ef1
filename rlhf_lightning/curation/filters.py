"""What is decided about a row by itself: personal data, language, length."""

from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any, Literal

from rlhf_lightning.arguments import checked
from rlhf_lightning.curation.account import KindAccount
from rlhf_lightning.curation.cut import cut_response
from rlhf_lightning.curation.keys import key_of, plain_text
from rlhf_lightning.curation.language import UNSURE
from rlhf_lightning.curation.personal import Finder, apart, find_personal, masked
from rlhf_lightning.curation.rows import Row
from rlhf_lightning.data.labeling import labeling_at
from rlhf_lightning.data.records import Comparison, Demonstration
from rlhf_lightning.data.rows.columns import dense_ranks
from rlhf_lightning.data.tokenize import Tokenization


class PersonalFilter:
    """Drops or masks rows with personal data, in the prompt or in a response (InstructGPT, section 3.2).

    Args:
        action: ``filter`` drops the row, ``mask`` puts the type in place of what was found.
        finders: What else finds personal data, besides `find_personal`, which is always on.

    Raises:
        ValueError: When a finder takes no text.
    """

    @checked
    def __init__(self, action: Literal["filter", "mask"] = "filter", finders: Sequence[Finder] = ()) -> None:
        self.action, self.finders = action, finders
        for finder in finders:
            try:
                list(finder("."))
            except Exception as error:
                raise ValueError(
                    f"finders names a {type(finder).__name__}, which finds nothing in a text ({error}). Give what "
                    "takes a text and returns its findings: kind, start and end of each."
                ) from error

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

    @checked
    def __init__(self, identify: Callable[[str], str], keep: Sequence[str] | None = None) -> None:
        self.identify = identify
        self.keep = None if keep is None else {*keep, UNSURE}

    def __call__(self, record: Any, books: KindAccount) -> bool:
        """Whether the record stays."""
        language = self.identify(plain_text(record.prompt))
        books.languages[language] += 1
        return self.keep is None or language in self.keep


def within_lengths(row: Row, tokenization: Tokenization, books: KindAccount) -> Row | str:
    """The row with its responses cut at the limit, and the length of a demonstration's (InstructGPT, appendix C).

    Responses of a ranking that are the same text, perhaps since they were cut, become one at the mean of their ranks.
    A string is the reason to drop the row.
    """
    record = row.record
    if isinstance(record, Demonstration):
        responses = [record.response]
    elif isinstance(record, Comparison):
        responses = record.completions
    else:
        return row
    texts = [cut_response(tokenization, response) for response in responses]
    if not all(text.strip() for text in texts):
        return "response empty after the cut"
    merged = _each_once(texts, record.ranks) if isinstance(record, Comparison) else None
    if merged is not None and len(merged) < 2:
        return "all responses the same"
    if texts != responses:
        books.changed["response cut"] += 1
    if merged is None:
        length = len(tokenization.response_ids(texts[0], record.prompt))
        return row._replace(record=replace(record, response=texts[0]), response_tokens=length)
    if len(merged) < len(texts):
        books.changed["same responses merged"] += 1
    labeling = labeling_at(record.labeling, [texts.index(text) for text in merged])
    record = replace(record, completions=list(merged), ranks=list(merged.values()), labeling=labeling)
    return row._replace(record=record)


def hidden_identifiers(record: Any, books: KindAccount) -> Any:
    """The record with a key in place of a user, labeler, source or label that is itself personal data.

    The same identifier has the same key everywhere, so that its rows stay together. What is personal in further fields
    is masked.
    """

    def hidden(value: Any) -> Any:
        return f"id-{key_of(value, 'identifier'):016x}" if isinstance(value, str) and find_personal(value) else value

    new = {name: hidden(getattr(record, name)) for name in ("user", "labeler", "source") if hasattr(record, name)}
    if record.labels:
        new["labels"] = {name: hidden(value) for name, value in record.labels.items()}
    if fields := getattr(record, "fields", None):
        new["fields"] = _masked(fields)
    if all(getattr(record, name) == value for name, value in new.items()):
        return record
    books.changed["identifier hidden"] += 1
    return replace(record, **new)


def _masked(value: Any) -> Any:
    if isinstance(value, str):
        return masked(value, find_personal(value))
    if isinstance(value, dict):
        return {name: _masked(part) for name, part in value.items()}
    return [_masked(part) for part in value] if isinstance(value, list) else value


def _each_once(texts: Sequence[str], ranks: Sequence[int]) -> dict[str, int]:
    """Each text with its rank; the same ones at the mean of theirs, and all numbered anew if there are any."""
    ranks_of: defaultdict[str, list[int]] = defaultdict(list)
    for text, rank in zip(texts, ranks, strict=True):
        ranks_of[text].append(rank)
    if len(ranks_of) == len(texts):
        return dict(zip(texts, ranks, strict=True))
    means = [sum(several) / len(several) for several in ranks_of.values()]
    return dict(zip(ranks_of, dense_ranks(means, highest_is_best=False), strict=True))


def _with_texts(record: Any, change: Callable[[str], str]) -> Any:
    """The record with every text changed."""
    prompt = record.prompt
    if isinstance(prompt, str):
        prompt = change(prompt)
    else:
        prompt = [{**message, "content": change(message["content"])} for message in prompt]
    new: dict[str, Any] = {"prompt": prompt}
    if isinstance(record, Demonstration):
        new["response"] = change(record.response)
    if isinstance(record, Comparison):
        new["completions"] = [change(completion) for completion in record.completions]
    return replace(record, **new)
