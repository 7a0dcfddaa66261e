"""A file of lines that grows while others read it, on a local folder and on storage that cannot append.

In a local folder a line is in the file when `append` returns. On object storage the whole file is written again, by a
thread, some seconds apart: a slow or silent bucket never holds up who appends. `flush` is the promise on both.
"""

from __future__ import annotations

import sys
import threading
import time
from collections.abc import Iterable

from ringworld.data.files import is_local, write_whole

REWRITE_SECONDS = 3.0  # between the end of one writing and the begin of the next


class LineFile:
    """The lines of one file, replaced by `kept` at the start. One process writes; `append` and `flush` from one
    thread."""

    def __init__(self, place: str, kept: Iterable[str]) -> None:
        """kept: whole lines, each with its newline."""
        self._place, self._lines = place, list(kept)
        self._written = 0
        self._lock, self._grown = threading.Lock(), threading.Event()
        self._write()
        if not is_local(place):
            threading.Thread(target=self._keep, name="lines", daemon=True).start()

    def append(self, line: str) -> None:
        """line: with its newline."""
        self._lines.append(line)
        if is_local(self._place):
            with open(self._place, "a", encoding="utf-8") as file:
                file.write(line)
            self._written = len(self._lines)
        else:
            self._grown.set()

    def flush(self) -> None:
        """Returns when every line is on storage; raises what the storage raises."""
        with self._lock:
            if self._written < len(self._lines):
                self._write()

    def _write(self) -> None:
        count = len(self._lines)
        write_whole(self._place, "".join(self._lines[:count]).encode())
        self._written = count

    def _keep(self) -> None:
        warned = False
        while True:
            self._grown.wait()
            self._grown.clear()
            try:
                self.flush()
                warned = False
            except Exception as error:  # whatever a client of storage raises; `flush` raises it where it matters
                if not warned:
                    print(f"warning: {self._place} is behind: {error}", file=sys.stderr, flush=True)
                warned = True
                self._grown.set()
            time.sleep(REWRITE_SECONDS)
