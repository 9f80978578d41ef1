"""Forms of secrets: their names, how a text holds a name and its value, and what services hand out."""

import re
from typing import Any

REDACTED = "(redacted)"
_SECRET_NAME = re.compile(
    r"\w*(?:secret|password|passwd|passphrase|credential|authorization)s?"
    r"|(?:\w+_)?(?:auth|cookie|jwt|(?:db|user|smtp|sql|proxy)_?pass)s?|\w+_pwd"
    r"|\w*(?:api|access|private|secret|account|signing|encryption|(?:hub|hf|openai|anthropic|wandb|ssh)_)_?keys?"
    r"|\w*(?:access|auth|api|refresh|bearer|session|hub|hf)_?tokens"
    r"|(?P<before>\w*?)_?token"
)
"""How names of secrets end, in small letters with `_` between words."""
_TOKENS_OF_TEXT = re.compile(
    r"(?:.*_)?(?:[ebp]os|pad|unk|sep|cls|mask|stop|start|end|begin|special|image|video|audio|tool|think|turn|prefix"
    r"|suffix|middle|system|user|assistant|first|last|next|per|each|single|max|min|num|new|no|total|by)"
)
"""Words before `token` where text is meant."""
_QUERY_NAMES = re.compile(r"key|pwd|sig|signature|auth|code|sas|x_(?:amz|goog)_(?:signature|credential)")
"""Further names that are secret in the query of an address."""

WELL_KNOWN = re.compile(
    r"-----BEGIN [A-Z ]*PRIVATE KEY-----.*?(?:-----END [A-Z ]*PRIVATE KEY-----|\Z)"  # of ssh, TLS
    r"|\b(?:(?:hf_|gh[opsur]_|github_pat_|gsk_|npm_|r8_)\w{20,}"  # hf_aBcD..., ghp_aBcD...
    r"|(?:sk|rk|pk)[-_](?:\w+-)*\w{20,}"  # sk-aBcD..., sk-ant-api03-aBcD..., sk_live_aBcD...
    r"|(?:glpat-|nvapi-|xai-|pypi-|SG\.)[\w.-]{20,}"  # glpat-aBcD...
    r"|xox[a-z]-[\w-]{10,}"  # xoxb-123-aBcD...
    r"|AIza[\w-]{30,}|(?:AKIA|ASIA)[A-Z0-9]{16}\b"  # of Google and AWS
    r"|eyJ[\w-]{8,}\.[\w-]{8,}\.[\w-]*)"  # eyJhbG... . ... . ..., a JWT
    r"|(?<=hooks\.slack\.com/services/)[\w/]+",
    re.DOTALL,
)
"""What services hand out, by its form."""
IN_ADDRESS = re.compile(
    r"(?<=://)(?:[^\s/:@'\"?#]*:(?P<password>[^\s/'\"?#]+)|(?P<user>[^\s/:@'\"?#]{8,}))(?=@)"  # https://ann:abc@host
    r"|(?<=[?&;])(?P<name>[\w.-]+)=(?P<value>[^\s&;#'\",\]}]+)"  # ?seed=1&token=abc
)
SCHEME = re.compile(
    r"\b(?:(?i:bearer)\s+(?!tokens?\b|\$\{|\()|Basic\s+(?=\S*(?:[\d=+/]|[a-z][A-Z])))(?P<secret>[\w.~+/=-]{4,})"
)
"""`Bearer abc` and `Basic dXNlcjphYmM=`, as in headers."""
_INTERPOLATION = r"\$\{(?:[^{}]|\$\{[^{}]*\})*\}"
ONLY_INTERPOLATED = re.compile(rf"(?:(?:Bearer|Basic|Token) )?(?:{_INTERPOLATION})+|\?\?\?")
DEFAULT = re.compile(r"(?<=\$\{oc\.env:)(?P<name>[\w.]+),\s*(?P<default>(?:[^{}]|\$\{[^{}]*\})+)(?=\})")
"""`${oc.env:MY_TOKEN,abc}`."""
NAME = re.compile(
    r"(?<![\w.?&;-])(?:(?P<dashed>--?[a-zA-Z][\w-]*+)(?:[ \t]+(?!-)|=)"  # --api-key abc
    r"|(?P<name>[a-zA-Z_][\w.-]*+)(?:\\*[\"'])?[ \t]*(?:=(?!=)|(?P<colon>:(?!//)))[ \t]*)"  # "api_key": "abc"
)
_ENDS = r"\s,'\"\]}"
_WHOLE = (
    rf"{_INTERPOLATION}"
    r"|(?P<quote>\\*[\"'])(?P<inner>(?:(?!(?P=quote))(?:\\.|[^\\])|'')*)(?P=quote)"
    r"|\[(?:[^\[\]]|\[[^\[\]]*\])*\]|\{(?:[^{}]|\{[^{}]*\})*\}"  # api_keys=[a, b], auth: {user: ann, pass: b}
    r"|[\"'][^\n]+"  # cut before its closing quote
)
_WORD = (
    rf"(?:(?i:bearer|basic|token)[ ]+)?[^{_ENDS}]+(?:,[^{_ENDS}=:]+=*(?=[{_ENDS}]|\Z))*"  # api_key=abc,def of a sweep
)
AFTER_EQUALS = re.compile(f"{_WHOLE}|{_WORD}", re.DOTALL)
AFTER_COLON = re.compile(rf"{_WHOLE}|[^{_ENDS}][^\n,'\"\]}}]*", re.DOTALL)
BLOCK = re.compile(
    r"(?m)^(?P<indent> *)(?P<name>(?:- +)?[\w.-]+):[ ]*(?:[|>][-+\d]*)?[ ]*\n"
    r"(?P<rest>(?P=indent)[ -].*(?:\n(?P=indent)[ -].*)*)"
)
"""A name in YAML whose value stands in the lines below it."""

NOTHING = re.compile(r"(?i:none|null|true|false|)|\(redacted\).*", re.DOTALL)
"""Values that are no secret, whatever their name is."""
_OF_TEXT = re.compile(r"[+-]?\d{1,7}(?:\.\d+)?|<[^<>]{1,30}>|\[[A-Z_]+\]")
"""Values of a `token` that are none: numbers, and the special tokens of models."""


def is_secret(name: str, value: Any = "abc") -> bool:
    """Whether what has this name is a secret.

    Examples:
        >>> [is_secret(name) for name in ("judge.apiKey", "X-Api-Key", "hub_token", "eos_token", "max_tokens", "key")]
        [True, True, True, False, False, False]
    """
    match = _SECRET_NAME.fullmatch(_words(name.rpartition(".")[2]))
    if match is None or isinstance(value, bool) or value is None or NOTHING.fullmatch(str(value)):
        return False
    before = match["before"]
    return before is None or not (_TOKENS_OF_TEXT.fullmatch(before) or _OF_TEXT.fullmatch(str(value)))


def is_secret_in_query(name: str) -> bool:
    """Whether what has this name in the query of an address is a secret."""
    return is_secret(name) or _QUERY_NAMES.fullmatch(_words(name)) is not None


def _words(name: str) -> str:
    """A name in small letters, with `_` between its words."""
    split = re.sub(r"(?<=[a-z0-9])(?=[A-Z])|(?<=[A-Z])(?=[A-Z][a-z])", "_", name)
    return re.sub(r"[\W_]+", "_", split).strip("_").lower()
