"""Which code, on which machine, made a stage: for people who look back, never for identity."""

from __future__ import annotations

import platform
import socket
import subprocess
import time
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path

from infra.manifest import Provenance

_LIBRARIES = (
    "jax",
    "jaxlib",
    "flax",
    "optax",
    "orbax-checkpoint",
    "tensorstore",
    "numpy",
    "ray",
    "tokenizers",
    "transformers",
)


def provenance(started: float, attempts: int) -> Provenance:
    """Provenance of an attempt that began at `started` (unix seconds) and ends now."""
    now = time.time()
    return Provenance(
        commit=commit(),
        versions=versions(),
        host=socket.gethostname(),
        started=_iso(started),
        finished=_iso(now),
        seconds=round(now - started, 3),
        attempts=attempts,
    )


def commit() -> str | None:
    """The git commit of this code, with '+changes' when files differ from it; None outside a repository."""
    here = Path(__file__).resolve().parent.parent
    answers = []
    for command in (["rev-parse", "HEAD"], ["status", "--porcelain", "--untracked-files=no"]):
        try:
            done = subprocess.run(["git", "-C", str(here), *command], capture_output=True, text=True, timeout=10)
        except (OSError, subprocess.TimeoutExpired):
            return None
        if done.returncode != 0:
            return None
        answers.append(done.stdout.strip())
    return answers[0] + ("+changes" if answers[1] else "")


def versions() -> dict[str, str]:
    """Python's version and those of the installed libraries that decide about numbers."""
    found = {"python": platform.python_version()}
    for name in _LIBRARIES:
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return found


def _iso(seconds: float) -> str:
    return datetime.fromtimestamp(seconds, UTC).isoformat(timespec="milliseconds")
