"""Every second of a stage's wall time is accounted for once, under the cause that a person would name."""

from __future__ import annotations

import math
import random
from dataclasses import replace
from typing import Any

import pytest

from infra.goodput import CAUSES, Goodput, History, account, total, waited


def steps(first: float, count: int, seconds: float = 2.0, **parts: float) -> list[dict[str, Any]]:
    """Steps that end at first + seconds, first + 2 x seconds, ..."""
    return [{"time": first + seconds * (index + 1), "seconds": seconds, **parts} for index in range(count)]


def gang(asked: float, granted: float | None, ended: float | None, kind: str = "done", attempt: int = 1):
    started = None if granted is None else granted + 1
    return {"asked": asked, "granted": granted, "started": started, "ended": ended, "kind": kind, "attempt": attempt}


def session(begun: float, ready: float | None, written: float, ended: str | None = "done", **more: float):
    return {"begun": begun, "ready": ready, "written": written, "ended": ended, **more}


def claim(attempt: int, started: float, token: int = 1) -> dict[str, Any]:
    return {"attempt": attempt, "started": started, "token": token}


CALM = History(steps(20, 10), [session(12, 20, 41, save_blocked_seconds=1.0)], [gang(1, 10, 42)], [claim(1, 0)])
# The first attempt trains ten steps, of which six survive, and hangs for five seconds before it is found dead.
CRASHED = History(
    [*steps(10, 6), *steps(60, 4)],
    [session(5, 10, 30, None), session(52, 60, 68, "done", discarded_seconds=8.0)],
    [gang(0, 2, 35, "crashed", 1), gang(40, 50, 68, "done", 2)],
    [claim(1, 0), claim(2, 38)],
)
# Another driver, eight seconds after the first had died with all it had.
DRIVERS = replace(CRASHED, gangs=[gang(0, 2, None), CRASHED.gangs[1]], claims=[claim(1, 0), claim(2, 38, token=2)])
PARTS = replace(CALM, steps=[*steps(20, 1, 4.0, compile=3.0), *steps(24, 8, 2.0, save=0.5, data_wait=0.25)])
# The second attempt's checkpoints are damaged: the third trains again what both before it had.
DAMAGED = History(
    steps(30, 2),
    [session(0, 0, 10, None), session(10, 10, 20, None), session(24, 30, 34, discarded_seconds=16.0)],
    [gang(0, 0, 10, "crashed", 1), gang(10, 10, 20, "crashed", 2), gang(20, 20, 34, "done", 3)],
    [claim(1, 0), claim(2, 10), claim(3, 20)],
)
NO_MACHINES = History(gangs=[gang(0, None, 30, "preempted")], claims=[claim(1, 0)])
DEAD_AT_START = History((), [session(5, None, 6, None)], [gang(0, 3, 9, "crashed")], [claim(1, 0)])
OLD = History(steps(20, 10, data_wait=0.5), claims=[claim(1, 0)])


@pytest.mark.parametrize(
    ("left", "finished", "productive", "lost"),
    [
        # 1 s before the question, 9 for machines, 10 to start, 20 of steps, 1 of the last save, 1 + 3 to end
        (CALM, 45, 20, {"restart": 11, "waiting": 9, "saves": 1, "other": 4}),
        (CRASHED, 68, 20, {"restart": 8 + 5 + 5 + 10, "waiting": 2 + 10, "replayed": 8}),
        (DRIVERS, 68, 20, {"restart": 8 + 2 + 10, "waiting": 12, "replayed": 8, "stopped": 8}),
        (PARTS, 45, 11, {"compiling": 3, "saves": 4, "data": 2, "restart": 11, "waiting": 9, "other": 5}),
        (DAMAGED, 34, 4, {"restart": 4 + 10, "replayed": 16}),
        (NO_MACHINES, None, 0, {"waiting": 30}),
        (DEAD_AT_START, None, 0, {"waiting": 3, "restart": 6}),
        (OLD, 45, 15, {"data": 5, "other": 25}),
        # A trainer started by hand leaves sessions, or steps alone.
        (History(CALM.steps, CALM.sessions), None, 20, {"restart": 8, "saves": 1}),
        (History(steps(0, 5)), None, 10, {}),
        (History(), None, 0, {}),
    ],
)
def test_each_second_has_one_cause(left: History, finished: float | None, productive: float, lost: dict[str, float]):
    found = account(left, finished=finished)
    assert found.productive == pytest.approx(productive)
    assert {cause: seconds for cause, seconds in found.lost.items() if seconds} == pytest.approx(lost)
    assert found.wall == found.productive + math.fsum(found.lost.values())


def test_a_stage_at_work_is_accounted_for_until_now():
    going = History(steps(20, 5), [session(12, 20, 30, None)], [gang(0, 10, None)], [claim(1, 0)])
    found = account(going, now=33)
    assert found.wall == pytest.approx(33)
    assert found.lost["other"] == pytest.approx(3)
    waiting = account(History(gangs=[gang(0, None, None)], claims=[claim(1, 0)]), now=50)
    assert (waiting.lost["waiting"], waiting.share) == (50, 0)
    between_attempts = replace(CRASHED, gangs=CRASHED.gangs[:1], sessions=CRASHED.sessions[:1], steps=steps(10, 6))
    assert account(between_attempts, now=40).lost["restart"] == pytest.approx(8 + 13 + 5)


def test_any_history_adds_up_to_its_wall_time():
    """Clocks that disagree, files that are missing, pieces that overlap: the sum holds, and no part is below zero."""
    draw = random.Random(0)
    for _ in range(300):
        moment = 1000.0
        made: dict[str, list[dict[str, Any]]] = {"steps": [], "sessions": [], "gangs": [], "claims": []}
        for attempt in range(1, draw.randint(2, 6)):
            made["claims"].append(claim(attempt, moment, draw.randint(1, 3)))
            asked = moment + draw.random()
            granted = asked + 20 * draw.random()
            ready = granted + 10 * draw.random()
            ended, last = ready + 12 * draw.random(), draw.choice([None, "done", "preempted"])
            trained = steps(ready + draw.uniform(-1, 1), draw.randint(0, 9), 1.0, compile=0.3, save=draw.choice([0, 5]))
            made["steps"] += [step for step in trained if moment < step["time"] <= ended]
            found = session(granted + 0.1, draw.choice([ready, None]), ended, last, discarded_seconds=4.0)
            made["sessions"].append(found)
            kind = draw.choice(["crashed", "done"])
            made["gangs"].append(gang(asked, granted, draw.choice([ended, None]), kind, attempt))
            moment = ended + draw.random()
        for name in draw.sample(["sessions", "gangs"], draw.randint(0, 2)):
            made[name] = made[name][: draw.randint(0, 2)]
        goodput = account(History(**made), finished=moment + 5)
        assert goodput.wall == pytest.approx(moment + 5 - 1000)
        assert goodput.productive >= 0
        assert all(seconds >= 0 for seconds in goodput.lost.values()), goodput
        assert set(goodput.lost) == set(CAUSES)


def test_stages_add_up():
    both = total([account(CALM, finished=45), account(CRASHED, finished=68)])
    assert both.productive == pytest.approx(40)
    assert both.wall == pytest.approx(45 + 68)
    assert both.restarts == 1
    assert total([]) == Goodput()
    assert Goodput().share is None


def test_waits_of_an_attempt_are_told_apart():
    assert waited(CRASHED.gangs) == 12
    assert waited(CRASHED.gangs, attempt=2) == 10
