"""What a stage does around a gang: its record for accounting, its logs, and storage that fails meanwhile."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace, TracebackType
from typing import Any, ClassVar, Self

import fsspec
import pytest

from actors.gang import GangExit
from actors.gang_run import GangView
from infra.placement import Placement
from infra.stage import StageContext, StageFailure
from ringworld.data.files import join, list_folder, read_bytes, read_json, write_bytes
from stages import process
from stages.process import newest_checkpoint, run_module, written


class FakeGang:
    """Goes through the phases and ends as it is told."""

    asked: ClassVar[dict[str, Any]] = {}

    def __init__(self, ended: GangExit, running: Callable[[], None] = lambda: None) -> None:
        self._ended, self._running = ended, running

    def __call__(self, placement: Placement, name: str) -> Self:
        return self

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        pass

    def run(self, argv: list[str], *, on_poll: Callable[[GangView], None], **asked: Any) -> GangExit:
        FakeGang.asked = asked
        for phase in ("waiting", "starting", "running"):
            on_poll(GangView(phase, "", 0.0))
        self._running()
        return self._ended


def context(folder: str, gang: FakeGang) -> StageContext:
    stage: Any = SimpleNamespace(name="text-512", placement=Placement(hosts=2))
    return StageContext(
        stage=stage,
        inputs={},
        attempt=3,
        attempt_dir=f"{folder}/attempt-3",
        state_dir=f"{folder}/state/1",
        gangs=gang,
        report=lambda **_: None,
        stop=threading.Event(),
        fence=lambda: None,
    )


@pytest.fixture(params=["local", "bucket"])
def folder(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    fsspec.filesystem("memory").store.clear()
    return str(tmp_path) if request.param == "local" else "memory://bucket/run/text-512"


def test_every_gang_leaves_a_record_of_its_phases_and_in_a_bucket_its_logs(folder: str):
    crashed = GangExit((1, None), "crashed", "rank 0 exited with code 1", "tail", {"trainer-0.log": b"said"})
    with pytest.raises(StageFailure, match="rank 0"):
        run_module(context(folder, FakeGang(crashed)), "module", [], watch=lambda: None)
    run_module(context(folder, FakeGang(GangExit((0, 0), "done", "done"))), "module", [], watch=lambda: None)
    gangs = join(folder, "state/1/gangs")
    assert list_folder(gangs) == ["0001.json", "0002.json"]
    first, second = (read_json(join(gangs, name)) for name in list_folder(gangs))
    assert (first["kind"], first["message"], first["attempt"], first["hosts"]) == (
        "crashed",
        "rank 0 exited with code 1",
        3,
        2,
    )
    assert first["asked"] <= first["granted"] <= first["started"] <= first["ended"] <= second["asked"]
    if "://" in folder:
        assert read_bytes(join(folder, "attempt-3/trainer-0.log")) == b"said"
        assert FakeGang.asked["bring_logs"]
        assert "://" not in FakeGang.asked["log_dir"]
    else:
        assert FakeGang.asked["log_dir"] == f"{folder}/attempt-3"


def test_storage_that_fails_while_a_gang_runs_does_not_end_it(folder: str, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(process, "LOOK_SECONDS", 0.01)
    monkeypatch.setattr(process, "REMOTE_LOOK_SECONDS", 0.01)
    looked, calls = threading.Event(), []

    def watch() -> None:
        calls.append(1)
        if len(calls) == 1:
            raise TimeoutError("storage is away")
        looked.set()

    gang = FakeGang(GangExit((0,), "done", "done"), lambda: assert_set(looked))
    run_module(context(folder, gang), "module", [], watch=watch)
    assert len(calls) >= 3, "again after a failure, and once at the end"


def assert_set(event: threading.Event) -> None:
    assert event.wait(20)


def test_a_checkpoint_counts_when_it_is_whole(folder: str):
    state = join(folder, "state/1")
    assert newest_checkpoint(state) is None
    for step in ("8", "16"):
        write_bytes(join(state, "checkpoints", step, "default/x"), b"1")
    write_bytes(join(state, "checkpoints/8/commit_success.txt"), b"")
    write_bytes(join(state, "checkpoints/24.orbax-checkpoint-tmp/x"), b"")
    # Only a local folder is renamed into its place when it is whole.
    assert newest_checkpoint(state) == (8 if "://" in folder else 16)


def test_what_was_written_is_listed_by_name_and_by_folder(folder: str):
    for path in ("params/a/b", "params/c", "params-old/d", "progress.jsonl", "other.json"):
        write_bytes(join(folder, path), json.dumps(path).encode())
    assert written(folder, "params", "progress.jsonl", "absent") == ("params/a/b", "params/c", "progress.jsonl")
