"""Why a gang ended, as a table: the set of its ranks decides, and consequences are told from reasons."""

from __future__ import annotations

import pytest

from infra.verdict import RankExit, classify


def own(code: int) -> RankExit:
    return RankExit(code, "exited")


def stopped(code: int | None) -> RankExit:
    return RankExit(code, "stopped")


LOST = RankExit(None, "lost")
HUNG = RankExit(-9, "stalled")


@pytest.mark.parametrize(
    ("exits", "verdict"),
    [
        ([own(0)], "done"),
        ([own(0), own(0)], "done"),
        ([own(0), stopped(0)], "done"),  # asked to stop at the very end, and finished instead
        ([own(64), own(64)], "user"),
        ([own(1), own(64)], "user"),
        ([own(64), stopped(-9)], "user"),
        ([own(64), LOST], "user"),
        ([own(124), stopped(-15)], "stalled"),
        ([HUNG, stopped(75)], "stalled"),
        ([HUNG, own(1)], "stalled"),
        ([own(75), own(75)], "preempted"),
        ([own(75), own(0)], "preempted"),
        ([own(75), stopped(-9)], "preempted"),
        ([own(75), own(1)], "preempted"),  # a sibling crashed because the preempted one left
        ([own(75), LOST], "preempted"),
        ([stopped(75), stopped(75)], "preempted"),
        ([stopped(-9), stopped(1)], "preempted"),
        ([own(0), stopped(-15)], "preempted"),
        ([own(1), stopped(75)], "crashed"),  # what a rank answers when it is stopped is no reason
        ([own(1), stopped(64)], "crashed"),
        ([own(-9), stopped(124)], "crashed"),
        ([LOST, stopped(75)], "crashed"),
        ([LOST], "crashed"),
        ([own(0), LOST], "crashed"),
        ([own(137)], "crashed"),
        ([own(-11), own(-6)], "crashed"),
    ],
)
def test_the_gang_is_judged_as_a_whole(exits: list[RankExit], verdict: str) -> None:
    assert classify(exits) == verdict
    assert classify(exits[::-1]) == verdict, "the order of ranks does not matter"
