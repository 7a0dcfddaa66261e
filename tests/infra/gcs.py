"""A Google Cloud Storage in memory that keeps its promises: generations, ifGenerationMatch, listings by prefix.

Just what TensorStore and gcsfs ask of it here. The usual emulator ignores ifGenerationMatch, so a test of exclusivity
against it proves nothing. `writes` remembers (key, ifGenerationMatch, status) of every upload.
"""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit


class Cloud:
    def __init__(self) -> None:
        self.objects: dict[str, tuple[int, bytes]] = {}
        self.writes: list[tuple[str, str | None, int]] = []
        self._uploads: dict[str, str] = {}
        self._generation = 1000
        self._lock = threading.Lock()

    def put(self, key: str, data: bytes, match: str | None) -> tuple[int, dict[str, Any]]:
        with self._lock:
            present = self.objects.get(key, (0, b""))[0]
            if match is not None and int(match) != present:
                self.writes.append((key, match, 412))
                return 412, {"error": {"code": 412, "message": "Precondition Failed"}}
            self._generation += 1
            self.objects[key] = (self._generation, data)
            self.writes.append((key, match, 200))
            return 200, self._describe(key)

    def begin_upload(self, key: str) -> str:
        with self._lock:
            self._uploads[str(len(self._uploads))] = key
            return str(len(self._uploads) - 1)

    def uploaded(self, upload: str) -> str:
        return self._uploads[upload]

    def list(self, prefix: str, delimiter: str) -> dict[str, Any]:
        with self._lock:
            items, folders = [], set()
            for key in sorted(self.objects):
                if not key.startswith(prefix):
                    continue
                head, cut, _ = key[len(prefix) :].partition(delimiter) if delimiter else (key, "", "")
                if cut:
                    folders.add(prefix + head + cut)
                else:
                    items.append(self._describe(key))
            return {"kind": "storage#objects", "items": items, "prefixes": sorted(folders)}

    def _describe(self, key: str) -> dict[str, Any]:
        generation, data = self.objects[key]
        return {"name": key, "bucket": "bucket", "generation": str(generation), "size": str(len(data))}


@contextmanager
def serve(cloud: Cloud) -> Iterator[str]:
    """The address of a server for `cloud`, until the end of the block."""

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_GET(self) -> None:
            url, query = self._url()
            _, _, key = url.partition("/o/")
            if not key:
                return self._answer(200, cloud.list(query.get("prefix", ""), query.get("delimiter", "")))
            found = cloud.objects.get(unquote(key))
            if found is None:
                return self._answer(404, {"error": {"code": 404, "message": "Not Found"}})
            generation, data = found
            return self._send(200, data, {"x-goog-generation": str(generation)})

        def do_POST(self) -> None:
            _, query = self._url()
            data = self.rfile.read(int(self.headers.get("content-length") or 0))
            if query.get("uploadType") == "resumable":
                upload = cloud.begin_upload(query["name"])
                where = f"http://{self.headers['host']}/upload/x?upload_id={upload}"
                return self._send(200, b"{}", {"Location": where})
            key = cloud.uploaded(query["upload_id"]) if "upload_id" in query else query["name"]
            return self._answer(*cloud.put(key, data, query.get("ifGenerationMatch")))

        do_PUT = do_POST

        def _url(self) -> tuple[str, dict[str, str]]:
            parts = urlsplit(self.path)
            return parts.path, {key: values[0] for key, values in parse_qs(parts.query).items()}

        def _answer(self, status: int, body: dict[str, Any]) -> None:
            self._send(status, json.dumps(body).encode(), {"Content-Type": "application/json"})

        def _send(self, status: int, data: bytes, headers: dict[str, str]) -> None:
            self.send_response(status)
            for name, value in {**headers, "Content-Length": str(len(data))}.items():
                self.send_header(name, value)
            self.end_headers()
            self.wfile.write(data)

        def log_message(self, format: str, *args: Any) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        server.server_close()
