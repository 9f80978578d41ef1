"""The four kinds of record that every stage reads and writes, one JSON object per line."""

from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any, ClassVar, TypeAlias

PromptText: TypeAlias = str | list[dict[str, str]]
"""A plain string, or a conversation as a list of ``{"role": ..., "content": ...}``."""


class RecordError(ValueError):
    """A record that cannot be used; the message names the field, the value and the remedy."""


@dataclass(frozen=True)
class Demonstration:
    """A response that a person wrote for a prompt (InstructGPT, section 3.5 and appendix A).

    Args:
        prompt: What was asked, a string or a conversation.
        response: What a good answer looks like.
        user: Who asked, where that is known.
        source: Where the record comes from, a free label.
    """

    prompt: PromptText
    response: str
    user: str | None = None
    source: str | None = None

    kind: ClassVar[str] = "demonstration"

    def __post_init__(self) -> None:
        """Check every field."""
        _check_prompt(self.prompt)
        _check_text("response", self.response)
        _check_labels(user=self.user, source=self.source)


@dataclass(frozen=True)
class Comparison:
    """K responses to one prompt, ranked by one labeler (InstructGPT, section 3.5 and appendix C.2).

    Args:
        prompt: What was asked, a string or a conversation.
        completions: K >= 2 responses.
        ranks: One whole number per completion; 1 is best, equal numbers are ties.
        labeler: Who ranked them, where that is known.
        source: Where the record comes from, a free label.
    """

    prompt: PromptText
    completions: list[str]
    ranks: list[int]
    labeler: str | None = None
    source: str | None = None

    kind: ClassVar[str] = "comparison"

    def __post_init__(self) -> None:
        """Check every field."""
        _check_prompt(self.prompt)
        _check_labels(labeler=self.labeler, source=self.source)
        if not isinstance(self.completions, list) or len(self.completions) < 2:
            raise RecordError(
                f"field 'completions' must be a list of at least 2 strings, got {_short(self.completions)}. "
                "A prompt with one response cannot be ranked: leave the row out."
            )
        for completion in self.completions:
            _check_text("completions", completion)
        whole = isinstance(self.ranks, list) and all(type(rank) is int and rank >= 1 for rank in self.ranks)
        if not whole or len(self.ranks) != len(self.completions):
            raise RecordError(
                f"field 'ranks' must hold {len(self.completions)} whole numbers from 1 (best) up, one per completion, "
                f"got {_short(self.ranks)}."
            )


@dataclass(frozen=True)
class Prompt:
    """A prompt without a response (InstructGPT, section 3.2).

    Args:
        prompt: What is asked, a string or a conversation.
        user: Who asked, where that is known.
        source: Where the record comes from, a free label.
    """

    prompt: PromptText
    user: str | None = None
    source: str | None = None

    kind: ClassVar[str] = "prompt"

    def __post_init__(self) -> None:
        """Check every field."""
        _check_prompt(self.prompt)
        _check_labels(user=self.user, source=self.source)


@dataclass(frozen=True)
class Text:
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
        _check_labels(source=self.source)


Record: TypeAlias = Demonstration | Comparison | Prompt | Text


def record_from_row(kind: type[Record], row: Mapping[str, Any]) -> Record:
    """Build a record from a row whose columns already carry the record's field names.

    Pairs of the ecosystem are read as K = 2: ``prompt``/``chosen``/``rejected``, also with an implicit prompt, where
    ``chosen`` and ``rejected`` are whole conversations that share everything but the last message.

    Args:
        kind: ``Demonstration``, ``Comparison``, ``Prompt`` or ``Text``.
        row: Column names and values; columns that are no field of the record are ignored.

    Raises:
        RecordError: When a field is missing or has the wrong form.
    """
    if kind is Comparison and "completions" not in row and {"chosen", "rejected"} <= row.keys():
        row = _pair_as_comparison(row)
    names = [field.name for field in fields(kind)]
    required = [field.name for field in fields(kind) if field.name in _REQUIRED[kind.kind]]
    missing = [name for name in required if row.get(name) is None]
    if missing:
        raise RecordError(
            f"field '{missing[0]}' is missing; a {kind.kind} needs {', '.join(required)}, this row has "
            f"{', '.join(row) or 'no columns'}. Name the column to read it from in the 'columns' of the source."
        )
    return kind(**{name: row[name] for name in names if name in row})


_REQUIRED = {
    "demonstration": ("prompt", "response"),
    "comparison": ("prompt", "completions", "ranks"),
    "prompt": ("prompt",),
    "text": ("text",),
}


def _pair_as_comparison(row: Mapping[str, Any]) -> dict[str, Any]:
    prompt, chosen, rejected = row.get("prompt"), row["chosen"], row["rejected"]
    if isinstance(chosen, list) and isinstance(rejected, list) and chosen and rejected:
        if prompt is None:
            if chosen[:-1] != rejected[:-1]:
                raise RecordError(
                    "fields 'chosen' and 'rejected' must share every message but the last when there is no 'prompt'."
                )
            prompt = chosen[:-1]
        if not (isinstance(chosen[-1], dict) and isinstance(rejected[-1], dict)):
            raise RecordError(
                "fields 'chosen' and 'rejected' must be strings or lists of {'role': ..., 'content': ...}."
            )
        chosen, rejected = chosen[-1].get("content"), rejected[-1].get("content")
    rest = {name: value for name, value in row.items() if name not in ("chosen", "rejected")}
    return {**rest, "prompt": prompt, "completions": [chosen, rejected], "ranks": [1, 2]}


def _check_prompt(prompt: object) -> None:
    if isinstance(prompt, str):
        _check_text("prompt", prompt)
        return
    well_formed = (
        isinstance(prompt, list)
        and len(prompt) > 0
        and all(
            isinstance(message, dict)
            and isinstance(message.get("role"), str)
            and isinstance(message.get("content"), str)
            for message in prompt
        )
    )
    if not well_formed:
        raise RecordError(
            "field 'prompt' must be a string or a list of {'role': ..., 'content': ...} with strings, "
            f"got {_short(prompt)}."
        )


def _check_text(name: str, value: object) -> None:
    if not isinstance(value, str):
        raise RecordError(f"field '{name}' must be a string, got {_short(value)}.")
    if not value.strip():
        raise RecordError(f"field '{name}' is empty; fill it or leave the row out.")


def _check_labels(**labels: object) -> None:
    for name, value in labels.items():
        if value is not None and not isinstance(value, str):
            raise RecordError(f"field '{name}' must be a string where it is given, got {_short(value)}.")


def _short(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 80 else text[:77] + "..."
