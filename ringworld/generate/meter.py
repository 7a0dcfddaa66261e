"""How far something long has come, and the time left, on stderr: rewritten in place on a terminal."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable

_QUIET_SECONDS = 10.0  # between two lines where there is no terminal


class Meter:
    """what: the word before the figures, as in reading; unit: what is counted, as in tokens."""

    def __init__(
        self, what: str, unit: str, terminal: bool | None = None, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._what, self._unit, self._clock = what, unit, clock
        self._terminal = sys.stderr.isatty() if terminal is None else terminal
        self._first: tuple[float, float] | None = None
        self._told = 0.0

    def advance(self, done: float, of: float) -> None:
        now = self._clock()
        if self._first is None:  # the first part holds the compilation
            self._first = (now, done)
            return
        began, before = self._first
        rate = (done - before) / max(now - began, 1e-9)
        if rate > 0 and (self._terminal or now - self._told >= _QUIET_SECONDS):
            self._told = now
            speed = f"{rate:,.0f}" if rate >= 10 else f"{rate:.2g}"
            left = _duration((of - done) / rate)
            print(
                f"{self._what} {done:,.0f} of {of:,.0f} {self._unit}, {speed}/s, {left} left   ",
                end="\r" if self._terminal else "\n",
                file=sys.stderr,
                flush=True,
            )

    def end(self) -> None:
        if self._terminal and self._first is not None:
            print("\r\x1b[K", end="", file=sys.stderr, flush=True)


def _duration(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes} min" if hours else f"{minutes} min {rest} s" if minutes else f"{rest} s"
