"""Machines for a gang: asked for, awaited with an open ear, given back.

- A reservation is all or nothing: half a gang holds machines and can do nothing with them.
- Machines that are merely busy are awaited without end. Machines that the cluster does not have in total are awaited
  for `placement.wait_seconds`, then the error names the resource that is short. An autoscaler that reports is believed:
  what it may still bring is awaited without end, as a cloud may be out of machines for hours.
- A placement that will do with fewer hosts asks for all of them first. When the cluster as a whole has been too small
  for `placement.shrink_seconds`, the request becomes the widest one that it can hold, and grows with the cluster for as
  long as it waits.
- Waiting ends at once when `stop` is set.
- The gangs of one driver are served in the order in which they asked (`Turns`): Ray grants whichever request it tries
  first, and an evaluation would wait until the last training stage had let it by.
"""

from __future__ import annotations

import contextlib
import secrets
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

import ray
from ray.util.placement_group import PlacementGroup, placement_group, remove_placement_group

from actors.autoscaler import may_come
from actors.tpu_slice import SliceRequest, part_of_a_host
from infra.errors import UserError
from infra.placement import Placement, shortage

# Ray cuts the time-out of a placement group to whole seconds: with less, it would not wait at all.
_LOOK_SECONDS = 1
_QUEUE_SECONDS = 0.2


class Request(Protocol):
    """A pending or granted request for the hosts of one gang."""

    def wait(self, seconds: int) -> PlacementGroup | None:
        """The group, one bundle per host, once it is granted; None when it is not within `seconds`."""
        ...

    def groups(self) -> list[str]:
        """Ids of the placement groups that are waited for, in hex: what an autoscaler calls them."""
        ...

    def release(self) -> None:
        """Gives everything back, or withdraws the request."""
        ...


class GroupRequest:
    """Hosts of a `cpu` or `gpu` placement, or some chips of one TPU host.

    GPU hosts are machines of their own (STRICT_SPREAD). CPU hosts prefer different machines, for their memory, and
    share one when there is only one (SPREAD): a laptop runs a gang of two. PACK would do the same there, and crowd a
    cluster.
    """

    def __init__(self, placement: Placement, name: str) -> None:
        bundles = [{key: float(size) for key, size in placement.resources.items()} for _ in range(placement.hosts)]
        self._group = placement_group(
            bundles,
            strategy="STRICT_SPREAD" if placement.distinct else "SPREAD",
            name=name,
            bundle_label_selector=[part_of_a_host(placement) or {}] * placement.hosts,
        )

    def wait(self, seconds: int) -> PlacementGroup | None:
        return self._group if self._group.wait(seconds) else None

    def groups(self) -> list[str]:
        return [self._group.id.hex()]

    def release(self) -> None:
        remove_placement_group(self._group)


@dataclass(eq=False)
class _Ticket:
    """A place in the queue. steps_aside: it waits for machines that do not exist yet, so others may go first."""

    steps_aside: bool = False


class Turns:
    """The queue of the gangs of one driver."""

    def __init__(self) -> None:
        self._tickets: list[_Ticket] = []
        self._lock = threading.Lock()

    @contextlib.contextmanager
    def ticket(self) -> Iterator[_Ticket]:
        """A place at the end of the queue, given up at the end of the block."""
        ticket = _Ticket()
        with self._lock:
            self._tickets.append(ticket)
        try:
            yield ticket
        finally:
            with self._lock:
                self._tickets.remove(ticket)

    def may_ask(self, ticket: _Ticket) -> bool:
        """Whether everybody before has been served, or steps aside."""
        with self._lock:
            return all(before.steps_aside for before in self._tickets[: self._tickets.index(ticket)])


def request(placement: Placement, name: str) -> Request:
    # Ray refuses a name that is taken, and the name of a group just given back stays taken for a moment.
    name = f"{name}-{secrets.token_hex(4)}"
    slices = placement.kind == "tpu" and part_of_a_host(placement) is None
    return SliceRequest(placement, name) if slices else GroupRequest(placement, name)


@dataclass(frozen=True)
class Reservation:
    """Granted machines. placement: what was asked for in the end. request: give that one back."""

    group: PlacementGroup
    request: Request
    placement: Placement


def reserve(
    placement: Placement, name: str, turns: Turns, stop: threading.Event, note: Callable[[str], None]
) -> Reservation | None:
    """The machines, or None when `stop` was set first.

    note: told what is awaited, about every second.
    Raises UserError when the cluster as a whole has been too small for `placement.wait_seconds`.
    """
    with turns.ticket() as ticket:
        while not turns.may_ask(ticket):
            if stop.wait(_QUEUE_SECONDS):
                return None
            note(f"waiting for {placement.request()}: others asked first")
        return _ask(placement, name, ticket, stop, note)


def _ask(
    placement: Placement, name: str, ticket: _Ticket, stop: threading.Event, note: Callable[[str], None]
) -> Reservation | None:
    widest = placement.widths()[0]
    wanted = widest
    short_since: float | None = None
    asked = request(wanted, name)
    granted = None
    try:
        # A grant is immediate on an idle cluster, and a look at all nodes is not free: wait first.
        while not stop.is_set() and (granted := asked.wait(_LOOK_SECONDS)) is None:
            nodes = [node["Resources"] for node in ray.nodes() if node["Alive"]]
            lack = shortage(placement, nodes)
            short_since = None if lack is None else short_since or time.monotonic()
            waited = time.monotonic() - (short_since or time.monotonic())
            fitting = fit(placement, nodes)
            coming = may_come(asked.groups()) if lack is not None else None
            if lack is not None and fitting is None and waited >= placement.wait_seconds:
                _refuse_unless_hope(placement, name, f"{lack}, for {waited:.0f} s now", coming)
            if fitting not in (None, wanted) and (lack is None or waited >= placement.shrink_seconds):
                asked.release()
                wanted, asked = fitting, request(fitting, name)
            ticket.steps_aside = shortage(wanted, nodes) is not None
            fewer = "" if wanted.hosts == placement.hosts else f" instead of {placement.hosts}"
            hope = "; the autoscaler may bring them" if coming else ""
            note(f"waiting for {wanted.request()}{fewer}" + (f": {lack}{hope}" if lack else ""))
        return Reservation(granted, asked, wanted) if granted is not None else None
    finally:
        if granted is None:
            asked.release()


def _refuse_unless_hope(placement: Placement, name: str, lack: str, coming: bool | None) -> None:
    if coming:
        return
    total, free = ray.cluster_resources(), ray.available_resources()
    # The nodes that an autoscaler may still add depend on those that others use now and will give back.
    if coming is False and all(free.get(key, 0.0) < total.get(key, 0.0) for key in placement.resources):
        return
    never = ", and the autoscaler can add no such nodes" if coming is False else ""
    raise UserError(
        f"{name} needs {placement.request()} (kind={placement.kind}), but {lack}{never}; use a placement that fits the "
        "cluster, add such nodes, or raise placement.wait_seconds"
    )


def fit(placement: Placement, nodes: Sequence[Mapping[str, float]]) -> Placement | None:
    """The widest form of a placement that nodes with these total resources can hold; None where none can."""
    return next((width for width in placement.widths() if shortage(width, nodes) is None), None)
