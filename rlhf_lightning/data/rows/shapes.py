"""Rows that do not hold one record each: groups of rows, and trees of messages."""

import math
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from rlhf_lightning.data.records import RecordError, short
from rlhf_lightning.data.rows.columns import dense_ranks
from rlhf_lightning.data.rows.readers import SourceRow

ROLES = {"prompter": "user", "assistant": "assistant"}
"""Of a message in OASST, and what we call it."""


def shaped(rows: Iterable[SourceRow], shape: Any) -> Iterable[SourceRow]:
    """The rows in the shape that a source names; a `RecordError` where there is no such shape.

    Args:
        rows: The rows as they were read.
        shape: None, ``message_trees`` or ``{group_by: column}``.
    """
    if shape is None:
        return rows
    if shape == "message_trees":
        return message_rankings(rows)
    if isinstance(shape, Mapping) and shape.keys() == {"group_by"} and isinstance(shape["group_by"], str):
        return grouped(rows, shape["group_by"])
    shapes = "message_trees, {group_by: <column>} or left out"
    raise RecordError(f"'shape' is {short(shape)}; it must be {shapes}. Mend 'shape'.")


def grouped(rows: Iterable[SourceRow], by: str) -> Iterator[SourceRow]:
    """One row for all neighbours with the same value in a column; every other column becomes a list.

    For sets with one row per response (HelpSteer2).

    Args:
        rows: The rows as they were read.
        by: The column; it keeps its value.
    """
    group: list[SourceRow] = []
    for row in rows:
        if row.problem is not None:
            yield row
        elif not isinstance(row.value, Mapping) or by not in row.value:
            yield row._replace(problem=f"column '{by}' is missing, got {short(row.value)}. Mend 'shape'.")
        else:
            if group and group[0].value[by] != row.value[by]:
                yield _merged(group, by)
                group = []
            group.append(row)
    if group:
        yield _merged(group, by)


def _merged(group: list[SourceRow], by: str) -> SourceRow:
    first = group[0]
    lists = {name: [row.value.get(name) for row in group] for name in first.value}
    return SourceRow(f"{first.place} (first of {len(group)})", {**lists, by: first.value[by]})


def message_rankings(rows: Iterable[SourceRow]) -> Iterator[SourceRow]:
    """A row ``prompt``, ``completions``, ``ranks``, ``lang`` for each user turn with two ranked replies or more.

    The prompt is the conversation up to that turn. Replies without a rank are left out, and the ranks of the others
    are numbered anew, because those of deleted replies are missing; a turn with one ranked reply is a problem. OASST1
    and OASST2 come as a table of messages, which has to be held as a whole, or as one tree per row.

    Args:
        rows: Messages with ``message_id``, ``parent_id``, ``role``, ``text``, ``rank`` (0 is best), ``lang``; or
            ``prompt``, a message with ``replies`` that have replies of their own.
    """
    table: list[SourceRow] = []
    for row in rows:
        if row.problem is not None:
            yield row
        elif isinstance(row.value, Mapping) and isinstance(row.value.get("prompt"), Mapping):
            yield from _rankings(_messages_of_tree(row))
        else:
            table.append(row)
    yield from _rankings(table)


def _messages_of_tree(row: SourceRow) -> Iterator[SourceRow]:
    """The messages of a tree as rows of a table, with identifiers of their own."""
    stack: list[tuple[Any, int | None]] = [(row.value["prompt"], None)]
    number = 0
    while stack:
        message, parent = stack.pop()
        if isinstance(message, Mapping):
            replies = message.get("replies") or []
            listed = replies if isinstance(replies, list) else [replies]
            stack += [(reply, number) for reply in reversed(listed)]
            message = {**message, "message_id": number, "parent_id": parent}
        yield row._replace(value=message)
        number += 1


def _rankings(messages: Iterable[SourceRow]) -> Iterator[SourceRow]:
    known: dict[Any, SourceRow] = {}
    replies: dict[Any, list[SourceRow]] = defaultdict(list)
    for row in messages:
        problem = _message_problem(row.value)
        if problem is None and (same := known.get(row.value["message_id"])) is not None:
            identifier = short(row.value["message_id"])
            problem = f"field 'message_id' is {identifier}, as at {same.place}. Leave one of the messages out."
        if problem is not None:
            yield row._replace(problem=problem)
            continue
        known[row.value["message_id"]] = row
        replies[row.value.get("parent_id")].append(row)
    stack: list[tuple[SourceRow, list[dict[str, str]]]] = [(row, []) for row in reversed(replies[None])]
    while stack:
        row, before = stack.pop()
        message = known.pop(row.value["message_id"]).value
        prompt = [*before, {"role": ROLES[message["role"]], "content": message["text"]}]
        below = replies[message["message_id"]]
        stack += [(reply, prompt) for reply in reversed(below)]
        if message["role"] != "prompter":
            continue
        answers = [reply.value for reply in below if reply.value["role"] == "assistant"]
        ranked = [answer for answer in answers if answer.get("rank") is not None]
        if len(ranked) > 1:
            completions = [answer["text"] for answer in ranked]
            ranks = dense_ranks([answer["rank"] for answer in ranked], highest_is_best=False)
            ranking = {"prompt": prompt, "completions": completions, "ranks": ranks, "lang": message.get("lang")}
            yield SourceRow(row.place, ranking)
        elif ranked:
            reason = "field 'rank' is given for one reply alone, and a ranking needs two. Take it or the message out."
            yield row._replace(problem=reason)
    for row in known.values():
        lost = f"field 'parent_id' is {short(row.value.get('parent_id'))}, which leads to no first message."
        yield row._replace(problem=f"{lost} Add it or leave it out.")


def _message_problem(message: Any) -> str | None:
    if not isinstance(message, Mapping):
        return f"a message must be a JSON object, got {short(message)}. Mend it or leave it out."
    for name in ("message_id", "role", "text"):
        if name not in message:
            return f"column '{name}' is missing; the row has {', '.join(map(str, message))}. Mend 'shape'."
    identifier, parent, rank = message["message_id"], message.get("parent_id"), message.get("rank")
    if not isinstance(identifier, (str, int)) or not isinstance(parent, (str, int, type(None))):
        both = f"{short(identifier)} and {short(parent)}"
        return f"fields 'message_id' and 'parent_id' must be strings, got {both}. Fill them."
    if message["role"] not in tuple(ROLES):
        return f"field 'role' must be {' or '.join(ROLES)}, got {short(message['role'])}. Rename it."
    if not isinstance(message["text"], str):
        return f"field 'text' must be a string, got {short(message['text'])}. Fill it or leave the message out."
    if rank is not None and (not isinstance(rank, (int, float)) or not math.isfinite(rank)):
        return f"field 'rank' must be a number where it is given, got {short(rank)}. Mend it or leave it out."
    return None
