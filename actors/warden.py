"""The process that outlives a host actor by a moment, to end everything that the actor had started.

A host actor can die in ways that run none of its code: `kill -9`, the out-of-memory killer, its node's daemon going
away. Its trainer, and the trainer's own children, would then keep the accelerators and write checkpoints beside the
next attempt. So the actor starts one warden, whose standard input is a pipe that only the actor holds. End of file on
it means that the actor is gone, however it went, and the warden kills every process that carries the actor's mark.

- The mark is an environment variable with a random value. It is inherited over any number of forks, new sessions and
  daemonisations; process groups, parent ids and the kernel's parent-death signal each lose some of these.
- It kills at once, without a warning: a trainer that has lost its host cannot take part in a save, and the gang is
  about to be built anew on the same state.
- It is a grandchild of the actor, because Ray, when it ends a worker, kills that worker's direct children.
"""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path
from typing import IO

import psutil

MARK = "RINGWORLD_HOST_TOKEN"
CODE_ROOT = Path(__file__).resolve().parent.parent


def set_watch(token: str) -> IO[bytes]:
    """Starts a warden for this process. It strikes when the returned pipe closes: keep it."""
    # Its own environment is bare: no mark, so that it does not find itself, and no secrets.
    keep = {name: os.environ[name] for name in ("PATH", "LD_LIBRARY_PATH", "PYTHONPATH") if name in os.environ}
    starter = subprocess.Popen(
        [sys.executable, "-m", "actors.warden", token],
        stdin=subprocess.PIPE, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
        cwd=CODE_ROOT, env=keep, start_new_session=True,
    )  # fmt: skip
    if starter.wait() != 0 or starter.stdin is None:
        raise RuntimeError(f"the warden of a host did not start (exit code {starter.returncode})")
    return starter.stdin


def sweep(token: str, seconds: float = 2.0) -> list[int]:
    """Kills every process that carries the mark, again until none is left; the pids that resisted for `seconds`."""
    deadline = time.monotonic() + seconds
    while True:
        # Twice over: a process that forks while the list is read may have hidden a child from it.
        survivors = [process for process in psutil.process_iter() if _carries(process, token)]
        if not survivors or time.monotonic() > deadline:
            return [process.pid for process in survivors]
        for process in survivors:
            try:
                process.kill()
            except psutil.NoSuchProcess:
                continue
        psutil.wait_procs(survivors, timeout=0.1)


def _carries(process: psutil.Process, token: str) -> bool:
    try:
        return process.pid != os.getpid() and process.environ().get(MARK) == token
    except (psutil.NoSuchProcess, psutil.AccessDenied, OSError):
        return False  # gone, a zombie, or another user's: none of them can be one of ours that still runs


def main(token: str) -> None:
    if os.fork() > 0:
        os._exit(0)
    sys.stdin.buffer.read()
    sweep(token)


if __name__ == "__main__":
    main(sys.argv[1])
