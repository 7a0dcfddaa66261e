"""Jobs of two processes on this machine, as their tests start and await them."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

REPOSITORY = Path(__file__).parents[2]


def start_two(
    words: Callable[[int, str], Sequence[str]], environment: Mapping[int, Mapping[str, str]] | None = None
) -> list[subprocess.Popen[str]]:
    """Both processes. words: what follows `python`, by rank and the coordinator's address. environment: of a rank, over
    this one's, of which the devices that tests ask XLA for are taken away."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        coordinator = f"127.0.0.1:{free.getsockname()[1]}"
    calm = {key: value for key, value in os.environ.items() if key != "XLA_FLAGS"}
    return [
        subprocess.Popen(
            [sys.executable, *words(rank, coordinator)],
            cwd=REPOSITORY,
            env=calm | dict((environment or {}).get(rank, {})),
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in range(2)
    ]


def await_all(processes: Sequence[subprocess.Popen[str]], seconds: float = 500) -> list[tuple[int, str]]:
    """(exit code, stderr) of each; none is left behind."""
    try:
        said = [process.communicate(timeout=seconds)[1] for process in processes]
    finally:
        for process in processes:
            process.kill()
    return [(process.returncode, text) for process, text in zip(processes, said, strict=True)]


def module(name: str, *words: str) -> Callable[[int, str], Sequence[str]]:
    """`python -m name words`, told its place in the job as the project's commands are."""
    return lambda rank, coordinator: [
        "-m", name, *words, "--coordinator", coordinator, "--num-processes", "2", "--process-id", str(rank)
    ]  # fmt: skip
