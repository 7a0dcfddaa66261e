"""What strikes: each kind of fault as a function of the scene, which hits something at once and says how it is undone.

A function returns None when there is nothing to hit at the moment: no trainer runs, no checkpoint exists. The blow it
returns is over when `over` says so; then `undo` repairs what would not repair itself (a node joins again, a disk has
room), and the flow must go on by itself, or, where its driver has died, by being started again with the same command.
"""

from __future__ import annotations

import json
import random
import signal
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import psutil

from tests.system.chaos.cluster import Cluster
from tests.system.chaos.scene import Scene, Trainer
from tests.system.chaos.volume import Volume


def _nothing() -> None:
    pass


@dataclass(frozen=True)
class Blow:
    """A fault that has struck.

    what: for people. stage: the only one it can have hit, or "*". over: whether its effect has passed through.
    """

    what: str
    stage: str
    over: Callable[[], bool]
    undo: Callable[[], None] = _nothing


@dataclass(frozen=True)
class Stand:
    """What faults may strike, and the dice that choose."""

    scene: Scene
    cluster: Cluster
    volume: Volume
    dice: random.Random


def kill_rank(stand: Stand) -> Blow | None:
    """kill -9 of a trainer."""
    if (victim := _some_trainer(stand)) is None:
        return None
    gang = stand.scene.trainers(victim.stage)
    _kill(victim.process)
    return Blow(_named(victim), victim.stage, lambda: _gone(gang))


def kill_host(stand: Stand) -> Blow | None:
    """kill -9 of the host actor of a trainer."""
    if (victim := _some_trainer(stand)) is None or (host := _parent(victim.process)) is None:
        return None
    gang = stand.scene.trainers(victim.stage)
    _kill(host)
    return Blow(f"host of {_named(victim)}", victim.stage, lambda: _gone(gang))


def kill_node(stand: Stand) -> Blow | None:
    """kill -9 of the raylet of a worker node; a new node joins seconds later."""
    index = stand.dice.randrange(len(stand.cluster.nodes))
    node = stand.cluster.nodes[index]
    assert node is not None
    lost = [trainer for trainer in stand.scene.trainers() if node.raylet in trainer.process.parents()]
    back = time.monotonic() + stand.dice.uniform(0.5, 4.0)
    _kill(node.raylet)
    stages = {trainer.stage for trainer in lost}
    return Blow(
        f"worker-{index} with {len(lost)} ranks",
        stages.pop() if len(stages) == 1 else "*",
        lambda: _gone(lost) and time.monotonic() > back,
        lambda: stand.cluster.add(index),
    )


def kill_driver(stand: Stand) -> Blow | None:
    """kill -9 of the flow; the same command is given again."""
    driver, gang = stand.scene.driver, stand.scene.trainers()
    if driver is None or driver.poll() is not None:
        return None
    driver.kill()
    driver.wait()
    return Blow(f"driver of {len(gang)} ranks", "*", lambda: _gone(gang))


def freeze_rank(stand: Stand) -> Blow | None:
    """SIGSTOP of a trainer: it neither works nor dies."""
    if (victim := _some_trainer(stand)) is None:
        return None
    gang = stand.scene.trainers(victim.stage)
    with suppress(psutil.NoSuchProcess):
        victim.process.suspend()
    return Blow(_named(victim), victim.stage, lambda: _gone(gang))


def preempt_rank(stand: Stand) -> Blow | None:
    """SIGTERM to a trainer, as a machine that is about to be taken away sends it."""
    if (victim := _some_trainer(stand)) is None:
        return None
    gang = stand.scene.trainers(victim.stage)
    with suppress(psutil.NoSuchProcess):
        victim.process.send_signal(signal.SIGTERM)
    return Blow(_named(victim), victim.stage, lambda: _gone(gang))


def damage_checkpoint(stand: Stand) -> Blow | None:
    """The newest checkpoint of a stage at work loses bytes, or has others; then one of its ranks is killed."""
    if (victim := _some_trainer(stand)) is None or len(stand.scene.checkpoints(victim.stage)) < 2:
        return None  # without a sound one before it the trainer refuses, and asks a person
    gang = stand.scene.trainers(victim.stage)
    # Stopped meanwhile: else a sound checkpoint might become the newest.
    _signal(gang, signal.SIGSTOP)
    files = [path for path in stand.scene.checkpoints(victim.stage)[-1].rglob("*") if path.is_file()]
    largest = sorted(files, key=lambda path: path.stat().st_size)[-4:]
    hurt = stand.dice.choice(largest)
    with open(hurt, "r+b") as file:
        size = hurt.stat().st_size
        if cut := stand.dice.random() < 0.5:
            file.truncate(size // 2)
        else:
            file.seek(size // 3)
            piece = file.read(64)
            file.seek(size // 3)
            file.write(bytes(255 - byte for byte in piece))
    _kill(victim.process)
    _signal(gang, signal.SIGCONT)
    how = "cut" if cut else "flipped"
    step = hurt.relative_to(stand.scene.run).parts[4]
    return Blow(f"{victim.stage} step {step}: {hurt.name[:12]} {how}", victim.stage, lambda: _gone(gang))


def fill_disk(stand: Stand) -> Blow | None:
    """The disk of the runs is full for some seconds."""
    seconds = stand.dice.uniform(1, 5)
    stand.volume.fill()
    return Blow(f"full for {seconds:.1f} s", "*", _after(seconds), stand.volume.empty)


def hang_disk(stand: Stand) -> Blow | None:
    """Every write to the disk of the runs waits for some seconds."""
    seconds = stand.dice.uniform(1, 5)
    stand.volume.hang(seconds)
    # The thaw is another process's: give it a moment.
    return Blow(f"writes wait {seconds:.1f} s", "*", _after(seconds + 0.5))


def refuse_writes(stand: Stand) -> Blow | None:
    """No file of the run can be made or renamed for some seconds."""
    seconds = stand.dice.uniform(1, 5)
    folders = stand.volume.refuse(stand.scene.run)
    return Blow(f"refuses for {seconds:.1f} s", "*", _after(seconds), lambda: stand.volume.accept(folders))


def steal_lease(stand: Stand) -> Blow | None:
    """Another driver takes the lease, though the run has one, and gives it back when that one has gone."""
    path = stand.scene.run / "lease.json"
    if not path.exists() or stand.scene.ended() is not None:
        return None
    held = json.loads(path.read_text())
    if not held["owner"]:
        return None
    thief = {**held, "owner": "thief", "token": held["token"] + 1, "host": "elsewhere", "machine": "another"}
    _replace(path, {**thief, "renewed": time.time()})
    return Blow(
        f"token {held['token']} -> {held['token'] + 1}",
        "*",
        lambda: stand.scene.ended() is not None,
        lambda: _replace(path, {**thief, "owner": ""}),
    )


KINDS: Mapping[str, Callable[[Stand], Blow | None]] = {
    "rank killed": kill_rank,
    "host killed": kill_host,
    "node killed": kill_node,
    "driver killed": kill_driver,
    "rank frozen": freeze_rank,
    "rank preempted": preempt_rank,
    "checkpoint damaged": damage_checkpoint,
    "disk full": fill_disk,
    "disk hangs": hang_disk,
    "disk refuses": refuse_writes,
    "lease stolen": steal_lease,
}
NEED_A_DISK = ("disk full", "disk hangs", "disk refuses")


@dataclass(frozen=True)
class Planned:
    """A fault to come. delay: seconds after progress was seen; early: it does not wait for that progress."""

    kind: str
    delay: float
    early: bool


def draw(count: int, seed: int, kinds: tuple[str, ...], early: float = 0.15) -> list[Planned]:
    """The faults of a campaign, a pure function of its arguments. Every kind comes once before any comes again.

    early: share of those that do not wait until the flow has recovered from the one before.
    """
    dice = random.Random(seed)
    order: list[str] = []
    while len(order) < count:
        order += dice.sample(kinds, len(kinds))
    return [Planned(kind, dice.uniform(0.0, 1.5), dice.random() < early) for kind in order[:count]]


def _some_trainer(stand: Stand) -> Trainer | None:
    found = stand.scene.trainers()
    return stand.dice.choice(found) if found else None


def _named(trainer: Trainer) -> str:
    words = _words(trainer.process)
    rank = words[words.index("--process-id") + 1] if "--process-id" in words else "0"
    return f"rank {rank} of {trainer.stage}"


def _words(process: psutil.Process) -> list[str]:
    with suppress(psutil.NoSuchProcess):
        return process.cmdline()
    return []


def _parent(process: psutil.Process) -> psutil.Process | None:
    with suppress(psutil.NoSuchProcess):
        return process.parent()
    return None


def _kill(process: psutil.Process) -> None:
    with suppress(psutil.NoSuchProcess):
        process.kill()


def _signal(gang: list[Trainer], number: int) -> None:
    for trainer in gang:
        with suppress(psutil.NoSuchProcess):
            trainer.process.send_signal(number)


def _gone(gang: list[Trainer]) -> bool:
    for trainer in gang:
        with suppress(psutil.NoSuchProcess):
            if trainer.process.is_running() and trainer.process.status() != psutil.STATUS_ZOMBIE:
                return False
    return True


def _after(seconds: float) -> Callable[[], bool]:
    end = time.monotonic() + seconds
    return lambda: time.monotonic() > end


def _replace(path: Path, content: Mapping[str, object]) -> None:
    scratch = path.with_suffix(".stolen")
    scratch.write_text(json.dumps(content))
    scratch.replace(path)
