"""What watches over a trainer: the stall watchdog and the request to stop.

Both end in an exit code of the contract. The watchdog runs in a thread that never touches JAX, so it works while the
main thread hangs in a collective. Both classes are context managers: once a job has ended, however it did, nothing
watches the process that called it any more.
"""

from __future__ import annotations

import faulthandler
import os
import signal
import sys
import threading
import time
from collections.abc import Callable
from types import TracebackType
from typing import Any, Self

import jax

from ringworld.exits import STALLED

POLL_SECONDS = 0.5


class Vigil:
    """One at a time in a process. `beat()` after every finished step; `startup_seconds` bounds the time to the first
    of them. `on_stall` is called before a stalled process is ended; it must come back."""

    def __init__(
        self, stall_seconds: float, startup_seconds: float, on_stall: Callable[[], None] = lambda: None
    ) -> None:
        self._stall, self._allowed, self._on_stall = stall_seconds, startup_seconds, on_stall
        self._last = time.monotonic()
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._watch, name="vigil", daemon=True)

    def __enter__(self) -> Self:
        self._last = time.monotonic()
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._over.set()
        self._thread.join()

    def beat(self) -> None:
        """A step has finished."""
        self._last, self._allowed = time.monotonic(), self._stall

    def grant(self, seconds: float) -> None:
        """The next beat may take this long: a last save, say."""
        self._last, self._allowed = time.monotonic(), seconds

    def _watch(self) -> None:
        while not self._over.wait(POLL_SECONDS):
            silent = time.monotonic() - self._last
            if silent > self._allowed:
                print(f"no step finished for {silent:.0f} s; every thread's stack follows", file=sys.stderr, flush=True)
                faulthandler.dump_traceback(all_threads=True)
                self._on_stall()
                os._exit(STALLED)


class StopRequest:
    """Whether this job was asked to stop (SIGTERM), agreed upon by all its processes at the same step."""

    def __init__(self) -> None:
        self._asked = False
        self._handler_before: Any = None

    def __enter__(self) -> Self:
        if jax.process_count() == 1:
            self._handler_before = signal.signal(signal.SIGTERM, self._on_signal)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if jax.process_count() == 1:
            signal.signal(signal.SIGTERM, self._handler_before or signal.SIG_DFL)

    def reached(self, step: int) -> bool:
        """True when every process should save after `step` and leave. Call it once per step, on every process."""
        if jax.process_count() == 1:
            return self._asked
        # jax.distributed catches SIGTERM itself and proposes a step that no process has passed yet.
        from jax.experimental import multihost_utils

        return multihost_utils.reached_preemption_sync_point(step)

    def _on_signal(self, number: int, frame: object) -> None:
        self._asked = True
