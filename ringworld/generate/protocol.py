"""OpenAI's requests as prompts, and pieces of answers as OpenAI's replies.

https://platform.openai.com/docs/api-reference: completions, chat completions, models, errors. What a request names and
this server cannot do is refused by name, never passed over; `top_k` and `min_p` are ours (`extra_body` of the clients).
"""

from __future__ import annotations

import secrets
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from ringworld.data.conversations import Turn
from ringworld.data.tokenizers import Tokenizer
from ringworld.errors import UserError
from ringworld.generate.chat import Prompts
from ringworld.generate.engine import MOST, TokenLikelihood
from ringworld.generate.sampler import Piece, Prompt
from ringworld.generate.sampling import Sampling
from ringworld.generate.text import legible
from ringworld.strict import from_mapping

# OpenAI's own limits.
_MOST_CHOICES = 128
_COMPLETION_LOGPROBS = 5
_BROKEN = "\N{REPLACEMENT CHARACTER}"


class Refusal(Exception):
    """A request answered by an error: the HTTP status, and OpenAI's type, code and parameter of it."""

    def __init__(self, status: int, message: str, *, code: str | None = None, param: str | None = None) -> None:
        super().__init__(message)
        self.status, self.code, self.param = status, code, param

    def body(self) -> dict[str, Any]:
        kinds = {401: "authentication_error", 429: "rate_limit_error", 503: "server_error", 500: "server_error"}
        kind = kinds.get(self.status, "invalid_request_error")
        return {"error": {"message": str(self), "type": kind, "param": self.param, "code": self.code}}


@dataclass(frozen=True)
class _Common:
    """What both kinds of request may say. None is what a client sends for 'the default'."""

    model: str
    temperature: float | None = None
    top_p: float | None = None
    top_k: int | None = None
    min_p: float | None = None
    seed: int | None = None
    n: int | None = None
    stop: Any = None
    stream: bool | None = None
    stream_options: Any = None
    # Taken only where they change nothing.
    presence_penalty: float | None = None
    frequency_penalty: float | None = None
    logit_bias: Any = None
    # Of no consequence here.
    user: Any = None
    metadata: Any = None
    store: Any = None
    service_tier: Any = None


@dataclass(frozen=True)
class _Completion(_Common):
    prompt: Any = None
    max_tokens: int | None = None
    echo: bool | None = None
    logprobs: int | None = None
    best_of: int | None = None
    suffix: str | None = None


@dataclass(frozen=True)
class _Chat(_Common):
    messages: Any = None
    max_tokens: int | None = None
    max_completion_tokens: int | None = None
    logprobs: bool | None = None
    top_logprobs: int | None = None
    response_format: Any = None
    tools: Any = None
    tool_choice: Any = None


@dataclass(frozen=True, eq=False)
class Asked:
    """A request that can be answered. prompts: of all choices, `index` by `index`; echoed: their texts, where asked."""

    kind: str  # "completion" | "chat"
    prompts: tuple[Prompt, ...]
    echoed: tuple[str, ...]
    stream: bool
    usage: bool
    logprobs: int | None
    # Prompts are read once for each of their choices, and counted once.
    choices: int
    id: str = field(default_factory=lambda: secrets.token_hex(12))
    created: int = field(default_factory=lambda: int(time.time()))


def parse_completion(body: Any, prompts: Prompts, tokenizer: Tokenizer, model: str) -> Asked:
    """A /v1/completions request. Raises Refusal."""
    given = _given(_Completion, body, model)
    if given.suffix:
        raise Refusal(400, "suffix: text is only continued here; leave it out", param="suffix")
    if given.best_of not in (None, given.n or 1):
        raise Refusal(400, f"best_of={given.best_of}: only n choices are made; leave it out", param="best_of")
    if given.logprobs is not None and not 0 <= given.logprobs <= _COMPLETION_LOGPROBS:
        raise Refusal(400, f"logprobs={given.logprobs}: from 0 to {_COMPLETION_LOGPROBS}", param="logprobs")
    ids = [_prompt_ids(one, prompts) for one in _split_prompt(given.prompt)]
    limit = 16 if given.max_tokens is None else given.max_tokens
    echo = bool(given.echo)
    like = Prompt(
        ids[0],
        max_tokens=limit,
        stop=_stops(given.stop),
        most=0 if given.logprobs is None else max(1, given.logprobs),
        # Without an answer there is only the prompt to read, scored or not.
        score=(echo and given.logprobs is not None) or (echo and limit == 0),
    )
    return _asked("completion", given, [replace(like, ids=one) for one in ids], echo, given.logprobs, tokenizer)


def parse_chat(body: Any, prompts: Prompts, tokenizer: Tokenizer, model: str) -> Asked:
    """A /v1/chat/completions request. Raises Refusal."""
    given = _given(_Chat, body, model)
    for name in ("tools", "tool_choice", "response_format"):
        value = getattr(given, name)
        if value not in (None, [], "none", "auto", {"type": "text"}):
            raise Refusal(400, f"{name}: the model answers in plain text only; leave it out", param=name)
    if given.max_tokens is not None and given.max_completion_tokens is not None:
        raise Refusal(400, "max_tokens and max_completion_tokens: give one of them", param="max_tokens")
    if given.top_logprobs is not None and not (given.logprobs and 0 <= given.top_logprobs <= MOST):
        raise Refusal(400, f"top_logprobs={given.top_logprobs}: from 0 to {MOST}, with logprobs", param="top_logprobs")
    turns = _turns(given.messages)
    logprobs = (given.top_logprobs or 0) if given.logprobs else None
    try:
        ids = prompts.of_turns(turns)
    except UserError as wrong:
        raise Refusal(400, str(wrong), param="messages") from wrong
    limit = given.max_tokens if given.max_completion_tokens is None else given.max_completion_tokens
    prompt = Prompt(ids, max_tokens=limit, stop=_stops(given.stop), most=0 if logprobs is None else max(1, logprobs))
    return _asked("chat", given, [prompt], False, logprobs, tokenizer)


class Writer:
    """The replies to one request: chunks of a stream, or the whole."""

    def __init__(self, asked: Asked, model: str, tokenizer: Tokenizer) -> None:
        self._asked, self._model, self._tokenizer = asked, model, tokenizer
        self._offsets = [0] * len(asked.prompts)
        self._drawn = 0

    def opening(self) -> list[dict[str, Any]]:
        """Chunks that come before any piece: the roles of a chat's answers."""
        if self._asked.kind != "chat":
            return []
        return [
            self._chunk({"index": n, "delta": {"role": "assistant", "content": ""}, "finish_reason": None})
            for n in range(len(self._asked.prompts))
        ]

    def chunk(self, index: int, piece: Piece) -> dict[str, Any] | None:
        """The chunk of a piece; None where there is nothing to tell."""
        text, logprobs = self._take(index, piece)
        if not text and not piece.finish and not logprobs:
            return None
        choice: dict[str, Any] = {"index": index, "finish_reason": piece.finish, "logprobs": logprobs}
        if self._asked.kind == "chat":
            return self._chunk(choice | {"delta": {"content": text} if text or not piece.finish else {}})
        return self._chunk(choice | {"text": text})

    def closing(self) -> list[dict[str, Any]]:
        """Chunks that come after all pieces: the usage, where asked for."""
        return [self._head(True) | {"choices": [], "usage": self._usage()}] if self._asked.usage else []

    def whole(self, pieces: Sequence[tuple[int, Piece]]) -> dict[str, Any]:
        """The reply to a request that is not streamed, of all its pieces."""
        texts: list[list[str]] = [[] for _ in self._asked.prompts]
        likely: list[list[dict[str, Any]]] = [[] for _ in self._asked.prompts]
        ends: dict[int, str | None] = {}
        for index, piece in pieces:
            text, logprobs = self._take(index, piece)
            texts[index].append(text)
            if logprobs:
                likely[index].append(logprobs)
            ends[index] = piece.finish
            if piece.finish == "error":
                raise Refusal(500, "the model's output is no number (NaN or infinite); try other weights or --dtype")
        choices = []
        for index in range(len(texts)):
            text = "".join(texts[index])
            said = {"message": {"role": "assistant", "content": text}} if self._asked.kind == "chat" else {"text": text}
            logprobs = _joined(likely[index]) if self._asked.logprobs is not None else None
            choices.append({"index": index, **said, "finish_reason": ends[index], "logprobs": logprobs})
        return self._head(False) | {"choices": choices, "usage": self._usage()}

    def _take(self, index: int, piece: Piece) -> tuple[str, dict[str, Any] | None]:
        """The text and the log-probabilities of a piece, with the prompt's before the first token's where echoed."""
        self._drawn += piece.token is not None
        asked, text = self._asked, piece.text
        rows: list[tuple[int, TokenLikelihood | None]] = []
        ids = asked.prompts[index].ids.tolist()
        first = piece.read == piece.of and self._offsets[index] == 0 and (piece.token is not None or piece.finish)
        if first and asked.echoed:
            text = asked.echoed[index] + text
            if piece.prompt is not None:
                rows = list(zip(ids, (None, *piece.prompt), strict=True))
        if first:
            self._offsets[index] = 1
        if asked.logprobs is None:
            return text, None
        if piece.token is not None and piece.likelihood is not None:
            rows.append((piece.token, piece.likelihood))
        if not rows:
            return text, None
        return text, self._chat_logprobs(rows) if asked.kind == "chat" else self._completion_logprobs(rows)

    def _completion_logprobs(self, rows: Sequence[tuple[int, TokenLikelihood | None]]) -> dict[str, Any]:
        tokens = [self._name(token) for token, _ in rows]
        most = self._asked.logprobs or 0
        top = [None if told is None else self._named(told.top[:most]) for _, told in rows]
        return {
            "tokens": tokens,
            "token_logprobs": [None if told is None else told.logprob for _, told in rows],
            "top_logprobs": top if most else None,
            "text_offset": np.cumsum([0, *(len(token) for token in tokens[:-1])]).tolist(),
        }

    def _chat_logprobs(self, rows: Sequence[tuple[int, TokenLikelihood | None]]) -> dict[str, Any]:
        def entry(token: int, logprob: float) -> dict[str, Any]:
            name = self._name(token)
            return {"token": name, "logprob": logprob, "bytes": list(name.encode())}

        most = self._asked.logprobs or 0
        return {
            "content": [
                entry(token, told.logprob) | {"top_logprobs": [entry(*one) for one in told.top[:most]]}
                for token, told in rows
                if told is not None
            ]
        }

    def _named(self, top: Sequence[tuple[int, float]]) -> dict[str, float]:
        named: dict[str, float] = {}
        for token, logprob in top:
            named.setdefault(self._name(token), logprob)
        return named

    def _name(self, token: int) -> str:
        """A token's text; its id where it has none of its own (the end of text, part of a character)."""
        text = self._tokenizer.decode(legible([token], self._tokenizer))
        return text if text and _BROKEN not in text else f"token_id:{token}"

    def _head(self, chunk: bool) -> dict[str, Any]:
        chat = self._asked.kind == "chat"
        kind = ("chat.completion.chunk" if chunk else "chat.completion") if chat else "text_completion"
        name = ("chatcmpl-" if chat else "cmpl-") + self._asked.id
        return {"id": name, "object": kind, "created": self._asked.created, "model": self._model}

    def _chunk(self, choice: dict[str, Any]) -> dict[str, Any]:
        return self._head(True) | {"choices": [choice]}

    def _usage(self) -> dict[str, int]:
        read = sum(len(prompt.ids) for prompt in self._asked.prompts[:: self._asked.choices])
        return {"prompt_tokens": read, "completion_tokens": self._drawn, "total_tokens": read + self._drawn}


def _given(kind: type[Any], body: Any, model: str) -> Any:
    try:
        given = from_mapping(kind, body, at="request")
    except UserError as wrong:
        raise Refusal(400, str(wrong)) from wrong
    if given.model != model:
        raise Refusal(
            404,
            f"the model {given.model!r} is not served here; there is {model!r}",
            code="model_not_found",
            param="model",
        )
    for name in ("presence_penalty", "frequency_penalty", "logit_bias"):
        if getattr(given, name) not in (None, 0, {}):
            raise Refusal(400, f"{name} is not supported; leave it out", param=name)
    if not 1 <= (1 if given.n is None else given.n) <= _MOST_CHOICES:
        raise Refusal(400, f"n={given.n}: from 1 to {_MOST_CHOICES} choices", param="n")
    if given.stream_options is not None and not (given.stream and isinstance(given.stream_options, Mapping)):
        raise Refusal(400, "stream_options: an object, and only with stream", param="stream_options")
    return given


def _asked(
    kind: str, given: Any, prompts: Sequence[Prompt], echo: bool, logprobs: int | None, tokenizer: Tokenizer
) -> Asked:
    choices = given.n or 1
    seed = secrets.randbits(62) if given.seed is None else given.seed

    def sampling(choice: int) -> Sampling:
        return Sampling(
            temperature=_or(given.temperature, 1.0),
            top_k=max(0, _or(given.top_k, 0)),  # some clients say -1 for all
            top_p=_or(given.top_p, 1.0),
            min_p=_or(given.min_p, 0.0),
            seed=seed + choice,
        )

    try:
        drawn = tuple(replace(one, sampling=sampling(choice)) for one in prompts for choice in range(choices))
    except UserError as wrong:
        raise Refusal(400, str(wrong)) from wrong
    echoed = tuple(tokenizer.decode(legible(one.ids, tokenizer)) for one in drawn) if echo else ()
    usage = bool(given.stream_options and given.stream_options.get("include_usage"))
    return Asked(kind, drawn, echoed, bool(given.stream), usage, logprobs, choices)


def _or(value: Any, default: Any) -> Any:
    return default if value is None else value


def _stops(given: Any) -> tuple[str, ...]:
    stops = [] if given is None else [given] if isinstance(given, str) else given
    if not isinstance(stops, list) or not all(isinstance(stop, str) for stop in stops):
        raise Refusal(400, "stop: a text, or a list of texts", param="stop")
    try:
        return Prompt(np.zeros(1, np.int32), stop=tuple(stops)).stop
    except UserError as wrong:
        raise Refusal(400, str(wrong), param="stop") from wrong


def _split_prompt(given: Any) -> list[Any]:
    """The prompts of a request: one text, a list of texts, a list of token ids, or a list of such lists."""
    if isinstance(given, str):
        return [given]
    if isinstance(given, list) and given:
        if all(_is_id(one) for one in given):
            return [given]
        lists = (one and isinstance(one, list) and all(_is_id(item) for item in one) for one in given)
        if all(isinstance(one, str) for one in given) or all(lists):
            return given
    raise Refusal(400, "prompt: a text, a list of texts, a list of token ids, or a list of such lists", param="prompt")


def _is_id(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and 0 <= value < 2**31


def _prompt_ids(given: Any, prompts: Prompts) -> np.ndarray:
    return prompts.of_text(given) if isinstance(given, str) else np.array(given, np.int32)


def _turns(messages: Any) -> list[Turn]:
    if not isinstance(messages, list) or not messages:
        raise Refusal(400, "messages: a list of at least one {role, content}", param="messages")
    turns = []
    for number, message in enumerate(messages):
        at = f"messages[{number}]"
        if not isinstance(message, Mapping) or not isinstance(message.get("role"), str):
            raise Refusal(400, f"{at}: an object with role and content", param=at)
        role = "system" if message["role"] == "developer" else message["role"]
        turns.append(Turn(role, _content(message.get("content"), at)))  # type: ignore[arg-type] (checked with the turns)
    return turns


def _content(content: Any, at: str) -> str:
    if isinstance(content, str):
        return content
    if isinstance(content, list) and all(isinstance(part, Mapping) and part.get("type") == "text" for part in content):
        texts = [part.get("text") for part in content]
        if all(isinstance(text, str) for text in texts):
            return "".join(texts)  # type: ignore[arg-type]
    raise Refusal(400, f"{at}.content: a text, or a list of parts of type text", param=f"{at}.content")


def _joined(parts: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """The log-probabilities of several pieces as one."""
    if not parts:
        return {}
    if "content" in parts[0]:
        return {"content": [entry for part in parts for entry in part["content"]]}
    tokens = [token for part in parts for token in part["tokens"]]
    joined: dict[str, Any] = {"tokens": tokens}
    for name in ("token_logprobs", "top_logprobs"):
        joined[name] = None if parts[0][name] is None else [one for part in parts for one in part[name]]
    joined["text_offset"] = np.cumsum([0, *(len(token) for token in tokens[:-1])]).tolist()
    return joined


Parser = Callable[[Any, Prompts, Tokenizer, str], Asked]
