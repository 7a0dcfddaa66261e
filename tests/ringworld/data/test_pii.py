"""What reaches a person or opens a door is masked and counted; what only looks like it stays."""

from __future__ import annotations

import pytest

from ringworld.data.pii import KINDS, mask

# Assembled here, so that no scanner of this repository takes them for real ones.
AWS = "AKIA" + "IOSFODNN7EXAMPLQ"
GITHUB = "ghp_" + "a1B2" * 9
GOOGLE = "AIza" + "Sy_" * 11 + "ab"
TOKEN = ".".join(("eyJ" + "hbGciOiJIUzI1", "eyJ" + "zdWIiOiIxMjM0", "SflKxwRJSMeKKF"))
PEM = "-----BEGIN RSA PRIVATE" + " KEY-----\n" + "MIIEow+/=\n" * 5 + "-----END RSA PRIVATE" + " KEY-----"


@pytest.mark.parametrize(
    ("text", "masked"),
    [
        ("Write to ahab@pequod.com, or to <ish.mael+sea@mail.pequod.co.uk>.", "Write to <email>, or to <<email>>."),
        ("call (212) 555-0123 or 212-555-0123 or 1-800-555-0199.", "call <phone> or <phone> or <phone>."),
        ("Tel.: 030 / 12 34 56 78, +41 44 668 18 00; fax 555 1234", "Tel.: <phone>, <phone>; fax <phone>"),
        ("from 93.184.216.34 and [2606:2800:220:1:248:1893:25c8:1946]:443", "from <ip> and [<ip>]:443"),
        (f"{AWS} {GITHUB} {GOOGLE} {TOKEN}", "<key> <key> <key> <key>"),
        (f"before\n{PEM}\nafter", "before\n<key>\nafter"),
        ('api_key = "abcDEF123456ghiJKL789"', 'api_key = "<key>"'),
        ('"client_secret": "abcDEF123456ghiJKL789"', '"client_secret": "<key>"'),
        ("b\u00fccher@exam\u00e9.de \U0001f600 x@yz.museum", "b\u00fccher@exam\u00e9.de \U0001f600 <email>"),
    ],
)  # fmt: skip
def test_what_is_personal_is_masked(text: str, masked: str) -> None:
    found, counts = mask(text, KINDS)
    assert found == masked
    assert sum(counts.values()) == sum(masked.count(f"<{kind}>") for kind in KINDS)


@pytest.mark.parametrize(
    "text",
    [
        "user@example.com, a@b.test, root@localhost",
        "git clone git@github.com:owner/name.git",
        "@property\ndef weights(x):\n    return x@self.weight",
        "127.0.0.1 0.0.0.0 10.0.0.8 192.168.1.1 255.255.255.0 224.0.0.251 ::1 fe80::1 2001:db8::1",
        "Section 3.1.2.4 and 13.2.3.1, object 2.5.29.16, version 1.2.3.4, install x==12.34.56.78, v10.20.30.40",
        "std::vector a::b::c 12:30:45 2026-11-21T04:29:13 dead::beef",
        "ISBN 978-0-306-40615-7, 1914-1918, 1,234,567,890, 3.14159265358979, 2012-03-04, $1,000-2,000",
        "[0.12345678 0.23456789] x+12345678 1234567890 999-999-999 page 212 555 0123",
        "AKIA is short, ghp_short, eyJhbGciOi.no.token, task-" + "a" * 40,
        'token = "a_word_without_any_digits_in_it"; name = "abcDEF123456ghiJKL789"',
        "The whale, at 212, said: 555.",
        "",
    ],
)
def test_what_only_looks_personal_stays(text: str) -> None:
    assert mask(text, KINDS) == (text, dict.fromkeys(KINDS, 0))


def test_only_the_kinds_that_are_asked_for_are_masked() -> None:
    assert mask("a@b.org 93.184.216.34", ("ip",)) == ("a@b.org <ip>", {"ip": 1})


def test_of_two_that_overlap_one_is_masked() -> None:
    text = f"password: '{GITHUB}' https://{GITHUB}@github.com"
    assert mask(text, KINDS)[0] == "password: '<key>' https://<key>@github.com"


def test_a_text_full_of_signs_costs_linear_time() -> None:
    """Each of these made a naive pattern quadratic, which for a megabyte would be hours."""
    for unit in ("a.", "a@", "1-", "::", "(1", "+1 ", "eyJa", '"a', "-----BEGIN ", "sk-", "1.1."):
        mask(unit * (300_000 // len(unit)), KINDS)
