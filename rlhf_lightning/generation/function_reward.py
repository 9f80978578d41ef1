"""Functions as rewards: they ask by the names of their parameters for texts and for fields of the records."""

import inspect
from collections.abc import Callable, Collection, Sequence
from typing import Any

from rlhf_lightning.algorithms.batch import PromptString

TEXTS = ("prompts", "responses", "completions", "messages")
"""What a function may ask for besides fields of the records; completions are the responses."""


def call_by_name(function: Callable[..., Any], prompts: Sequence[str], responses: Sequence[str]) -> Any:
    """What a function returns for prompts and responses.

    By the name of a parameter it gets a list with one value per response: `prompts`, `responses` or `completions`,
    `messages` (the conversation behind each prompt), or any field of the records, such as `answer`, `source`, or a
    label; None where a record lacks it. With `**kwargs` it gets all of them. A function of which no parameter has a
    name to ask by, such as `def score(p, r, /)`, gets prompts and responses.

    Args:
        function: The function, or an object that is called as one.
        prompts: The prompts; plain strings have no fields.
        responses: A response to each.

    Raises:
        ValueError: When it asks for a field that no prompt has.
    """
    parameters = _parameters(function)
    if parameters is None:
        return function(prompts, responses)
    fields = [dict(prompt.fields) if isinstance(prompt, PromptString) else {} for prompt in prompts]
    names = dict.fromkeys(name for of_row in fields for name in of_row)
    check_fields(function, names)
    values: dict[str, Any] = {name: [of_row.get(name) for of_row in fields] for name in names}
    values |= {
        "prompts": list(prompts),
        "responses": list(responses),
        "completions": list(responses),
        "messages": [messages_of(prompt) for prompt in prompts],
    }
    if not any(each.kind is each.VAR_KEYWORD for each in parameters):
        values = {each.name: values[each.name] for each in parameters if each.name in values}
    return function(**values)


def check_fields(function: Callable[..., Any], fields: Collection[str]) -> None:
    """Make sure that the records have every field that a function asks for.

    Args:
        function: The function.
        fields: Names of the fields that there are.

    Raises:
        ValueError: Naming those that are missing, and those that there are; or when it takes no prompts and responses.
    """
    if _parameters(function) is None:
        try:
            inspect.signature(function).bind([], [])
        except TypeError:
            raise ValueError(
                f"the reward {reward_name(function)} takes no prompts and responses: def "
                f"{getattr(function, '__name__', 'score')}(prompts, responses) gets a list of each, and any field of "
                "the records by its name."
            ) from None
        except ValueError:  # of compiled code
            return
    if missing := _missing_fields(function, fields):
        raise ValueError(
            f"the reward {reward_name(function)} asks for {', '.join(missing)}, which no record has. There are "
            f"{', '.join((*TEXTS, *fields))}. Mend the name, give the parameter a default, or put the column into the "
            "data."
        )


def has_fields(function: Callable[..., Any], fields: Collection[str]) -> bool:
    """Whether those are all fields that a function asks for."""
    return not _missing_fields(function, fields)


def messages_of(prompt: str) -> list[dict[str, str]]:
    """The conversation that a prompt is: that of its record, or one message of a user."""
    if isinstance(prompt, PromptString):
        return [dict(message) for message in prompt.messages]
    return [{"role": "user", "content": str(prompt)}]


def reward_name(reward: Any) -> str:
    """What errors call a reward."""
    own = getattr(reward, "name", None)
    if isinstance(own, str):
        return own
    named = reward if hasattr(reward, "__qualname__") else type(reward)
    return f"{named.__module__}:{named.__qualname__}"


def _missing_fields(function: Callable[..., Any], fields: Collection[str]) -> list[str]:
    known = {*TEXTS, *fields}
    required = [each for each in _parameters(function) or [] if each.default is each.empty]
    return [each.name for each in required if each.name not in known and each.kind in _NAMED]


_NAMED = (inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY)


def _parameters(function: Callable[..., Any]) -> list[inspect.Parameter] | None:
    """Those that can be given by name; None where there is none."""
    try:
        parameters = list(inspect.signature(function).parameters.values())
    except (TypeError, ValueError):  # of compiled code
        return None
    return parameters if any(each.kind in (*_NAMED, inspect.Parameter.VAR_KEYWORD) for each in parameters) else None
