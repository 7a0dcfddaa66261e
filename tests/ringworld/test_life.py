"""Signs of life begin before the work does, and the process ends with its parent."""

from __future__ import annotations

import os
import subprocess
import sys
import textwrap
import threading
import time
from pathlib import Path

import pytest

from ringworld.exits import ORPHANED
from ringworld.life import HEARTBEAT_VARIABLE, PARENT_VARIABLE, SignsOfLife

REPOSITORY = Path(__file__).parents[2]
# Busy from its first line, as in an import of JAX from a slow disk: what gives signs of life must not wait for it.
BUSY = """
import os, sys, time
from ringworld.command import guarded
def work():
    assert "jax" not in sys.modules
    end = time.monotonic() + float(sys.argv[1])
    while time.monotonic() < end:
        pass
    return 0
sys.exit(guarded(work))
"""


def command(seconds: float) -> list[str]:
    return [sys.executable, "-c", BUSY, str(seconds)]


def waited_for(condition, seconds=20.0):
    end = time.monotonic() + seconds
    while not condition() and time.monotonic() < end:
        time.sleep(0.02)
    return condition()


def test_the_heartbeat_is_touched_while_the_process_works(tmp_path):
    beat = tmp_path / "heartbeat"
    with subprocess.Popen(command(60), cwd=REPOSITORY, env={**os.environ, HEARTBEAT_VARIABLE: str(beat)}) as process:
        assert waited_for(beat.exists)
        first = beat.stat().st_mtime_ns
        assert waited_for(lambda: beat.stat().st_mtime_ns > first)
        process.kill()


def test_a_process_whose_parent_is_gone_leaves(tmp_path):
    """The parent is killed while its child is still busy with something else."""
    parent = textwrap.dedent(f"""
        import os, subprocess
        child = subprocess.Popen({command(60)!r}, env=dict(os.environ, {PARENT_VARIABLE}=str(os.getpid())))
        open({str(tmp_path / "code")!r}, "w").write(str(child.pid))
        os.wait()
        """)
    with subprocess.Popen([sys.executable, "-c", parent], cwd=REPOSITORY, stderr=subprocess.PIPE, text=True) as process:
        assert waited_for(lambda: (tmp_path / "code").exists() and (tmp_path / "code").read_text() != "")
        time.sleep(0.5)
        process.kill()
        said = process.communicate(timeout=20)[1]  # ends when the child does, which holds the other end
    assert f"parent process {process.pid} is gone; leaving" in said


def test_the_code_of_an_orphan(monkeypatch, capfd):
    left = threading.Event()
    codes: list[int] = []

    def leave(code: int) -> None:
        codes.append(code)
        left.set()

    monkeypatch.setenv(PARENT_VARIABLE, "1")
    monkeypatch.setattr(os, "_exit", leave)
    if os.getppid() == 1:
        pytest.skip("this process's parent is the one that a lost parent is replaced with")
    with SignsOfLife():
        assert left.wait(10)
    assert set(codes) == {ORPHANED}
    assert "parent process 1 is gone" in capfd.readouterr().err


def test_a_process_that_was_given_nothing_starts_no_thread(monkeypatch):
    monkeypatch.delenv(PARENT_VARIABLE, raising=False)
    monkeypatch.delenv(HEARTBEAT_VARIABLE, raising=False)
    before = threading.active_count()
    with SignsOfLife():
        assert threading.active_count() == before
