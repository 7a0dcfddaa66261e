"""Signs of life: while a process is not frozen it touches the file that it was given, and it does not outlive the
parent that would have to end it.

Both from the process's first moment, before JAX is imported and joined, in a thread of its own that touches neither.
"""

from __future__ import annotations

import os
import sys
import threading
from pathlib import Path
from types import TracebackType
from typing import Self

from ringworld.exits import ORPHANED

POLL_SECONDS = 0.5
PARENT_VARIABLE = "RINGWORLD_PARENT_PID"
HEARTBEAT_VARIABLE = "RINGWORLD_HEARTBEAT"


class SignsOfLife:
    """A context manager: as long as it is entered, for a process whose environment names a parent or a file."""

    def __init__(self) -> None:
        self._parent = int(os.environ.get(PARENT_VARIABLE, "0"))
        self._heartbeat = os.environ.get(HEARTBEAT_VARIABLE)
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._give, name="signs of life", daemon=True)

    def __enter__(self) -> Self:
        if self._parent or self._heartbeat:
            self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._over.set()
        if self._thread.is_alive():
            self._thread.join()

    def _give(self) -> None:
        while True:
            if self._heartbeat:
                Path(self._heartbeat).touch()
            if self._parent and os.getppid() != self._parent:
                # The host actor is gone (kill -9, a lost node): nobody would ever stop or reap this process.
                print(f"parent process {self._parent} is gone; leaving", file=sys.stderr, flush=True)
                os._exit(ORPHANED)
            if self._over.wait(POLL_SECONDS):
                return
