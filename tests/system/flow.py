"""Running the flow as a person does, in processes of its own, and looking at what it left on storage."""

from __future__ import annotations

import json
import os
import secrets
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import psutil

REPOSITORY = Path(__file__).resolve().parents[2]
MICRO = str(REPOSITORY / "tests" / "system" / "micro.yaml")
RUN = "micro"


# Programs are compiled once for all flows of the session: what is tested here is what happens around them.
_COMPILED = tempfile.TemporaryDirectory(prefix="compiled-")


def command(root: Path, *words: str) -> list[str]:
    shared = f"placement.train.compilation_cache={_COMPILED.name}"
    return [
        sys.executable, "flows/full_curriculum.py", f"curriculum={MICRO}", f"root={root}", f"run={RUN}", shared, *words
    ]  # fmt: skip


def canary() -> str:
    """A secret that no rule could know by its shape."""
    return f"canary{secrets.token_hex(8)}"


# Secrets as they lie in the environments of people, jobs and machines; test_secrets.py looks for them.
PLANTED = {
    name: canary() for name in ("HF_TOKEN", "OPENAI_API_KEY", "AWS_SECRET_ACCESS_KEY", "DB_PASSWORD", "RAY_AUTH_TOKEN")
} | {"PIP_INDEX_URL": f"https://me:{canary()}@127.0.0.1:9/simple"}


def environment() -> dict[str, str]:
    """Without what the test session set for itself: a flow decides on its own devices and finds no running Ray."""
    own = {"XLA_FLAGS", "JAX_PLATFORMS", "RAY_ADDRESS"}
    return {key: value for key, value in os.environ.items() if key not in own} | PLANTED


def run(root: Path, *words: str, timeout: float = 240) -> subprocess.CompletedProcess[str]:
    """Run the flow to its end."""
    return subprocess.run(
        command(root, *words), cwd=REPOSITORY, env=environment(), capture_output=True, text=True, timeout=timeout
    )


def start(root: Path, *words: str) -> subprocess.Popen[str]:
    """Start the flow in a session of its own, with Ctrl-C working as in a terminal."""

    def restore_interrupt() -> None:
        signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background jobs ignore it

    log = open(root / "flow.log", "a")  # noqa: SIM115 (the child's)
    return subprocess.Popen(
        command(root, *words), cwd=REPOSITORY, env=environment(), stdout=log, stderr=log, text=True,
        start_new_session=True, preexec_fn=restore_interrupt,
    )  # fmt: skip


def until(condition: Callable[[], object], process: subprocess.Popen[str], seconds: float = 120) -> None:
    """Wait for a condition while the process lives."""
    end = time.monotonic() + seconds
    while not condition():
        assert process.poll() is None, f"the flow ended with {process.returncode} before"
        assert time.monotonic() < end, "waited too long"
        time.sleep(0.02)


def done(root: Path, stage: str) -> bool:
    return (root / RUN / stage / "manifest.json").exists()


def manifest(root: Path, stage: str) -> dict[str, Any]:
    return json.loads((root / RUN / stage / "manifest.json").read_text())


def losses(root: Path, stage: str, states: Sequence[str] = ("1",)) -> list[tuple[int, float]]:
    """(step, loss) of every step in the stage's state, in the order of the file; a line being written is left out."""
    found = []
    for series in states:
        path = root / RUN / stage / "state" / series / "progress.jsonl"
        for line in path.read_text().splitlines(keepends=True) if path.exists() else []:
            if line.endswith("\n"):
                record = json.loads(line)
                found.append((record["step"], record["loss"]))
    return found


def trainers(root: Path) -> list[psutil.Process]:
    """Trainer processes that work for this root."""
    found = []
    for process in psutil.process_iter(["cmdline"]):
        words = process.info["cmdline"] or []
        if "ringworld.train" in words and any(str(root) in word for word in words):
            found.append(process)
    return found


def family(process: subprocess.Popen[str]) -> list[psutil.Process]:
    """The flow's descendants as they are now."""
    return psutil.Process(process.pid).children(recursive=True)


def alive(processes: Sequence[psutil.Process]) -> list[psutil.Process]:
    """Those that still run (a zombie does not)."""
    found = []
    for process in processes:
        try:
            if process.is_running() and process.status() != psutil.STATUS_ZOMBIE:
                found.append(process)
        except psutil.NoSuchProcess:
            continue
    return found
