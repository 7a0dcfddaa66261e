"""How fast a server is asked: at most so many requests and tokens a minute, and not at all while it asks for a rest.

- Requests are spaced evenly, so that no stretch of a minute holds more than a minute's worth.
- A 429 is told to one request and meant for all: everybody rests. How long is what the server says; where it says
  nothing, or next to nothing, it doubles from rest to rest until something is accepted. Requests that were under way
  when the rest began do not prolong it.
- Everything happens on one event loop; nothing here is for several threads.
"""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import Callable


class Pace:
    """requests, tokens: a minute; None: no limit. first_rest, longest_rest: seconds, where the server names none."""

    def __init__(
        self,
        requests: float | None = None,
        tokens: float | None = None,
        *,
        first_rest: float = 0.5,
        longest_rest: float = 30.0,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._request_gap = 60 / requests if requests else 0.0
        self._token_gap = 60 / tokens if tokens else 0.0
        self._first_rest, self._longest_rest = first_rest, longest_rest
        self._clock = clock
        self._next_request = self._next_tokens = clock()
        self._rest_began = self._rest_ends = float("-inf")
        self._rests = 0
        self._queue = asyncio.Lock()  # first come, first served

    async def turn(self, tokens: int) -> float:
        """Wait for the moment at which a request of so many tokens may be sent; the moment, for `refused`."""
        async with self._queue:
            while (now := self._clock()) < (at := max(self._next_request, self._next_tokens, self._rest_ends)):
                await asyncio.sleep(at - now)
            self._next_request = now + self._request_gap
            self._next_tokens = now + tokens * self._token_gap
            return now

    def unused(self, tokens: int) -> None:
        """Tokens that a request was reckoned at and did not take."""
        self._next_tokens -= tokens * self._token_gap

    def accepted(self) -> None:
        self._rests = 0

    def refused(self, sent: float, seconds: float | None) -> None:
        """A request sent at that moment got a 429. seconds: how long the server wants to be left alone, if it says."""
        now = self._clock()
        if sent >= self._rest_began:  # not one that was under way when the last rest began
            if seconds is None or seconds < self._first_rest:  # a date has whole seconds, and may have passed
                seconds = min(self._longest_rest, self._first_rest * 2.0 ** min(self._rests, 60))
                seconds *= random.uniform(1, 1.25)  # other clients got the same answer at the same time
            self._rests += 1
            self._rest_began = now
        self._rest_ends = max(self._rest_ends, now + (seconds or 0.0))
