"""The queue for machines, and placements that will do with fewer hosts."""

from __future__ import annotations

import threading
import time
from typing import ClassVar

import pytest
import ray

from actors import reservation
from actors.gang import Gang
from actors.reservation import Turns, fit
from infra.errors import UserError
from infra.placement import Placement
from tests.actors.conftest import Stand


def test_gangs_are_served_in_the_order_in_which_they_asked():
    turns = Turns()
    with turns.ticket() as second_last:
        with turns.ticket() as last:
            assert turns.may_ask(second_last)
            assert not turns.may_ask(last)
        assert turns.may_ask(second_last)
    with turns.ticket() as next_one:
        assert turns.may_ask(next_one)


def test_who_waits_for_an_autoscaler_lets_others_by():
    turns = Turns()
    with turns.ticket() as big, turns.ticket() as small, turns.ticket() as third:
        big.steps_aside = True
        assert turns.may_ask(small)
        assert not turns.may_ask(third)
        big.steps_aside = False
        assert not turns.may_ask(small)


def test_the_widest_form_that_fits_is_taken():
    place = Placement(4, {"CPU": 2}, least_hosts=1)
    assert [(width or place).hosts for width in (fit(place, [{"CPU": 2.0}] * n) for n in (1, 2, 3, 4, 5))] == [
        1, 2, 2, 4, 4,
    ]  # fmt: skip
    assert fit(place, [{"CPU": 1.0}] * 8) is None
    assert fit(Placement(4, {"CPU": 2}, least_hosts=2), [{"CPU": 2.0}]) is None
    slices = Placement(8, {"TPU": 4}, "tpu", "2x2x2", "v4", slices=4, least_hosts=2)
    narrower = fit(slices, [{"TPU": 4.0}] * 5)
    assert narrower is not None
    assert (narrower.hosts, narrower.slices) == (4, 2)


class Granted:
    """A request that is granted once the cluster has so many nodes. `asked` remembers the hosts of all requests.

    coming: what the autoscaler says of them. free: nodes that nobody uses."""

    asked: ClassVar[list[int]] = []
    nodes: ClassVar[int] = 0
    free: ClassVar[int] = 0
    coming: ClassVar[bool | None] = None

    def __init__(self, placement: Placement, name: str) -> None:
        self._hosts = placement.hosts
        self.asked.append(placement.hosts)

    def wait(self, seconds: int) -> str | None:
        time.sleep(0.05)
        return "group" if self._hosts <= Granted.nodes else None

    def groups(self) -> list[str]:
        return ["group"]

    def release(self) -> None: ...


@pytest.fixture
def nodes(monkeypatch: pytest.MonkeyPatch) -> type[Granted]:
    Granted.asked, Granted.nodes, Granted.free, Granted.coming = [], 0, 0, None
    alive = {"Alive": True, "Resources": {"CPU": 1.0}}
    monkeypatch.setattr(reservation, "request", Granted)
    monkeypatch.setattr(ray, "nodes", lambda: [alive] * Granted.nodes)
    monkeypatch.setattr(reservation, "may_come", lambda groups: Granted.coming)
    monkeypatch.setattr(ray, "cluster_resources", lambda: {"CPU": 1.0 * Granted.nodes})
    monkeypatch.setattr(ray, "available_resources", lambda: {"CPU": 1.0 * Granted.free})
    return Granted


def ask(placement: Placement, at: dict[float, int] | None = None) -> tuple[int, list[str]]:
    """Hosts granted, and the notes. at: seconds -> nodes of the cluster from then on."""
    notes: list[str] = []
    timers = [threading.Timer(seconds, setattr, (Granted, "nodes", count)) for seconds, count in (at or {}).items()]
    for timer in timers:
        timer.start()
    got = reservation.reserve(placement, "stage", Turns(), threading.Event(), notes.append)
    assert got is not None
    return got.placement.hosts, notes


def test_fewer_hosts_are_asked_for_once_the_cluster_has_been_too_small_for_long_enough(nodes: type[Granted]) -> None:
    nodes.nodes = 3
    began = time.monotonic()
    hosts, notes = ask(Placement(4, least_hosts=1, shrink_seconds=0.5))
    assert hosts == 2
    assert time.monotonic() - began >= 0.5
    assert nodes.asked == [4, 2]
    assert "waiting for CPU: 2 x 1 instead of 4: there is room for 3 of 4 hosts" in notes[-1]
    assert ask(Placement(4, least_hosts=1, shrink_seconds=60.0), {0.3: 4})[0] == 4


def test_a_request_grows_with_the_cluster_while_it_waits(nodes: type[Granted], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Granted, "wait", lambda self, seconds: "group" if Granted.nodes == self._hosts == 4 else None)
    nodes.nodes = 2
    assert ask(Placement(4, least_hosts=1, shrink_seconds=0), {0.5: 4})[0] == 4
    assert nodes.asked[:2] == [4, 2]
    assert nodes.asked[-1] == 4


def test_what_no_width_fits_is_refused_and_one_that_fits_is_not(nodes: type[Granted]) -> None:
    nodes.nodes = 1
    with pytest.raises(UserError, match=r"stage needs CPU: 4 x 1 .*there is room for 1 of 4 hosts"):
        ask(Placement(4, least_hosts=2, shrink_seconds=0, wait_seconds=0.3))
    assert ask(Placement(4, least_hosts=1, shrink_seconds=0.5, wait_seconds=0.3))[0] == 1


def test_what_the_autoscaler_may_bring_is_awaited_and_what_it_never_can_is_refused(nodes: type[Granted]) -> None:
    nodes.nodes, nodes.free, nodes.coming = 1, 1, True
    hosts, notes = ask(Placement(2, wait_seconds=0.2), {1.0: 2})
    assert hosts == 2
    assert notes[-1].endswith("there is room for 1 of 2 hosts (in all) of CPU 1; the autoscaler may bring them")
    nodes.nodes, nodes.coming = 1, False
    with pytest.raises(UserError, match="for 0 s now, and the autoscaler can add no such nodes; use a placement"):
        ask(Placement(2, wait_seconds=0.2))
    nodes.free = 0  # others use what there is, and the limit on nodes with it
    assert ask(Placement(2, wait_seconds=0.2), {1.0: 2})[0] == 2


def test_a_gang_runs_on_fewer_hosts_and_every_rank_knows_how_many(stand: Stand) -> None:
    with Gang(Placement(4, {"CPU": 1}, least_hosts=2, shrink_seconds=0), "test") as gang:
        ended = stand.run(gang, "leave(f'of{rank}', sys.argv[sys.argv.index('--num-processes') + 1])\n")
    assert (ended.kind, ended.codes) == ("done", (0, 0))
    assert stand.read("of1") == "2"
    assert any("2 instead of 4" in view.note for view in stand.views)
