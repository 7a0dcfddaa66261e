"""The loop of a campaign: a calm run, then rounds of the same curriculum under faults, each compared with it.

- A round is the whole curriculum in a fresh root. The next round begins when one is finished, until every fault has
  struck; the last round is left to finish in peace.
- A fault waits until the flow has moved (a step recorded, a stage finished) since the last one, then for its own delay;
  some do not wait, and strike what is still recovering.
- A fault has been survived when the flow has moved again after it. A flow that ended before the curriculum did (its
  driver was killed, its lease stolen, its disk full for too long) is started again with the same command.
- A campaign of hours may have several sittings: after each round the report is kept, and a later sitting makes a calm
  run of its own and goes on with the faults that have not struck in a whole round.
"""

from __future__ import annotations

import random
import shutil
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack, closing
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from tests.ringworld.corpus import prose
from tests.system.chaos.cluster import Cluster
from tests.system.chaos.faults import KINDS, NEED_A_DISK, Blow, Planned, Stand, draw
from tests.system.chaos.scene import RUN, Scene
from tests.system.chaos.verdict import Remains, differences, read
from tests.system.chaos.volume import Volume

STUCK_SECONDS = 420.0
CALM_STARTS = 4
ORPHAN_SECONDS = 30.0
_LOOK_SECONDS = 0.2


@dataclass
class Struck:
    """One fault, as it went. at: seconds since the campaign began; recovered: seconds until the flow moved again."""

    number: int
    kind: str
    what: str
    round: int
    at: float
    recovered: float | None = None


@dataclass
class Report:
    """How a campaign went. wrong: what would not have happened in a calm run; empty is the goal."""

    seed: int
    asked: int
    skipped: tuple[str, ...]
    faults: list[Struck] = field(default_factory=list)
    sittings: int = 0
    rounds: int = 0
    restarts: int = 0
    seconds: float = 0.0
    calm_seconds: float = 0.0
    wrong: list[str] = field(default_factory=list)

    @property
    def survived(self) -> int:
        return sum(fault.recovered is not None for fault in self.faults)

    @property
    def ok(self) -> bool:
        return not self.wrong and self.survived == len(self.faults) == self.asked

    @classmethod
    def of(cls, kept: Mapping[str, Any]) -> Report:
        """From its mapping, as JSON has it."""
        faults = [Struck(**fault) for fault in kept["faults"]]
        return cls(**{**kept, "skipped": tuple(kept["skipped"]), "faults": faults})


class Lost(Exception):
    """The flow does not come back by itself; the message says after what."""


@dataclass(frozen=True)
class Options:
    """faults, seed: which strike. folder: everything lies in it, on the caller to remove. steps: of each stage.

    curriculum: a file of this folder. early: see `faults.draw`.
    """

    faults: int
    seed: int
    folder: Path
    steps: int = 300
    curriculum: str = "curriculum.yaml"
    early: float = 0.15


def run(
    options: Options,
    say: Callable[[str], None],
    before: Report | None = None,
    keep: Callable[[Report], None] = lambda report: None,
) -> Report:
    """The whole campaign, or what is left of it. say: told of each fault and each round as it ends. before: the report
    of earlier sittings. keep: given the report after each round that ended as the calm run did."""
    began = time.monotonic() - (before.seconds if before else 0.0)
    folder, documents = options.folder, options.folder / "documents"
    documents.mkdir(parents=True)
    for number in range(10):
        (documents / f"{number}.txt").write_text(prose(number, 60))
    with ExitStack() as stack:
        volume = stack.enter_context(Volume(folder))
        skipped = () if volume.able else NEED_A_DISK
        report = before or Report(options.seed, options.faults, skipped)
        report.sittings += 1
        cluster = stack.enter_context(Cluster(folder))

        curriculum = Path(__file__).parent / options.curriculum
        training = yaml.safe_load(curriculum.read_text())["stages"]

        def scene(name: str, *own: str) -> Scene:
            compiled = folder / "compiled"
            words = [
                f"sources.text={documents}",
                f"placement.train.compilation_cache={compiled}",
            ]
            words += [f"stages.{stage}.steps={options.steps}" for stage in training]
            return stack.enter_context(
                closing(Scene(curriculum, volume.root / name, folder, cluster.environment, [*words, *own]))
            )

        # Nothing strikes a calm run, so it saves at its end alone.
        calm, report.calm_seconds = _calm(
            scene("calm", "placement.frozen_seconds=300", f"placement.train.save_every={options.steps}")
        )
        say(f"calm run: {report.calm_seconds:.0f} s, {len(calm.manifests)} stages")
        kinds = tuple(kind for kind in KINDS if kind not in skipped)
        faults = draw(options.faults, options.seed, kinds, options.early)[len(report.faults) :]
        while faults and not report.wrong:
            report.rounds += 1
            dice = random.Random(f"{options.seed} {report.rounds}")
            here = scene(f"round-{report.rounds}")
            stand = Stand(here, cluster, volume, dice)
            try:
                _Round(stand, report, began, say).play(faults)
                wrong = differences(calm, read(here.root, RUN))
            except Lost as lost:
                wrong = [str(lost)]
            finally:
                here.close()
            wrong += [f"left behind: {process}" for process in here.orphans(ORPHAN_SECONDS)]
            report.wrong += [f"round {report.rounds}: {each}" for each in wrong]
            say(f"round {report.rounds}: {'equal to the calm run' if not wrong else '; '.join(wrong)}")
            if wrong:
                shutil.copytree(here.run, folder / "failed", dirs_exist_ok=True)
            else:
                shutil.rmtree(here.root)
                report.seconds = time.monotonic() - began
                keep(report)
    report.seconds = time.monotonic() - began
    return report


class _Round:
    """One curriculum under faults. Faults that have struck are taken from the list that `play` is given."""

    def __init__(self, stand: Stand, report: Report, began: float, say: Callable[[str], None]) -> None:
        self._stand, self._scene, self._report = stand, stand.scene, report
        self._began, self._say = began, say
        self._open: list[tuple[Struck, str]] = []
        self._moved = time.time()
        self._idle_restarts = 0

    def play(self, faults: list[Planned]) -> None:
        """Returns when the curriculum is finished. Raises Lost when the flow does not come back."""
        self._scene.start()
        while True:
            if not faults:
                self._until(lambda: False)
                return
            fault, since = faults[0], self._moved
            early = fault.early and bool(self._open)
            if not early and self._until(lambda since=since: self._scene.moved_since(since)):
                return
            end = time.monotonic() + fault.delay
            if self._until(lambda end=end: time.monotonic() > end):
                return
            blow = None
            while blow is None:
                if self._until(lambda: True):
                    return
                blow = KINDS[fault.kind](self._stand)
            del faults[0]
            self._suffer(fault, blow)

    def _suffer(self, fault: Planned, blow: Blow) -> None:
        struck = Struck(
            len(self._report.faults) + 1, fault.kind, blow.what, self._report.rounds, time.monotonic() - self._began
        )
        self._report.faults.append(struck)
        try:
            self._until(blow.over, still=f"fault {struck.number} ({fault.kind}: {blow.what}) has struck")
        finally:
            blow.undo()
        self._moved = time.time()
        self._open.append((struck, blow.stage))

    def _until(self, condition: Callable[[], bool], still: str = "") -> bool:
        """Waits for a condition, and keeps the flow going; True when the curriculum was finished first.

        still: what is suffered meanwhile: then a flow that has ended is left as it is.
        """
        while True:
            self._look()
            code = self._scene.ended()
            if still:
                if condition():
                    return False
            elif code == 0:
                self._close(self._open)
                return True
            elif code is not None:
                self._again(code)
            elif condition():
                return False
            if time.time() - self._moved > STUCK_SECONDS:
                raise Lost(f"nothing moved for {STUCK_SECONDS:.0f} s {f'since {still}' if still else self._last()}")
            time.sleep(_LOOK_SECONDS)

    def _look(self) -> None:
        """Notes what has recovered."""
        done = [(struck, stage) for struck, stage in self._open if self._scene.moved_since(self._moved, stage)]
        if done:
            self._close(done)
            self._moved = time.time()
            self._idle_restarts = 0

    def _close(self, done: Sequence[tuple[Struck, str]]) -> None:
        for struck, stage in list(done):
            struck.recovered = time.monotonic() - self._began - struck.at
            self._open.remove((struck, stage))
            times = f"{struck.at:7.1f} s", f"{struck.recovered:6.1f} s"
            self._say(f"{struck.number:4d} {times[0]}  {struck.kind:18s}  {struck.what:42s} {times[1]}")

    def _again(self, code: int) -> None:
        self._report.restarts += 1
        self._idle_restarts += 1
        if self._idle_restarts > 5:
            raise Lost(f"the flow ended with {code}, started again 5 times without moving {self._last()}")
        self._scene.start()

    def _last(self) -> str:
        if not self._report.faults:
            return "before the first fault"
        last = self._report.faults[-1]
        return f"after fault {last.number} ({last.kind}: {last.what})"


def _calm(scene: Scene) -> tuple[Remains, float]:
    began = time.monotonic()
    # Nothing strikes here, but a machine that others use too may be too slow for somebody's patience.
    for _ in range(CALM_STARTS):
        scene.start()
        assert scene.driver is not None
        if scene.driver.wait() == 0:
            break
    else:
        raise RuntimeError(f"the calm run ended with {scene.ended()}:\n{scene.log.read_text()[-3000:]}")
    calm = read(scene.root, RUN)
    if broken := differences(calm, calm):
        raise RuntimeError(f"the calm run is not whole: {broken}")
    return calm, time.monotonic() - began
