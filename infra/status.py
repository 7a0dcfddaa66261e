"""How a run stands, from storage alone: no driver is asked, no cluster is needed, nothing is written.

Manifests say what is finished. plan.json names the stages, and its states count while the driver that wrote them holds
the lease; what that driver cannot say any more is read from the attempts that it left. Seconds left are of the speed
seen, without failures to come; for stages that have not begun, of the operations that they need at that speed, or of
the plan's own estimate where nothing was seen yet.
"""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from infra import lease
from infra.formats import duration
from infra.goodput import Fields, Goodput, History, total, waited
from infra.manifest import Manifest, load
from infra.outline import Outline, Outlined, read_outline
from infra.records import Failed, Step, goodput_of, read_failures, read_history, steps_of
from infra.redact import redact_text

if TYPE_CHECKING:
    from infra.storage import Store

RECENT_STEPS = 20
RECENT_ATTEMPTS = 20
_SAID = {"run": "waiting", "resume": "waiting", "wait": "waiting"}
_OF_DRIVER = ("waiting", "running", "retrying", "failed", "blocked", "stopped")


@dataclass(frozen=True)
class DriverStatus:
    """Who holds the lease, or held it last. alive: as far as one can tell from here. age: seconds since it renewed."""

    host: str
    pid: int
    since: float
    age: float
    alive: bool
    released: bool


@dataclass(frozen=True)
class StageStatus:
    """A stage. Times in seconds; None where not known, or not so for its kind.

    state: finished, running, waiting, retrying, failed, blocked or stopped (unfinished, and no driver at work).
    attempts: of its present series. checkpoint_age: since its last step was trained. step_seconds: recently.
    seconds: of a finished one, without the wait for machines.
    """

    name: str
    kind: str
    state: str
    detail: str = ""
    attempts: int = 0
    step: int | None = None
    steps: int | None = None
    tokens_per_second: float | None = None
    loss: float | None = None
    checkpoint: int | None = None
    checkpoint_age: float | None = None
    step_seconds: float | None = None
    seconds: float | None = None
    seconds_left: float | None = None
    goodput: Goodput | None = None
    failures: tuple[Failed, ...] = ()


@dataclass(frozen=True)
class RunStatus:
    """A run at the moment `at`. seconds_left: of the training stages one after another; None when one is unknown."""

    run: str
    place: str
    curriculum: str
    command: str
    at: float
    driver: DriverStatus | None
    stages: tuple[StageStatus, ...]
    seconds_left: float | None
    goodput: Goodput


def read_status(store: Store, now: float, all_failures: bool = False) -> RunStatus:
    """now: unix seconds. all_failures: those of finished stages too. UserError where no run lies there."""
    outline, driver = read_outline(store), _driver(store, now)
    fresh = driver is not None and driver.alive and outline.written >= driver.since
    with ThreadPoolExecutor(max_workers=8) as pool:
        stages = list(pool.map(lambda stage: _stage(store, stage, driver, fresh, now, all_failures), outline.stages))
    stages = _with_time_left(outline, stages)
    training = [stage for stage in stages if stage.steps is not None]
    left = [stage.seconds_left for stage in training]
    return RunStatus(
        outline.run,
        redact_text(store.url()),
        outline.curriculum,
        outline.command,
        now,
        driver,
        tuple(stages),
        None if None in left else sum(seconds for seconds in left if seconds is not None),
        total(stage.goodput for stage in training if stage.goodput is not None),
    )


def _driver(store: Store, now: float) -> DriverStatus | None:
    holder = lease.holder(store)
    if holder is None:
        return None
    alive = not lease.free(holder, now)
    return DriverStatus(holder.host, holder.pid, holder.since, now - holder.renewed, alive, released=not holder.owner)


def _stage(
    store: Store, outlined: Outlined, driver: DriverStatus | None, fresh: bool, now: float, all_failures: bool
) -> StageStatus:
    name = outlined.name
    found = load(store, name)
    manifest = found[0] if found is not None and found[0].fingerprint == outlined.fingerprint else None
    series = manifest.series if manifest else _newest_series(store, outlined)
    steps = steps_of(store, name, series) if series is not None and outlined.steps is not None else ()
    history = read_history(store, name, series, steps) if series is not None else History()
    own = [claim["attempt"] for claim in history.claims]
    failures = read_failures(store, name, own if all_failures else [] if manifest else own[-RECENT_ATTEMPTS:])
    last = failures[-1] if failures and failures[-1].attempt == own[-1] else None
    state, detail = state_of(outlined, manifest is not None, driver, fresh, len(own), last)
    if state == "running" and (waiting := _waiting(history.gangs, now)) is not None:
        detail = f"waiting for machines for {duration(waiting)}"
    status = StageStatus(
        name,
        outlined.kind,
        state,
        detail,
        attempts=len(own),
        steps=outlined.steps,
        seconds=manifest.provenance.seconds - waited(history.gangs, manifest.attempt) if manifest else None,
        failures=failures,
    )
    if series is None or outlined.steps is None:
        return status
    goodput = goodput_of(history, manifest, now if state in ("running", "retrying") else None)
    return _training(store, status, series, steps, manifest, goodput, now)


def state_of(
    outlined: Outlined,
    finished: bool,
    driver: DriverStatus | None,
    fresh: bool,
    attempts: int,
    last: Failed | None,
) -> tuple[str, str]:
    """(state, detail) of a stage. fresh: plan.json is of the driver that is at work. last: how the newest attempt
    failed, None where it did not."""
    if finished:
        return "finished", ""
    said = _SAID.get(outlined.state, outlined.state)
    if fresh and said in _OF_DRIVER and (attempts == 0 or said == outlined.state):
        return said, outlined.detail
    # A driver that has taken the lease and not yet said what it will do.
    arriving = driver is not None and driver.alive and not fresh
    if last is not None:
        return "retrying" if arriving else "failed", f"{last.kind}: {last.message}"
    if attempts == 0:
        return "waiting", ""
    return "running" if arriving else "stopped", ""


def _newest_series(store: Store, outlined: Outlined) -> int | None:
    own = [number for number, fingerprint in store.series(outlined.name) if fingerprint == outlined.fingerprint]
    return max(own, default=None)


def _waiting(gangs: Sequence[Fields], now: float) -> float | None:
    """Seconds that the newest gang has waited for machines; None when it does not."""
    newest = gangs[-1] if gangs else {}
    if newest.get("granted") is not None or newest.get("ended") is not None or newest.get("asked") is None:
        return None
    return max(0.0, now - float(newest["asked"]))


def _training(
    store: Store,
    status: StageStatus,
    series: int,
    steps: tuple[Step, ...],
    manifest: Manifest | None,
    goodput: Goodput,
    now: float,
) -> StageStatus:
    checkpoints = () if manifest else store.numbers(status.name, "state", str(series), "checkpoints")
    newest = max(checkpoints, default=None)
    trained = next((step for step in reversed(steps) if step.get("step") == newest), None)
    recent = steps[-RECENT_STEPS:]
    speeds = [step["tokens_per_second"] for step in recent if "tokens_per_second" in step]
    paces = [step["seconds"] for step in recent if "seconds" in step]
    return replace(
        status,
        step=steps[-1].get("step") if steps else None,
        loss=steps[-1].get("loss") if steps else None,
        tokens_per_second=statistics.median(speeds) if speeds else None,
        checkpoint=newest,
        checkpoint_age=now - trained["time"] if trained and "time" in trained else None,
        step_seconds=statistics.median(paces) if paces else None,
        goodput=goodput if goodput.wall > 0 else None,
    )


# ---------------------------------------------------------------------- time left


def _with_time_left(outline: Outline, stages: Sequence[StageStatus]) -> list[StageStatus]:
    """Seconds left of every training stage that can be estimated."""
    pace = _pace(outline, stages)
    known = []
    for outlined, stage in zip(outline.stages, stages, strict=True):
        if stage.steps is None:
            known.append(stage)
            continue
        seconds = stage.step_seconds
        if seconds is None and pace is not None and outlined.step_flops is not None:
            seconds = outlined.step_flops * pace
        if seconds is None:
            seconds = outlined.step_seconds
        done = stage.steps if stage.state == "finished" else stage.step or 0
        left = 0.0 if stage.state == "finished" else None if seconds is None else (stage.steps - done) * seconds
        known.append(replace(stage, seconds_left=left))
    return known


def _pace(outline: Outline, stages: Sequence[StageStatus]) -> float | None:
    """Seconds for one operation, of the stages that have trained: their median."""
    seen = [
        stage.step_seconds / outlined.step_flops
        for outlined, stage in zip(outline.stages, stages, strict=True)
        if stage.step_seconds is not None and outlined.step_flops
    ]
    return statistics.median(seen) if seen else None
