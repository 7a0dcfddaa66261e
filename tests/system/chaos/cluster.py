"""A Ray cluster of a head and two worker nodes, whose every process can be killed, and whose nodes can join again.

- Nodes are `ray start --block` processes: what a person or KubeRay starts, and nothing of Ray's own test helpers.
- A token of its own, known to its processes and to the flows that are given its environment.
- Every process below it, Ray's or a trainer's, carries the campaign's mark in its environment or on its command line,
  whatever it was forked from: the folder of the campaign, as an entry of PYTHONPATH. So orphans can be found.
- Health checks are quicker than Ray's own, which would let half a minute pass before a killed node is believed dead.
"""

from __future__ import annotations

import contextlib
import json
import os
import secrets
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Self

import psutil

from tests.system import flow

RAY = str(Path(sys.executable).parent / "ray")
JOIN_SECONDS = 120.0
_HEALTH = {
    "health_check_initial_delay_ms": 1000,
    "health_check_period_ms": 1000,
    "health_check_timeout_ms": 5000,
    "health_check_failure_threshold": 3,
}


@dataclass(frozen=True)
class Node:
    """A worker node. process: its `ray start`, which ends by itself when the raylet is gone."""

    process: subprocess.Popen[bytes]
    raylet: psutil.Process


class Cluster:
    """A head that runs no work, and worker nodes of `cpus` each, by name only. A context manager."""

    def __init__(self, mark: Path, nodes: int = 2, cpus: int = 2) -> None:
        self.mark, self._cpus = mark, cpus
        self._port = free_port()
        # Short: Ray's sockets lie in it, and the path of a socket has at most 107 characters.
        self._folder = tempfile.mkdtemp(prefix="rc-")
        self._environment = {
            **flow.environment(),
            "RAY_AUTH_MODE": "token",
            "RAY_AUTH_TOKEN": secrets.token_hex(32),
            "RAY_USAGE_STATS_ENABLED": "0",
            "RAY_worker_niceness": "0",  # Ray's 15 would let other programs of the machine decide what looks hung
            "PYTHONPATH": os.pathsep.join([str(flow.REPOSITORY), str(mark)]),
            "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
        }
        self._head: subprocess.Popen[bytes] | None = None
        self.nodes: list[Node | None] = [None] * nodes
        self._started: list[subprocess.Popen[bytes]] = []

    def __enter__(self) -> Self:
        try:
            self._head = self._start(
                "--head", f"--port={self._port}", "--num-cpus=0", "--include-dashboard=false",
                f"--temp-dir={self._folder}", f"--system-config={json.dumps(_HEALTH)}",
                f"--ray-client-server-port={free_port()}",
            )  # fmt: skip
            self._await("the head", lambda: answers(self._port), self._head)
            # One after the other: nodes of one address that start together take each other's ports.
            for index in range(len(self.nodes)):
                self.add(index)
        except BaseException:
            self.__exit__(None, None, None)
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Kills every process of the cluster: what should end by itself has been looked for before."""
        while left := marked(self.mark):
            for process in left:
                with contextlib.suppress(psutil.NoSuchProcess):
                    process.kill()
            for started in self._started:
                started.poll()
            time.sleep(0.1)
        shutil.rmtree(self._folder, ignore_errors=True)

    @property
    def environment(self) -> dict[str, str]:
        """Of a driver of this cluster."""
        return {**self._environment, "RAY_ADDRESS": f"127.0.0.1:{self._port}"}

    def add(self, index: int) -> None:
        """Starts worker node `index`, in place of the one that was killed, and waits until its raylet runs."""
        if (before := self.nodes[index]) is not None:
            # `ray start` takes half a minute to notice that its raylet is gone, and its log monitor does not.
            for helper in [*_children(before.process), psutil.Process(before.process.pid)]:
                helper.kill()
        address = f"--address=127.0.0.1:{self._port}"
        process = self._start(address, f"--num-cpus={self._cpus}", f"--node-name=worker-{index}")
        raylets: list[psutil.Process] = []
        self._await(f"worker node {index}", lambda: raylets.extend(_raylets(process)) or raylets, process)
        self.nodes[index] = Node(process, raylets[0])

    def _start(self, *words: str) -> subprocess.Popen[bytes]:
        command = [RAY, "start", "--block", "--object-store-memory=80000000", "--disable-usage-stats",
            "--include-log-monitor=false", *words]  # fmt: skip
        with open(Path(self._folder) / "start.log", "ab") as log:
            process = subprocess.Popen(command, env=self._environment, stdout=log, stderr=log, start_new_session=True)
        self._started.append(process)
        return process

    def _await(self, what: str, condition: Callable[[], object], process: subprocess.Popen[bytes]) -> None:
        deadline = time.monotonic() + JOIN_SECONDS
        while not condition():
            if process.poll() is not None or time.monotonic() > deadline:
                log = (Path(self._folder) / "start.log").read_text()
                raise RuntimeError(f"{what} of the cluster did not start:\n{log[-3000:]}")
            time.sleep(0.05)


def marked(mark: Path) -> list[psutil.Process]:
    """The processes, zombies left out, that a campaign with this folder has started, over any number of forks."""
    me = os.getpid()
    return [process for process in psutil.process_iter() if process.pid != me and _mentions(process, str(mark))]


def described(process: psutil.Process) -> str:
    """For people: pid and command line."""
    try:
        return f"{process.pid} {' '.join(process.cmdline())[:200] or process.name()}"
    except psutil.NoSuchProcess:
        return f"{process.pid} (gone)"


def free_port() -> int:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return found.getsockname()[1]


def answers(port: int) -> bool:
    """Whether somebody listens on a port of this machine."""
    with socket.socket() as probe:
        probe.settimeout(1)
        return probe.connect_ex(("127.0.0.1", port)) == 0


def _mentions(process: psutil.Process, text: str) -> bool:
    try:
        if process.status() == psutil.STATUS_ZOMBIE:
            return False
        return text in process.environ().get("PYTHONPATH", "") or any(text in word for word in process.cmdline())
    except (psutil.NoSuchProcess, psutil.AccessDenied, OSError):
        return False  # gone, or another user's


def _raylets(process: subprocess.Popen[bytes]) -> list[psutil.Process]:
    return [child for child in _children(process) if child.name() == "raylet"]


def _children(process: subprocess.Popen[bytes]) -> list[psutil.Process]:
    try:
        return psutil.Process(process.pid).children()
    except psutil.NoSuchProcess:
        return []
