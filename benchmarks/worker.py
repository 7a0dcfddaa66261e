"""One side of a comparison is a process that answers requests: one JSON line in, one JSON line out.

Each side keeps its own interpreter, libraries and settings, and computes only when it is asked, so that a benchmark can
let the sides take turns. This file needs nothing but Python: a peer's environment runs it too.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
Handler = Callable[[dict[str, Any]], dict[str, Any]]


class Worker:
    """A running side: `python -m module`, with JAX on so many CPU devices and further XLA flags."""

    def __init__(self, python: Path, module: str, devices: int, flags: str = "") -> None:
        self._name = f"{module} on {devices} devices"
        environment = {
            **os.environ,
            "JAX_PLATFORMS": "cpu",
            "PYTHONPATH": str(ROOT),
            "XLA_FLAGS": f"--xla_force_host_platform_device_count={devices} {flags}".strip(),
        }
        self._errors = tempfile.TemporaryFile("w+", encoding="utf-8")  # noqa: SIM115 (lives as long as the process)
        self._process = subprocess.Popen(
            [str(python), "-m", module],
            env=environment,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._errors,
            text=True,
        )

    def ask(self, request: Mapping[str, Any]) -> dict[str, Any]:
        """The answer to one request; RuntimeError with the process's last words when it died."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        try:
            self._process.stdin.write(json.dumps(request) + "\n")
            self._process.stdin.flush()
            answer = self._process.stdout.readline()
        except BrokenPipeError:
            answer = ""
        if not answer:
            self._process.wait()
            self._errors.seek(0)
            last = "\n".join(self._errors.read().strip().splitlines()[-12:])
            raise RuntimeError(f"{self._name} ended with status {self._process.returncode} at {request}:\n{last}")
        return json.loads(answer)

    def __enter__(self) -> Worker:
        return self

    def __exit__(self, *_: object) -> None:
        self._process.kill()
        self._process.wait()
        self._errors.close()


def serve(handlers: Mapping[str, Handler]) -> None:
    """The life of a worker: request["do"] names the handler of each request."""
    # Libraries may print; what they print must not end up among the answers.
    answers = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)
    for line in sys.stdin:
        request = json.loads(line)
        answers.write(json.dumps(handlers[request["do"]](request)) + "\n")
        answers.flush()


def timed(action: Callable[[], object]) -> dict[str, float]:
    """Seconds of the clock and of all this process's threads together, which other programs do not lengthen as much."""
    cpu, clock = time.process_time(), time.perf_counter()
    action()
    return {"seconds": time.perf_counter() - clock, "cpu_seconds": time.process_time() - cpu}
