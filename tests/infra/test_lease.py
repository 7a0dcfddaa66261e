"""One driver per run: real processes, real kills, and leases stolen under a holder."""

from __future__ import annotations

import json
import os
import socket
import threading
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import psutil
import pytest

from infra.errors import LeaseLost, UserError
from infra.lease import Holder, Lease, acquire
from infra.storage import Store, Version
from tests.infra.processes import end, start, wait_for


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(str(tmp_path), "tiny")


def holder(store: Store) -> Holder:
    found = store.read("lease.json")
    assert found is not None
    return Holder.from_json(found.data, "lease.json")


def overwrite(store: Store, changed: Holder) -> None:
    """As another driver would, over whatever is there; again if the holder renews in between."""
    while True:
        found = store.read("lease.json")
        if found is None:
            written = store.create("lease.json", changed.to_json())
        else:
            written = store.replace("lease.json", changed.to_json(), found.version)
        if written is not None:
            return


def foreign(age: float = 0.0, **changes: object) -> Holder:
    """The lease of a driver elsewhere, renewed `age` seconds ago."""
    now = time.time()
    other = Holder("someone", "other-host", "other machine", 42, now, 7, now, now - age, 60.0)
    return replace(other, **changes)  # type: ignore[arg-type]


def test_a_second_driver_is_refused_naming_the_first_and_takes_over_at_once_when_it_is_killed(
    store: Store, tmp_path: Path
):
    process = start("tests.infra.driver", str(tmp_path))
    try:
        wait_for(lambda: store.read("lease.json"), process)
        with pytest.raises(UserError) as refused:
            acquire(store)
        text = str(refused.value)
        assert f"process {process.pid} on {socket.gethostname()}, since 20" in text
        assert f"kill {process.pid}" in text
        assert "run= name" in text

        process.kill()
        # Not reaped: its entry in the process table is still there, as it is when a shell's child dies.
        wait_for(lambda: psutil.Process(process.pid).status() == psutil.STATUS_ZOMBIE)
        begun = time.monotonic()
        with acquire(store) as lease:
            assert time.monotonic() - begun < 1
            assert lease.token == 2
            lease.fence()
    finally:
        end(process)


def test_a_reaped_driver_s_lease_is_free(store: Store, tmp_path: Path):
    process = start("tests.infra.driver", str(tmp_path))
    try:
        wait_for(lambda: store.read("lease.json"), process)
    finally:
        end(process)
    acquire(store).close()


def test_a_pid_that_was_given_to_another_process_is_not_the_holder(store: Store):
    acquire(store).close()
    mine = holder(store)
    overwrite(store, replace(mine, owner="dead", pid=os.getpid(), process_started=mine.process_started - 1000))
    acquire(store).close()


@pytest.mark.parametrize(
    ("changes", "free"),
    [
        ({}, False),
        ({"age": 3600.0}, True),
        ({"age": 3600.0, "seconds": 7200.0}, False),
        ({"owner": ""}, True),
    ],
)
def test_a_lease_of_another_host_is_free_only_when_released_or_expired(
    store: Store, changes: dict[str, Any], free: bool
):
    other = foreign(**changes)
    overwrite(store, other)
    if free:
        with acquire(store) as lease:
            assert lease.token == other.token + 1
    else:
        with pytest.raises(UserError, match="process 42 on other-host"):
            acquire(store)


def test_the_token_grows_over_releases_and_the_file_stays(store: Store):
    tokens = []
    for _ in range(3):
        with acquire(store) as lease:
            tokens.append(lease.token)
    assert tokens == [1, 2, 3]
    assert holder(store).owner == ""


def test_of_many_drivers_at_once_exactly_one_gets_an_expired_lease(store: Store):
    overwrite(store, foreign(renewed=0.0))
    barrier, won, refused = threading.Barrier(6), [], []

    def contend() -> None:
        barrier.wait()
        try:
            won.append(acquire(store))
        except UserError as error:
            refused.append(str(error))

    threads = [threading.Thread(target=contend) for _ in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(won) == 1
    assert len(refused) == 5
    assert all(f"process {os.getpid()} on" in text for text in refused)
    won[0].close()


def test_a_held_lease_is_renewed(store: Store):
    with acquire(store, seconds=0.4) as lease:
        first = holder(store).renewed
        time.sleep(0.8)
        assert holder(store).renewed > first + 0.4
        lease.fence()
        with pytest.raises(UserError):
            acquire(store)


def test_a_stolen_lease_is_noticed_once_and_never_comes_back(store: Store):
    told: list[str] = []
    lease = acquire(store, seconds=0.2, on_loss=told.append)
    overwrite(store, foreign())
    with pytest.raises(LeaseLost, match="process 42 on other-host"):
        lease.fence()
    time.sleep(0.2)
    assert len(told) == 1
    assert lease.lost.is_set()
    overwrite(store, foreign(owner=""))
    with pytest.raises(LeaseLost):
        lease.fence()
    lease.close()
    assert holder(store).token == 7, "releasing a lost lease must not touch the new holder's"


def test_theft_is_noticed_by_the_renewal_too(store: Store):
    told: list[str] = []
    lease = acquire(store, seconds=0.2, on_loss=told.append)
    overwrite(store, foreign())
    assert lease.lost.wait(2)
    assert told == [lease.loss]
    lease.close()


def test_a_removed_lease_is_lost(store: Store, tmp_path: Path):
    lease = acquire(store, seconds=0.2)
    (tmp_path / "tiny" / "lease.json").unlink()
    assert lease.lost.wait(2)
    lease.close()


@pytest.mark.parametrize("hangs", [False, True])
def test_a_lease_that_cannot_be_renewed_is_given_up_before_it_expires(
    store: Store, monkeypatch: pytest.MonkeyPatch, hangs: bool
):
    lease = acquire(store, seconds=1.2)
    begun = time.time()

    def away(key: str, data: bytes, version: Version, timeout: float | None = None) -> Version | None:
        assert timeout is not None, "a renewal without a timeout hangs as long as storage does"
        time.sleep(timeout if hangs else 0)
        raise TimeoutError if hangs else OSError("storage is away")

    monkeypatch.setattr(store, "replace", away)
    assert lease.lost.wait(5)
    assert 0.6 < time.time() - begun < 1.2
    assert lease.loss.endswith("TimeoutError" if hangs else "OSError: storage is away")
    lease.close()


def test_a_renewal_that_was_written_but_not_answered_keeps_the_lease(store: Store, monkeypatch: pytest.MonkeyPatch):
    lease = acquire(store, seconds=0.2)
    write, unanswered = store.replace, []

    def silent(key: str, data: bytes, version: Version, timeout: float | None = None) -> Version | None:
        answer = write(key, data, version, timeout)
        if not unanswered:
            unanswered.append(answer)
            return None
        return answer

    monkeypatch.setattr(store, "replace", silent)
    time.sleep(0.4)
    assert unanswered
    assert not lease.lost.is_set()
    lease.fence()
    lease.close()


def test_a_closed_lease_fences(store: Store):
    lease: Lease = acquire(store)
    lease.close(release=False)
    with pytest.raises(LeaseLost):
        lease.fence()
    assert holder(store).owner != ""


@pytest.mark.parametrize("data", [b"", b"{", b"[]", json.dumps({"owner": "x"}).encode()])
def test_a_foreign_lease_file_is_an_error_that_names_it(store: Store, data: bytes):
    store.create("lease.json", data)
    with pytest.raises(UserError, match=r"lease\.json is no lease"):
        acquire(store)
