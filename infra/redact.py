"""What may leave the run's folder, cleaned of secrets: one rule for MLflow, for the report and for anything printed.

Two things give a secret away: the name that it is stored under (`hf_token`, `api_key`, `password`) and its own shape
(credentials inside a URL, `name=value` in a command line, the prefixes of well-known providers). Both are hidden, the
rest is untouched. A name counts word by word, because this project is full of innocent neighbours: `tokens`,
`tokenizer`, `tokens_per_second` are figures, and a *number* under `num_key_value_heads` is a size, not a key.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

HIDDEN = "[redacted]"

_ALWAYS = ("secret", "secrets", "password", "passwords", "passwd", "passphrase", "credential", "credentials")
_IF_TEXT = ("key", "keys", "token", "authorization", "auth", "cookie", "signature", "sig")

_WORD = re.compile(r"[A-Z]+(?![a-z])|[A-Z]?[a-z]+|\d+")
_URL_CREDENTIALS = re.compile(r"(?P<scheme>[A-Za-z][A-Za-z0-9+.-]*://)[^/\s@?#]+@")
_ASSIGNMENT = re.compile(r"(?P<name>[A-Za-z][\w.-]*)(?P<sign>=|: )(?P<value>[^\s&;,'\"]+)")
_AUTHORIZATION = re.compile(r"(?P<scheme>\b(?:Bearer|Basic))\s+[\w.~+/=-]{8,}")
_FLAG = re.compile(r"(?P<name>--[A-Za-z][\w-]*)\s+(?P<value>[^\s-][^\s]*)")
_KNOWN_SHAPES = re.compile(
    r"\b(?:hf_[A-Za-z0-9]{16,}|sk-[A-Za-z0-9_-]{16,}|gh[pousr]_[A-Za-z0-9]{16,}|AKIA[A-Z0-9]{12,}|ya29\.[\w-]{16,})"
    r"|-----BEGIN [A-Z ]*PRIVATE KEY-----.*?(?:-----END [A-Z ]*PRIVATE KEY-----|\Z)",
    re.DOTALL,
)


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
    """`text` without credentials in URLs, values assigned to secret names (`token=...`), and known key shapes."""
    text = _KNOWN_SHAPES.sub(HIDDEN, text)
    text = _URL_CREDENTIALS.sub(rf"\g<scheme>{HIDDEN}@", text)
    text = _AUTHORIZATION.sub(rf"\g<scheme> {HIDDEN}", text)
    text = _ASSIGNMENT.sub(_hide_assigned, text)
    return _FLAG.sub(_hide_flag, text)


def _inherit(outer: str, inner: str) -> str:
    """What lies inside `secrets: {...}` is secret whatever it is called."""
    return outer if _is_secret(outer, is_text=False) else inner


def _is_secret(name: str, is_text: bool) -> bool:
    words = [word.lower() for word in _WORD.findall(name)]
    if any(word.endswith(_ALWAYS) for word in words):
        return True
    return is_text and any(word in _IF_TEXT or word.endswith(("apikey", "accesskey", "authtoken")) for word in words)


def _hide_assigned(match: re.Match[str]) -> str:
    hidden = _is_secret(match["name"], is_text=True)
    return f"{match['name']}{match['sign']}{HIDDEN}" if hidden else match[0]


def _hide_flag(match: re.Match[str]) -> str:
    return f"{match['name']} {HIDDEN}" if _is_secret(match["name"], is_text=True) else match[0]
