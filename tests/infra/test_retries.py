"""Retries as a table: kinds and markers of the failures so far, to again or stop."""

from __future__ import annotations

import pytest

from infra.retries import Again, Failure, Stop, decide


def failures(*markers: int | None, kind: str = "crashed") -> tuple[Failure, ...]:
    return tuple(Failure(kind, "x", marker) for marker in markers)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("history", "wait"),
    [
        (failures(None), 1),
        (failures(None, None), 2),
        (failures(None, None, None), None),
        (failures(10), 1),
        (failures(10, 10), 1),
        (failures(10, 10, 10), 2),
        (failures(10, 10, 10, 10), None),
        (failures(10, 5, 10, 9), None),
        (failures(10, 10, 10, 20), 1),
        (failures(None, None, 10), 1),
        (failures(0), 1),
        (failures(*range(0, 5000, 5)), 1),
        (failures(None, None, None, kind="preempted"), None),
        (failures(*range(10000), kind="preempted"), 1),
        (failures(None, kind="user"), None),
        (failures(10, 20) + failures(30, kind="user"), None),
    ],
)
def test_attempts_go_on_while_checkpoints_advance_and_stop_after_three_that_bring_none(
    history: tuple[Failure, ...], wait: float | None
):
    decision = decide(history)
    assert (decision.after if isinstance(decision, Again) else None) == wait


def test_waits_double_up_to_the_longest():
    waits = []
    for count in range(1, 10):
        decision = decide(failures(*[None] * count), limit=100, first_wait=2.0, longest_wait=60.0)
        assert isinstance(decision, Again)
        waits.append(decision.after)
    assert waits == [2, 4, 8, 16, 32, 60, 60, 60, 60]
    assert isinstance(decide(failures(*[None] * 5000), limit=10**6), Again)


def test_the_reason_names_the_step_that_nothing_got_past():
    decision = decide(failures(40, 40, None, 39))
    assert isinstance(decision, Stop)
    assert "newer than step 40" in decision.reason
    assert "3 attempts" in decision.reason
