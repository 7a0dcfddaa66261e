"""Goodput: the share of a training stage's wall time that trained steps which survived, and where the rest went.

Pure: what a run left on storage in, seconds out. The wall time of a stage goes from its first claim to its manifest, or
to now. It is cut by what its gangs and trainer sessions say of it, and every second belongs to exactly one of:

    productive   steps that survive, less what they waited for
    waiting      for machines: from the question to the grant
    restart      machines granted and not training: starts, restarts, a death until it was noticed, the pause after it
    replayed     steps that were trained, lost and trained again
    compiling, saves, data    inside surviving steps: compilation, the loop held up by a save, waiting for a batch
    stopped      no driver was at work
    other        what none of these explains; all that a run without such files has lost

Files are read as plain mappings and may lack anything: a run made by an older version, by hand, or cut short.
"""

from __future__ import annotations

import bisect
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

CAUSES: Mapping[str, str] = {
    "waiting": "waiting for machines",
    "restart": "starts and restarts",
    "replayed": "steps trained again",
    "compiling": "compiling",
    "saves": "saves",
    "data": "waiting for data",
    "stopped": "no driver at work",
    "other": "other",
}
"""Cause -> how people call it."""

Fields = Mapping[str, Any]


@dataclass(frozen=True)
class Goodput:
    """Seconds of wall time. lost: by cause, every name of `CAUSES`. restarts: sessions after the first."""

    productive: float = 0.0
    lost: Mapping[str, float] = field(default_factory=lambda: dict.fromkeys(CAUSES, 0.0))
    restarts: int = 0

    @property
    def wall(self) -> float:
        return self.productive + math.fsum(self.lost.values())

    @property
    def share(self) -> float | None:
        """Of the wall time, 0..1; None before any has passed."""
        return self.productive / self.wall if self.wall > 0 else None


def total(parts: Iterable[Goodput]) -> Goodput:
    """Of several stages: the time of each counts, so two that train side by side count twice."""
    kept = tuple(parts)
    return Goodput(
        math.fsum(part.productive for part in kept),
        {cause: math.fsum(part.lost[cause] for part in kept) for cause in CAUSES},
        sum(part.restarts for part in kept),
    )


def figures(goodput: Goodput) -> dict[str, float]:
    """As flat numbers for a tracker: the share, the wall time and the seconds lost by cause."""
    if goodput.share is None:
        return {}
    lost = {f"goodput_lost_{cause}_seconds": round(seconds, 3) for cause, seconds in goodput.lost.items()}
    return {"goodput": round(goodput.share, 6), "goodput_wall_seconds": round(goodput.wall, 3), **lost}


@dataclass(frozen=True)
class History:
    """What a series left on storage, each in order.

    steps: of progress.jsonl. sessions, gangs: the files of these folders. claims: attempt.json of each attempt, and its
    number as `attempt`.
    """

    steps: Sequence[Fields] = ()
    sessions: Sequence[Fields] = ()
    gangs: Sequence[Fields] = ()
    claims: Sequence[Fields] = ()


@dataclass
class _Span:
    """The time of one gang run. Unix seconds; granted, ready (to train): None when not reached.

    driver: the fencing token of its claim, made at `claimed`. well: it ended as it should, or is alive. saved: seconds
    that its session was held up by saves.
    """

    asked: float
    granted: float | None
    ended: float
    ready: float | None = None
    driver: Any = None
    claimed: float | None = None
    well: bool = False
    alive: bool = False
    saved: float = 0.0
    productive: float = 0.0
    lost: dict[str, float] = field(default_factory=lambda: dict.fromkeys(CAUSES, 0.0))

    @property
    def trained(self) -> float:
        """Seconds in which steps could be trained."""
        return 0.0 if self.ready is None else max(0.0, self.ended - self.ready)

    @property
    def room(self) -> float:
        """What of `trained` nothing explains yet."""
        spent = self.productive + sum(self.lost[cause] for cause in ("replayed", "compiling", "saves", "data"))
        return max(0.0, self.trained - spent)


def account(history: History, *, finished: float | None = None, now: float | None = None) -> Goodput:
    """One series of a training stage.

    finished: unix seconds of the manifest. now: given while a driver works on the stage; without both, the stage ends
    at its last sign of life.
    """
    steps, sessions, gangs, claims = history.steps, history.sessions, history.gangs, history.claims
    spans = _spans(_paired(gangs, sessions), steps, claims, now if finished is None else None)
    begun = [moment for claim in claims if (moment := _number(claim, "started")) is not None]
    begun += [span.asked for span in spans]
    if not begun and steps:
        begun = [_ended(steps[0]) - _seconds(steps[0], "seconds")]
    if not begun:
        return Goodput()
    signs = [span.ended for span in spans] + [_ended(step) for step in steps[-1:]]
    start = min(begun)
    end = finished if finished is not None else now if now is not None else max([*signs, start])
    if not spans:
        # No files to tell: all that is known are the steps.
        spans = [_Span(start, start, end, ready=start, well=True)]
    _fill(spans, steps, sessions)
    lost = dict.fromkeys(CAUSES, 0.0)
    for cause, seconds in _before(spans, start):
        lost[cause] += seconds
    for span in spans:
        _explain(span)
        for cause, seconds in span.lost.items():
            lost[cause] += seconds
    # After the last gang: the commit of what it made, or a pause before the next.
    after = max(0.0, end - spans[-1].ended)
    lost["restart" if finished is None else "other"] += after
    return Goodput(math.fsum(span.productive for span in spans), lost, max(0, len(sessions) - 1))


def waited(gangs: Iterable[Fields], attempt: int | None = None) -> float:
    """Seconds that gangs waited for machines: those of one attempt, or all."""
    found = 0.0
    for gang in gangs:
        if attempt is not None and gang.get("attempt") != attempt:
            continue
        asked, granted = _number(gang, "asked"), _number(gang, "granted")
        if asked is not None and granted is not None:
            found += max(0.0, granted - asked)
    return found


# ---------------------------------------------------------------------- spans of wall time


@dataclass(frozen=True)
class _Run:
    """A gang run with the session of its trainer; one of them may be missing."""

    asked: float
    gang: Fields = field(default_factory=dict)
    session: Fields = field(default_factory=dict)


def _paired(gangs: Sequence[Fields], sessions: Sequence[Fields]) -> list[_Run]:
    """In the order of their beginnings. A trainer that was started by hand has no gang."""
    asked = [(moment, gang) for gang in gangs if (moment := _number(gang, "asked")) is not None]
    asked.sort(key=lambda item: item[0])
    own: dict[int, Fields] = {}
    runs: list[_Run] = []
    for session in sessions:
        begun = _number(session, "begun")
        if begun is None:
            continue
        place = bisect.bisect_right(asked, begun, key=lambda item: item[0]) - 1
        ended = _number(asked[place][1], "ended") if place >= 0 else None
        if place < 0 or (ended is not None and ended < begun):
            runs.append(_Run(begun, session=session))
        else:
            own[place] = session
    runs += [_Run(moment, gang, own.get(place, {})) for place, (moment, gang) in enumerate(asked)]
    return sorted(runs, key=lambda run: run.asked)


def _spans(runs: Sequence[_Run], steps: Sequence[Fields], claims: Sequence[Fields], now: float | None) -> list[_Span]:
    """In order, none beginning before the one before it has ended. now: given when the last one may still be alive."""
    claimed = {claim.get("attempt"): claim for claim in claims}
    spans: list[_Span] = []
    for index, run in enumerate(runs):
        following = runs[index + 1].asked if index + 1 < len(runs) else None
        gang, session = run.gang, run.session
        first = bisect.bisect_left(steps, run.asked, key=_ended)
        beyond = len(steps) if following is None else bisect.bisect_left(steps, following, key=_ended)
        inside = steps[first:beyond]
        ended = _number(gang, "ended")
        if ended is None and session.get("ended") is not None:
            ended = _number(session, "written")
        alive = ended is None and following is None and now is not None
        if ended is None:
            # Without a word at its end it died with its driver: what counts is its last sign of life.
            signs = [_number(gang, "granted"), _number(gang, "started"), _number(session, "ready")]
            signs += [_number(session, "written"), *map(_ended, inside[-1:]), now if alive else None]
            ended = max((sign for sign in signs if sign is not None), default=run.asked)
        asked = max(run.asked, spans[-1].ended) if spans else run.asked
        ended = max(asked, ended if following is None else min(ended, following))
        granted = _number(gang, "granted") if gang else asked
        ready = _number(session, "ready")
        if ready is None and inside:
            ready = _ended(inside[0]) - _seconds(inside[0], "seconds")
        if ready is not None and granted is None:
            granted = asked
        granted = None if granted is None else min(max(granted, asked), ended)
        claim = claimed.get(gang.get("attempt"), {})
        kind = gang.get("kind") or session.get("ended")
        spans.append(
            _Span(
                asked,
                granted,
                ended,
                driver=claim.get("token"),
                claimed=_number(claim, "started"),
                ready=None if ready is None or granted is None else min(max(ready, granted), ended),
                well=alive or kind in ("done", "preempted"),
                alive=alive,
                saved=_seconds(session, "save_blocked_seconds"),
            )
        )
    return spans


def _fill(spans: Sequence[_Span], steps: Sequence[Fields], sessions: Sequence[Fields]) -> None:
    """Give each span its surviving steps, by their time, and then the steps that later sessions have discarded."""
    training = [span for span in spans if span.ready is not None]
    if not training:
        return
    starts = [span.ready or 0.0 for span in training]
    sums = [dict.fromkeys(("seconds", "compile", "save", "data_wait"), 0.0) for _ in training]
    for step in steps:
        place = max(0, bisect.bisect_right(starts, _ended(step)) - 1)
        left = _seconds(step, "seconds")
        sums[place]["seconds"] += left
        for part in ("compile", "save", "data_wait"):
            spent = min(left, _seconds(step, part))
            sums[place][part] += spent
            left -= spent
    for span, found in zip(training, sums, strict=True):
        # Clocks of a process and of the wall differ a little: steps never take more than there was.
        scale = min(1.0, span.trained / found["seconds"]) if found["seconds"] else 0.0
        parts = {"compiling": found["compile"], "saves": found["save"], "data": found["data_wait"]}
        for cause, seconds in parts.items():
            span.lost[cause] = scale * seconds
        span.productive = scale * (found["seconds"] - sum(parts.values()))
    for session in sessions:
        left, begun = _seconds(session, "discarded_seconds"), _number(session, "begun") or math.inf
        for span in reversed([span for span in training if span.asked <= begun and (span.ready or 0.0) < begun]):
            taken = min(left, span.room)
            span.lost["replayed"] += taken
            left -= taken


def _explain(span: _Span) -> None:
    """Every second of a span that its steps do not explain."""
    if span.granted is None:
        span.lost["waiting"] += span.ended - span.asked
        return
    span.lost["waiting"] += span.granted - span.asked
    if span.ready is None:
        span.lost["restart"] += span.ended - span.granted
        return
    span.lost["restart"] += span.ready - span.granted
    if span.well and not span.alive:
        # The last save comes after the last step.
        span.lost["saves"] += min(span.room, max(0.0, span.saved - span.lost["saves"]))
    # Of a death, from its last step on: the step that was under way, and the time until somebody noticed.
    span.lost["other" if span.well else "restart"] += span.room


def _before(spans: Sequence[_Span], start: float) -> Iterable[tuple[str, float]]:
    """What passed before each gang asked for machines."""
    free, driver = start, spans[0].driver
    for span in spans:
        gap = max(0.0, span.asked - free)
        absent = 0.0
        if driver is not None and span.driver is not None and span.driver != driver and span.claimed is not None:
            absent = min(gap, max(0.0, span.claimed - free))
        yield "stopped", absent
        yield "restart", gap - absent
        free, driver = max(free, span.ended), span.driver if span.driver is not None else driver


# ---------------------------------------------------------------------- fields that may be missing


def _ended(step: Fields) -> float:
    return _number(step, "time") or 0.0


def _seconds(fields: Fields, key: str) -> float:
    return max(0.0, _number(fields, key) or 0.0)


def _number(fields: Fields, key: str) -> float | None:
    value = fields.get(key)
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not math.isfinite(value):
        return None
    return float(value)
