"""Whether a failed attempt is made again: a pure decision from the failures so far.

Counting alone hides deterministic failures behind thousands of preemptions, so what counts is progress: attempts go on
without bound while the newest checkpoint step (the marker) advances, and stop after `limit` in a row that brought none.
"""

from __future__ import annotations

from dataclasses import dataclass

from infra.stage import FailureKind


@dataclass(frozen=True)
class Failure:
    """One attempt that failed. marker: newest checkpoint step that survives, None when there is none."""

    kind: FailureKind
    message: str
    marker: int | None = None
    log_tail: str = ""


@dataclass(frozen=True)
class Again:
    """Try again after so many seconds."""

    after: float
    reason: str


@dataclass(frozen=True)
class Stop:
    """Give up; the reason says why."""

    reason: str


Decision = Again | Stop


def decide(
    history: tuple[Failure, ...], limit: int = 3, first_wait: float = 1.0, longest_wait: float = 60.0
) -> Decision:
    """The decision after the last failure of `history` (oldest first, at least one).

    Waits double from `first_wait` to at most `longest_wait` seconds while nothing advances. Progress resets both.
    """
    last = history[-1]
    if last.kind == "user":
        return Stop("an error in what was given: trying again cannot help")
    newest: int | None = None
    idle = 0
    for failure in history:
        if failure.marker is not None and (newest is None or failure.marker > newest):
            newest, idle = failure.marker, 0
        else:
            idle += 1
    if idle == 0:
        return Again(first_wait, f"{last.kind} after checkpoint {newest}")
    since = "any checkpoint" if newest is None else f"a checkpoint newer than step {newest}"
    if idle >= limit:
        return Stop(f"{idle} attempts in a row ended without {since}")
    # The exponent is bounded: 2.0**1024 overflows.
    wait = min(longest_wait, first_wait * 2.0 ** min(idle - 1, 60))
    return Again(wait, f"{last.kind}; attempt {idle} of at most {limit} without {since}")
