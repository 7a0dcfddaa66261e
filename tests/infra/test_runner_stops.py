"""A plan that is stopped: by another driver, by a stolen lease, by Ctrl-C, by its caller."""

from __future__ import annotations

import os
import signal
import threading
import time
from pathlib import Path

import pytest

from infra import manifest as manifests
from infra import runner
from infra.errors import LeaseLost, UserError
from infra.stage import Result, StageContext
from infra.storage import Store
from tests.infra.driver import count, lines, slow
from tests.infra.processes import end, start, wait_for
from tests.infra.tiny import Number, add, stage
from tests.infra.witness import Witness, quick


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(str(tmp_path), "tiny")


def test_a_second_driver_runs_nothing(store: Store, tmp_path: Path):
    process = start("tests.infra.driver", str(tmp_path))
    try:
        wait_for(lambda: lines(store.state_url("slow", 1) + "/ticks"), process)
        with pytest.raises(UserError, match=f"process {process.pid} on"):
            quick([stage("other")], store)
        assert store.attempts("other") == ()
    finally:
        end(process)


def test_a_stolen_lease_stops_the_stage_which_then_cannot_commit(store: Store):
    at_work = threading.Event()
    stopped: list[bool] = []

    def work(context: StageContext, recipe: Number) -> Result:
        at_work.set()
        stopped.append(context.stop.wait(5))
        with pytest.raises(LeaseLost):
            context.fence()
        return add(context, recipe)

    def steal() -> None:
        at_work.wait(5)
        while (found := store.read("lease.json")) is not None:
            changed = found.data.replace(b'"owner": "', b'"owner": "thief')
            if store.replace("lease.json", changed, found.version):
                return

    thief = threading.Thread(target=steal)
    thief.start()
    with pytest.raises(LeaseLost, match="lease is lost"):
        quick([stage("a", 1, work)], store, lease_seconds=0.4)
    thief.join()
    assert stopped == [True]
    assert manifests.load(store, "a") is None


def test_a_stage_that_does_not_look_at_stop_still_cannot_commit_under_a_stolen_lease(store: Store):
    def work(context: StageContext, recipe: Number) -> Result:
        found = store.read("lease.json")
        assert found is not None
        assert store.replace("lease.json", found.data.replace(b'"owner": "', b'"owner": "thief'), found.version)
        return add(context, recipe)

    with pytest.raises(LeaseLost):
        quick([stage("a", 1, work)], store)
    assert manifests.load(store, "a") is None


def test_ctrl_c_ends_within_ten_seconds_and_a_rerun_resumes(store: Store, tmp_path: Path):
    ticks = store.state_url("slow", 1) + "/ticks"
    process = start("tests.infra.driver", str(tmp_path), "ticks=40")
    try:
        wait_for(lambda: len(lines(ticks) or []) >= 3, process)
        process.send_signal(signal.SIGINT)
        output = process.communicate(timeout=10)[0]
    finally:
        end(process)
    assert process.returncode != 0
    assert "KeyboardInterrupt" in output
    assert manifests.load(store, "slow") is None, "Ctrl-C must reach the stage, not wait for its end"
    assert b'"owner": ""' in (Path(store.url("lease.json"))).read_bytes()
    outcome = quick([slow(40)], store)
    assert Path(outcome.artifacts["slow"].path("out.txt")).read_text().split()[:3] == ["1", "1", "1"]


def test_the_caller_s_stop_ends_every_stage_and_starts_none(store: Store):
    stop = threading.Event()

    def work(context: StageContext, recipe: Number) -> Result:
        stop.set()
        assert context.stop.wait(5)
        return add(context, recipe)

    witness = Witness()
    outcome = quick(
        [stage("b", source=stage("a", 1, work)), stage("c", 1000000, count)], store, stop=stop, observer=witness
    )
    assert outcome.stopped
    assert not outcome.ok
    assert outcome.unfinished == ("a", "b", "c")
    assert manifests.load(store, "a") is None, "what returns after a stop may be half of it"
    assert ("a", "stopped") in witness.states


def test_a_stage_that_ignores_the_stop_is_left_behind_and_keeps_the_lease(
    store: Store, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(runner, "JOIN_SECONDS", 0.2)
    stop, release, fenced = threading.Event(), threading.Event(), threading.Event()

    def work(context: StageContext, recipe: Number) -> Result:
        stop.set()
        release.wait(10)
        try:
            context.fence()
        except LeaseLost:
            fenced.set()
        return add(context, recipe)

    begun = time.monotonic()
    outcome = quick([stage("a", 1, work)], store, stop=stop)
    assert time.monotonic() - begun < 2
    assert outcome.stopped
    with pytest.raises(UserError, match=f"process {os.getpid()} on"):
        quick([stage("a")], store)
    release.set()
    assert fenced.wait(5)
    assert manifests.load(store, "a") is None
