"""How a process of a job of several leaves: at once, since the others may wait for it in a collective for ever."""

from __future__ import annotations

import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).parents[2]
SCRIPT = """
import sys, time
from ringworld.command import guarded
from ringworld.distributed import join
from ringworld.errors import UserError
rank, error = int(sys.argv[2]), {"1": ValueError("torn"), "64": UserError("torn")}[sys.argv[3]]
def work():
    join("127.0.0.1:" + sys.argv[1], 2, rank)
    if rank == 0:
        raise error
    time.sleep(600)  # as in a collective that the other one never enters
    return 0
sys.exit(guarded(work))
"""


@pytest.mark.parametrize("code", [1, 64])
def test_one_that_fails_does_not_wait_for_the_others(code: int) -> None:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        port = str(found.getsockname()[1])
    command = [sys.executable, "-c", SCRIPT, port]
    with subprocess.Popen([*command, "1", str(code)], cwd=REPOSITORY, stderr=subprocess.DEVNULL) as other:
        began = time.monotonic()
        failed = subprocess.run(
            [*command, "0", str(code)], cwd=REPOSITORY, capture_output=True, text=True, timeout=200, check=False
        )
        other.kill()
    assert failed.returncode == code
    assert "torn" in failed.stderr
    assert time.monotonic() - began < 120, "JAX waits for 300 s"
