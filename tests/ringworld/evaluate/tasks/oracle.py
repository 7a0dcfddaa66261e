"""A server that speaks OpenAI's completions and answers tasks by reading their prompts, wrongly where it is told to."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer


@contextmanager
def oracle(reply: Callable[[str | list[int]], str]) -> Iterator[tuple[str, list[dict]]]:
    """(url, the requests that came). reply: from a prompt, text or ids, what is said."""
    requests: list[dict] = []

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            asked = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            requests.append({"path": self.path, **asked})
            prompts = asked.get("prompt")
            if prompts is None:
                prompts = asked["messages"][-1]["content"]
            # A list of texts, or of lists of ids, is a batch.
            batch = prompts if isinstance(prompts, list) and not isinstance(prompts[0], int) else [prompts]
            said = [reply(prompt) for prompt in batch]
            choices = [
                {"index": n, "text": text, "message": {"role": "assistant", "content": text}, "finish_reason": "stop"}
                for n, text in enumerate(said)
            ]
            body = json.dumps({"id": "0", "object": "text_completion", "created": 0, "model": "m", "choices": choices})
            self.send_response(200)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(body.encode())))
            self.end_headers()
            self.wfile.write(body.encode())

        def log_message(self, format: str, *args: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_address[1]}/v1", requests
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
