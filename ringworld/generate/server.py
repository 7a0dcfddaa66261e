"""HTTP: /v1/models, /v1/completions, /v1/chat/completions and /health, as OpenAI's clients speak it.

Every refusal is JSON in OpenAI's shape. A client that closes its connection cancels what it asked for, also while its
prompt is still being read. No header is ever logged, so no key is.
"""

from __future__ import annotations

import asyncio
import hmac
import json
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Mapping
from dataclasses import dataclass
from typing import Any

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse, Response, StreamingResponse
from starlette.routing import Route

from ringworld.errors import UserError
from ringworld.generate.chat import Prompts
from ringworld.generate.protocol import Asked, Parser, Refusal, Writer, parse_chat, parse_completion
from ringworld.generate.sampler import Piece
from ringworld.generate.service import Failed, Full, Gone, Service


@dataclass(frozen=True)
class Settings:
    """model: the name that requests give. key: the bearer token that they must bring; None: none. max_body: bytes."""

    model: str
    key: str | None = None
    max_body: int = 64 << 20


def make_app(service: Service, prompts: Prompts, settings: Settings) -> Starlette:
    """The ASGI application. The service must be running."""
    tokenizer = service.sampler.tokenizer

    def models(request: Request) -> Response:
        _authorize(request, settings)
        listed = {"id": settings.model, "object": "model", "created": 0, "owned_by": "ringworld"}
        listed["max_model_len"] = service.sampler.engine.context
        return JSONResponse({"object": "list", "data": [listed]})

    def model(request: Request) -> Response:
        _authorize(request, settings)
        if request.path_params["name"] != settings.model:
            raise Refusal(404, f"there is only the model {settings.model!r}", code="model_not_found", param="model")
        return JSONResponse({"id": settings.model, "object": "model", "created": 0, "owned_by": "ringworld"})

    def health(_: Request) -> Response:
        return JSONResponse({"status": "failed" if service.failed else "ok"}, 503 if service.failed else 200)

    def endpoint(parse: Parser) -> Callable[[Request], Awaitable[Response]]:
        async def answer(request: Request) -> Response:
            _authorize(request, settings)
            body = await _json(request, settings.max_body)
            # A long text takes seconds to tokenize; others' tokens go on meanwhile.
            asked = await asyncio.to_thread(parse, body, prompts, tokenizer, settings.model)
            _check(asked, service)
            writer = Writer(asked, settings.model, tokenizer)
            pieces = _while_connected(request, service, asked)
            # The first piece, before a status is sent: a full queue is a 429, also of a stream.
            first = await anext(pieces)
            if asked.stream:
                return _EventStream(first, pieces, writer)
            return JSONResponse(writer.whole([first, *[piece async for piece in pieces]]))

        return answer

    routes = [
        Route("/health", health),
        Route("/v1/models", models),
        Route("/v1/models/{name:path}", model),
        Route("/v1/completions", endpoint(parse_completion), methods=["POST"]),
        Route("/v1/chat/completions", endpoint(parse_chat), methods=["POST"]),
    ]
    handlers: Mapping[Any, Any] = {
        Refusal: lambda _, refusal: _refuse(refusal),
        HTTPException: lambda _, error: _refuse(Refusal(error.status_code, error.detail)),
        Full: lambda *_: _refuse(_too_many(service), {"Retry-After": "1"}),
        Failed: lambda *_: _refuse(Refusal(503, "the sampler has died; its log says why")),
        Gone: lambda *_: Response(status_code=499),  # no one reads it
        ClientDisconnect: lambda *_: Response(status_code=499),
        Exception: lambda *_: _refuse(Refusal(500, "an error inside the server; its log says which")),
    }
    return Starlette(routes=routes, exception_handlers=handlers)


def _authorize(request: Request, settings: Settings) -> None:
    if settings.key is None:
        return
    scheme, _, given = request.headers.get("authorization", "").partition(" ")
    if scheme.lower() != "bearer" or not hmac.compare_digest(given.strip().encode(), settings.key.encode()):
        raise Refusal(401, "a valid key is needed: Authorization: Bearer KEY", code="invalid_api_key")


async def _json(request: Request, limit: int) -> Any:
    """The body's JSON object. Raises Refusal; never holds more than `limit` bytes."""
    # A page in a browser cannot send this type to another site without being allowed to.
    if request.headers.get("content-type", "").partition(";")[0].strip().lower() != "application/json":
        raise Refusal(415, "the request must be JSON: Content-Type: application/json")
    parts, size = [], 0
    async for part in request.stream():
        size += len(part)
        if size > limit:
            raise Refusal(413, f"the request is longer than the {limit} bytes that are taken", code="request_too_large")
        parts.append(part)
    try:
        return json.loads(b"".join(parts))
    except (ValueError, RecursionError) as wrong:
        raise Refusal(400, f"the request is not JSON: {wrong}") from wrong


def _check(asked: Asked, service: Service) -> None:
    if len(asked.prompts) > service.capacity:
        raise Refusal(
            400, f"the request asks for {len(asked.prompts)} answers at once; at most {service.capacity} are taken"
        )
    for prompt in asked.prompts:
        try:
            service.sampler.request(prompt)
        except UserError as wrong:
            code = "context_length_exceeded" if "context" in str(wrong) else None
            raise Refusal(400, str(wrong), code=code) from wrong


async def _while_connected(request: Request, service: Service, asked: Asked) -> AsyncGenerator[tuple[int, Piece]]:
    """The pieces of what was asked, until the client closes its connection: then Gone."""
    answers = service.ask(asked.prompts)
    leaving = asyncio.ensure_future(_disconnected(request))
    leaving.add_done_callback(lambda _: answers.leave())
    try:
        while answers.unfinished:
            yield await answers.next()
    finally:
        answers.close()
        leaving.cancel()


async def _disconnected(request: Request) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass


class _EventStream(StreamingResponse):
    """Server-sent events: one for each chunk, and the end. Whatever ends it, what is unfinished is cancelled."""

    def __init__(self, first: tuple[int, Piece], pieces: AsyncGenerator[tuple[int, Piece]], writer: Writer) -> None:
        super().__init__(_events(first, pieces, writer), media_type="text/event-stream")
        self._pieces = pieces

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        try:
            await super().__call__(scope, receive, send)
        finally:  # not in _events: a client may be gone before that has begun
            await self._pieces.aclose()


async def _events(
    first: tuple[int, Piece], pieces: AsyncIterator[tuple[int, Piece]], writer: Writer
) -> AsyncIterator[bytes]:
    for chunk in writer.opening():
        yield _event(chunk)
    if (chunk := writer.chunk(*first)) is not None:
        yield _event(chunk)
    try:
        async for index, piece in pieces:
            if (chunk := writer.chunk(index, piece)) is not None:
                yield _event(chunk)
    except Gone:
        return
    except Failed:
        yield _event(Refusal(503, "the sampler has died; its log says why").body())
        return
    for chunk in writer.closing():
        yield _event(chunk)
    yield b"data: [DONE]\n\n"


def _event(chunk: Mapping[str, Any]) -> bytes:
    return b"data: " + json.dumps(chunk, ensure_ascii=False).encode() + b"\n\n"


def _too_many(service: Service) -> Refusal:
    return Refusal(
        429, f"{service.taken} requests are under way, of at most {service.capacity}; try again", code="queue_full"
    )


def _refuse(refusal: Refusal, headers: Mapping[str, str] | None = None) -> Response:
    return JSONResponse(refusal.body(), refusal.status, headers)
