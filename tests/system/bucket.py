"""A bucket in a process of its own, that tests may kill and start again, and what a run has left in it."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from tests.infra.gcs import variables
from tests.infra.gcs_objects import Cloud
from tests.system.flow import REPOSITORY, environment

NAME = "bucket"


class Bucket:
    """`tests.infra.gcs` as a process. A context manager: leaving ends it."""

    def __init__(self, folder: Path, *faults: str) -> None:
        """faults: words of its command line, such as `--fail=0.05`."""
        self._folder, self._faults = folder, faults
        self._folder.mkdir(parents=True, exist_ok=True)
        with socket.socket() as trial:
            trial.bind(("127.0.0.1", 0))
            self.port = trial.getsockname()[1]
        self._process: subprocess.Popen[bytes] | None = None

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.kill()

    def start(self) -> None:
        """Returns when it listens."""
        words = ["-m", "tests.infra.gcs", f"--port={self.port}", f"--folder={self._folder}", *self._faults]
        with open(self._folder / "server.log", "ab") as log:
            self._process = subprocess.Popen([sys.executable, *words], cwd=REPOSITORY, stdout=log, stderr=log)
        end = time.monotonic() + 60
        while True:
            try:
                socket.create_connection(("127.0.0.1", self.port), timeout=5).close()
                return
            except OSError:
                assert self._process.poll() is None, (self._folder / "server.log").read_text()
                assert time.monotonic() < end, "the bucket's server did not start"
                time.sleep(0.05)

    def kill(self) -> None:
        """With SIGKILL: what it has answered must be there when it starts again."""
        if self._process is not None:
            os.kill(self._process.pid, signal.SIGKILL)
            self._process.wait()
            self._process = None

    def environment(self) -> dict[str, str]:
        """Of a process whose storage this is."""
        return environment() | variables(f"http://127.0.0.1:{self.port}")

    def names(self) -> set[str]:
        """The names of all objects, while it serves them too."""
        found = set()
        for file in (self._folder / "objects").glob("*.object"):
            try:
                with open(file, "rb") as opened:
                    found.add(json.loads(opened.readline())["key"].removeprefix(f"{NAME}/"))
            except FileNotFoundError:  # replaced in the meantime
                continue
        return found

    def read(self, key: str) -> bytes:
        """An object of a bucket that nobody writes to."""
        found = Cloud(self._folder).read(f"{NAME}/{key}")
        assert found is not None, key
        return found[1]

    def put(self, key: str, data: bytes) -> None:
        """Into a bucket that is not served yet."""
        Cloud(self._folder).put(f"{NAME}/{key}", data, None)

    def lines(self, key: str) -> list[dict[str, Any]]:
        return [json.loads(line) for line in self.read(key).decode().splitlines()]
