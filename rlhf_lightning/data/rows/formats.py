"""From a row in one of the formats that people use to the fields of a record."""

from collections.abc import Mapping
from dataclasses import MISSING, fields
from itertools import takewhile
from typing import Any

from rlhf_lightning.data.records import Comparison, Demonstration, Prompt, Record, RecordError, Text, short
from rlhf_lightning.data.rows.messages import checked_conversations, is_unweighted, with_system

TURNS = ("\n\nHuman:", "\n\nAssistant:")
"""How turns begin in dialogues that are kept as one string (Anthropic's hh-rlhf, Nectar)."""

Row = Mapping[str, Any]

_UNDESIRABLE = ("false", "0", "0.0", "-1", "-1.0", "undesirable")
"""Labels of KTO for answers that are not to be learned."""
_IDENTIFIERS = ("user", "labeler", "source")


def record_from_row(kind: type[Any], row: Row) -> Record:
    """Build a record from a row whose columns carry the record's field names, or those of a common format.

    - A pair ``prompt``/``chosen``/``rejected`` is a ranking with K = 2. Without ``prompt`` it is what both begin with:
      all messages but the last; or, of strings, everything up to the last reply of a dialogue, else whole words.
    - A pair of message lists shares its first messages, which are the prompt; a ``prompt`` in a column of its own is
      their first question, or stands before them.
    - ``prompt``/``completion`` and ``messages`` are demonstrations, but not of a row whose ``label`` is false (KTO).
    - A ranking or a pair is a demonstration with its best response, and a prompt.

    A reply may be a string or a list with the one message of the assistant. Of a pair with the same text twice the two
    are tied. A ``system`` column is the system message of a prompt that has none. ``user``, ``labeler`` and ``source``
    may be whole numbers, and a blank cell is nobody.

    Args:
        kind: ``Demonstration``, ``Comparison``, ``Prompt`` or ``Text``.
        row: Column names and values; columns that are no field of the record are ignored.

    Raises:
        RecordError: When a field is missing or has the wrong form.
    """
    if kind is not Text:
        row = checked_conversations(row)
    if kind is Comparison:
        row = _ranking(row)
    elif kind is Demonstration:
        row = _demonstration(row)
    elif kind is Prompt and (row.get("prompt") is None or isinstance(row.get("chosen"), list)):
        row = _conversation(row) if _has(row, "messages") and not _has(row, "chosen", "rejected") else _ranking(row)
    required = [field.name for field in fields(kind) if field.default is MISSING]
    missing = [name for name in required if row.get(name) is None]
    if missing:
        raise RecordError(
            f"field '{missing[0]}' is missing; a {kind.kind} needs {', '.join(required)}, this row has "
            f"{', '.join(map(str, row)) or 'no columns'}. Name the column to read it from in the source's 'columns'."
        )
    values = {field.name: row[field.name] for field in fields(kind) if field.name in row}
    if kind is not Text:
        values["prompt"] = with_system(row["prompt"], row.get("system"))
    record: Record = kind(**values | {name: _identifier(values[name]) for name in _IDENTIFIERS if name in values})
    return record


def why_left_out(kind: type[Any], row: Row) -> str | None:
    """Why a row holds no record of the kind though nothing is wrong with it; None where it holds one."""
    if kind is Demonstration and str(row.get("label")).lower() in _UNDESIRABLE:
        return "label false: no demonstration"
    return None


def _identifier(value: Any) -> Any:
    """A whole number as text, a blank as None."""
    if isinstance(value, str):
        return value if value.strip() else None
    return str(value) if type(value) is int else value


def _has(row: Row, *names: str) -> bool:
    return all(row.get(name) is not None for name in names)


def _demonstration(row: Row) -> Row:
    if _has(row, "response"):
        return row
    if _has(row, "completion"):
        return {**row, "response": _reply("completion", row["completion"])}
    if _has(row, "messages") and not _has(row, "chosen", "rejected"):
        conversation = _conversation(row)
        return {**conversation, "response": _reply("messages", row["messages"][-1:])}
    ranking = _ranking(row)
    if not _has(ranking, "prompt", "completions", "ranks"):
        return row
    checked = Comparison(ranking["prompt"], ranking["completions"], ranking["ranks"])
    return {**ranking, "response": checked.completions[checked.ranks.index(1)]}


def _conversation(row: Row) -> Row:
    """The messages up to the user's last turn as the prompt."""
    messages = row["messages"]
    if not isinstance(messages, list) or not all(isinstance(message, dict) for message in messages):
        raise RecordError(
            f"field 'messages' must be a list of {{'role': ..., 'content': ...}}, got {short(messages)}. "
            "Write it so, or name another column in 'columns'."
        )
    answered = bool(messages) and messages[-1].get("role") == "assistant"
    return {**row, "prompt": _whole_prompt(row.get("prompt"), messages[:-1] if answered else messages)}


def _whole_prompt(prompt: Any, messages: list[Any]) -> Any:
    """A prompt and the messages behind it, which may begin with it once more."""
    if prompt is None or not messages:
        return messages if prompt is None else prompt
    if isinstance(prompt, str):
        asked = [message for message in messages if isinstance(message, dict) and message.get("role") == "user"]
        if not asked or str(asked[0].get("content")).strip() != prompt.strip():
            return [{"role": "user", "content": prompt}, *messages]
        return prompt if len(messages) == 1 else messages
    return messages if messages[: len(prompt)] == prompt else [*prompt, *messages]


def _ranking(row: Row) -> Row:
    if _has(row, "completions") or not _has(row, "chosen", "rejected"):
        return row
    prompt, chosen, rejected = row.get("prompt"), row["chosen"], row["rejected"]
    if isinstance(chosen, list) and isinstance(rejected, list):
        shared = chosen[:-1]
        if shared != rejected[:-1]:
            raise RecordError(
                "fields 'chosen' and 'rejected' must share every message but the last, got "
                f"{short(chosen)} and {short(rejected)}. Leave the row out."
            )
        prompt = _whole_prompt(prompt, shared)
        chosen, rejected = chosen[-1:], rejected[-1:]
    elif prompt is None and isinstance(chosen, str) and isinstance(rejected, str):
        prompt, chosen, rejected = _split_texts(chosen, rejected)
    completions = [_reply("chosen", chosen), _reply("rejected", rejected)]
    ranks = [1, 1] if completions[0] == completions[1] else [1, 2]
    return {**row, "prompt": prompt, "completions": completions, "ranks": ranks}


def _split_texts(chosen: str, rejected: str) -> tuple[str, str, str]:
    """The prompt that two whole texts share, and what each says after it."""
    same = takewhile(lambda letters: letters[0] == letters[1], zip(chosen, rejected, strict=False))
    shared = chosen[: sum(1 for _ in same)]
    last = shared.rfind(TURNS[1])
    # Replies may begin with the same words, or the same letters of different words; neither belongs to the prompt.
    end = last + len(TURNS[1]) if last >= 0 else max(shared.rfind(space) for space in " \n\t")
    if end <= 0 or any(turn in text[end:] for turn in TURNS for text in (chosen, rejected)):
        raise RecordError(
            f"fields 'chosen' and 'rejected' must be the same up to the last reply, got {short(chosen)} and "
            f"{short(rejected)}. Give the 'prompt' in a column of its own, or leave the row out."
        )
    return chosen[:end], chosen[end:], rejected[end:]


def _reply(name: str, value: Any) -> Any:
    """The text of a reply that is a string or a list with the assistant's message."""
    if not isinstance(value, list):
        return value
    message = value[0] if len(value) == 1 else None
    if not isinstance(message, dict) or message.get("role") != "assistant":
        raise RecordError(
            f"field '{name}' must be a string or end with one message of the assistant, got {short(value)}. Add the "
            "message, or leave the row out."
        )
    if is_unweighted(message):
        raise RecordError(
            f"field '{name}' ends with an answer of weight 0, which leaves nothing to train. Take the weight out, or "
            "leave the row out."
        )
    return message.get("content")
