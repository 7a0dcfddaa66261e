"""The status of a run comes from its storage alone, and says of a dead driver's stages what is true of them."""

from __future__ import annotations

import io
import json
import time
from dataclasses import replace
from pathlib import Path

import pytest

from infra import lease
from infra.errors import UserError
from infra.outline import Outline, Outlined, read_outline, write_outline
from infra.records import Failed
from infra.status import DriverStatus, StageStatus, read_status, state_of
from infra.status_table import driver_line, goodput_lines, print_status
from infra.storage import Store
from tests.infra.run_on_disk import DocumentsRecipe, TrainRecipe, finish, make_stage, put, write_steps

NOW = 1.79e9 + 50
ALIVE = DriverStatus("host-a", 7, NOW - 100, 3.0, alive=True, released=False)
GONE = replace(ALIVE, alive=False, age=100.0)
DOCUMENTS = make_stage("documents", DocumentsRecipe())
FIRST = make_stage("text-1k", TrainRecipe(sequence=1024, rope_theta=1e4), {"tokens": DOCUMENTS})
SECOND = make_stage("text-2k", TrainRecipe(sequence=2048, rope_theta=1e4), {"params": FIRST})


def outline(*states: str, written: float | None = None) -> Outline:
    stages = []
    for stage, flops in ((DOCUMENTS, None), (FIRST, 1e12), (SECOND, 3e12)):
        trains = flops is not None
        stages.append(
            Outlined(
                *(
                    stage.name,
                    stage.recipe.kind,
                    stage.fingerprint,
                    tuple(source.name for source in stage.inputs.values()),
                ),
                steps=100 if trains else None,
                step_tokens=8192 if trains else None,
                step_flops=flops,
            )
        )
    said = [replace(stage, state=state) for stage, state in zip(stages, states, strict=False)] or stages
    return Outline(
        "tiny", "tiny", "python flows/full_curriculum.py", time.time() if written is None else written, tuple(said)
    )


@pytest.fixture
def store(tmp_path: Path) -> Store:
    """documents is done, text-1k has trained 40 steps of 100, text-2k has not begun."""
    store = Store(str(tmp_path), "tiny")
    finish(store, DOCUMENTS, {"documents": 5})
    write_steps(store, FIRST, 40)
    store.claim_attempt("text-1k", {"series": 1, "started": 1.79e9, "token": 1})
    for step in (20, 30):
        put(store, f"text-1k/state/1/checkpoints/{step}/_METADATA", b"{}")
    write_outline(store, outline("finished", "running", "wait"))
    return store


def row(store: Store, name: str, now: float = NOW) -> StageStatus:
    return next(stage for stage in read_status(store, now).stages if stage.name == name)


def test_a_run_at_work_is_seen_from_storage(store: Store):
    with lease.acquire(store):
        write_outline(store, outline("finished", "running", "wait"))
        status = read_status(store, time.time())
        assert status.driver is not None
        assert status.driver.alive
        assert [stage.state for stage in status.stages] == ["finished", "running", "waiting"]
    first, second = status.stages[1:]
    assert (first.step, first.steps, first.checkpoint, first.attempts) == (40, 100, 30, 1)
    assert first.step_seconds == pytest.approx(8192 / 9000)
    assert first.seconds_left == pytest.approx(60 * 8192 / 9000)
    # Not begun: three times the operations of a step, at the speed seen.
    assert second.seconds_left == pytest.approx(100 * 3 * 8192 / 9000)
    assert status.seconds_left == pytest.approx(360 * 8192 / 9000)


def test_a_checkpoint_is_as_old_as_its_step(store: Store):
    assert row(store, "text-1k").checkpoint_age == pytest.approx(NOW - (1.79e9 + 30))


def test_a_stage_that_waits_for_machines_says_so(store: Store):
    asked = time.time() - 200
    put(store, "text-1k/state/1/gangs/0001.json", json.dumps({"asked": asked, "attempt": 1}).encode())
    with lease.acquire(store):
        write_outline(store, outline("finished", "running", "wait"))
        assert row(store, "text-1k", asked + 200).detail == "waiting for machines for 3 min 20 s"


def test_without_a_driver_nothing_runs(store: Store):
    assert [stage.state for stage in read_status(store, NOW).stages] == ["finished", "stopped", "waiting"]
    put(store, "text-1k/attempt-1/error.txt", b"crashed: rank 0 of 1 on a exited with code 1\n\nTraceback: <tail>\n")
    found = row(store, "text-1k")
    assert (found.state, found.detail) == ("failed", "crashed: rank 0 of 1 on a exited with code 1")
    assert found.failures[0].tail.endswith("<tail>")


@pytest.mark.parametrize(
    ("said", "finished", "driver", "fresh", "attempts", "failed", "state"),
    [
        ("running", True, ALIVE, True, 1, False, "finished"),
        ("retrying", False, ALIVE, True, 2, True, "retrying"),
        ("failed", False, ALIVE, True, 2, True, "failed"),
        ("blocked", False, ALIVE, True, 0, False, "blocked"),
        ("run", False, ALIVE, True, 0, False, "waiting"),
        # The same words of a driver that is gone, or not yet those of the one that came.
        ("running", False, GONE, False, 1, False, "stopped"),
        ("running", False, GONE, False, 1, True, "failed"),
        ("running", False, ALIVE, False, 1, False, "running"),
        ("failed", False, ALIVE, False, 1, True, "retrying"),
        ("running", False, None, False, 0, False, "waiting"),
        # Left alone by only=.
        ("wait", False, ALIVE, True, 2, False, "stopped"),
    ],
)
def test_a_driver_speaks_for_its_stages_only_while_it_lives(
    said: str, finished: bool, driver: DriverStatus | None, fresh: bool, attempts: int, failed: bool, state: str
):
    last = Failed(attempts, "crashed", "exit 1", "", "") if failed else None
    stage = Outlined("text", "train", "ab", state=said)
    assert state_of(stage, finished, driver, fresh, attempts, last)[0] == state


def test_of_two_recipes_only_the_present_one_counts(store: Store):
    changed = replace(outline(), stages=tuple(replace(stage, fingerprint="00" * 32) for stage in outline().stages))
    write_outline(store, changed)
    assert [stage.state for stage in read_status(store, NOW).stages] == ["waiting"] * 3


def test_before_anything_has_trained_the_plan_s_own_seconds_count(tmp_path: Path):
    store = Store(str(tmp_path), "tiny")
    planned = outline()
    stages = (*planned.stages[:2], replace(planned.stages[2], step_seconds=5.0))
    write_outline(store, replace(planned, stages=stages))
    status = read_status(store, NOW)
    assert [stage.seconds_left for stage in status.stages] == [None, None, 500.0]
    assert status.seconds_left is None


def test_the_table_tells_it_all(store: Store):
    put(store, "text-1k/attempt-1/error.txt", b"crashed: rank 0 exited with code 1\n\nXid 79\x1b[31m\n")
    out = io.StringIO()
    print_status(read_status(store, NOW), out)
    text = out.getvalue()
    for words in ("run tiny", "driver: none", "40/100", "9,0", "30, 20 s ago", "take that host out", "1 failure;"):
        assert words in text, text
    assert "Xid 79" not in text
    out = io.StringIO()
    print_status(read_status(store, NOW, all_failures=True), out, failures=True)
    assert "    | Xid 79\n" in out.getvalue()


def test_of_a_failed_trainer_its_own_log_is_shown_not_the_driver_s_trace(store: Store):
    trace = "Traceback (most recent call last):\n  File x\ninfra.stage.StageFailure: rank 0 exited with code 1\n"
    for log, tail in (("\nstep 4\nXid 79\n", "step 4\nXid 79"), ("", trace.strip())):
        put(store, "text-1k/attempt-1/error.txt", f"crashed: rank 0 exited with code 1\n\n{trace}{log}".encode())
        assert row(store, "text-1k").failures[0].tail == tail


def test_words_for_the_driver_and_the_goodput(store: Store):
    assert driver_line(ALIVE) == "driver: process 7 on host-a; lease renewed 3.0 s ago"
    assert "the same command goes on" in driver_line(GONE)
    lines = goodput_lines(read_status(store, NOW).goodput)
    assert lines[0].startswith("goodput: ")


def test_a_run_that_is_not_there_is_an_error(tmp_path: Path):
    with pytest.raises(UserError, match="no driver has worked on run 'tiny'"):
        read_status(Store(str(tmp_path), "tiny"), NOW)
    store = Store(str(tmp_path), "damaged")
    put(store, "plan.json", b'{"stages": 3')
    with pytest.raises(UserError, match="no outline"):
        read_outline(store)


def test_an_outline_of_a_newer_version_is_read(store: Store):
    found = json.loads(outline("run").to_json())
    found["stages"][0]["colour"] = "red"
    put(store, "plan.json", json.dumps(found).encode())
    assert read_outline(store).stages[0].state == "run"
