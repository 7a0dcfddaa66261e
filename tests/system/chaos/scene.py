"""A flow at work on a cluster, and what an onlooker sees of it: its trainers, its newest step, its finished stages.

Only looks: at processes and at files on storage, as a person with `ps` and `ls` does.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import psutil

from tests.system import flow
from tests.system.chaos.cluster import described, marked

HERE = Path(__file__).resolve().parent
RUN = "chaos"
# What the product starts and must end; everything else that carries the mark is Ray's.
_OURS = ("ringworld.train", "ringworld.evaluate", "actors.warden")


@dataclass(frozen=True)
class Trainer:
    """One rank at work. stage: whose."""

    process: psutil.Process
    stage: str


class Scene:
    """One run of the curriculum below `root`, driven by a flow that is started as often as it takes."""

    def __init__(
        self, curriculum: Path, root: Path, mark: Path, environment: dict[str, str], words: Sequence[str]
    ) -> None:
        self.root, self.run = root, root / RUN
        self._mark, self._environment = mark, environment
        self._command = [
            sys.executable, "flows/full_curriculum.py", f"curriculum={curriculum}",
            f"placement={HERE / 'placement.yaml'}", f"root={root}", f"run={RUN}", *words,
        ]  # fmt: skip
        self.log = mark / "logs" / f"{root.name}.log"
        self.driver: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        """The same command, from the first time to the last."""
        self.log.parent.mkdir(exist_ok=True)
        with open(self.log, "ab") as log:
            self.driver = subprocess.Popen(
                self._command,
                cwd=flow.REPOSITORY,
                env=self._environment,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )

    def ended(self) -> int | None:
        """The flow's exit code; None while it runs."""
        assert self.driver is not None
        return self.driver.poll()

    def close(self) -> None:
        """Ends the flow, however it stands."""
        if self.driver is not None and self.driver.poll() is None:
            os.killpg(self.driver.pid, signal.SIGKILL)
            self.driver.wait()

    def trainers(self, stage: str | None = None) -> list[Trainer]:
        """Ranks at work, of one stage or of all, in the order of their age."""
        found = []
        for process in psutil.process_iter(["cmdline"]):
            words = process.info["cmdline"] or []
            job = next((word for word in words if word.startswith(f"{self.run}/") and word.endswith("job.yaml")), None)
            if job is not None and ("ringworld.train" in words or "ringworld.evaluate" in words):
                name = Path(job).relative_to(self.run).parts[0]
                if stage in (None, name) and process.status() != psutil.STATUS_ZOMBIE:
                    found.append(Trainer(process, name))
        return sorted(found, key=lambda trainer: trainer.process.create_time())

    def finished(self) -> set[str]:
        return {path.parent.name for path in self.run.glob("*/manifest.json")}

    def newest_record(self, stage: str = "*") -> float:
        """Unix seconds at which a step was recorded last; 0 before the first."""
        return max((_last_time(path) for path in self.run.glob(f"{stage}/state/*/progress.jsonl")), default=0.0)

    def moved_since(self, moment: float, stage: str = "*") -> bool:
        """Whether a step was recorded, or a stage finished, after a moment in unix seconds."""
        if self.newest_record(stage) > moment:
            return True
        return any(path.stat().st_mtime > moment for path in self.run.glob(f"{stage}/manifest.json"))

    def checkpoints(self, stage: str) -> list[Path]:
        """Folders of durable checkpoints, oldest first."""
        found = [path for path in self.run.glob(f"{stage}/state/*/checkpoints/*") if path.name.isdigit()]
        return sorted(found, key=lambda path: int(path.name))

    def orphans(self, seconds: float) -> list[str]:
        """What the product has started and not ended within some seconds of the flow's own end."""
        deadline = time.monotonic() + seconds
        while left := [process for process in marked(self._mark) if _is_ours(process)]:
            if time.monotonic() > deadline:
                return [described(process) for process in left]
            time.sleep(0.2)
        return []


def _is_ours(process: psutil.Process) -> bool:
    try:
        words = process.cmdline()
    except psutil.NoSuchProcess:
        return False
    return any(word in _OURS for word in words) or (bool(words) and words[0].startswith("ray::Host"))


def _last_time(path: Path) -> float:
    try:
        with open(path, "rb") as file:
            file.seek(max(0, file.seek(0, os.SEEK_END) - 4096))
            lines = file.read().split(b"\n")
    except FileNotFoundError:
        return 0.0
    # The last piece is empty, or a line that is being written.
    return float(json.loads(lines[-2])["time"]) if len(lines) > 2 else 0.0
