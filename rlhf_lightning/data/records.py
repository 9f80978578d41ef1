"""The four kinds of record that every stage reads and writes, one JSON object per line."""

import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import combinations
from typing import Any, ClassVar, TypeAlias

from rlhf_lightning.data.labeling import Labeling, is_labeling

PromptText: TypeAlias = str | list[dict[str, str]]
"""A plain string, or a conversation as a list of ``{"role": ..., "content": ...}`` that ends with the user's turn."""

Labels: TypeAlias = dict[str, str | bool | None]
"""What is known about a prompt: its use case, whether it is ambiguous, ... (InstructGPT, tables 1 and 7)."""


class RecordError(ValueError):
    """A record that cannot be used; the message names the field, the value and the remedy."""


class Placed:
    """Knows where it was read, which is no part of what it holds."""

    __slots__ = ("place",)
    place: str
    """File and line; a record that was not read from a file has none."""


@dataclass(frozen=True)
class Demonstration(Placed):
    """A response that a person wrote for a prompt (InstructGPT, section 3.5 and appendix A).

    Args:
        prompt: What was asked, a string or a conversation.
        response: What a good answer looks like.
        user: Who asked, where that is known.
        source: Where the record comes from, a free label.
        labels: What else is known about the prompt, by name.
    """

    prompt: PromptText
    response: str
    user: str | None = None
    source: str | None = None
    labels: Labels | None = field(default=None, hash=False)

    kind: ClassVar[str] = "demonstration"

    def __post_init__(self) -> None:
        """Check every field."""
        _check_prompt(self.prompt)
        _check_text("response", self.response)
        _check_labels(self.labels, user=self.user, source=self.source)


MAX_COMPLETIONS = 1000
"""Most responses of one ranking; the pairs grow with the square."""


@dataclass(frozen=True)
class Comparison(Placed):
    """K responses to one prompt, ranked by one labeler (InstructGPT, section 3.5 and appendix C.2).

    Args:
        prompt: What was asked, a string or a conversation.
        completions: K >= 2 responses.
        ranks: One whole number per completion; 1 is best, equal numbers are ties. Dense (1, 2, 2, 3) or competition
            ranks (1, 2, 2, 4).
        labeler: Who ranked them, where that is known.
        source: Where the record comes from, a free label.
        labels: What else is known about the prompt, by name.
        user: Who asked, where that is known.
        labeling: How the ranking came about, where that is known.
    """

    prompt: PromptText
    completions: list[str]
    ranks: list[int]
    labeler: str | None = None
    source: str | None = None
    labels: Labels | None = field(default=None, hash=False)
    user: str | None = None
    labeling: Labeling | None = field(default=None, hash=False, repr=False)  # by its text curate draws lots

    kind: ClassVar[str] = "comparison"

    def __post_init__(self) -> None:
        """Check every field."""
        _check_prompt(self.prompt)
        _check_labels(self.labels, labeler=self.labeler, source=self.source, user=self.user)
        if not isinstance(self.completions, list) or len(self.completions) < 2:
            raise RecordError(
                f"field 'completions' must be a list of at least 2 strings, got {short(self.completions)}. "
                "A prompt with one response cannot be ranked: leave the row out."
            )
        if (count := len(self.completions)) > MAX_COMPLETIONS:
            raise RecordError(
                f"field 'completions' has {count:,} responses, which are {count * (count - 1) // 2:,} pairs; "
                f"{MAX_COMPLETIONS:,} may be ranked together. Split the ranking, or leave the row out."
            )
        for completion in self.completions:
            _check_text("completions", completion)
        _check_ranks(self.ranks, len(self.completions))
        if self.labeling is not None and not is_labeling(self.labeling, len(self.completions)):
            raise RecordError(
                "field 'labeling' must be an object with some of policies, likert, fields (each with an entry per "
                "completion), order (their places as they were shown) and round, where it is given, got "
                f"{short(self.labeling)}. Mend it, or hide it: 'columns: {{labeling: null}}'."
            )


@dataclass(frozen=True)
class Prompt(Placed):
    """A prompt without a response (InstructGPT, section 3.2).

    Args:
        prompt: What is asked, a string or a conversation.
        user: Who asked, where that is known.
        source: Where the record comes from, a free label.
        labels: What else is known about the prompt, by name.
        fields: Further columns of its row, by name, as they are in JSON: a reference answer, a category, ...
    """

    prompt: PromptText
    user: str | None = None
    source: str | None = None
    labels: Labels | None = field(default=None, hash=False)
    fields: dict[str, Any] | None = field(default=None, hash=False)

    kind: ClassVar[str] = "prompt"

    def __post_init__(self) -> None:
        """Check every field."""
        _check_prompt(self.prompt)
        _check_fields(self.fields)
        _check_labels(self.labels, user=self.user, source=self.source)


@dataclass(frozen=True)
class Text(Placed):
    """A piece of pretraining text.

    Args:
        text: The text itself.
        source: Where the record comes from, a free label.
    """

    text: str
    source: str | None = None

    kind: ClassVar[str] = "text"

    def __post_init__(self) -> None:
        """Check every field."""
        _check_text("text", self.text)
        _check_labels(None, source=self.source)


Record: TypeAlias = Demonstration | Comparison | Prompt | Text


def decided_pairs(ranks: Sequence[int]) -> list[tuple[int, int]]:
    """Every pair of ranked responses that is no tie, as the places of the better and of the worse one.

    Examples:
        >>> decided_pairs([2, 1, 2])
        [(1, 0), (1, 2)]
    """
    pairs = combinations(range(len(ranks)), 2)
    return [(i, j) if ranks[i] < ranks[j] else (j, i) for i, j in pairs if ranks[i] != ranks[j]]


def prompt_fields(record: Prompt) -> dict[str, Any]:
    """What is known about a prompt besides itself, by name, as a reward function may ask for it."""
    known = {"user": record.user, "source": record.source}
    return {**(record.fields or {}), **(record.labels or {}), **known}


def _check_prompt(prompt: object) -> None:
    if isinstance(prompt, str):
        _check_text("prompt", prompt)
        return
    messages = prompt if isinstance(prompt, list) else []
    well_formed = [
        isinstance(message, dict) and isinstance(message.get("role"), str) and isinstance(message.get("content"), str)
        for message in messages
    ]
    if not messages or not all(well_formed):
        raise RecordError(
            "field 'prompt' must be a string or a list of {'role': ..., 'content': ...} with strings, "
            f"got {short(prompt)}. Write it so, or name another column in 'columns'."
        )
    roles = [message["role"] for message in messages]
    turns = roles[1:] if roles[0] == "system" else roles
    # Users ask first and last: user, assistant, user, ...
    if turns != ["user", "assistant"] * (len(turns) // 2) + ["user"]:
        raise RecordError(
            f"field 'prompt' has the roles {short(', '.join(roles))}; after at most one system message, user and "
            "assistant must take turns, the user first and last. Put the messages in order or leave the row out."
        )
    for message in messages:
        _check_text("prompt", message["content"])


_RANK_THEM = "'columns: {ranks: {rank: ranks, best: lowest}}'"


def _check_ranks(ranks: object, count: int) -> None:
    if not isinstance(ranks, list) or len(ranks) != count or not all(type(r) is int and r >= 1 for r in ranks):
        raise RecordError(
            f"field 'ranks' must hold {count} whole numbers from 1 (best) up, one per completion, got {short(ranks)}. "
            f"Write them so, or let the source do it: {_RANK_THEM}."
        )
    dense = {rank: 1 + number for number, rank in enumerate(sorted(set(ranks)))}
    competition = {rank: 1 + sum(other < rank for other in ranks) for rank in ranks}
    if any(rank != dense[rank] for rank in ranks) and any(rank != competition[rank] for rank in ranks):
        raise RecordError(
            f"field 'ranks' holds {short(ranks)}, which are neither dense ranks (1, 2, 2, 3) nor competition ranks "
            f"(1, 2, 2, 4). Number them anew, or let the source do it: {_RANK_THEM}."
        )


def _check_text(name: str, value: object) -> None:
    if not isinstance(value, str):
        raise RecordError(
            f"field '{name}' must be a string, got {short(value)}. Write it as text, or name another "
            "column in 'columns'."
        )
    if not value.strip():
        raise RecordError(f"field '{name}' is empty; fill it or leave the row out.")
    try:
        value.encode()
    except UnicodeEncodeError as error:
        raise RecordError(
            f"field '{name}' holds broken UTF-8 at character {error.start}, got {short(value)}. Save the text as UTF-8."
        ) from error


def _check_labels(labels: object, **names: object) -> None:
    for name, value in names.items():
        if value is not None and not isinstance(value, str):
            raise RecordError(
                f"field '{name}' must be a string where it is given, got {short(value)}. Write it as text, or let the "
                f"source do it: 'columns: {{{name}: \"{{{name}}}\"}}'."
            )
    if labels is None:
        return
    if not isinstance(labels, dict) or not all(isinstance(value, str | bool | None) for value in labels.values()):
        raise RecordError(
            f"field 'labels' must be an object of strings and true or false where it is given, got {short(labels)}. "
            "Write numbers as text, or name a column for each label: 'columns: {labels: {use_case: <column>}}'."
        )


def _check_fields(values: object) -> None:
    if values is None:
        return
    try:
        named = isinstance(values, dict) and all(isinstance(name, str) for name in values)
        json.dumps(values)
    except (TypeError, ValueError):
        named = False
    if not named:
        raise RecordError(
            f"field 'fields' must be an object of names and JSON values where it is given, got {short(values)}. Write "
            "it so, name a column for each ('columns: {fields: {answer: <column>}}'), or hide it: 'columns: {fields: "
            "null}'."
        )


def short(value: object) -> str:
    """The value as an error shows it."""
    text = repr(value)
    return text if len(text) <= 80 else text[:77] + "..."
