"""What may leave the run's folder, cleaned of secrets: one rule for MLflow, for the report and for anything printed.

Three things give a secret away: the name that it is stored under (`hf_token`, `api_key`, `password`), its own shape
(credentials inside a URL, `name=value` in a command line, the prefixes of well-known providers), and that it is the
value of such a name in this process's environment, wherever a library repeats it. All are hidden, the rest is
untouched. A name counts word by word, because this project is full of innocent neighbours: `tokens`, `tokenizer`,
`tokens_per_second` are figures, and a *number* under `num_key_value_heads` is a size, not a key.
"""

from __future__ import annotations

import functools
import os
import re
from collections.abc import Mapping, Sequence
from typing import Any
from urllib.parse import unquote

HIDDEN = "[redacted]"

_ALWAYS = ("secret", "secrets", "password", "passwords", "passwd", "pwd", "passphrase", "credential", "credentials")
_IF_TEXT = ("key", "keys", "token", "authorization", "auth", "cookie", "signature", "sig")

_WORD = re.compile(r"[A-Z]+(?![a-z])|[A-Z]?[a-z]+|\d+")
# Names begin where no name goes on to the left: tried at every letter, a long line would cost the square of its length.
_URL = re.compile(r"(?<![\w+.-])[\w+.-]+://[^\s'\"]+")
_URL_CREDENTIALS = re.compile(r"(?<![\w+.-])(?P<scheme>[\w+.-]+://)(?P<secret>[^/\s?#]+)@")
# name=value, name="value", name: value, and as JSON and Python show mappings: "name": "value"
_ASSIGNMENT = re.compile(
    r"(?<![\w.-])(?P<name>[.-]*\w[\w.-]*)(?P<sign>(?:=|: )['\"]?|['\"]\s*:\s*['\"])(?P<value>[^\s&;,'\"]+)"
)
_AUTHORIZATION = re.compile(r"(?P<scheme>\b(?:Bearer|Basic))\s+[\w.~+/=-]{8,}")
_FLAG = re.compile(r"(?<![\w-])(?P<name>-{2,}[A-Za-z][\w-]*)\s+(?P<value>[^\s-][^\s]*)")
_KNOWN_SHAPES = re.compile(
    r"\b(?:hf_[A-Za-z0-9]{16,}|sk-[A-Za-z0-9_-]{16,}|gh[pousr]_[A-Za-z0-9]{16,}|glpat-[\w-]{16,}"
    r"|xox[abprs]-[\w-]{16,}|A[KS]IA[A-Z0-9]{12,}|AIza[\w-]{30,}|ya29\.[\w-]{16,}"
    r"|eyJ[\w-]{8,300}\.eyJ[\w-]{8,}\.[\w-]*)"
    r"|-----BEGIN [A-Z ]*PRIVATE KEY-----.*?(?:-----END [A-Z ]*PRIVATE KEY-----|\Z)",
    re.DOTALL,
)
_SHORTEST = 8  # of a secret in the environment: shorter values are found in innocent text


def redact(value: Any, name: str = "") -> Any:
    """`value` with every secret in it replaced by `[redacted]`: mappings and sequences are walked, others copied.

    `name` is the key that `value` stands under, when it has one. Mappings come back as dicts, sequences as lists.
    """
    if isinstance(value, Mapping):
        return {str(key): redact(item, _inherit(name, str(key))) for key, item in value.items()}
    if isinstance(value, Sequence) and not isinstance(value, (str, bytes)):
        return [redact(item, name) for item in value]
    if value is not None and _is_secret(name, isinstance(value, (str, bytes))):
        return HIDDEN
    return redact_text(value) if isinstance(value, str) else value


def redact_text(text: str) -> str:
    """`text` without credentials in URLs, values assigned to secret names (`token=...`), known key shapes, and secrets
    of this process's environment."""
    for secret in _secrets_of(tuple(os.environ.items())):
        text = text.replace(secret, HIDDEN)
    text = _KNOWN_SHAPES.sub(HIDDEN, text)
    text = _URL_CREDENTIALS.sub(rf"\g<scheme>{HIDDEN}@", text)
    text = _AUTHORIZATION.sub(rf"\g<scheme> {HIDDEN}", text)
    text = _ASSIGNMENT.sub(_hide_assigned, text)
    return _FLAG.sub(_hide_flag, text)


def holds_credentials(text: str) -> bool:
    """Whether a text that somebody wrote down to be kept has a key in it, or a URL with more than a place."""
    return _KNOWN_SHAPES.search(text) is not None or any(
        _URL_CREDENTIALS.search(url) or _ASSIGNMENT.sub(_hide_assigned, url) != url for url in _URL.findall(text)
    )


@functools.lru_cache(maxsize=4)
def _secrets_of(environment: tuple[tuple[str, str], ...]) -> tuple[str, ...]:
    """Values of secret names, and passwords in URLs, longest first. A value that is a path names a file, no secret."""
    found = set()
    for name, value in environment:
        if _is_secret(name, is_text=True) and not value.startswith(("/", "~", ".")):
            found.add(value.strip())
        for match in _URL_CREDENTIALS.finditer(value):
            user, colon, password = match["secret"].partition(":")
            found |= {password, unquote(password)} if colon else {user}
    return tuple(sorted((value for value in found if len(value) >= _SHORTEST), key=len, reverse=True))


def _inherit(outer: str, inner: str) -> str:
    """What lies inside `secrets: {...}` is secret whatever it is called."""
    return outer if _is_secret(outer, is_text=False) else inner


def _is_secret(name: str, is_text: bool) -> bool:
    words = [word.lower() for word in _WORD.findall(name)]
    if any(word.endswith(_ALWAYS) for word in words):
        return True
    return is_text and any(word in _IF_TEXT or word.endswith(("apikey", "accesskey", "authtoken")) for word in words)


def _hide_assigned(match: re.Match[str]) -> str:
    # Few digits are a figure: num_key_value_heads=8.
    figure = match["value"].isdigit() and len(match["value"]) < _SHORTEST
    hidden = _is_secret(match["name"], is_text=not figure)
    return f"{match['name']}{match['sign']}{HIDDEN}" if hidden else match[0]


def _hide_flag(match: re.Match[str]) -> str:
    return f"{match['name']} {HIDDEN}" if _is_secret(match["name"], is_text=True) else match[0]
