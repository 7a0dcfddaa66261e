"""Gangs, and scripts of a few lines that play their trainer."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from pathlib import Path

import psutil
import pytest

from actors.gang import Gang, GangExit
from actors.gang_run import GangView
from actors.local import RayCluster
from infra.placement import Placement


class Stand:
    """Gangs whose trainer is a script, with their logs in a folder of the test."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.stop = threading.Event()
        self.views: list[GangView] = []

    def gang(self, hosts: int = 2) -> Gang:
        return Gang(Placement(hosts=hosts), "test")

    def run(
        self,
        gang: Gang,
        script: str,
        on_poll: Callable[[GangView], None] | None = None,
        stall_seconds: float | None = None,
    ) -> GangExit:
        """Runs the script as the trainer. In it, `rank` is its process id and `folder` the test's folder."""
        prologue = (
            "import os, signal, subprocess, sys, time\n"
            f"folder = {str(self.folder)!r}\n"
            "rank = int(sys.argv[sys.argv.index('--process-id') + 1]) if '--process-id' in sys.argv else 0\n"
            "def leave(name, text): open(f'{folder}/{name}', 'w').write(str(text))\n"
        )

        def see(view: GangView) -> None:
            self.views.append(view)
            if on_poll is not None:
                on_poll(view)

        logs = str(self.folder / "logs")
        argv = ["-c", prologue + script]
        return gang.run(argv, log_dir=logs, stop=self.stop, on_poll=see, stall_seconds=stall_seconds)

    def read(self, name: str) -> str:
        return (self.folder / name).read_text()

    def has(self, *names: str) -> bool:
        return all((self.folder / name).exists() and self.read(name) for name in names)


@pytest.fixture
def stand(cluster: RayCluster, tmp_path: Path) -> Stand:
    return Stand(tmp_path)


def gone(pids: list[int], seconds: float = 5.0) -> bool:
    """Whether all these processes have ended within some seconds, and have been reaped by whoever started them.

    An orphan's zombie waits for the machine's first process, which takes its time in some containers: not our doing.
    """
    deadline = time.monotonic() + seconds
    while left := [pid for pid in pids if _there(pid)]:
        if time.monotonic() > deadline:
            print("still there:", [psutil.Process(pid) for pid in left if psutil.pid_exists(pid)])
            return False
        time.sleep(0.02)
    return True


def _there(pid: int) -> bool:
    try:
        process = psutil.Process(pid)
        return not (process.status() == psutil.STATUS_ZOMBIE and process.ppid() == 1)
    except psutil.NoSuchProcess:
        return False
