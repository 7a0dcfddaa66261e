"""A machine (or, on CPU, a share of one) as an actor: it starts the trainer of one rank, watches it, and can end it.

- The trainer is a process with its own session, started without a shell, its output in a file. It shares no memory and
  no interpreter with Ray, so nothing that happens in it can take the actor along, and this file never imports JAX.
- Ending it means all of it: TERM to its process group, time to save, KILL, then a sweep of everything that still
  carries the host's mark (`actors.warden`), grandchildren in sessions of their own included.
- Should the actor itself die in any way, the trainer follows: it sees that RINGWORLD_PARENT_PID is gone, and the warden
  kills what does not look.
- A host is never restarted by Ray: a gang that lost one is condemned, and is built anew as a whole.
"""

from __future__ import annotations

import contextlib
import os
import random
import secrets
import signal
import socket
import subprocess
import sys
import time
from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO

import ray

from actors.environment import trainer_environment
from actors.ranks import HostInfo
from actors.warden import CODE_ROOT, MARK, set_watch, sweep
from infra.placement import Kind

PARENT = "RINGWORLD_PARENT_PID"
HEARTBEAT = "RINGWORLD_HEARTBEAT"

# libtpu leaves it behind when it is killed, and then refuses the chips to the next process.
_TPU_LOCK = Path("/tmp/libtpu_lockfile")
# Below the kernel's range for outgoing connections (32768 and up) and above Ray's workers (10002-19999): nobody else is
# likely to take the port between its choice here and the trainer's bind.
_PORTS = range(20000, 32768)


@dataclass(frozen=True)
class HostStatus:
    """The trainer of a host at one moment.

    code: its exit code, negative for a signal; None while it runs.
    heartbeat_age: seconds since it last touched the file that RINGWORLD_HEARTBEAT names, or was started; None after
        `stop`.
    log_bytes: size of its log.
    """

    code: int | None
    heartbeat_age: float | None
    log_bytes: int

    @property
    def running(self) -> bool:
        return self.code is None


class Host:
    """What a `HostActor` does, usable without Ray but for `describe`. Calls come one at a time."""

    def __init__(self, kind: Kind) -> None:
        self._kind: Kind = kind
        self._token = secrets.token_hex(16)
        self._watch: IO[bytes] | None = None
        self._process: subprocess.Popen[bytes] | None = None
        self._log = self._heartbeat = Path(os.devnull)

    def describe(self) -> HostInfo:
        context = ray.get_runtime_context()
        address = ray.util.get_node_ip_address()
        # Annotated as lists; they are texts.
        labels = {name: str(value) for name, value in context.get_node_labels().items()}
        return HostInfo(address, context.get_node_id(), os.getpid(), labels)

    def free_port(self) -> int:
        """A TCP port of this host that nobody listens on now."""
        for port in random.sample(_PORTS, 100):
            with socket.socket() as trial, contextlib.suppress(OSError):
                trial.bind(("", port))
                return port
        raise RuntimeError(f"no free TCP port found between {_PORTS.start} and {_PORTS.stop} on this host")

    def start(self, argv: Sequence[str], env: Mapping[str, str], cwd: str | None, log_path: str) -> int:
        """Starts `python *argv` with this host's interpreter; its pid.

        env: variables over those that pass from the host (`trainer_environment`).
        cwd: a folder of this host, or None for the one that holds this code, so that `-m` finds it.
        log_path: a local file that gets stdout and stderr, at its end if it exists; its folders are made.
        Raises OSError when the log or the process cannot be made, RuntimeError while a trainer runs.
        """
        if self._process is not None and self._process.poll() is None:
            raise RuntimeError(f"this host already runs a trainer (pid {self._process.pid}): stop it first")
        if self._watch is None:
            self._watch = set_watch(self._token)
        self._log = Path(log_path)
        self._log.parent.mkdir(parents=True, exist_ok=True)
        self._heartbeat = self._log.with_suffix(".heartbeat")
        self._heartbeat.touch()  # its birth is its first sign of life: one that freezes at once is found too
        owned = {PARENT: str(os.getpid()), MARK: self._token, HEARTBEAT: str(self._heartbeat)}
        with open(self._log, "ab") as log:
            self._process = subprocess.Popen(
                [sys.executable, *argv],
                stdin=subprocess.DEVNULL, stdout=log, stderr=subprocess.STDOUT,
                env=trainer_environment(os.environ, self._kind, {**env, **owned}),
                cwd=cwd or CODE_ROOT, start_new_session=True,
            )  # fmt: skip
        return self._process.pid

    def poll(self, wait_seconds: float = 0.0) -> HostStatus:
        """The trainer's status, now or, while it runs, up to `wait_seconds` later: at once when it ends."""
        if self._process is None:
            raise RuntimeError("this host has started no trainer yet")
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._process.wait(wait_seconds)
        try:
            age = max(0.0, time.time() - self._heartbeat.stat().st_mtime)
        except FileNotFoundError:
            age = None
        return HostStatus(self._process.returncode, age, self._log.stat().st_size)

    def tail(self, lines: int) -> str:
        """The last lines of the trainer's log."""
        return tail(self._log, lines)

    def log(self, most_bytes: int) -> bytes:
        """The end of the trainer's log, whole where it is no longer; empty where there is none."""
        with contextlib.suppress(OSError), open(self._log, "rb") as file:
            file.seek(max(0, file.seek(0, os.SEEK_END) - most_bytes))
            return file.read()
        return b""

    def stop(self, grace_seconds: float) -> int | None:
        """Ends the trainer and all its descendants; its exit code, None when there was none or it cannot be killed.

        A trainer that still runs gets TERM and `grace_seconds` to save. One that has ended by itself is swept after.
        Takes at most the grace and 4 seconds.
        """
        process = self._process
        if process is None:
            return None
        # Until it is reaped its pid, which is its group's id, cannot belong to anybody else.
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGTERM)
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(grace_seconds)
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(2.0)  # longer only in uninterruptible sleep: a dead disk or driver
        sweep(self._token)
        self._heartbeat.unlink(missing_ok=True)
        if self._kind == "tpu":
            _TPU_LOCK.unlink(missing_ok=True)
        return process.returncode


# One call at a time (Ray's default) keeps start, poll and stop in the order in which the gang asked for them.
HostActor = ray.remote(max_restarts=0, max_task_retries=0)(Host)


def tail(path: Path, lines: int) -> str:
    """The last lines of a text file, at most 64 KiB of it; empty when it cannot be read."""
    try:
        with open(path, "rb") as file:
            file.seek(max(0, file.seek(0, os.SEEK_END) - 65536))
            text = file.read().decode(errors="replace")
    except OSError:
        return ""  # a failure is reported with its log if there is one: the lack of it must not hide the failure
    return "\n".join(deque(text.splitlines(), maxlen=lines))
