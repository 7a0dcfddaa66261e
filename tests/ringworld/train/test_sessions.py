"""The account of each life of the trainer."""

import json
import os
import threading
import time

import pytest

from ringworld.errors import UserError
from ringworld.train import sessions
from ringworld.train.sessions import Session, SessionLog

HOUR = 3600.0


def read(folder, number):
    with open(folder / "sessions" / f"{number:04d}.json") as file:
        return json.load(file)


def live(folder, **how):
    """A session of four hosts that ended so, an hour long by its file."""
    begun = time.time() - HOUR
    log = SessionLog(str(folder), begun, hosts=4, writes=True)
    with log:
        if "ended" in how:
            log.ended(how["ended"])
        if "error" in how:
            raise how["error"]


def test_sessions_are_numbered_and_each_knows_the_failures_and_hours_before_it(tmp_path):
    live(tmp_path)  # dies: without a word about its end
    live(tmp_path, ended="stalled")
    live(tmp_path, ended="preempted")
    with pytest.raises(UserError):
        live(tmp_path, error=UserError("a file is missing"))
    with pytest.raises(OSError, match="full"):
        live(tmp_path, error=OSError("full"))
    live(tmp_path, ended="done")
    found = [read(tmp_path, number) for number in range(1, 7)]
    assert [session["ended"] for session in found] == [None, "stalled", "preempted", "user", None, "done"]
    assert [session["failures"] for session in found] == [0, 1, 2, 2, 2, 3]
    assert [round(session["host_hours"]) for session in found] == [0, 4, 8, 12, 16, 20]
    assert sorted(os.listdir(tmp_path / "sessions")) == [f"{number:04d}.json" for number in range(1, 7)]


def test_a_file_cut_short_by_a_death_costs_only_its_own_count(tmp_path, capfd):
    live(tmp_path)
    live(tmp_path)
    (tmp_path / "sessions" / "0002.json").write_text('{"begun": 17')
    live(tmp_path)
    assert read(tmp_path, 3)["failures"] == 1
    assert "warning: session 2" in capfd.readouterr().err


def test_an_account_is_on_disk_while_the_session_lives(tmp_path, monkeypatch):
    monkeypatch.setattr(sessions, "WRITE_SECONDS", 0.02)
    with SessionLog(str(tmp_path), time.time(), hosts=1, writes=True) as log:
        log.ready(5, (7,), [0.5, 0.25])
        log.compiled(1.5)
        log.stepped(6, 0.125)
        log.stepped(7, 0.125)
        log.saved(0.25)
        log.durable(2.0)
        log.interval(60.0)
        end = time.monotonic() + 20
        place = tmp_path / "sessions" / "0001.json"
        while not (place.exists() and read(tmp_path, 1)["interval_seconds"]):
            assert time.monotonic() < end
            time.sleep(0.01)
        found = read(tmp_path, 1)
    assert found.pop("begun") <= found.pop("ready") <= found.pop("written")
    assert found == {
        "hosts": 1,
        "resumed": 5,
        "damaged": [7],
        "discarded_steps": 2,
        "discarded_seconds": 0.75,
        "compile_seconds": 1.5,
        "data_wait_seconds": 0.25,
        "saves": 1,
        "save_blocked_seconds": 0.25,
        "save_seconds": 2.0,
        "interval_seconds": 60.0,
        "step": 7,
        "ended": None,
        "failures": 0,
        "host_hours": 0.0,
    }


def test_a_stall_is_on_disk_before_the_process_is_ended(tmp_path):
    with SessionLog(str(tmp_path), time.time(), hosts=1, writes=True) as log:
        log.stalled()
        assert read(tmp_path, 1)["ended"] == "stalled"


def test_an_account_that_is_slow_to_be_written_never_replaces_the_last_words(tmp_path, monkeypatch):
    begun, go_on, over = threading.Event(), threading.Event(), threading.Event()
    write_whole = sessions.write_whole

    def first_slowly(place, data):
        slow = not begun.is_set()
        begun.set()
        assert not slow or go_on.wait(10)
        write_whole(place, data)
        if slow:
            over.set()

    monkeypatch.setattr(sessions, "write_whole", first_slowly)
    with SessionLog(str(tmp_path), time.time(), hosts=1, writes=True) as log:
        assert begun.wait(10)
        threading.Timer(0.2, go_on.set).start()
        log.stalled()
        assert over.wait(10)
        assert read(tmp_path, 1)["ended"] == "stalled"


def test_storage_that_fails_costs_the_account_and_not_the_training(tmp_path, monkeypatch, capfd):
    def refuse(*_):
        raise OSError("no space left")

    with SessionLog(str(tmp_path), time.time(), hosts=1, writes=True) as log:
        monkeypatch.setattr(sessions, "write_whole", refuse)
        log.saved(0.1)
    assert "0001.json was not written: no space left" in capfd.readouterr().err


def test_only_the_first_process_writes(tmp_path):
    with SessionLog(str(tmp_path), time.time(), hosts=2, writes=False) as log:
        log.stepped(1, 0.0)
        log.stalled()
    assert not os.listdir(tmp_path)
    assert log.session == Session(begun=log.session.begun, hosts=2, step=1, ended="stalled")
