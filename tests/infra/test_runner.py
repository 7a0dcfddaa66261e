"""Running a plan: reuse, resume after kills, retries, failures, stops and lost leases, on real storage."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from infra import manifest as manifests
from infra import runner
from infra.errors import LeaseLost, UserError
from infra.manifest import Manifest
from infra.plan import Plan
from infra.retries import Decision, Failure
from infra.runner import Outcome, run
from infra.stage import Result, Stage, StageContext, StageFailure
from infra.storage import Store
from tests.infra.driver import count, lines, slow
from tests.infra.processes import REPOSITORY, end, start, wait_for
from tests.infra.tiny import Number, add, stage, total


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(str(tmp_path), "tiny")


class Witness:
    """An observer that remembers everything."""

    def __init__(self) -> None:
        self.plans: list[Plan] = []
        self.states: list[tuple[str, str]] = []
        self.figures: list[Mapping[str, Any]] = []
        self.finished: list[str] = []
        self.failures: list[tuple[str, Failure, Decision]] = []

    def on_plan(self, plan: Plan) -> None:
        self.plans.append(plan)

    def on_state(self, stage: Stage, state: str, detail: str) -> None:
        self.states.append((stage.name, state))

    def on_report(self, stage: Stage, figures: Mapping[str, Any]) -> None:
        self.figures.append(figures)

    def on_finished(self, stage: Stage, manifest: Manifest) -> None:
        self.finished.append(stage.name)

    def on_failure(self, stage: Stage, failure: Failure, decision: Decision) -> None:
        self.failures.append((stage.name, failure, decision))


def failing(*errors: Exception) -> Any:
    """A run function that raises these in turn, then succeeds."""
    left = list(errors)

    def work(context: StageContext, recipe: Number) -> Result:
        if left:
            raise left.pop(0)
        return add(context, recipe)

    return work


def quick(stages: list[Stage], store: Store, **options: Any) -> Outcome:
    return run(stages, store, first_wait=0.01, **options)


def test_a_graph_is_made_in_order_and_a_rerun_reuses_all_of_it(store: Store):
    calls: list[str] = []

    def work(context: StageContext, recipe: Number) -> Result:
        calls.append(context.stage.name)
        return add(context, recipe)

    a = stage("a", 1, work)
    b = stage("b", 2, work, source=a)
    c = stage("c", 3, work, left=a, right=b)
    first = quick([c], store)
    assert first.ok
    assert calls == ["a", "b", "c"]
    assert total(store, "c") == 3 + 1 + (2 + 1)
    witness = Witness()
    again = quick([c], store, observer=witness)
    assert again.ok
    assert calls == ["a", "b", "c"]
    assert witness.states == [("a", "reused"), ("b", "reused"), ("c", "reused")]
    assert {name: art.values for name, art in again.artifacts.items()} == {
        "a": {"total": 1},
        "b": {"total": 3},
        "c": {"total": 7},
    }
    assert store.attempts("c") == (1,)


def test_the_manifest_says_what_was_made_from_what(store: Store):
    a = stage("a")
    b = stage("b", source=a)
    quick([b], store)
    found = manifests.load(store, "b")
    assert found is not None
    manifest = found[0]
    assert manifest.fingerprint == b.fingerprint
    assert manifest.recipe == {"value": 1, "rope": {"theta": 10000.0}}
    assert manifest.inputs["source"] == manifests.InputRef("a", a.fingerprint)
    assert [(entry.path, entry.bytes) for entry in manifest.files] == [("out.json", 1)]
    assert (manifest.attempt, manifest.series, manifest.provenance.attempts) == (1, 1, 1)
    assert "tensorstore" in manifest.provenance.versions


def test_independent_branches_run_at_the_same_time(store: Store):
    both = threading.Barrier(2)

    def meet(context: StageContext, recipe: Number) -> Result:
        both.wait(timeout=5)
        return add(context, recipe)

    a = stage("a")
    outcome = quick([stage("d", left=stage("b", 1, meet, source=a), right=stage("c", 1, meet, source=a))], store)
    assert outcome.ok
    assert total(store, "d") == 5


def test_a_killed_driver_s_stage_resumes_its_state_and_its_partial_output_stays_unseen(store: Store, tmp_path: Path):
    ticks = Path(store.state_url("slow", 1)) / "ticks"
    process = start("tests.infra.driver", str(tmp_path), "ticks=60")
    try:
        wait_for(lambda: len(lines(str(ticks)) or []) >= 5, process)
    finally:
        end(process)
    assert process.returncode == -signal.SIGKILL
    seen = lines(str(ticks))
    assert seen is not None
    assert 5 <= len(seen) < 60
    assert manifests.load(store, "slow") is None

    witness = Witness()
    outcome = quick([slow(60)], store, observer=witness)
    assert witness.plans[0]["slow"].action == "resume"
    artifact = outcome.artifacts["slow"]
    assert Path(artifact.path("out.txt")).read_text().split() == ["1"] * len(seen) + ["2"] * (60 - len(seen))
    assert (artifact.manifest.attempt, artifact.manifest.series, artifact.manifest.provenance.attempts) == (2, 1, 2)
    with pytest.raises(KeyError):
        artifact.path("partial.txt")


def test_a_killed_forced_attempt_resumes_while_the_first_result_stands(store: Store, tmp_path: Path):
    quick([slow(40)], store)
    ticks = Path(store.state_url("slow", 2)) / "ticks"
    process = start("tests.infra.driver", str(tmp_path), "ticks=40", "force=slow")
    try:
        # The forced attempt has a fresh series; it is killed before it can finish.
        wait_for(lambda: lines(str(ticks)), process)
    finally:
        end(process)
    kept = quick([slow(40)], store)
    assert kept.artifacts["slow"].manifest.series == 1, "the first result must stand until the forced one is complete"

    witness = Witness()
    outcome = quick([slow(40)], store, force="slow", observer=witness)
    assert witness.plans[0]["slow"].action == "resume"
    manifest = outcome.artifacts["slow"].manifest
    assert (manifest.attempt, manifest.series) == (3, 2)
    assert Path(outcome.artifacts["slow"].path("out.txt")).read_text().split()[0] == "2"
    assert Path(store.attempt_url("slow", 1), "out.txt").exists(), "force deletes nothing"


def test_force_makes_a_new_attempt_in_a_new_series_and_what_is_below_is_reused(store: Store):
    a = stage("a")
    b = stage("b", source=a)
    quick([b], store)
    outcome = quick([b], store, force="a")
    assert outcome.ok
    manifest = outcome.artifacts["a"].manifest
    assert (manifest.attempt, manifest.series) == (2, 2)
    assert outcome.artifacts["b"].manifest.attempt == 1
    assert total(store, "a", 1) == total(store, "a", 2)
    assert quick([b], store).artifacts["a"].manifest == manifest


def test_drift_is_an_error_before_any_work_and_force_is_the_way_out(store: Store):
    quick([stage("b", source=stage("a"))], store)
    changed = stage("b", source=stage("a", 2))
    with pytest.raises(UserError, match="value: 1 -> 2") as caught:
        quick([changed, stage("new")], store)
    assert "force=a,b " in str(caught.value)
    assert "run=NEWNAME" in str(caught.value)
    assert store.attempts("a") == (1,)
    assert store.attempts("new") == (), "nothing at all runs under drift"
    assert quick([changed], store, force="a,b").ok
    assert total(store, "b", 2) == 3


def test_only_runs_one_stage_and_demands_its_inputs(store: Store):
    a = stage("a")
    b = stage("b", source=a)
    with pytest.raises(UserError, match="needs a"):
        quick([b], store, only="b")
    quick([b], store, only="a")
    assert manifests.load(store, "b") is None
    assert quick([b], store, only="b").ok


def test_a_wrong_name_writes_nothing_at_all(store: Store):
    with pytest.raises(UserError, match="did you mean 'text-1k'"):
        quick([stage("text-1k")], store, only="text-1q")
    assert not Path(store.url()).exists()


def test_a_crash_is_retried_in_the_same_series_and_leaves_its_traceback(store: Store):
    witness = Witness()
    outcome = quick([stage("a", 1, failing(ZeroDivisionError("once")))], store, observer=witness)
    manifest = outcome.artifacts["a"].manifest
    assert (manifest.attempt, manifest.series, manifest.provenance.attempts) == (2, 1, 2)
    assert "ZeroDivisionError: once" in Path(store.attempt_url("a", 1), "error.txt").read_text()
    assert "Traceback" in witness.failures[0][1].log_tail
    assert [state for _, state in witness.states] == ["waiting", "running", "retrying", "running", "finished"]


def test_what_a_library_repeats_of_a_secret_is_in_no_failure(store: Store, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("WRITER_KEY", "canary-5e1f")
    witness = Witness()
    errors = [ValueError("https://me:canary-5e1f@host"), StageFailure("crashed", "403", "key canary-5e1f", None)]
    assert quick([stage("a", 1, failing(*errors))], store, observer=witness).ok
    left = [Path(store.attempt_url("a", attempt), "error.txt").read_text() for attempt in (1, 2)]
    assert all("[redacted]" in text for text in left)
    assert len(witness.failures) == 2
    assert "canary" not in f"{left} {witness.failures}"


def test_attempts_stop_after_three_without_progress_and_go_on_while_checkpoints_advance(store: Store):
    stuck = quick([stage("a", 1, failing(*[StageFailure("stalled", "hung", "", 5) for _ in range(9)]))], store)
    assert stuck.failures["a"] == Failure("stalled", "hung", 5)
    assert store.attempts("a") == (1, 2, 3, 4)
    assert not stuck.ok
    advancing = failing(*[StageFailure("preempted", "gone", "", step) for step in range(8)])
    assert quick([stage("b", 1, advancing)], store).artifacts["b"].manifest.attempt == 9


class OtherUserError(Exception):
    pass


@pytest.mark.parametrize("error", [UserError("odd"), OtherUserError("odd"), StageFailure("user", "odd")])
def test_a_user_error_is_never_retried(store: Store, error: Exception):
    outcome = quick([stage("a", 1, failing(error))], store, user_errors=(OtherUserError,))
    assert outcome.failures["a"] == Failure("user", "odd")
    assert store.attempts("a") == (1,)


def test_sys_exit_in_a_stage_is_its_failure_not_the_driver_s_end(store: Store):
    outcome = quick([stage("a", 1, lambda context, recipe: sys.exit(3))], store, limit=1)
    assert outcome.failures["a"].message == "SystemExit: 3"


def test_a_failure_blocks_what_is_below_and_nothing_else(store: Store):
    bad = stage("bad", 1, failing(UserError("no")))
    below = stage("lowest", source=stage("below", source=bad))
    beside = stage("beside-below", source=stage("beside"))
    witness = Witness()
    outcome = quick([below, beside], store, observer=witness)
    assert set(outcome.artifacts) == {"beside", "beside-below"}
    assert set(outcome.failures) == {"bad"}
    assert outcome.unfinished == ("below", "lowest")
    assert ("below", "blocked") in witness.states
    assert ("lowest", "blocked") in witness.states
    assert not outcome.stopped


def test_a_stage_that_a_failure_blocks_by_two_ways_is_blocked_once(store: Store):
    bad = stage("bad", 1, failing(UserError("no")))
    middle = stage("middle", source=bad)
    witness = Witness()
    outcome = quick([stage("lowest", 2, add, first=middle, second=bad)], store, observer=witness)
    assert set(outcome.failures) == {"bad"}
    assert witness.states.count(("lowest", "blocked")) == 1


def test_a_stage_that_lists_a_missing_file_cannot_commit(store: Store):
    outcome = quick([stage("a", 1, lambda context, recipe: Result(("never.bin",)))], store)
    assert "'never.bin'" in outcome.failures["a"].message
    assert outcome.failures["a"].kind == "user"
    assert manifests.load(store, "a") is None


def test_a_stage_that_returns_no_result_fails(store: Store):
    outcome = quick([stage("a", 1, lambda context, recipe: None)], store, limit=1)  # type: ignore[arg-type, return-value]
    assert "not a Result" in outcome.failures["a"].message


def test_a_full_device_is_an_error_without_retry_or_manifest(store: Store):
    def fill(context: StageContext, recipe: Number) -> Result:
        with open("/dev/full", "wb", buffering=0) as device:
            device.write(b"x")
        return Result(())

    def wrapped(context: StageContext, recipe: Number) -> Result:
        try:
            return fill(context, recipe)
        except OSError as error:
            raise RuntimeError("could not save") from error

    for name, work in (("bare", fill), ("wrapped", wrapped)):
        outcome = quick([stage(name, 1, work)], store)
        assert "disk full" in outcome.failures[name].message
        assert store.attempts(name) == (1,)
        assert manifests.load(store, name) is None


FULL_DISK = """
import os, sys
from infra.runner import run
from infra.stage import Result
from infra.storage import Store
from tests.infra.tiny import add, stage

def hoard(context, recipe):
    with open(os.path.join(context.attempt_dir, "big.bin"), "wb") as file:
        while True:
            file.write(bytes(65536))

def brim(context, recipe):
    # Fills the disk to the last byte and claims success: now it is the manifest itself that does not fit.
    path = os.path.join(context.attempt_dir, "big.bin")
    try:
        with open(path, "wb", buffering=0) as file:
            while True:
                file.write(bytes(4096))
    except OSError:
        pass
    return Result(("big.bin",), {"padding": "x" * 20000})

store = Store(sys.argv[1], "tiny")
work = {"hoard": hoard, "brim": brim, "add": add}[sys.argv[2]]
outcome = run([stage("b", source=stage("a", 1, work))], store)
failure = outcome.failures.get("a")
print(failure and f"{failure.kind} {failure.message}", store.attempts("a"), store.read("a/manifest.json") is not None)
"""


@pytest.mark.parametrize("how", ["hoard", "brim"])
def test_a_really_full_disk_leaves_no_manifest_and_a_rerun_with_room_succeeds(tmp_path: Path, how: str):
    if subprocess.run(["unshare", "-rm", "true"], capture_output=True).returncode != 0:
        pytest.skip("this machine allows no private mounts; /dev/full stands for the disk in the test above")
    disk = tmp_path / "disk"
    disk.mkdir()
    script = """
        mount -t tmpfs -o size=1m none "$1" && "$2" -c "$3" "$1" "$4" &&
        rm "$1"/tiny/a/attempt-1/big.bin && "$2" -c "$3" "$1" add
    """
    done = subprocess.run(
        ["unshare", "-rm", "sh", "-c", script, "sh", str(disk), sys.executable, FULL_DISK, how],
        cwd=REPOSITORY,
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode == 0, done.stderr
    first, second = done.stdout.splitlines()
    assert first.startswith("user disk full (No space left on device) at ")
    assert first.endswith(" (1,) False")
    assert second == "None (1, 2) True"


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


def test_reports_reach_the_observer_and_a_broken_observer_harms_nothing(store: Store, caplog: pytest.LogCaptureFixture):
    def work(context: StageContext, recipe: Number) -> Result:
        context.report(step=1, of=2, loss=0.5)
        return add(context, recipe)

    class Broken(Witness):
        def on_report(self, stage: Stage, figures: Mapping[str, Any]) -> None:
            super().on_report(stage, figures)
            raise RuntimeError("observer broke")

    witness = Broken()
    assert quick([stage("a", 1, work)], store, observer=witness).ok
    assert witness.figures == [{"step": 1, "of": 2, "loss": 0.5}]
    assert witness.finished == ["a"]
    assert "observer broke" in caplog.text
