"""What a driver holds after six hours: its own runner, console, views, tracker and metrics, six hours in a minute.

A graph of two stages at work side by side; each reports twice a second of virtual time for six hours, appends a step to
its progress.jsonl every ten seconds, and dies 20 times on the way, with the log that a trainer leaves. The views write
the page and MLflow meanwhile, at their own pace. A first, short run brings in what is imported once. Then memory is
looked at every half hour of virtual time: what the process holds, and how many objects Python keeps.
"""

from __future__ import annotations

import gc
import json
import tempfile
import threading
import time
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import psutil

from flows.views import Views
from infra import runner
from infra.console import Console
from infra.metrics import Metrics
from infra.observer import Observers
from infra.placement import Placement
from infra.stage import Result, Stage, StageContext, StageFailure
from infra.storage import Store

HOURS, REPORTS_A_SECOND, STEP_SECONDS, DEATHS = 6.0, 2, 10.0, 20
TAKES_SECONDS, WARM_SECONDS = 60.0, 25.0
_LOOK_EVERY = 1800 * REPORTS_A_SECOND


@dataclass(frozen=True)
class _Recipe:
    kind: ClassVar[str] = "train"
    sequence: int = 1024


@dataclass(frozen=True)
class Look:
    """At an hour of the run. resident: bytes of the process. objects: that Python's collector keeps track of."""

    hour: float
    resident: int
    objects: int


class _Job:
    """The run function of a stage: so many hours in so many seconds, over all its attempts."""

    def __init__(self, hours: float, takes: float, deaths: int, looks: list[Look] | None) -> None:
        self._total = int(hours * 3600 * REPORTS_A_SECOND)
        self._takes, self._deaths, self._looks = takes, deaths, looks
        self._done, self._began = 0, 0.0

    def __call__(self, context: StageContext, recipe: _Recipe) -> Result:
        self._began = self._began or time.monotonic()
        tail = "\n".join(f"a line of a log of a trainer, number {number}" for number in range(40))
        with open(Path(context.state_dir, "progress.jsonl"), "a", encoding="utf-8") as file:
            while self._done < self._total:
                self._done += 1
                # No faster than the views can follow.
                time.sleep(max(0.0, self._began + self._done / self._total * self._takes - time.monotonic()))
                step = int(self._done / REPORTS_A_SECOND / STEP_SECONDS)
                if self._done % int(STEP_SECONDS * REPORTS_A_SECOND) == 0:
                    line = {
                        "step": step,
                        "tokens": 1024 * step,
                        "loss": 2.0,
                        "seconds": 10.0,
                        "tokens_per_second": 102.0,
                    }
                    file.write(json.dumps({**line, "time": time.time()}) + "\n")
                    file.flush()
                context.report(
                    step=step, of=self._total, loss=2.0 + step / self._total, tokens_per_second=102.0, note=""
                )
                if self._looks is not None and self._done % _LOOK_EVERY == 0:
                    self._looks.append(_look(self._done / REPORTS_A_SECOND / 3600))
                if self._done % (self._total // (self._deaths + 1)) == 0 and self._done < self._total:
                    raise StageFailure("crashed", "rank 0 was killed by signal 9 (SIGKILL)", tail, marker=step)
        return Result((), {"sequence": recipe.sequence})


class _Silent:
    """Meters that go nowhere."""

    def Gauge(self, name: str, description: str, tag_keys: tuple[str, ...]) -> _Silent:
        return self

    Counter = Gauge

    def set(self, value: float, tags: dict[str, str]) -> None:
        pass

    inc = set


def measure() -> list[Look]:
    """Run it, which takes a minute and a half."""
    looks: list[Look] = []
    with tempfile.TemporaryDirectory(prefix="goodput-memory-", ignore_cleanup_errors=True) as root:
        _drive(Store(root, "warm"), (_Job(0.1, WARM_SECONDS, 1, None), _Job(0.1, WARM_SECONDS, 1, None)))
        looks.append(_look(0.0))
        _drive(
            Store(root, "memory"), (_Job(HOURS, TAKES_SECONDS, DEATHS, looks), _Job(HOURS, TAKES_SECONDS, DEATHS, None))
        )
    return looks


def _drive(store: Store, jobs: tuple[_Job, _Job]) -> None:
    stages = [
        Stage(name, _Recipe(sequence), job, {}, Placement())
        for (name, sequence), job in zip((("text-1k", 1024), ("text-2k", 2048)), jobs, strict=True)
    ]
    views = Views(store, stages, "memory", [])
    with views, open(f"{store.root}/{store.run}.log", "w", encoding="utf-8") as log, Console(log) as console:
        observers = Observers(console, views, Metrics("memory", _Silent()))
        runner.run(stages, store, observer=observers, stop=threading.Event(), first_wait=0.01)
        print(views.finish(), file=log)


def _look(hour: float) -> Look:
    gc.collect()
    return Look(hour, psutil.Process().memory_info().rss, len(gc.get_objects()))


def main() -> int:
    looks = measure()
    print("hour  resident   objects")
    for look in looks:
        print(f"{look.hour:4.1f}  {look.resident / 2**20:5.1f} MiB  {look.objects:9,}")
    first = next(look for look in looks if look.hour >= 1)
    last = looks[-1]
    print(f"\nfrom hour {first.hour:g} to {last.hour:g}: {(last.resident - first.resident) / 2**20:+.1f} MiB, "
          f"{last.objects - first.objects:+,} objects")  # fmt: skip
    return 0
