"""What a tree of processes costs: seconds of processors, and the most memory that any of them held.

The kernel keeps both for each process until it ends, so looking ten times a second misses only what a process did after
the last look. Needs psutil and Linux's /proc.
"""

from __future__ import annotations

import re
import threading
import time
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType

import psutil

_SECONDS = 0.1
_PEAK = re.compile(r"^VmHWM:\s+(\d+) kB", re.MULTILINE)


@dataclass(frozen=True)
class Cost:
    """seconds: of the clock; cpu_seconds: of all processes together; peak_bytes: of the largest worker."""

    seconds: float
    cpu_seconds: float
    peak_bytes: int


class Watch:
    """Watches this process and all below it while its block runs; then `cost` says what that cost.

    workers: part of the title of the processes whose memory counts; empty: of all of them.
    """

    def __init__(self, workers: str = "") -> None:
        self.cost = Cost(0.0, 0.0, 0)
        self._workers = workers
        self._used: dict[tuple[int, float], float] = {}
        self._before: dict[tuple[int, float], float] = {}
        self._peak = 0
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)

    def __enter__(self) -> Watch:
        self._look()
        self._before, self._peak = dict(self._used), 0
        self._began = time.monotonic()
        self._thread.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None):
        seconds = time.monotonic() - self._began
        self._ended.set()
        self._thread.join()
        self._look()
        used = sum(spent - self._before.get(process, 0.0) for process, spent in self._used.items())
        self.cost = Cost(seconds, used, self._peak)

    def _run(self) -> None:
        while not self._ended.wait(_SECONDS):
            self._look()

    def _look(self) -> None:
        this = psutil.Process()
        for process in [this, *this.children(recursive=True)]:
            try:
                spent = process.cpu_times()
                self._used[process.pid, process.create_time()] = spent.user + spent.system
                if self._workers in " ".join(process.cmdline()):
                    found = _PEAK.search(Path(f"/proc/{process.pid}/status").read_text())
                    self._peak = max(self._peak, 1024 * int(found[1]) if found else 0)
            except (psutil.Error, OSError):
                continue  # it has ended
