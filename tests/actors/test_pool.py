"""Calls that survive their workers, and a pool that gives up, stops and leaves nothing behind."""

from __future__ import annotations

import os
import signal
import threading
import time
from pathlib import Path
from typing import Any

import pytest

from actors.local import RayCluster
from actors.pool import GaveUp, Pool, Retries
from infra.errors import UserError
from infra.placement import Placement
from infra.stage import StageFailure
from tests.actors.conftest import gone

QUICK = Retries(tries=3, wait_seconds=0.05, again=(TimeoutError,))
PLACE = Placement(resources={"CPU": 0.5}, env={"HELLO": "there"}, wait_seconds=0)


class Echo:
    """Says what it is told, once it has failed as often as the item says. Counts in files: a new worker goes on."""

    def open(self, folder: str) -> None:
        (Path(folder) / f"worker-{os.getpid()}").touch()
        if os.path.exists(f"{folder}/never-opens"):
            os.kill(os.getpid(), signal.SIGKILL)
        self._folder = Path(folder)

    def say(self, item: tuple[str, int, str]) -> tuple[str, str]:
        word, failures, how = item
        seen = len(list(self._folder.glob(f"{word}-*")))
        if seen < failures:
            (self._folder / f"{word}-{seen}").touch()
            if how == "dies":
                os.kill(os.getpid(), signal.SIGKILL)
            raise {"again": TimeoutError, "wrong": ValueError}[how](f"{word} failed")
        if how == "slow":
            time.sleep(0.5)
        return word, os.environ["HELLO"]


def pids(folder: Path) -> list[int]:
    return [int(path.name.removeprefix("worker-")) for path in folder.glob("worker-*")]


def said(folder: Path, items: list[tuple[str, int, str]], stop: threading.Event | None = None, **how: Any) -> Any:
    lost: list[Any] = []
    with Pool(Echo, (str(folder),), PLACE, retries=QUICK, **how) as pool:
        found = list(pool.run("say", items, stop or threading.Event(), lost=lost.append))
    return found, lost


def test_every_item_is_answered_once_whoever_dies(cluster: RayCluster, tmp_path: Path) -> None:
    items = [(f"word{number}", 0, "") for number in range(8)]
    items[2], items[5] = ("word2", 2, "dies"), ("word5", 1, "again")
    found, lost = said(tmp_path, items, workers=2)
    assert sorted(found) == sorted((item, (item[0], "there")) for item in items)
    assert lost.count(items[2]) == 2
    assert items[5] in lost
    # The first death costs a worker that the rest may not need any more, the second one the last that there is.
    assert len(pids(tmp_path)) in (3, 4)
    assert gone(pids(tmp_path))


@pytest.mark.parametrize("how", ["dies", "again"])
def test_a_call_that_never_works_is_given_up(cluster: RayCluster, tmp_path: Path, how: str) -> None:
    with pytest.raises(GaveUp, match=r"\(tried 3 times\)"):
        said(tmp_path, [("word", 9, how)])
    assert len(list(tmp_path.glob("word-*"))) == 3


def test_other_errors_are_raised_as_they_are(cluster: RayCluster, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="word failed"):
        said(tmp_path, [("word", 1, "wrong")])


def test_workers_that_never_open_and_a_cluster_without_room_are_told(cluster: RayCluster, tmp_path: Path) -> None:
    (tmp_path / "never-opens").touch()
    with pytest.raises(GaveUp, match="3 workers in a row failed to start"):
        said(tmp_path, [("word", 0, "")])
    place = Placement(resources={"GPU": 1}, kind="gpu", wait_seconds=0)
    with Pool(Echo, (str(tmp_path),), place) as pool, pytest.raises(UserError, match="no node has GPU 1"):
        list(pool.run("say", [("word", 0, "")], threading.Event()))


def test_what_has_not_begun_never_does_and_a_stop_is_heard(cluster: RayCluster, tmp_path: Path) -> None:
    items = [(f"word{number}", 0, "slow") for number in range(6)]
    with Pool(Echo, (str(tmp_path),), PLACE, at_once=2) as pool:
        found = []
        for item, _ in pool.run("say", items, threading.Event()):
            found.append(item)
            pool.begin_no_more()
    assert 1 <= len(found) <= 3
    stop = threading.Event()
    threading.Timer(2, stop.set).start()
    began = time.monotonic()
    with pytest.raises(StageFailure) as failure:
        said(tmp_path, [(f"word{number}", 0, "slow") for number in range(50)], stop)
    assert failure.value.kind == "preempted"
    assert time.monotonic() - began < 10
    assert gone(pids(tmp_path))
