"""A worker of this session's Ray, killed while it is at work."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import psutil


@contextmanager
def one_worker_killed(task: str, when: Callable[[], bool]) -> Iterator[None]:
    """Inside, SIGKILL for the first process seen at work on the function `task` once `when()` is true.

    AssertionError at the end if none was seen, or if it lived on.
    """
    killed: list[int] = []
    done = threading.Event()

    def kill() -> None:
        while not done.is_set() and not killed:
            if when():
                for process in _working_on(task):
                    process.kill()
                    killed.append(process.pid)
                    break
            time.sleep(0.005)

    killer = threading.Thread(target=kill)
    killer.start()
    try:
        yield
    finally:
        done.set()
        killer.join()
    assert killed, f"all was done before a worker was seen at {task}"
    assert not psutil.pid_exists(killed[0]) or psutil.Process(killed[0]).status() == psutil.STATUS_ZOMBIE


def none_left(task: str, seconds: float = 60) -> bool:
    """Whether no process works on `task` any more, within some time: a stage that is stopped does not wait for them."""
    end = time.monotonic() + seconds
    while any(True for _ in _working_on(task)) and time.monotonic() < end:
        time.sleep(0.02)
    return not any(True for _ in _working_on(task))


def _working_on(task: str) -> Iterator[psutil.Process]:
    """Ray's workers name their process after the function that they run."""
    for process in psutil.Process().children(recursive=True):
        try:
            if task in " ".join(process.cmdline()):
                yield process
        except psutil.NoSuchProcess:
            continue
