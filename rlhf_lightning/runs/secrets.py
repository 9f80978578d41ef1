"""What must not be written down."""

import os
import re
from collections.abc import Mapping
from typing import Any

REDACTED = "(redacted)"


_SECRET_NAME = (
    r"[\w-]*(?:(?<!eos_)(?<!bos_)(?<!pad_)(?<!unk_)(?<!sep_)(?<!cls_)(?<!mask_)token"
    r"|secret|authorization|password|passwd|credentials?|(?:api|access|private|secret)[_-]?key)"
)
"""How names of secrets end; a tokenizer's special tokens are none."""


_WELL_KNOWN = r"\b(?:(?:hf_|ghp_|github_pat_)\w{20,}|sk-(?:\w+-)*\w{20,})"
"""Keys that services hand out, by their form."""


_SHORTEST_SECRET = 8
"""Environment variables with fewer characters could stand anywhere by chance."""


def redacted(value: Any) -> Any:
    """Plain data as it may be written down: with ``(redacted)`` in place of secrets.

    Secret is what a name such as ``token``, ``password`` or ``api_key`` holds, also as ``name=value`` in a text; the
    value of an environment variable with such a name, wherever it stands; and what has the form of a service's key.

    Examples:
        >>> redacted({"judge": {"api_key": "abc"}, "eos_token": "</s>", "command": "run seed=1,hub_token=abc"})
        {'judge': {'api_key': '(redacted)'}, 'eos_token': '</s>', 'command': 'run seed=1,hub_token=(redacted)'}
    """
    own = [text for name, text in os.environ.items() if len(text) >= _SHORTEST_SECRET and _is_secret(name)]
    return _redacted(value, "|".join([_WELL_KNOWN, *map(re.escape, own)]))


def _redacted(value: Any, secrets: str) -> Any:
    if isinstance(value, Mapping):
        return {
            name: REDACTED if _is_secret(str(name)) and item is not None else _redacted(item, secrets)
            for name, item in value.items()
        }
    if isinstance(value, list):
        return [_redacted(item, secrets) for item in value]
    if isinstance(value, str):
        named = re.sub(rf"(?i)\b({_SECRET_NAME})=[^\s,'\"\]}}]+", rf"\1={REDACTED}", value)
        return re.sub(secrets, REDACTED, named)
    return value


def _is_secret(name: str) -> bool:
    return re.fullmatch(_SECRET_NAME, name, re.IGNORECASE) is not None
