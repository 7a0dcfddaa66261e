"""A real HTTP server on a real socket that speaks chat completions, and misbehaves as a test says."""

from __future__ import annotations

import json
import socket
import struct
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from ringworld.data.conversations import Turn
from ringworld.synthesis.extractive import write
from ringworld.synthesis.prompts import BEGIN, passage
from ringworld.synthesis.records import Ask

MODEL = "writer-1"


@dataclass(frozen=True)
class Answer:
    """body: a text as it is, or anything as JSON. after: seconds before it is sent. cut: bytes of the body that are
    sent before the connection is reset; None: all of it."""

    status: int = 200
    body: Any = ""
    headers: Mapping[str, str] = field(default_factory=dict)
    after: float = 0.0
    cut: int | None = None


@dataclass(frozen=True)
class Asked:
    """A request. number: from 0, in the order of arrival. at: time.monotonic() then."""

    number: int
    at: float
    headers: Mapping[str, str]
    body: dict[str, Any]

    @property
    def prompt(self) -> str:
        return self.body["messages"][-1]["content"]


Behaviour = Callable[[Asked], Answer]


def says(text: str, finish: str = "stop", usage: tuple[int, int] | None = (100, 20)) -> Answer:
    """A completion as OpenAI's servers send it."""
    message = {"index": 0, "message": {"role": "assistant", "content": text}, "finish_reason": finish}
    body: dict[str, Any] = {"id": "c", "object": "chat.completion", "created": 0, "model": MODEL, "choices": [message]}
    if usage is not None:
        body["usage"] = {"prompt_tokens": usage[0], "completion_tokens": usage[1], "total_tokens": sum(usage)}
    return Answer(body=body)


def refuses(status: int, message: str = "no", code: str | None = None, **headers: str) -> Answer:
    return Answer(status, {"error": {"message": message, "code": code}}, headers)


def well(asked: Asked) -> Answer:
    """A good question about the passage, as far as one can be made of it; something to whatever else it is asked."""
    if BEGIN not in asked.prompt:
        return says("yes")
    return says(write(passage(Ask((Turn("user", asked.prompt),), 0, 0, 0)), asked.body["seed"]))


class Server:
    """A context manager. behave: may be changed while it runs. requests: in the order of arrival."""

    def __init__(self, behave: Behaviour = well, port: int = 0) -> None:
        self.behave = behave
        self.requests: list[Asked] = []
        self.under_way = self.most_under_way = 0
        self._lock = threading.Lock()
        outer = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_POST(self) -> None:
                outer._answer(self)

            def log_message(self, format: str, *args: Any) -> None:
                """Quiet."""

        class Listening(ThreadingHTTPServer):
            daemon_threads = True
            request_queue_size = 256

            def handle_error(self, request: Any, client_address: Any) -> None:
                """A client that gave up is no error of a test."""

        self._server = Listening(("127.0.0.1", port), Handler)
        self.port = self._server.server_address[1]
        self.url = f"http://127.0.0.1:{self.port}/v1"

    def __enter__(self) -> Server:
        threading.Thread(target=self._server.serve_forever, args=(0.02,), daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self._server.shutdown()
        self._server.server_close()

    def _answer(self, handler: BaseHTTPRequestHandler) -> None:
        body = json.loads(handler.rfile.read(int(handler.headers["content-length"])))
        with self._lock:
            asked = Asked(len(self.requests), time.monotonic(), dict(handler.headers), body)
            self.requests.append(asked)
            self.under_way += 1
            self.most_under_way = max(self.most_under_way, self.under_way)
        try:
            self._send(handler, self.behave(asked))
        finally:
            with self._lock:
                self.under_way -= 1

    def _send(self, handler: BaseHTTPRequestHandler, answer: Answer) -> None:
        time.sleep(answer.after)
        data = answer.body.encode() if isinstance(answer.body, str) else json.dumps(answer.body).encode()
        handler.send_response(answer.status)
        handler.send_header("content-type", "text/html" if isinstance(answer.body, str) else "application/json")
        for name, value in answer.headers.items():
            handler.send_header(name.replace("_", "-"), value)
        handler.send_header("content-length", str(len(data)))
        handler.end_headers()
        handler.wfile.write(data[: answer.cut])
        if answer.cut is not None:
            handler.wfile.flush()
            # A reset, not a polite end.
            handler.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            handler.connection.close()
            handler.close_connection = True


def free_port() -> int:
    """A port that nobody listens on."""
    with socket.socket() as trial:
        trial.bind(("127.0.0.1", 0))
        return trial.getsockname()[1]
