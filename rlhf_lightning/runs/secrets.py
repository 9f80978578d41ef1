"""What must not be written down.

Secrets are found by structure, and written out here: scanners such as detect-secrets say which lines of a file look
suspicious, not where a secret starts and ends, and know neither this configuration nor its names.
"""

import json
import os
import re
from collections.abc import Callable, Mapping
from functools import lru_cache, partial
from typing import Any
from urllib.parse import quote, quote_plus, unquote

from rlhf_lightning.runs.secret_forms import (
    AFTER_COLON,
    AFTER_EQUALS,
    BLOCK,
    DEFAULT,
    IN_ADDRESS,
    NAME,
    NOTHING,
    ONLY_INTERPOLATED,
    REDACTED,
    SCHEME,
    WELL_KNOWN,
    is_secret,
    is_secret_in_query,
)

_SHORTEST_SECRET = 8
"""What has fewer characters could stand anywhere by chance: it is redacted beside its name alone."""

_WORD = re.compile(r"[a-z]{1,15}|[A-Z]{1,15}")
_remembered: set[str] = set()


def redacted(value: Any) -> Any:
    """Plain data or text as it may be written down: with ``(redacted)`` in place of secrets.

    Secret is what a name such as ``token``, ``password`` or ``apiKey`` holds, as key of a mapping or in a text, in any
    way of writing it; passwords and keys within addresses and headers; what has the form of a service's key; and,
    wherever it stands, the value of an environment variable with such a name and what `remember_secrets` was shown.

    Examples:
        >>> redacted({"judge": {"api_key": "abc"}, "eos_token": "</s>", "command": "run seed=1,hub_token=abc"})
        {'judge': {'api_key': '(redacted)'}, 'eos_token': '</s>', 'command': 'run seed=1,hub_token=(redacted)'}
        >>> redacted("GET https://ann:abc@host/?key=abc&seed=1 with {Authorization: Bearer abc, seed: 1}")
        'GET https://ann:(redacted)@host/?key=(redacted)&seed=1 with {Authorization: (redacted), seed: 1}'
    """
    return _walk(value, lambda _: REDACTED)


def remember_secrets(*values: Any) -> None:
    """Redact the secrets of plain data from now on, wherever they stand.

    Args:
        values: Plain data such as the configuration, or arguments of a command line.
    """
    found: list[str] = []

    def note(secret: str) -> str:
        found.extend((secret, *re.split(r"[,\[\]{}'\"]|:\s|(?i:bearer|basic|token)\s", secret)))
        return REDACTED

    for value in values:
        _walk(value, note)
        name, _, rest = value.partition("=") if isinstance(value, str) else ("", "", "")
        if is_secret(name.lstrip("+~"), rest):
            _hidden(rest.strip("'\""), note)  # an argument ends where it ends, whatever is in it
    _remembered.update(form for secret in found for form in _spellings(secret))


def _walk(value: Any, hide: Callable[[str], str]) -> Any:
    if isinstance(value, Mapping):
        return {
            _walk(name, hide): (_hidden if is_secret(str(name), item) else _walk)(item, hide)
            for name, item in value.items()
        }
    if isinstance(value, list | tuple):
        return (list if isinstance(value, list) else tuple)(_walk(item, hide) for item in value)
    return _text(value, hide) if isinstance(value, str) else value


def _hidden(value: Any, hide: Callable[[str], str]) -> Any:
    """What stands under the name of a secret."""
    if isinstance(value, Mapping | list | tuple):
        for item in value.values() if isinstance(value, Mapping) else value:
            _hidden(item, hide)
        return REDACTED if value else value
    text = str(value)
    if NOTHING.fullmatch(text):
        return value
    return _text(text, hide) if ONLY_INTERPOLATED.fullmatch(text) else hide(text)


def _text(text: str, hide: Callable[[str], str]) -> str:
    known = _known(frozenset(_remembered) | _of_environment(frozenset(os.environ.items())))
    text = WELL_KNOWN.sub(partial(_within, hide, 0), known.sub(partial(_within, hide, 0), text))
    text = IN_ADDRESS.sub(partial(_in_address, hide), text)
    text = DEFAULT.sub(lambda match: _within(hide, "default", match) if is_secret(match["name"]) else match[0], text)
    text = BLOCK.sub(lambda match: _block(match, hide), text)
    return SCHEME.sub(partial(_within, hide, "secret"), _named(text, hide))


def _within(hide: Callable[[str], str], group: str | int, match: re.Match[str]) -> str:
    """What was found, with a group of it hidden."""
    before, after = match.start(group) - match.start(), match.end(group) - match.start()
    return match[0][:before] + str(_hidden(match[group], hide)) + match[0][after:]


def _in_address(hide: Callable[[str], str], match: re.Match[str]) -> str:
    if match["name"] is None:
        return _within(hide, "user" if match["password"] is None else "password", match)
    return _within(hide, "value", match) if is_secret_in_query(match["name"]) else match[0]


def _named(text: str, hide: Callable[[str], str]) -> str:
    """A text without the values of secret names in it."""
    done, place = [], 0
    while name := NAME.search(text, place):
        done.append(text[place : name.end()])
        place = name.end()
        value = (AFTER_COLON if name["colon"] else AFTER_EQUALS).match(text, place)
        group = "inner" if value and value["quote"] else 0
        if value and is_secret((name["name"] or name["dashed"]).lstrip("-"), value[group]):
            done += [
                text[place : value.start(group)],
                str(_hidden(value[group], hide)),
                text[value.end(group) : value.end()],
            ]
            place = value.end()
    return "".join([*done, text[place:]])


def _block(match: re.Match[str], hide: Callable[[str], str]) -> str:
    name = match["name"]
    if not is_secret(name.lstrip("- ")):
        return match[0]
    for line in match["rest"].splitlines():
        _hidden(line.strip(" -"), hide)
    return f"{match['indent']}{name}: {REDACTED}"


def _spellings(secret: str) -> set[str]:
    """A secret as it stands in texts, addresses, JSON and tracebacks; nothing where it is too short."""
    secret = secret.strip()
    if len(secret) < _SHORTEST_SECRET or secret in REDACTED:
        return set()
    return {
        secret,
        unquote(secret),
        quote(secret, safe=""),
        quote_plus(secret),
        json.dumps(secret)[1:-1],
        repr(secret)[1:-1],
    }


@lru_cache(maxsize=4)
def _of_environment(variables: frozenset[tuple[str, str]]) -> frozenset[str]:
    # A word such as "disabled" is no key, whatever the variable is called, and stands in many texts.
    values = (text for name, text in variables if is_secret(name, text) and not _WORD.fullmatch(text))
    return frozenset(form for text in values for form in _spellings(text))


@lru_cache(maxsize=4)
def _known(secrets: frozenset[str]) -> re.Pattern[str]:
    longest_first = sorted(secrets, key=lambda secret: (-len(secret), secret))
    return re.compile("|".join(map(re.escape, longest_first)) or r"(?!)")
