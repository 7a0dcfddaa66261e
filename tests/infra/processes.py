"""Starting, awaiting and killing the processes of a test."""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

REPOSITORY = Path(__file__).resolve().parents[2]


def start(module: str, *arguments: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-m", module, *arguments],
        cwd=REPOSITORY,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def wait_for(
    condition: Callable[[], object], process: subprocess.Popen[str] | None = None, seconds: float = 20
) -> None:
    """Until `condition` is true; fails when the process ends before, or after `seconds`."""
    end = time.monotonic() + seconds
    while not condition():
        if process is not None and process.poll() is not None:
            raise AssertionError(f"process ended with {process.returncode}: {process.communicate()[0]}")
        assert time.monotonic() < end, "waited too long"
        time.sleep(0.01)


def end(process: subprocess.Popen[str]) -> None:
    """Leave nothing behind, whatever the test did."""
    if process.poll() is None:
        process.kill()
    process.communicate()
