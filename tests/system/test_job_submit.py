"""The flow as a submitted job: a head with a token, `ray job submit --working-dir .`, and its exit status."""

from __future__ import annotations

import os
import secrets
import shutil
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.system import flow

RAY = str(Path(sys.executable).parent / "ray")


def free_port() -> int:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return found.getsockname()[1]


@pytest.fixture
def head(tmp_path_factory):
    """(environment, job server address) of a Ray head with token authentication; ended by its process id."""
    dashboard = free_port()
    place = tmp_path_factory.mktemp("r")
    environment = {
        **flow.environment(),
        "RAY_AUTH_MODE": "token",
        "RAY_AUTH_TOKEN": secrets.token_hex(32),
        "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",  # `python` is ours
    }
    command = [
        RAY, "start", "--head", "--block", "--num-cpus=2", '--resources={"controller": 1}', f"--port={free_port()}",
        "--dashboard-host=127.0.0.1", f"--dashboard-port={dashboard}", f"--ray-client-server-port={free_port()}",
        "--disable-usage-stats", "--object-store-memory=300000000", f"--dashboard-agent-listen-port={free_port()}",
    ]  # fmt: skip
    with open(place / "head.log", "w") as log:
        process = subprocess.Popen(command, env=environment, stdout=log, stderr=log, start_new_session=True)
    try:
        flow.until(lambda: answers(dashboard), process, 60)  # type: ignore[arg-type]
        yield environment, f"http://127.0.0.1:{dashboard}"
    finally:
        process.terminate()
        try:
            process.wait(30)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def answers(port: int) -> bool:
    with socket.socket() as probe:
        probe.settimeout(1)
        return probe.connect_ex(("127.0.0.1", port)) == 0


def submit(head, *words: str) -> subprocess.CompletedProcess[str]:
    environment, address = head
    command = [
        RAY,
        "job",
        "submit",
        "--address",
        address,
        "--entrypoint-resources",
        '{"controller": 1}',
        "--working-dir",
        ".",
        "--",
        "python",
        "flows/full_curriculum.py",
    ]
    return subprocess.run(
        [*command, f"curriculum={flow.MICRO}", f"run={flow.RUN}", *words],
        cwd=flow.REPOSITORY, env=environment, capture_output=True, text=True, timeout=240,
    )  # fmt: skip


def test_a_submitted_job_runs_the_flow_and_its_failure_is_the_commands(head, prepared, calm, sources):
    root = prepared("text-512")
    shutil.rmtree(root / flow.RUN / "pack-text-512")
    deadline = time.monotonic() + 60
    # The job agent of a fresh head takes a moment longer than its port.
    while "No available agent" in (ended := submit(head, sources, f"root={root}", "start=pack-text-512")).stderr:
        assert time.monotonic() < deadline
        time.sleep(2)
    assert ended.returncode == 0, ended.stdout[-3000:] + ended.stderr[-3000:]
    assert flow.losses(root, "text-512") == flow.losses(calm, "text-512")
    assert flow.done(root, "evaluate-text-512")

    refused = submit(head, sources, "root=runs")
    assert refused.returncode != 0
    assert "temporary copy" in refused.stdout + refused.stderr
