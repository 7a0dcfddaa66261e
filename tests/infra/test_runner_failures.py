"""A plan of which something fails: retries, what is blocked, full disks; nothing partial is ever committed."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from infra import manifest as manifests
from infra.errors import UserError
from infra.retries import Failure
from infra.stage import Result, StageContext, StageFailure
from infra.storage import Store
from tests.infra.processes import REPOSITORY
from tests.infra.tiny import Number, add, stage
from tests.infra.witness import Witness, failing, quick


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(str(tmp_path), "tiny")


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
