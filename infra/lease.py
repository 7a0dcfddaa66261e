"""One driver per run: a lease in {root}/{run}/lease.json, renewed by a thread, with a fencing token that only grows.

- Every change of the lease is a conditional write, so of two drivers exactly one wins. The file is never deleted:
  releasing it clears the owner and keeps the token.
- A lease is free when it was released, when it was not renewed for `seconds`, or, on the same machine, as soon as the
  process that held it is gone. Expiry compares clocks of two hosts: they must agree to a fifth of `seconds`.
- A driver whose lease was taken, or that could not renew it in time, has lost it for good: `lost` is set, `on_loss` is
  called once, and `fence` raises. The check and the write after it are two operations; that a manifest is written
  conditionally closes the gap.
"""

from __future__ import annotations

import json
import logging
import os
import socket
import threading
import time
import uuid
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime
from types import TracebackType

import psutil

from infra.errors import LeaseLost, UserError
from infra.storage import Store, Version

_KEY = "lease.json"
# Of `seconds`. Two renewals in a row that hang until their timeout end at 4/6, so the loss is known before the expiry.
RENEW_EVERY = 1 / 6
_LOST_AFTER = 0.6
_LOG = logging.getLogger(__name__)


@dataclass(frozen=True)
class Holder:
    """The content of lease.json.

    owner: a random id, empty once released. machine: boot id and PID namespace, so that a PID means something.
    process_started, since, renewed: unix seconds. token: the fencing token.
    """

    owner: str
    host: str
    machine: str
    pid: int
    process_started: float
    token: int
    since: float
    renewed: float
    seconds: float

    @classmethod
    def from_json(cls, data: bytes, where: str) -> Holder:
        try:
            fields = json.loads(data)
            return cls(**{name: kind(fields[name]) for name, kind in _FIELDS.items()})
        except (ValueError, KeyError, TypeError) as wrong:
            raise UserError(f"{where} is no lease: make sure that no driver runs, then move it away") from wrong

    def to_json(self) -> bytes:
        return (json.dumps(asdict(self), indent=1, sort_keys=True) + "\n").encode()


_FIELDS: dict[str, type] = {
    "owner": str,
    "host": str,
    "machine": str,
    "pid": int,
    "process_started": float,
    "token": int,
    "since": float,
    "renewed": float,
    "seconds": float,
}


class Lease:
    """A held lease. Use `with acquire(store) as lease`; leaving it releases the run for the next driver."""

    def __init__(
        self,
        store: Store,
        holder: Holder,
        version: Version,
        on_loss: Callable[[str], None],
        clock: Callable[[], float] = time.time,
    ) -> None:
        self._store = store
        self._clock = clock
        self._holder = holder
        self._version = version
        self._on_loss = on_loss
        self._lock = threading.Lock()
        self._closing = threading.Event()
        self.lost = threading.Event()
        self.loss = ""
        self._thread = threading.Thread(target=self._keep, name="lease", daemon=True)
        self._thread.start()

    @property
    def token(self) -> int:
        return self._holder.token

    def fence(self) -> None:
        """Return when storage says that the lease is ours; LeaseLost otherwise, and after release."""
        if not self._closing.is_set() and not self.lost.is_set():
            found = self._store.read(_KEY, timeout=self._holder.seconds)
            if found is not None:
                now = Holder.from_json(found.data, self._store.url(_KEY))
                if now.owner == self._holder.owner and now.token == self._holder.token:
                    return
                self._lose(f"{_who(now)} has taken it")
            else:
                self._lose("lease.json is gone")
        raise LeaseLost(f"the lease of {self._store.url()} is no longer ours: {self.loss or 'it was released'}")

    def close(self, release: bool = True) -> None:
        """Stop renewing. release: let the next driver in at once; False leaves that to expiry or this process's end."""
        self._closing.set()
        # A renewal that hangs on storage must not keep the driver from ending.
        self._thread.join(timeout=5)
        if release and not self.lost.is_set():
            try:
                self._store.replace(_KEY, replace(self._holder, owner="").to_json(), self._version, timeout=5)
            except Exception as wrong:
                # A full disk, say: it must not hide how the run ended, and the end of this process frees the lease too.
                _LOG.warning("could not release %s: %s", self._store.url(_KEY), wrong)

    def __enter__(self) -> Lease:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    def _keep(self) -> None:
        while not self._closing.wait(RENEW_EVERY * self._holder.seconds) and not self.lost.is_set():
            self.renew()

    def renew(self) -> None:
        """Say once that this driver is alive, as the lease's own thread does; what then is lost is lost for good."""
        try:
            self._renew()
        except Exception as wrong:
            # Storage may be away for a while; whatever the reason, the limit is the age of the last renewal.
            age = self._clock() - self._holder.renewed
            reason = f"{type(wrong).__name__}: {wrong}".removesuffix(": ")  # a TimeoutError has nothing to say
            _LOG.warning("could not renew %s for %.0f s: %s", self._store.url(_KEY), age, reason)
            if age > _LOST_AFTER * self._holder.seconds:
                self._lose(f"it could not be renewed for {age:.0f} s: {reason}")

    def _renew(self) -> None:
        fresh = replace(self._holder, renewed=self._clock())
        timeout = RENEW_EVERY * self._holder.seconds
        version = self._store.replace(_KEY, fresh.to_json(), self._version, timeout)
        if version is None:
            found = self._store.read(_KEY, timeout)
            now = Holder.from_json(found.data, self._store.url(_KEY)) if found is not None else None
            if found is None or now is None or now.owner != self._holder.owner:
                self._lose("lease.json is gone" if now is None else f"{_who(now)} has taken it")
                return
            # Our own write, whose answer never came: go on from it.
            fresh, version = now, found.version
        self._holder, self._version = fresh, version

    def _lose(self, reason: str) -> None:
        with self._lock:
            if self.lost.is_set():
                return
            self.loss = reason
            self.lost.set()
        self._on_loss(reason)


def holder(store: Store) -> Holder | None:
    """Who holds the lease, or held it last (its owner is empty once released); None for a run without one."""
    found = store.read(_KEY)
    return None if found is None else Holder.from_json(found.data, store.url(_KEY))


def acquire(
    store: Store,
    *,
    seconds: float = 60.0,
    on_loss: Callable[[str], None] = lambda reason: None,
    clock: Callable[[], float] = time.time,
) -> Lease:
    """Take the run's lease, or refuse with a UserError that names the driver that holds it.

    seconds: how long a silent driver is believed to be alive; it renews six times as often.
    on_loss: called once, from another thread, with the reason. clock: unix seconds; a simulation brings its own.
    """
    me = psutil.Process()
    now = clock()
    mine = Holder(
        owner=uuid.uuid4().hex,
        host=socket.gethostname(),
        machine=_machine(),
        pid=me.pid,
        process_started=me.create_time(),
        token=1,
        since=now,
        renewed=now,
        seconds=seconds,
    )
    found = store.read(_KEY)
    if found is None:
        version = store.create(_KEY, mine.to_json())
    else:
        first = Holder.from_json(found.data, store.url(_KEY))
        if not free(first, now):
            raise UserError(_refusal(store, first, now))
        mine = replace(mine, token=first.token + 1)
        version = store.replace(_KEY, mine.to_json(), found.version)
    if version is None:
        found = store.read(_KEY)
        if found is None:
            raise UserError(f"{store.url(_KEY)} was removed while it was being taken: run the same command again")
        raise UserError(_refusal(store, Holder.from_json(found.data, store.url(_KEY)), now))
    return Lease(store, mine, version, on_loss, clock)


def free(holder: Holder, now: float) -> bool:
    """Whether another driver may take it: released, expired, or held by a process of this machine that is gone."""
    if not holder.owner or now - holder.renewed > holder.seconds:
        return True
    if (holder.host, holder.machine) != (socket.gethostname(), _machine()):
        return False
    try:
        process = psutil.Process(holder.pid)
        # A dead driver whose parent has not reaped it; and a PID that another process has been given since.
        return process.status() == psutil.STATUS_ZOMBIE or abs(process.create_time() - holder.process_started) > 2.0
    except psutil.NoSuchProcess:
        return True


def _refusal(store: Store, holder: Holder, now: float) -> str:
    wait = max(0.0, holder.renewed + holder.seconds - now)
    return (
        f"run {store.run!r} is being driven by {_who(holder)}: one driver per run. Wait for it, end it "
        f"(on {holder.host}: kill {holder.pid}), or use another run= name. If that host is gone, "
        f"its lease ends in {wait:.0f} s"
    )


def _who(holder: Holder) -> str:
    since = datetime.fromtimestamp(holder.since, UTC).isoformat(sep=" ", timespec="seconds")
    return f"process {holder.pid} on {holder.host}, since {since}"


def _machine() -> str:
    """Boot id and PID namespace on Linux: containers may share a host name, and a PID means nothing across them."""
    try:
        with open("/proc/sys/kernel/random/boot_id") as boot:
            return f"{boot.read().strip()} {os.readlink('/proc/self/ns/pid')}"
    except OSError:
        return f"boot {psutil.boot_time():.0f}"
