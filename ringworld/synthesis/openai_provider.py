"""Any server that speaks OpenAI's chat completions: vLLM, Ollama, a hosted one, or `ringworld.generate.serve`.

- The `openai` client sends and knows the protocol; what is tried again, when and how often is decided here, since a
  rest after a 429 concerns all requests, and each try is metered.
- Several threads may ask at once; they share the concurrency and the pace. Requests run on an event loop in a thread of
  its own.
- The key lives in this process's memory alone: it is scrubbed from whatever a server says before that goes anywhere.
"""

from __future__ import annotations

import asyncio
import email.utils
import json
import queue
import random
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import openai

from ringworld.data.conversations import Turn
from ringworld.errors import UserError
from ringworld.synthesis.options import Secret, ServerOptions
from ringworld.synthesis.pace import Pace
from ringworld.synthesis.providers import (
    CONNECTION,
    GARBAGE,
    RATE_LIMIT,
    REFUSED,
    SERVER_ERROR,
    TIMEOUT,
    Meter,
    Patience,
)
from ringworld.synthesis.records import Ask, Reply

_SHOWN = 2000  # characters of what a server said, where it was no reply
# What a chat template puts around a turn, in tokens, at most.
_TURN_TOKENS = 64
# What any server that is alive answers.
_PROBE = Ask((Turn("user", "Say yes."),), max_tokens=16, temperature=0.0, seed=0)


@dataclass(frozen=True)
class _Failed:
    """A try without a reply. wait: seconds that the server asks for. unused: whether it cannot have cost tokens."""

    reason: str
    detail: str
    wait: float | None = None
    unused: bool = False


class OpenAIProvider:
    """Raises UserError for a server that cannot be asked at all: no address."""

    def __init__(self, model: str, options: ServerOptions, key: Secret | None = None) -> None:
        if not options.base_url or not model:
            raise UserError(
                "provider openai needs a model (recipe) and base_url (options), as http://localhost:8000/v1"
            )
        self.model = model
        self._options, self._key = options, key
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="requests", daemon=True)
        self._thread.start()
        # Without a key the client would take OPENAI_API_KEY, which is not for this server.
        self._client = openai.AsyncOpenAI(
            base_url=options.base_url, api_key=key.reveal() if key else "none", max_retries=0,
            timeout=options.timeout_seconds,
        )  # fmt: skip
        self._pace = Pace(
            options.requests_per_minute, options.tokens_per_minute, first_rest=options.first_wait_seconds,
            longest_rest=options.longest_wait_seconds,
        )  # fmt: skip
        self._hopeless = ""  # why no request can be answered
        self._room = asyncio.Semaphore(options.concurrency)
        self._who = f"{model} at {options.base_url}"
        self._patience = Patience(self._who, options.patience)

    def worst(self, ask: Ask) -> int:
        """No tokenizer makes more tokens of a text than it has bytes."""
        prompt = sum(len(turn.text.encode()) + _TURN_TOKENS for turn in ask.turns)
        return prompt + _TURN_TOKENS + ask.max_tokens

    def ask(self, asks: Sequence[Ask], meter: Meter) -> Iterator[tuple[int, Reply]]:
        found: queue.SimpleQueue[tuple[int, Reply] | BaseException] = queue.SimpleQueue()
        running = asyncio.run_coroutine_threadsafe(self._all(asks, meter, found.put), self._loop)
        try:
            for _ in asks:
                item = found.get()
                if isinstance(item, BaseException):
                    raise item
                self._patience.saw(item[1])
                yield item
            if self._patience.in_doubt() and meter.again(self.worst(_PROBE)):
                answer = asyncio.run_coroutine_threadsafe(self._reply(_PROBE, meter), self._loop).result()
                self._patience.probed(answer)
        finally:
            running.cancel()

    def close(self) -> None:
        asyncio.run_coroutine_threadsafe(self._client.close(), self._loop).result(timeout=5)
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(timeout=5)

    async def _all(
        self, asks: Sequence[Ask], meter: Meter, put: Callable[[tuple[int, Reply] | BaseException], None]
    ) -> None:
        async def one(index: int, ask: Ask) -> None:
            meter.first()
            put((index, await self._reply(ask, meter)))

        try:
            async with asyncio.TaskGroup() as group:
                for index, ask in enumerate(asks):
                    group.create_task(one(index, ask))
        except BaseExceptionGroup as several:
            put(several.exceptions[0])

    async def _reply(self, ask: Ask, meter: Meter) -> Reply:
        """Try until there is a reply, or no use in trying; raises UserError where no request could be answered."""
        worst, options = self.worst(ask), self._options
        failures = 0
        limited: float | None = None  # since when there is a 429
        while True:
            async with self._room:
                sent = await self._pace.turn(worst)
                if self._hopeless:
                    raise UserError(self._hopeless)
                outcome = await self._send(ask)
            if isinstance(outcome, Reply):
                self._pace.accepted()
                if outcome.prompt_tokens:
                    self._pace.unused(worst - outcome.prompt_tokens - outcome.tokens)
                return outcome
            meter.failed(outcome.reason, worst if outcome.unused else 0)
            if outcome.unused:
                self._pace.unused(worst)
            given_up = Reply(outcome.detail, "error", self.model, error=outcome.reason)
            if outcome.reason == REFUSED:
                return given_up
            if outcome.reason == RATE_LIMIT:
                limited = limited or sent
                patient = options.rate_limit_seconds - (time.monotonic() - limited)
                if (outcome.wait or 0.0) > patient or patient <= 0:
                    return given_up
                self._pace.refused(sent, outcome.wait)
            else:
                failures += 1
                if failures >= options.tries:
                    return given_up
                wait = min(options.longest_wait_seconds, options.first_wait_seconds * 2.0 ** (failures - 1))
                wait = max(wait * random.uniform(0.75, 1.25), outcome.wait or 0.0)
                if wait > options.rate_limit_seconds:
                    return given_up
                await asyncio.sleep(wait)
            if not meter.again(worst):
                return given_up

    async def _send(self, ask: Ask) -> Reply | _Failed:
        """One try."""
        request: dict[str, Any] = {
            "model": self.model,
            "messages": [{"role": turn.role, "content": turn.text} for turn in ask.turns],
            "temperature": ask.temperature,
            "seed": ask.seed,
            self._options.limit_field: ask.max_tokens,
        }
        raw, status = None, None
        try:
            # The client's own limit is one between two bytes.
            async with asyncio.timeout(self._options.timeout_seconds):
                raw = await self._client.chat.completions.with_raw_response.create(**request)
        except (TimeoutError, openai.APITimeoutError):
            return _Failed(TIMEOUT, f"no reply within {self._options.timeout_seconds:g} s")
        except openai.APIStatusError as refused:
            # Judged below: an error raised here would carry this one along, with all that the server says in it.
            status = refused
        except openai.APIConnectionError as broken:
            cause = broken.__cause__
            told = f"{type(cause).__name__}: {cause}" if cause else str(broken)
            return _Failed(CONNECTION, self._said(told), unused=type(cause).__name__ == "ConnectError")
        if status is not None:
            return self._refused(status)
        assert raw is not None
        body = raw.http_response.content.decode(errors="replace")
        return _read(self._said(body), self.model) or _Failed(GARBAGE, self._said(body)[:_SHOWN])

    def _refused(self, refused: openai.APIStatusError) -> _Failed:
        """What a status says. Raises UserError where it concerns every request."""
        status, wait = refused.status_code, _retry_after(refused.response.headers.get("retry-after"))
        told = f"status {status}: {self._said(_message(refused))[:_SHOWN]}"
        if status in (401, 403):
            named = self._options.api_key_env
            given = f"the variable {named}" if self._key else "no key: name its variable in api_key_env"
            self._hopeless = f"{self._who} refuses the key, {told}; it was given {given}"
        elif status == 404:
            self._hopeless = f"{self._who} is not there, {told}; check model and base_url (it ends with /v1)"
        elif refused.code == "insufficient_quota":
            self._hopeless = f"{self._who} has no quota left for this key, {told}"
        if self._hopeless:
            raise UserError(self._hopeless)
        if status == 429:
            return _Failed(RATE_LIMIT, told, wait, unused=True)
        if status >= 500 or status in (408, 409, 425):
            return _Failed(SERVER_ERROR, told, wait, unused=True)
        return _Failed(REFUSED, told, unused=True)

    def _said(self, text: str) -> str:
        return self._key.scrub(text) if self._key else text


def _read(body: str, model: str) -> Reply | None:
    """The reply in a body; None where it is none."""
    try:
        told = json.loads(body)
        choice = told["choices"][0]
        text, finish = choice["message"]["content"], choice.get("finish_reason")
        usage = told.get("usage") or {}
        prompt_tokens, tokens = int(usage.get("prompt_tokens") or 0), int(usage.get("completion_tokens") or 0)
        said_by = told.get("model") or model
    except (ValueError, RecursionError, LookupError, TypeError, AttributeError, OverflowError):
        return None
    if not isinstance(text, str) or not isinstance(said_by, str):
        return None
    finish = "length" if finish == "length" else "stop"
    return Reply(_whole(text), finish, _whole(said_by), _count(prompt_tokens), _count(tokens))


def _count(tokens: int) -> int:
    return max(0, min(tokens, 2**31 - 1))


def _whole(text: str) -> str:
    """Text that can be stored as UTF-8: JSON may spell half of a surrogate pair."""
    return text.encode("utf-8", "replace").decode()


def _message(refused: openai.APIStatusError) -> str:
    """What the server says of it, in one line."""
    body = refused.body
    told = body.get("message") if isinstance(body, dict) else None
    return " ".join(str(told or refused.response.text or refused.message).split())


def _retry_after(value: str | None) -> float | None:
    """Seconds of a Retry-After header, a number or a date (RFC 9110, section 10.2.3); None where it says nothing."""
    if value is None:
        return None
    try:
        return max(0.0, min(float(value), 1e9))
    except ValueError:
        pass
    try:
        return max(0.0, email.utils.parsedate_to_datetime(value).timestamp() - time.time())
    except ValueError:
        return None
