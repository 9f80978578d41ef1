import time
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rlhf_lightning.curation.personal import Finding, apart, find_personal, masked, passes_iban, passes_luhn


@pytest.mark.parametrize(
    ("text", "kind", "found"),
    [
        ("write to Jo.Doe+x@mail.example.co.uk.", "email", "Jo.Doe+x@mail.example.co.uk"),
        ("<jo_doe@example.org>", "email", "jo_doe@example.org"),
        ("pay with 4111 1111 1111 1111 please", "credit_card", "4111 1111 1111 1111"),
        ("amex 378282246310005", "credit_card", "378282246310005"),
        ("card 5555-5555-5555-4444.", "credit_card", "5555-5555-5555-4444"),
        ("to DE89 3704 0044 0532 0130 00 by Monday", "iban", "DE89 3704 0044 0532 0130 00"),
        ("GB82WEST12345698765432", "iban", "GB82WEST12345698765432"),
        ("IBAN GB82 WEST 1234 5698 7654 32 ABC", "iban", "GB82 WEST 1234 5698 7654 32"),
        ("my SSN is 536-22-8726", "us_ssn", "536-22-8726"),
        ("the server 8.8.4.4 is down", "ip_address", "8.8.4.4"),
        ("ping 2001:4860:4860::8888 now", "ip_address", "2001:4860:4860::8888"),
        ("call +44 20 7946 0958", "phone", "+44 20 7946 0958"),
        ("call +49 (30) 901820", "phone", "+49 (30) 901820"),
        ("call (415) 555-2671 today", "phone", "(415) 555-2671"),
        ("call 415-555-2671.", "phone", "415-555-2671"),
        ("1-415-555-2671", "phone", "1-415-555-2671"),
    ],
)
def test_what_is_found(text, kind, found):
    start = text.index(found)
    assert find_personal(text) == [Finding(kind, start, start + len(found))]
    assert masked(text, find_personal(text)) == text.replace(found, f"[{kind}]")


@pytest.mark.parametrize(
    "text",
    [
        "no numbers at all",
        "card 4111 1111 1111 1112",  # the check digit is wrong
        "order 1234567890123456",  # the same
        "DE88 3704 0044 0532 0130 00",  # the same
        "from 2021-03-04 to 2022-05-06, 12:30:45",
        "version 1.2.3 of 10.15.7",
        "host 192.168.1.1, 127.0.0.1, 999.1.1.1 or 10.0.0.7",  # nobody's, or none
        "std::vector and a::b, 2001:db8::1",  # the last is set aside for examples
        "000-12-3456 and 666-12-3456 and 123-00-4567",  # never given out as social security numbers
        "3.14159265358979 and 1,000,000,000 and 2 + 3 = 5",
        "@property def f(self): ... a@b",
        "part 12345-67-8901",
    ],
)
def test_what_is_left_alone(text):
    assert find_personal(text) == []


def test_check_digits():
    assert [passes_luhn(f"7992739871{digit}") for digit in range(10)] == [digit == 3 for digit in range(10)]
    assert passes_iban("FR14 2004 1010 0505 0001 3M02 606")
    assert not passes_iban("FR14 2004 1010 0505 0001 3M02 607")
    assert not passes_iban("DE89")


def test_several_in_one_text():
    text = "jo@example.org, 415-555-2671, jo@example.org"
    assert masked(text, find_personal(text)) == "[email], [phone], [email]"


def test_the_first_named_of_two_that_overlap_counts():
    both = [Finding("card", 5, 20), Finding("phone", 8, 15), Finding("email", 0, 5)]
    assert apart(both) == [Finding("email", 0, 5), Finding("card", 5, 20)]


@given(st.text(st.sampled_from("0123456789 .-+()@abcDE:\u00e9\n"), max_size=60))
def test_what_is_masked_is_gone(text):
    found = find_personal(text)
    assert all(0 <= a.end <= b.start for a, b in pairwise(found))
    hidden = masked(text, found)
    for finding in found:
        assert text[finding.start : finding.end] not in hidden or text.count(text[finding.start : finding.end]) > 1


@pytest.mark.parametrize("unit", ["a", "1", "a.", "1 ", "1-", "AB12 ", "a@", "+1 ", "2001:", "(1"])
def test_long_texts_take_no_time(unit):
    start = time.perf_counter()
    find_personal("@1 " + unit * 100_000)
    assert time.perf_counter() - start < 3
