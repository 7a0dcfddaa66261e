"""A pool of workers for data stages: each an actor, in a process of its own, that is opened once and called many times.

- What a worker's `open` is given reaches its process as the argument of a call, through memory: neither Ray's record of
  the actor nor any file holds it. That is the way for a key.
- A call whose worker dies is made again on a new one, and so is a call that raises one of `again`; at most `tries`
  times in all, then the pool gives up. Any other exception is the caller's at once, as it was raised.
- Leaving the pool, for whatever reason, ends its processes.
"""

from __future__ import annotations

import contextlib
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from types import TracebackType
from typing import Any, Generic, Self, TypeVar

import ray
from ray.exceptions import OutOfMemoryError, RayActorError, RayError, RayTaskError

from actors.environment import trainer_environment
from infra.errors import UserError
from infra.placement import Placement, shortage
from infra.stage import StageFailure

T = TypeVar("T")

_LOOK_SECONDS = 0.5


class GaveUp(Exception):
    """A call, or the opening of a worker, failed too often."""


@dataclass(frozen=True)
class Retries:
    """tries: of a call, and of opening workers in a row. wait_seconds: before a second try of a call; it doubles."""

    tries: int = 3
    wait_seconds: float = 5.0
    again: tuple[type[Exception], ...] = ()


class Pool:
    """A context manager, for one thread."""

    def __init__(
        self,
        worker: type,
        opened_with: Sequence[Any],
        placement: Placement,
        *,
        workers: int = 1,
        at_once: int = 1,
        retries: Retries = Retries(),
    ) -> None:
        """worker: a class with a method `open`, which `opened_with` is given, and the method that `run` names.

        placement: its resources are those of each worker; its kind and env make the worker's environment. workers: at
        most; those that the cluster has room for take part. at_once: calls at a time of each, in threads.
        """
        self._opened_with, self._placement, self._retries = opened_with, placement, retries
        self._most, self._at_once = workers, at_once
        self._class = ray.remote(worker).options(
            **_options(placement.resources),
            max_concurrency=at_once,
            max_restarts=0,
            runtime_env={"env_vars": trainer_environment({}, placement.kind, placement.env)},
        )
        self._workers: set[_Worker] = set()
        self._failed_openings = 0
        self._ending = False
        self._under_way: dict[ray.ObjectRef, tuple[_Worker, _Call[Any]]] = {}

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for worker in self._workers:
            ray.kill(worker.actor)
        self._workers.clear()
        left = list(self._under_way)
        for ref in ray.wait(left, num_returns=len(left), timeout=0)[0] if left else ():
            # Looked at, so that Ray does not print the error of a call that nobody waits for any more.
            with contextlib.suppress(RayError):
                ray.get(ref)

    def run(
        self,
        method: str,
        items: Sequence[T],
        stop: threading.Event,
        *,
        lost: Callable[[T], None] = lambda item: None,
        note: Callable[[str], None] = lambda text: None,
    ) -> Iterator[tuple[T, Any]]:
        """(item, what the method returned for it), as they finish; begun in order.

        lost: told of each item whose call failed. note: told what is waited for. Raises GaveUp; UserError when no
        worker fits into the cluster; StageFailure within a second of `stop`; what the method or `open` raises else.
        """
        waiting = deque(_Call(item) for item in items)
        under_way = self._under_way
        began = time.monotonic()
        while True:
            if self._ending:
                waiting = deque(call for call in waiting if call.failed)
            if not waiting and not under_way:
                return
            self._start(min(self._most, len(waiting) + len(under_way)))
            self._hand_out(method, waiting)
            opening = {worker.opening: worker for worker in self._workers if worker.opening is not None}
            done, _ = ray.wait([*under_way, *opening], timeout=_LOOK_SECONDS) if under_way or opening else ([], [])
            if stop.wait(0 if under_way or opening else _LOOK_SECONDS):
                raise StageFailure("preempted", "asked to stop")
            if len(opening) == len(self._workers) and not done:
                self._check_room(time.monotonic() - began, note)
            for ref in done:
                if ref in opening:
                    self._open(opening[ref])
                    continue
                worker, call = under_way.pop(ref)
                worker.calls -= 1
                try:
                    result = self._result(ref, worker)
                except _Again as failed:
                    lost(call.item)
                    waiting.appendleft(self._next_try(call, failed.__cause__))
                else:
                    yield call.item, result

    def begin_no_more(self) -> None:
        """What is under way goes on, and is tried again if need be; what has not begun never will."""
        self._ending = True

    def _start(self, count: int) -> None:
        while len(self._workers) < count:
            actor = self._class.remote()
            self._workers.add(_Worker(actor, actor.open.remote(*self._opened_with)))

    def _hand_out(self, method: str, waiting: deque[_Call[T]]) -> None:
        for worker in self._workers:
            while worker.opening is None and worker.calls < self._at_once:
                now = time.monotonic()
                call = next((call for call in waiting if call.not_before <= now), None)
                if call is None:
                    return
                waiting.remove(call)
                worker.calls += 1
                self._under_way[getattr(worker.actor, method).remote(call.item)] = (worker, call)

    def _open(self, worker: _Worker) -> None:
        assert worker.opening is not None
        try:
            self._result(worker.opening, worker)
        except _Again as failed:
            self._failed_openings += 1
            if self._failed_openings >= self._retries.tries:
                raise GaveUp(
                    f"{self._failed_openings} workers in a row failed to start: {failed.__cause__}"
                ) from failed
            # Also one that raised: the next try begins with a new process.
            self._drop(worker)
        else:
            worker.opening = None
            self._failed_openings = 0

    def _result(self, ref: ray.ObjectRef, worker: _Worker) -> Any:
        """Raises _Again, caused by what happened, where another try may help."""
        try:
            return ray.get(ref)
        except (RayActorError, OutOfMemoryError) as died:
            self._drop(worker)
            raise _Again from died
        except RayTaskError as raised:
            cause = raised.cause
            if isinstance(cause, self._retries.again):
                raise _Again from cause
            raise (cause if isinstance(cause, Exception) else raised) from raised

    def _drop(self, worker: _Worker) -> None:
        if worker in self._workers:
            self._workers.remove(worker)
            ray.kill(worker.actor)

    def _next_try(self, call: _Call[T], cause: BaseException | None) -> _Call[T]:
        failed = call.failed + 1
        if failed >= self._retries.tries:
            raise GaveUp(f"{cause} (tried {failed} times)" if failed > 1 else f"{cause}") from cause
        wait = self._retries.wait_seconds * 2.0 ** min(failed - 1, 10)
        return _Call(call.item, failed, time.monotonic() + wait)

    def _check_room(self, waited: float, note: Callable[[str], None]) -> None:
        """No worker is open: whether the cluster can hold one at all."""
        one = replace(self._placement, hosts=1, slices=1)
        lack = shortage(one, [node["Resources"] for node in ray.nodes() if node["Alive"]])
        if lack is not None and waited >= self._placement.wait_seconds:
            raise UserError(
                f"a worker needs {one.request()} (kind={one.kind}), but {lack}, for {waited:.0f} s now; use a "
                "placement that fits the cluster, add such nodes, or raise placement.wait_seconds"
            )
        note(f"starting workers ({one.request()})" + (f": {lack}" if lack else ""))


class _Again(Exception):
    """Its cause may be cured by another try."""


@dataclass(eq=False)
class _Worker:
    """opening: the call of `open`, until it has returned. calls: under way."""

    actor: Any
    opening: ray.ObjectRef | None
    calls: int = 0


@dataclass(eq=False)
class _Call(Generic[T]):
    item: T
    failed: int = 0
    not_before: float = 0.0


def _options(resources: Mapping[str, float]) -> dict[str, Any]:
    """Resources in the words of an actor's options."""
    known = {"CPU": "num_cpus", "GPU": "num_gpus", "memory": "memory"}
    named = {known[name]: size for name, size in resources.items() if name in known}
    others = {name: size for name, size in resources.items() if name not in known}
    return {"num_cpus": 0, **named, "resources": others}
