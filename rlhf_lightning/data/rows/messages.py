"""What conversations of other tools hold besides roles and texts: used, or refused by name."""

from collections.abc import Mapping
from typing import Any

from rlhf_lightning.data.records import RecordError, short

CONVERSATIONS = ("prompt", "messages", "chosen", "rejected", "completion")
"""Columns that may hold messages."""
_UNUSED = {
    **dict.fromkeys(
        ("tool_calls", "function_call"),
        "calls of tools are not trained here. Write them into its content as the model's template does",
    ),
    **dict.fromkeys(
        ("reasoning_content", "reasoning", "thinking"),
        "thoughts of their own are not trained here. Write them into its content as the model does, such as "
        "<think>...</think>",
    ),
}
_NOTHING = ("", "[]", "{}", "null", "None")
"""How files write that there is none."""
_ONE, _ZERO = ("1", "1.0"), ("0", "0.0")


def checked_conversations(row: Mapping[str, Any]) -> Mapping[str, Any]:
    """The row with plain messages: a text for each content, and no key that stands for nothing.

    Raises:
        RecordError: At tools, weights, or what a message holds that would not be trained.
    """
    if _holds(row.get("tools")):
        raise RecordError(
            f"field 'tools' is {short(row['tools'])}, and tools are not trained here. Write them into the system "
            "message as the model's template does and hide the column ('columns: {tools: null}'), or leave the row out."
        )
    if str(row.get("weight", "")).strip() not in (*_NOTHING, *_ONE):
        raise RecordError(
            f"field 'weight' is {short(row['weight'])}, but every row counts the same. Repeat rows or leave them out, "
            "and hide the column: 'columns: {weight: null}'."
        )
    new = {
        name: [_message(name, message) if isinstance(message, Mapping) else message for message in row[name]]
        for name in CONVERSATIONS
        if isinstance(row.get(name), list)
    }
    return {**row, **new} if new else row


def with_system(prompt: Any, system: Any) -> Any:
    """A prompt behind the system message that stands in a column of its own.

    Args:
        prompt: A string or a conversation.
        system: The text, or nothing.

    Raises:
        RecordError: When it is no text, or the conversation has another system message.
    """
    if system is None or (isinstance(system, str) and not system.strip()):
        return prompt
    if not isinstance(system, str):
        raise RecordError(
            f"field 'system' must be a string where it is given, got {short(system)}. Write it as text, or hide the "
            "column: 'columns: {system: null}'."
        )
    messages = [{"role": "user", "content": prompt}] if isinstance(prompt, str) else prompt
    if not isinstance(messages, list) or not messages or not isinstance(messages[0], dict):
        return prompt  # which is refused by itself
    if messages[0].get("role") != "system":
        return [{"role": "system", "content": system}, *messages]
    if str(messages[0].get("content")).strip() != system.strip():
        raise RecordError(
            f"field 'system' is {short(system)}, but the conversation begins with the system message "
            f"{short(messages[0].get('content'))}. Take one of them out, or hide the column: "
            "'columns: {system: null}'."
        )
    return messages


def is_unweighted(message: Mapping[str, Any]) -> bool:
    """Whether a message is not to be trained."""
    return str(message.get("weight")) in _ZERO


def _message(name: str, message: Mapping[str, Any]) -> dict[str, Any]:
    for key, reason in _UNUSED.items():
        if _holds(message.get(key)):
            raise RecordError(
                f"field '{name}' has a message with {key} {short(message[key])}; {reason}, or leave the row out."
            )
    weight = str(message.get("weight", "")).strip()
    if weight not in (*_NOTHING, *_ONE, *_ZERO):
        raise RecordError(
            f"field '{name}' has a message of weight {short(message['weight'])}; a message is trained (1) or not (0). "
            "Mend it or leave the row out."
        )
    plain = {key: value for key, value in message.items() if value is not None and key not in (*_UNUSED, "weight")}
    if isinstance(message.get("content"), list):
        plain["content"] = _joined(name, message["content"])
    # Nothing is trained but answers.
    return {**plain, "weight": "0"} if weight in _ZERO and message.get("role") == "assistant" else plain


def _joined(name: str, parts: list[Any]) -> str:
    for part in parts:
        if not isinstance(part, Mapping) or part.get("type") != "text" or not isinstance(part.get("text"), str):
            raise RecordError(
                f"field '{name}' has a message with the part {short(part)}, and only text is read "
                "({'type': 'text', 'text': ...}). Leave the row out."
            )
    return "".join(part["text"] for part in parts)


def _holds(value: Any) -> bool:
    return value is not None and value is not False and str(value).strip() not in _NOTHING
