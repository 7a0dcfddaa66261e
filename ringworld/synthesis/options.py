"""How providers are reached and run: execution, never identity. Importing it loads neither a client nor a model."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal
from urllib.parse import urlsplit

from ringworld.errors import UserError

_HIDDEN = "[redacted]"


class Secret:
    """A key that shows itself to nobody by accident."""

    def __init__(self, value: str, name: str) -> None:
        """name: of the variable that it is from, for errors. Raises UserError for what cannot be a header's value."""
        self._value = value.strip()
        if not self._value or not (self._value.isascii() and self._value.isprintable()) or " " in self._value:
            raise UserError(f"the variable {name} holds no key: it is empty, or has spaces or other than ASCII letters")

    def reveal(self) -> str:
        return self._value

    def scrub(self, text: str) -> str:
        return text.replace(self._value, _HIDDEN)

    def __repr__(self) -> str:
        return f"Secret({_HIDDEN})"


@dataclass(frozen=True)
class ServerOptions:
    """How a server is reached; never identity.

    base_url: up to and with `/v1`. api_key_env: the *name* of the environment variable that holds the key, in the
    process that runs the flow; empty: none is needed. concurrency: requests at a time. timeout_seconds: of one try, all
    in all. tries: of a request that the server fails. first_wait_seconds doubles up to longest_wait_seconds between
    them. rate_limit_seconds: how long a request is tried again on 429. requests_per_minute, tokens_per_minute: null: as
    fast as the server takes them. limit_field: what the server calls the most tokens of a reply. patience: failed
    requests in a row that mean that the server is down.
    """

    base_url: str = ""
    api_key_env: str = ""
    concurrency: int = 16
    timeout_seconds: float = 120.0
    tries: int = 5
    first_wait_seconds: float = 0.5
    longest_wait_seconds: float = 30.0
    rate_limit_seconds: float = 900.0
    requests_per_minute: float | None = None
    tokens_per_minute: float | None = None
    limit_field: Literal["max_tokens", "max_completion_tokens"] = "max_tokens"
    patience: int = 8

    def __post_init__(self) -> None:
        if self.base_url:
            parts = urlsplit(self.base_url)
            if parts.username or parts.password or parts.query or parts.fragment:
                raise UserError(
                    "base_url holds more than a place: keys belong into the variable that api_key_env names"
                )
            if parts.scheme not in ("http", "https") or not parts.hostname:
                raise UserError(f"base_url={self.base_url!r}: an address such as http://localhost:8000/v1")
        for name in ("concurrency", "tries", "patience"):
            if getattr(self, name) < 1:
                raise UserError(f"{name}={getattr(self, name)}: 1 or more")
        for name in ("timeout_seconds", "first_wait_seconds", "requests_per_minute", "tokens_per_minute"):
            value = getattr(self, name)
            if value is not None and value <= 0:
                raise UserError(f"{name}={value}: above 0")


@dataclass(frozen=True)
class SamplerOptions:
    """How a model is run; never identity.

    slots: requests at a time. context: tokens of prompt and reply together, at most what the model was trained at;
    each slot holds a cache for so many. dtype: of products and cache; null: the model's own. chunk: tokens of a prompt
    that are read at a time. patience: requests in a row that it cannot answer.
    """

    slots: int = 8
    context: int = 4096
    dtype: Literal["float32", "bfloat16"] | None = None
    chunk: int = 1024
    patience: int = 8

    def __post_init__(self) -> None:
        for name in ("slots", "context", "chunk", "patience"):
            if getattr(self, name) < 1:
                raise UserError(f"{name}={getattr(self, name)}: 1 or more")
