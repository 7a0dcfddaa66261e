"""One run of a gang as it goes: its ranks, who listens, and what has gone wrong so far."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

import ray
from ray.exceptions import RayError

from actors.host import HostStatus
from actors.ranks import HostInfo
from infra.verdict import DONE, RankExit

LOOK_SECONDS = 0.5
# A host that runs a trainer and does not answer for so long is lost.
SILENT_SECONDS = 60.0


@dataclass(frozen=True)
class GangView:
    """What a gang is doing, for people.

    phase: waiting for machines, starting hosts and ranks, running, or stopping.
    note: the phase in words, such as "waiting for CPU: 2 x 1".
    seconds: since `run` began.
    heartbeat_age: of the rank that has been silent longest, in seconds; None before a rank has been looked at.
    """

    phase: Literal["waiting", "starting", "running", "stopping"]
    note: str
    seconds: float
    heartbeat_age: float | None = None


@dataclass
class Rank:
    """A host in its role. `exit` and `order` (of its end among all ranks) are None while its trainer runs."""

    index: int
    actor: Any
    info: HostInfo
    exit: RankExit | None = None
    order: int | None = None
    status: HostStatus | None = None
    answered: float = 0.0


class Run:
    """One `run` in progress: who listens, and what has gone wrong so far."""

    def __init__(self, stop: threading.Event, on_poll: Callable[[GangView], None], began: float) -> None:
        self.stop = stop
        self.condemned = ""
        self.reasons: dict[int, str] = {}
        self._on_poll, self._began = on_poll, began
        self._looked = -LOOK_SECONDS
        self._ended = 0

    def look(self, phase: Any, note: str, heartbeat_age: float | None = None) -> None:
        now = time.monotonic()
        if now - self._looked >= LOOK_SECONDS * 0.9:
            self._looked = now
            self._on_poll(GangView(phase, note, now - self._began, heartbeat_age))

    def note(self, rank: Rank, poll: Any) -> None:
        """Takes the answer of a rank's host."""
        try:
            status: HostStatus = ray.get(poll)
        except RayError as error:
            self.lose(rank, f"lost its host: {first_line(error)}")
            return
        rank.status, rank.answered = status, time.monotonic()
        if status.code is not None:
            self._end(rank, RankExit(status.code, "exited"))

    def check_alive(self, rank: Rank, stall_seconds: float | None) -> None:
        if rank.exit is not None:
            return
        if time.monotonic() - rank.answered > SILENT_SECONDS:
            self.lose(rank, f"lost its host: no answer for {SILENT_SECONDS:.0f} s")
            return
        age = rank.status.heartbeat_age if rank.status is not None else None
        if stall_seconds is not None and age is not None and age > stall_seconds:
            self.reasons[rank.index] = f"gave no sign of life for {age:.0f} s"
            self._end(rank, RankExit(None, "stalled"))

    def lose(self, rank: Rank, reason: str) -> None:
        self.reasons[rank.index] = reason
        self._end(rank, RankExit(None, "lost"))

    def _end(self, rank: Rank, end: RankExit) -> None:
        rank.exit, rank.order = end, self._ended
        self._ended += 1
        if end.code != DONE:
            self.condemned = self.condemned or f"rank {rank.index} ended with {end.code} ({end.cause})"


def first_line(error: Exception) -> str:
    return next((line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__)
