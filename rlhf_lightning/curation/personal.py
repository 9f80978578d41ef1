"""Personal data that has a form: found by regular expressions and, where numbers carry one, their check digits.

What has no form is not found: names, addresses, birthdays. For those there is ``PresidioFinder`` with a model.
"""

import ipaddress
import re
from collections.abc import Callable, Iterable, Sequence
from typing import NamedTuple, TypeAlias


class Finding(NamedTuple):
    """A piece of personal data in a text.

    Args:
        kind: What it is, such as ``email``.
        start: First character.
        end: Behind the last character.
    """

    kind: str
    start: int
    end: int


Finder: TypeAlias = Callable[[str], Iterable[Finding]]
"""Anything that finds personal data in a text."""


def passes_luhn(number: str) -> bool:
    """Whether the last digit is the check digit of the others (ISO/IEC 7812-1); one random number in ten passes.

    >>> passes_luhn("4111 1111 1111 1111"), passes_luhn("4111 1111 1111 1112")
    (True, False)
    """
    digits = [int(sign) for sign in reversed(number) if sign.isdigit()]
    doubled = [sum(divmod(2 * digit, 10)) for digit in digits[1::2]]
    return (sum(digits[::2]) + sum(doubled)) % 10 == 0


def passes_iban(number: str) -> bool:
    """Whether the two digits after the country are the check digits of the rest (ISO 13616).

    >>> passes_iban("DE89 3704 0044 0532 0130 00"), passes_iban("DE88 3704 0044 0532 0130 00")
    (True, False)
    """
    plain = number.replace(" ", "")
    if not 15 <= len(plain) <= 34:
        return False
    return int("".join(str(int(sign, 36)) for sign in plain[4:] + plain[:4])) % 97 == 1


def _card(text: str) -> str:
    return text if passes_luhn(text) else ""


def _iban(text: str) -> str:
    """As many groups from the left as pass: capitals behind an account number may look like a part of it."""
    while text and not passes_iban(text):
        text = text.rpartition(" ")[0]
    return text


def _address(text: str) -> str:
    """Addresses of private networks, and those set aside for examples, belong to nobody."""
    try:
        return text if ipaddress.ip_address(text).is_global else ""
    except ValueError:
        return ""


def _phone(text: str) -> str:
    return text if 8 <= sum(sign.isdigit() for sign in text) <= 15 else ""


_FORMS: Sequence[tuple[str, re.Pattern[str], Callable[[str], str]]] = (
    ("email", re.compile(r"(?i)(?<![\w.+%-])[\w.+%-]{1,64}@(?:[a-z0-9-]{1,63}\.){1,8}[a-z]{2,24}(?![\w-])"), str),
    ("iban", re.compile(r"(?<!\w)[A-Z]{2}\d{2}(?: ?[A-Z0-9]{4}){2,7}(?: ?[A-Z0-9]{1,4})?(?!\w)"), _iban),
    ("credit_card", re.compile(r"(?<![\w.-])[2-6]\d{3}(?:[ -]?\d){9,15}(?![\w-])"), _card),
    ("us_ssn", re.compile(r"(?<![\w-])(?!000|666|9)\d{3}-(?!00)\d\d-(?!0000)\d{4}(?![\w-])"), str),
    ("ip_address", re.compile(r"(?<![\w.])(?:\d{1,3}\.){3}\d{1,3}(?!\.?\w)"), _address),
    ("ip_address", re.compile(r"(?<![\w:])[23][0-9a-f]{3}(?::[0-9a-f]{0,4}){2,7}(?![\w:])", re.IGNORECASE), _address),
    ("phone", re.compile(r"(?<![\w+])\+\d{1,3}(?:[ .\-/]?\(?\d{1,4}\)?){2,6}(?!\w)"), _phone),
    ("phone", re.compile(r"(?<![\w.-])(?:1[ .-])?(?:\([2-9]\d{2}\) ?|[2-9]\d{2}[ .-])\d{3}[ .-]\d{4}(?![\w-])"), str),
)
"""Kind, form and what of it counts. Phone numbers are those with a country code and those written as in North America;
others look like any number."""

KINDS = tuple(dict.fromkeys(kind for kind, *_ in _FORMS))


def find_personal(text: str) -> list[Finding]:
    """E-mail addresses, bank accounts, payment cards, US social security numbers, IP addresses and phone numbers.

    Source: InstructGPT, section 3.2 (prompts of the training split are filtered for personal data).

    Examples:
        >>> find_personal("mail me at jo@example.org")
        [Finding(kind='email', start=11, end=25)]
    """
    if "@" not in text and not any(sign.isdigit() for sign in text):
        return []
    found = []
    for kind, form, part in _FORMS:
        for match in form.finditer(text):
            if counts := part(match.group()):
                found.append(Finding(kind, match.start(), match.start() + len(counts)))
    return apart(found)


def apart(findings: Iterable[Finding]) -> list[Finding]:
    """The findings in the order of the text, without those that overlap one before them in the list."""
    kept: list[Finding] = []
    for finding in findings:
        if all(finding.end <= other.start or other.end <= finding.start for other in kept):
            kept.append(finding)
    return sorted(kept, key=lambda finding: finding.start)


def masked(text: str, findings: Sequence[Finding]) -> str:
    """The text with the kind in place of what was found.

    Args:
        text: Where it was found.
        findings: What was found, in order, none overlapping another.

    Examples:
        >>> masked("mail me at jo@example.org", find_personal("mail me at jo@example.org"))
        'mail me at [email]'
    """
    for kind, start, end in reversed(findings):
        text = f"{text[:start]}[{kind}]{text[end:]}"
    return text
