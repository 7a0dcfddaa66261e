"""A Google Cloud Storage that keeps its promises, as a thread or as a process that may be killed at any moment.

    python -m tests.infra.gcs --port 4443 --folder DIR --fail 0.05 --throttle 0.05 --reset 0.02 --delay 0.2 --seed 1

- Generations, ifGenerationMatch, ranges, listings in pages, resumable uploads, copies: what TensorStore, gcsfs and
  Google's own client ask of it. The usual emulator ignores ifGenerationMatch, so a test of exclusivity against it
  proves nothing.
- An object is one file of its folder, put in place whole, with its generation: what was answered with 200 is there
  after `kill -9`, and what was not may be there, as with the real one.
- Faults come by a seeded draw for each request: 503, 429 (every second one with Retry-After), a connection reset before
  the work is done or after it, when only the answer is lost, and a delay.
- Every bucket exists.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import re
import socket
import struct
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit

from tests.infra.gcs_objects import Cloud, error

_UNDERSTOOD = {
    "alt", "delimiter", "endOffset", "fields", "ifGenerationMatch", "ifGenerationNotMatch", "maxResults", "name",
    "pageToken", "prefix", "prettyPrint", "project", "projection", "startOffset", "tensorstore", "uploadType",
    "upload_id",
}  # fmt: skip


@dataclass(frozen=True)
class Faults:
    """Shares of all requests, 0..1; delay: seconds, the most of an even draw. None at all by default."""

    fail: float = 0.0
    throttle: float = 0.0
    reset: float = 0.0
    delay: float = 0.0
    seed: int = 0


class _Draws:
    """What goes wrong with the next request."""

    def __init__(self, faults: Faults) -> None:
        self._faults, self._random, self._lock = faults, random.Random(faults.seed), threading.Lock()
        self.asked = 0
        self.drawn: dict[str, int] = {}

    def next(self) -> tuple[str, float]:
        """What goes wrong, and seconds of delay. A status such as "503"; "retry-after": 429 that says when; "reset":
        the connection breaks; "lost": it breaks when the work is done; "": nothing."""
        with self._lock:
            self.asked += 1
            share, faults = self._random.random(), self._faults
            delay = self._random.random() * faults.delay
            half = self._random.random() < 0.5
            kind = ""
            for name, other, part in (
                ("503", "503", faults.fail), ("429", "retry-after", faults.throttle),
                ("reset", "lost", faults.reset),
            ):  # fmt: skip
                if 0 <= share < part:
                    kind = name if half else other
                share -= part
            if kind:
                self.drawn[kind] = self.drawn.get(kind, 0) + 1
            return kind, delay


class Server(ThreadingHTTPServer):
    """Serves a cloud; `draws` counts what went wrong on purpose."""

    daemon_threads = True
    request_queue_size = 128

    def __init__(self, cloud: Cloud, faults: Faults, port: int = 0) -> None:
        self.cloud, self.draws = cloud, _Draws(faults)
        super().__init__(("127.0.0.1", port), _Handler)

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A client that has gone; anything else is a mistake here."""
        if not isinstance(sys.exc_info()[1], (ConnectionError, TimeoutError, ValueError)):
            super().handle_error(request, client_address)


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True  # or each answer waits for the other side's delayed acknowledgement
    wbufsize = 1 << 16
    server: Server  # pyright: ignore[reportIncompatibleVariableOverride]

    def do_GET(self) -> None:
        self._serve("GET")

    def do_POST(self) -> None:
        self._serve("POST")

    def do_PUT(self) -> None:
        self._serve("PUT")

    def do_DELETE(self) -> None:
        self._serve("DELETE")

    def _serve(self, method: str) -> None:
        data = self._body()
        coming = self.server.cloud.coming
        kind, delay = (coming.pop(0), 0.0) if coming else self.server.draws.next()
        if delay:
            time.sleep(delay)
        if kind.isdigit():
            return self._answer(int(kind), error(int(kind), "as the test wants it"))
        if kind == "retry-after":
            return self._answer(429, error(429, "slow down"), {"Retry-After": "1"})
        if kind == "reset":
            return self._reset()
        parts = urlsplit(self.path)
        query = {name: values[0] for name, values in parse_qs(parts.query).items()}
        answer = self._act(method, unquote_all(parts.path), query, data)
        if kind == "lost":
            return self._reset()
        if isinstance(answer[1], bytes):
            return self._send(answer[0], answer[1], answer[2])
        return self._answer(*answer)

    def _act(self, method: str, path: list[str], query: dict[str, str], data: bytes) -> tuple[int, Any, dict[str, str]]:
        """The answer to a request: status, JSON or bytes, headers."""
        cloud = self.server.cloud
        if unknown := query.keys() - _UNDERSTOOD:  # a condition that is overlooked would be a promise broken in silence
            print(f"{method} {self.path}: {sorted(unknown)} is not served here", file=sys.stderr, flush=True)
            return 400, error(400, f"{sorted(unknown)} is not served here"), {}
        if path[:1] in (["upload"], ["download"]):
            uploads, path = path[0] == "upload", path[1:]
        else:
            uploads = False
        if path[:3] != ["storage", "v1", "b"] or len(path) < 4:
            return 404, error(404, f"nothing at {self.path}"), {}
        bucket, rest = path[3], path[4:]
        key = f"{bucket}/{rest[1]}" if len(rest) > 1 else ""
        match = query.get("ifGenerationMatch")
        if uploads:
            return self._upload(bucket, query, data)
        if not rest:
            return 200, {"kind": "storage#bucket", "name": bucket, "location": "US", "storageClass": "STANDARD"}, {}
        if rest[0] != "o":
            return 404, error(404, f"nothing at {self.path}"), {}
        if not key:
            return 200, cloud.list(bucket, query), {}
        if method == "DELETE":
            return *cloud.delete(key, match), {}
        if method == "GET":
            return self._media(key, query) if query.get("alt") == "media" else (*cloud.describe(key), {})
        if rest[2:3] == ["rewriteTo"] and len(rest) > 6:
            status, made = cloud.copy(key, f"{rest[4]}/{rest[6]}", match)
            return status, {"done": True, "resource": made}, {}
        if rest[2:3] == ["moveTo"] and len(rest) > 4:
            status, made = cloud.copy(key, f"{bucket}/{rest[4]}", match)
            if status == 200:
                cloud.delete(key, None)
            return status, made, {}
        return 400, error(400, f"{method} {self.path} is not served here"), {}

    def _upload(self, bucket: str, query: dict[str, str], data: bytes) -> tuple[int, Any, dict[str, str]]:
        cloud, match = self.server.cloud, query.get("ifGenerationMatch")
        if "upload_id" in query:
            return cloud.upload(query["upload_id"], data, self.headers.get("Content-Range"))
        how = query.get("uploadType", "media")
        if how == "resumable":
            name = query.get("name") or json.loads(data)["name"]
            upload = cloud.begin_upload(f"{bucket}/{name}", match)
            where = f"http://{self.headers['host']}/upload/storage/v1/b/{bucket}/o?upload_id={upload}"
            return 200, {}, {"Location": where}
        if how == "multipart":
            told, data = _parts(self.headers["Content-Type"], data)
            return *cloud.put(f"{bucket}/{told.get('name') or query['name']}", data, match), {}
        return *cloud.put(f"{bucket}/{query['name']}", data, match), {}

    def _media(self, key: str, query: dict[str, str]) -> tuple[int, Any, dict[str, str]]:
        asked = self.headers.get("Range") or ""
        found = self.server.cloud.read(key, asked)
        if found is None:
            return 404, error(404, "No such object"), {}
        object, data, start = found
        headers = {"x-goog-generation": str(object.generation), "Content-Type": "application/octet-stream"}
        if query.get("ifGenerationNotMatch") == str(object.generation):
            return 304, b"", headers
        if query.get("ifGenerationMatch", str(object.generation)) != str(object.generation):
            return 412, error(412, "Precondition Failed"), {}
        if not asked:
            return 200, data, headers
        if start >= object.size:
            return 416, error(416, "Requested range not satisfiable"), {}
        return 206, data, headers | {"Content-Range": f"bytes {start}-{start + len(data) - 1}/{object.size}"}

    def _body(self) -> bytes:
        if self.headers.get("Transfer-Encoding") != "chunked":
            return self.rfile.read(int(self.headers.get("Content-Length") or 0))
        data = b""
        while size := int(self.rfile.readline().split(b";")[0], 16):
            data += self.rfile.read(size)
            self.rfile.readline()
        self.rfile.readline()
        return data

    def _answer(self, status: int, body: dict[str, Any], headers: dict[str, str] | None = None) -> None:
        self._send(status, json.dumps(body).encode(), {"Content-Type": "application/json", **(headers or {})})

    def _send(self, status: int, data: bytes, headers: dict[str, str]) -> None:
        empty = status in (204, 304)
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        if not empty:
            self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        if not empty:
            self.wfile.write(data)

    def _reset(self) -> None:
        """Close so that the other side sees ECONNRESET."""
        self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.connection.close()
        self.close_connection = True

    def log_message(self, format: str, *args: Any) -> None:
        pass


def unquote_all(path: str) -> list[str]:
    """The parts of a path; a name's own slashes come quoted."""
    return [unquote(part) for part in path.strip("/").split("/")]


def _parts(content_type: str, data: bytes) -> tuple[dict[str, Any], bytes]:
    """The JSON and the content of a multipart/related body; both ends of line are in use."""
    boundary = b"--" + content_type.partition("boundary=")[2].strip('"').encode()
    _, first, second = data.split(boundary, 2)
    second = second[: second.rindex(boundary)]
    split = re.compile(rb"\r?\n\r?\n")
    told, content = split.split(first, 1)[1], split.split(second, 1)[1]
    return json.loads(told), content.removesuffix(b"\n").removesuffix(b"\r")


@contextmanager
def serve(cloud: Cloud, faults: Faults | None = None) -> Iterator[str]:
    """The address of a server for `cloud`, in a thread of this process until the end of the block."""
    server = Server(cloud, faults or Faults())
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        server.server_close()


def variables(address: str) -> dict[str, str]:
    """What gcsfs, TensorStore and Google's client must find in their environment to use a server as this one."""
    return {
        "STORAGE_EMULATOR_HOST": address,
        "FSSPEC_GS_TOKEN": "anon",
        "GCSFS_EXPERIMENTAL_ZB_HNS_SUPPORT": "false",
        "TENSORSTORE_GCS_HTTP_URL": address,
        "GOOGLE_AUTH_TOKEN_FOR_TESTING": "x",
    }


def run_beside(cloud: Cloud, module: str, function: str, *words: str) -> subprocess.CompletedProcess[str]:
    """module.function(*words) in a process whose gs:// is this cloud: a client keeps the first address it is given.

    AssertionError with what it said where it fails.
    """
    script = f"from {module} import {function}; {function}(*{words!r})"
    with serve(cloud) as address:
        ran = subprocess.run(
            [sys.executable, "-c", script],
            env=os.environ | variables(address) | {"PYTHONPATH": str(Path(__file__).parents[2])},
            capture_output=True,
            text=True,
            timeout=300,
        )
    assert ran.returncode == 0, ran.stderr
    return ran


def main() -> None:
    parser = argparse.ArgumentParser(prog="tests.infra.gcs", description="A Google Cloud Storage for tests.")
    parser.add_argument("--port", type=int, default=0, help="0: any free one")
    parser.add_argument("--folder", type=Path, help="what it keeps; a temporary one by default")
    for name in ("fail", "throttle", "reset"):
        parser.add_argument(f"--{name}", type=float, default=0.0, metavar="SHARE", help="of all requests")
    parser.add_argument("--delay", type=float, default=0.0, metavar="SECONDS", help="the most, of each request")
    parser.add_argument("--seed", type=int, default=0)
    given = parser.parse_args()
    faults = Faults(given.fail, given.throttle, given.reset, given.delay, given.seed)
    with tempfile.TemporaryDirectory(prefix="gcs-") as folder:
        server = Server(Cloud(given.folder or Path(folder)), faults, given.port)
        for name, value in variables(f"http://127.0.0.1:{server.server_port}").items():
            print(f"export {name}={value}", flush=True)
        try:
            server.serve_forever()
        except KeyboardInterrupt:
            print(f"{server.draws.asked} requests, {server.draws.drawn}")


if __name__ == "__main__":
    main()
